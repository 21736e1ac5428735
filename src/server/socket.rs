//! What the process listens on: sockets that systemd passes, or those of the configuration.
//!
//! A unix socket is a file among others. Nothing but a socket on which nobody listens is ever replaced by one of ours, none of
//! ours is open to more people than it is meant for, not for a moment, and at the end we remove it if it is still ours. Whoever
//! looks at such a file and then replaces it holds its folder's lock meanwhile: several processes may start, or end, at once.

pub mod trial;

use std::env;
use std::fmt;
use std::fs::{self, File, FileType, OpenOptions, Permissions, TryLockError};
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use listenfd::ListenFd;
use rustix::fs::{Mode, OFlags, fchmod};
use rustix::io::Errno;
use rustix::net::sockopt::socket_acceptconn;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::config::{Config, Server};
use crate::datahub::transport::Endpoint;

/// A socket to take connections from.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket.
    Unix(UnixListener),
}

/// All sockets of a process.
#[derive(Debug)]
pub struct Sockets {
    /// Where browsers, or the front proxy, come in.
    pub main: Vec<Socket>,
    /// Whether these were passed, so that others may listen there, too.
    pub are_passed: bool,
    /// Where operators ask.
    pub admin: Option<Socket>,
    /// The files of those of ours.
    pub files: Vec<SocketFile>,
}

impl Sockets {
    /// Those that were `passed`, or else those of the configuration, and the operators' one.
    ///
    /// # Errors
    /// [`SocketError`], which names the key.
    pub fn open(mut passed: ListenFd, config: &Config) -> Result<Self, SocketError> {
        let fault = |fault| SocketError::new("LISTEN_FDS", fault);
        let main = (0..passed.len()).map(|at| take_passed(&mut passed, at).map_err(fault));
        let (mut main, mut files) = (main.collect::<Result<Vec<_>, _>>()?, Vec::new());
        let are_passed = !main.is_empty();
        let mut tried = Tried::default();
        if !are_passed {
            for endpoint in &config.server.listen {
                let (socket, file) = tried.note("server.listen", endpoint, Socket::bind(endpoint, &config.server))?;
                main.push(socket);
                files.extend(file);
            }
        }
        if main.is_empty() {
            return Err(SocketError::new("server.listen", Fault::Empty));
        }
        let admin = config
            .admin
            .as_ref()
            .map(|endpoint| tried.note("admin.listen", endpoint, Socket::bind(endpoint, &config.server)));
        let (admin, file) = admin.transpose()?.unzip();
        files.extend(file.flatten());
        Ok(Self { main, are_passed, admin, files })
    }
}

/// The sockets that systemd passes, or whoever does as it does (`sd_listen_fds(3)`). It takes what says so out of the environment,
/// so there must be no other thread yet.
///
/// # Errors
/// [`SocketError`] if nobody can tell how many they are.
pub fn passed() -> Result<ListenFd, SocketError> {
    // What another process was told, and handed on, is not for us.
    if env::var("LISTEN_PID").is_ok_and(|pid| !pid.is_empty() && pid != std::process::id().to_string()) {
        return Ok(ListenFd::empty());
    }
    let count = env::var_os("LISTEN_FDS").unwrap_or_default();
    check_passed_count(&count.to_string_lossy()).map_err(|fault| SocketError::new("LISTEN_FDS", fault))?;
    Ok(ListenFd::from_env())
}

/// Whether it says how many sockets are passed. One that cannot be read would count as none, and another place be served.
fn check_passed_count(text: &str) -> Result<(), Fault> {
    let is_good = text.is_empty() || text.parse().is_ok_and(|count: u16| count <= MAX_PASSED);
    if is_good { Ok(()) } else { Err(Fault::PassedCount) }
}

fn take_passed(passed: &mut ListenFd, at: usize) -> Result<Socket, Fault> {
    let (number, count) = (at + 1, passed.len());
    let fault = |kind| Fault::Passed { number, count, kind };
    // Asking for the wrong kind leaves it as it is.
    let socket = if let Ok(Some(socket)) = passed.take_tcp_listener(at) {
        Socket::Tcp(socket)
    } else if let Ok(Some(socket)) = passed.take_unix_listener(at) {
        Socket::Unix(socket)
    } else {
        return Err(fault(match (passed.take_udp_socket(at), passed.take_unix_datagram(at)) {
            (Ok(Some(_)), _) => "is one for UDP",
            (_, Ok(Some(_))) => "is one for datagrams",
            _ => "is no TCP socket and no unix one",
        }));
    };
    // Also what systemd passes with Accept=yes, and an end of a pair.
    let listens = match &socket {
        Socket::Tcp(socket) => socket_acceptconn(socket),
        Socket::Unix(socket) => socket_acceptconn(socket),
    };
    if listens == Ok(true) { Ok(socket) } else { Err(fault("does not listen")) }
}

impl Socket {
    /// Listens at `endpoint`; the file of a unix socket is of the mode and the group that `server` says.
    fn bind(endpoint: &Endpoint, server: &Server) -> Result<(Self, Option<SocketFile>), Fault> {
        match endpoint {
            Endpoint::Tcp(address) => Ok((Self::Tcp(TcpListener::bind(address).map_err(Fault::System)?), None)),
            Endpoint::Unix(path) => {
                let (socket, file) = bind_unix(path, server.unix_mode, server.unix_group)?;
                Ok((Self::Unix(socket), Some(file)))
            }
        }
    }

    /// Where it listens, for people to read.
    pub fn address(&self) -> String {
        match self {
            Self::Tcp(socket) => socket.local_addr().map_or_else(|_| "?".into(), |address| address.to_string()),
            Self::Unix(socket) => {
                let path = socket.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned));
                format!("unix:{}", path.unwrap_or_default().display())
            }
        }
    }
}

/// The places that a process has tried to listen at, each with the key that names it.
#[derive(Debug, Default)]
struct Tried<'a>(Vec<(&'static str, &'a Endpoint)>);

impl<'a> Tried<'a> {
    /// Whether one of them has the place of `endpoint`, or a part of it.
    fn has(&self, endpoint: &Endpoint) -> bool {
        self.0.iter().any(|(_, other)| overlap(endpoint, other))
    }

    /// What came of listening at `endpoint`. One that is in use may be so by one that was tried before, and then stays so.
    fn note<T>(
        &mut self,
        key: &'static str,
        endpoint: &'a Endpoint,
        outcome: Result<T, Fault>,
    ) -> Result<T, SocketError> {
        let outcome = outcome.map_err(|fault| match fault {
            Fault::System(error) if error.kind() == io::ErrorKind::AddrInUse => {
                match self.0.iter().find(|(_, other)| overlap(endpoint, other)) {
                    Some((other_key, other)) => Fault::Collides(format!("{other_key} {other}")),
                    None => Fault::System(error),
                }
            }
            fault => fault,
        });
        self.0.push((key, endpoint));
        outcome.map_err(|fault| SocketError::new(format!("{key}: {endpoint}"), fault))
    }
}

/// Whether two places are of one file, or of one port with an address in common. `[::]` has those of IPv4 too.
fn overlap(one: &Endpoint, other: &Endpoint) -> bool {
    let (one, other) = match (one, other) {
        (Endpoint::Tcp(one), Endpoint::Tcp(other)) => (one, other),
        (Endpoint::Unix(one), Endpoint::Unix(other)) => return is_same_path(one, other),
        _ => return false,
    };
    let [one, other] =
        [one, other].map(|text| text.to_socket_addrs().map(Iterator::collect::<Vec<_>>).unwrap_or_default());
    let covers = |one: &SocketAddr, other: &SocketAddr| {
        one.ip().to_canonical() == other.ip().to_canonical()
            || one.ip().is_unspecified() && (one.is_ipv6() || other.is_ipv4())
    };
    let is_same =
        |one: &SocketAddr, other: &SocketAddr| one.port() == other.port() && (covers(one, other) || covers(other, one));
    one.iter().any(|one| other.iter().any(|other| is_same(one, other)))
}

/// Whether two paths are of one file, which need not be there.
fn is_same_path(one: &Path, other: &Path) -> bool {
    let folder = |path: &Path| path.parent().and_then(|folder| folder.canonicalize().ok());
    one == other || one.file_name() == other.file_name() && folder(one).is_some_and(|it| folder(other) == Some(it))
}

/// Listens at `path`, where there is nothing, or a socket on which nobody listens.
fn bind_unix(path: &Path, mode: u32, group: Option<u32>) -> Result<(UnixListener, SocketFile), Fault> {
    let lock = FolderLock::take(path)?;
    if look_at(path)? == Found::DeadSocket {
        fs::remove_file(path).map_err(Fault::System)?;
    }
    let listen = || {
        let socket = new_socket(SocketFlags::CLOEXEC)?;
        // Linux gives the file the mode that the socket has. Nobody may connect before group and mode are what they are to be.
        fchmod(&socket, Mode::empty())?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(UnixListener::from(socket))
    };
    let socket = listen().map_err(|error: Errno| Fault::System(error.into()))?;
    let file = SocketFile::new(path).map_err(Fault::System)?;
    // From here on it is a socket on which somebody listens; and after a fault below, its removal takes the lock.
    drop(lock);
    if let Some(group) = group {
        chown(path, None, Some(group)).map_err(Fault::Group)?;
    }
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(Fault::System)?;
    Ok((socket, file))
}

fn new_socket(flags: SocketFlags) -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Held by whoever looks at a socket's file and then changes something in its folder.
#[derive(Debug)]
struct FolderLock {
    /// Closed, it is free. On the folder itself, so that no other file is ever left behind.
    _folder: Option<File>,
}

impl FolderLock {
    /// The lock of the folder of `path`. Nobody needs it for long: after two seconds it is given up.
    fn take(path: &Path) -> Result<Self, Fault> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        // What is no folder is not opened: some files would keep us waiting.
        let flags = OFlags::DIRECTORY.bits().cast_signed();
        let folder = match OpenOptions::new().read(true).custom_flags(flags).open(folder) {
            Ok(folder) => folder,
            // One in which we may make files and not look around. There, and on a file system without locks, we are no worse
            // off than without.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(Self { _folder: None }),
            Err(error) => return Err(Fault::System(error)),
        };
        let until = Instant::now() + LOCK_TIMEOUT;
        loop {
            match folder.try_lock() {
                Err(TryLockError::WouldBlock) if Instant::now() < until => thread::sleep(LOCK_INTERVAL),
                Err(TryLockError::WouldBlock) => return Err(Fault::Locked),
                Ok(()) | Err(TryLockError::Error(_)) => return Ok(Self { _folder: Some(folder) }),
            }
        }
    }
}

/// What is at a path where a socket of ours may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// Nothing.
    Nothing,
    /// A socket on which nobody listens, mostly one that a process left which died.
    DeadSocket,
}

fn look_at(path: &Path) -> Result<Found, Fault> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(Fault::System(error)),
    };
    if !kind.is_socket() {
        return Err(Fault::NoSocket(name_of(kind)));
    }
    // Whoever listens and is too busy to answer makes us wait no more than whoever answers.
    let connected = SocketAddrUnix::new(path).and_then(|address| {
        let probe = new_socket(SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
        rustix::net::connect(probe, &address)
    });
    match connected {
        Err(Errno::CONNREFUSED) => Ok(Found::DeadSocket),
        Err(Errno::PROTOTYPE) => Err(Fault::NoSocket("a socket of another kind, such as one for datagrams")),
        Ok(()) | Err(Errno::AGAIN) => Err(Fault::System(Errno::ADDRINUSE.into())),
        Err(error) => Err(Fault::System(error.into())),
    }
}

fn name_of(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a folder"
    } else if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_file() {
        "a file"
    } else {
        "no socket"
    }
}

/// The file of a socket of ours, removed when dropped, unless another has taken its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    id: FileId,
}

/// Device, inode and birth: a file system may give the inode of a file that is gone to the next one.
type FileId = (u64, u64, Option<SystemTime>);

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), id: Self::id(path)? })
    }

    fn id(path: &Path) -> io::Result<FileId> {
        fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino(), metadata.created().ok()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Without the lock another start may just be replacing it. What is left over, the next start replaces.
        let Ok(_lock) = FolderLock::take(&self.path) else { return };
        if Self::id(&self.path).is_ok_and(|id| id == self.id) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A socket that cannot be listened on: which key names it, where it is, and why.
#[derive(Debug)]
pub struct SocketError {
    place: String,
    fault: Fault,
}

#[derive(Debug)]
enum Fault {
    System(io::Error),
    Group(io::Error),
    NoSocket(&'static str),
    /// With which of ours.
    Collides(String),
    /// Something else holds the folder's lock.
    Locked,
    /// `LISTEN_FDS` is no number.
    PassedCount,
    /// One of the sockets that were passed is none to take connections from.
    Passed {
        number: usize,
        count: usize,
        kind: &'static str,
    },
    Empty,
}

impl SocketError {
    fn new(place: impl Into<String>, fault: Fault) -> Self {
        Self { place: place.into(), fault }
    }

    /// What the system said, if it was the system.
    pub fn kind(&self) -> Option<io::ErrorKind> {
        match &self.fault {
            Fault::System(error) => Some(error.kind()),
            _ => None,
        }
    }

    /// Whether it fails the next time as well, until somebody changes something. Whoever listens there now may end, an address may
    /// come with a network, a name with DNS.
    pub fn is_lasting(&self) -> bool {
        use io::ErrorKind::{
            InvalidFilename, InvalidInput, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem,
        };

        match &self.fault {
            Fault::System(error) => {
                // `InvalidInput` is a path that is too long.
                let kinds =
                    [InvalidFilename, InvalidInput, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem];
                kinds.contains(&error.kind()) || Errno::from_io_error(error) == Some(Errno::AFNOSUPPORT)
            }
            Fault::Locked => false,
            _ => true,
        }
    }
}

impl fmt::Display for SocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.place)?;
        match &self.fault {
            Fault::System(error) => match error.kind() {
                io::ErrorKind::AddrInUse => f.write_str(
                    "is in use: end what listens there (`ss -ltnp` or `ss -lxp` says what it is), or name another place",
                ),
                io::ErrorKind::NotFound => f.write_str("cannot be listened on: its folder is not there: make it"),
                io::ErrorKind::NotADirectory => {
                    f.write_str("cannot be listened on: a part of its path is no folder: name another place")
                }
                io::ErrorKind::AddrNotAvailable => f.write_str(
                    "is no address of this machine, or not yet: `ip address` lists those it has",
                ),
                _ if error.raw_os_error().is_none() && error.kind() != io::ErrorKind::InvalidInput => {
                    write!(f, "cannot be looked up, which may pass: see to DNS, or write an IP address: {error}")
                }
                io::ErrorKind::PermissionDenied => f.write_str(
                    "is not for this user: ports below 1024 and others' folders are for root, or for systemd to open",
                ),
                _ => write!(f, "cannot be listened on: {error}"),
            },
            Fault::Group(error) => write!(f, "cannot be given to the group that server.unix_group names: {error}"),
            Fault::NoSocket(kind) => {
                write!(f, "is {kind}: only a socket on which nobody listens is replaced, and nothing was removed")
            }
            Fault::Collides(other) => {
                write!(f, "is the same place as {other}, or a part of it: leave out one of the two ([::] takes IPv4, too)")
            }
            Fault::Locked => f.write_str(
                "cannot be listened on: another process holds the lock of its folder (`lslocks` says which): end it, or try again",
            ),
            Fault::PassedCount => write!(f, "must be the number of sockets that are passed, {MAX_PASSED} at most"),
            Fault::Passed { number, count, kind } => write!(
                f,
                "passes what nobody can connect to: number {number} of {count} {kind}; a socket unit has ListenStream= and \
                 Accept=no for each"
            ),
            Fault::Empty => write!(f, "is empty, and systemd passed no socket"),
        }
    }
}

impl std::error::Error for SocketError {}

/// How many sockets may be passed.
const MAX_PASSED: u16 = 1000;
/// How many connections may wait at a unix socket: as many as the system lets.
const BACKLOG: i32 = -1;
/// How long a folder's lock is waited for, and how often it is tried.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
const LOCK_INTERVAL: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::sync::Barrier;

    use rustix::fs::{CWD, mknodat};

    use super::*;

    /// A folder of one test, which is gone afterwards.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = env::temp_dir().join(format!("{name}-{}", std::process::id()));
            fs::create_dir_all(&path).expect("a folder");
            Self(path)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn bind(path: &Path) -> Result<(UnixListener, SocketFile), String> {
        bind_unix(path, 0o600, None).map_err(|fault| SocketError::new("here", fault).to_string())
    }

    #[test]
    fn a_dead_socket_is_replaced_and_nothing_else_is_touched() {
        let folder = Folder::new("found");
        drop(UnixListener::bind(folder.path("dead")).expect("a short path"));
        let _living = UnixListener::bind(folder.path("living")).expect("a short path");
        let _datagrams = UnixDatagram::bind(folder.path("datagrams")).expect("a short path");
        fs::write(folder.path("file"), "precious").expect("a file");
        fs::create_dir(folder.path("folder")).expect("a folder");
        mknodat(CWD, folder.path("pipe"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).expect("a pipe");
        for (link, to) in [("dangling", "nowhere"), ("link-to-a-file", "file"), ("link-to-a-dead-socket", "dead")] {
            symlink(to, folder.path(link)).expect("a link");
        }
        for (name, expected) in [
            ("file", "here is a file"),
            ("folder", "here is a folder"),
            ("dangling", "here is a symbolic link"),
            ("link-to-a-file", "here is a symbolic link"),
            ("link-to-a-dead-socket", "here is a symbolic link"),
            ("living", "here is in use"),
            ("datagrams", "here is a socket of another kind"),
            ("missing/socket", "here cannot be listened on: its folder is not there"),
            ("file/socket", "here cannot be listened on: a part of its path is no folder"),
            ("pipe/socket", "here cannot be listened on: a part of its path is no folder"),
        ] {
            let path = folder.path(name);
            let before = SocketFile::id(&path).ok();
            let told = bind(&path).expect_err(name);
            assert!(told.starts_with(expected), "{name}: {told}");
            assert_eq!(SocketFile::id(&path).ok(), before, "{name}");
        }
        assert_eq!(fs::read(folder.path("file")).expect("it is there"), b"precious");
        for name in ["dead", "new"] {
            let path = folder.path(name);
            let (_socket, file) = bind(&path).expect(name);
            UnixStream::connect(&path).expect(name);
            assert_eq!(fs::metadata(&path).expect(name).mode() & 0o777, 0o600);
            assert!(bind(&path).is_err_and(|told| told.starts_with("here is in use")), "{name}");
            drop(file);
            assert!(!path.exists(), "{name}");
        }
    }

    #[test]
    fn what_took_a_sockets_place_stays() {
        let folder = Folder::new("taken");
        let path = folder.path("socket");
        let (_socket, file) = bind(&path).expect("nothing is there");
        let _other = UnixListener::bind(folder.path("other")).expect("a short path");
        fs::rename(folder.path("other"), &path).expect("a folder of our own");
        drop(file);
        assert!(UnixStream::connect(&path).is_ok());
    }

    /// Each start finds the same dead socket, and replaces it at the same moment.
    #[test]
    fn of_starts_at_once_one_gets_the_socket_and_keeps_it() {
        let folder = Folder::new("race");
        let path = folder.path("socket");
        for round in 0..200 {
            drop(UnixListener::bind(&path).expect("nothing is there"));
            let barrier = Barrier::new(4);
            let start = || {
                barrier.wait();
                bind(&path)
            };
            let bound = thread::scope(|scope| {
                let starts = [(); 4].map(|()| scope.spawn(start));
                starts.map(|thread| thread.join().expect("no panic"))
            });
            let living: Vec<_> = bound.iter().flatten().collect();
            assert_eq!(living.len(), 1, "round {round}: {bound:?}");
            assert!(UnixStream::connect(&path).is_ok(), "round {round}");
        }
    }

    /// An end removes what is its own, and not what a start puts there at that moment.
    #[test]
    fn an_end_takes_nothing_from_a_start() {
        let folder = Folder::new("end");
        let path = folder.path("socket");
        for round in 0..50 {
            let (socket, file) = bind(&path).expect("nothing is there");
            drop(socket);
            // Longer than a tick of the file system's clock: no process that serves ends sooner.
            thread::sleep(Duration::from_millis(10));
            let barrier = Barrier::new(2);
            let new = thread::scope(|scope| {
                let start = scope.spawn(|| {
                    barrier.wait();
                    bind(&path)
                });
                barrier.wait();
                drop(file);
                start.join().expect("no panic")
            });
            assert!(new.is_ok() && UnixStream::connect(&path).is_ok(), "round {round}: {new:?}");
        }
    }

    #[test]
    fn whoever_holds_the_lock_is_not_waited_for_for_ever() {
        let folder = Folder::new("lock");
        let path = folder.path("socket");
        let lock = FolderLock::take(&path).expect("it is free");
        let told = bind(&path).expect_err("it is held");
        assert!(told.contains("holds the lock of its folder"), "{told}");
        drop(lock);
        assert!(bind(&path).is_ok());
    }

    #[test]
    fn how_many_sockets_are_passed_is_a_number() {
        for text in ["", "0", "1", "1000"] {
            assert!(check_passed_count(text).is_ok(), "{text}");
        }
        for text in ["two", "-1", "1.0", "1001", "4000000000", " 1", "1 "] {
            assert!(check_passed_count(text).is_err(), "{text}");
        }
    }
}
