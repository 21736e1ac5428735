//! What the process listens on: sockets that systemd passes, or those of the configuration.
//!
//! A unix socket is a file among others. Nothing but a socket on which nobody listens is ever replaced by one of ours, none of
//! ours is open to more people than it is meant for, not for a moment, and at the end we remove it if it is still ours.

pub mod trial;

use std::fmt;
use std::fs::{self, FileType, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use rustix::fs::Mode;
use rustix::io::Errno;
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
        let (mut main, mut files) = (Vec::new(), Vec::new());
        for at in 0..passed.len() {
            // Each is one or the other; asking for the wrong kind leaves it as it is.
            let tcp = passed.take_tcp_listener(at).ok().flatten().map(Socket::Tcp);
            let unix = || passed.take_unix_listener(at).map(|socket| socket.map(Socket::Unix));
            let socket = tcp.map_or_else(unix, |socket| Ok(Some(socket)));
            main.extend(socket.map_err(|error| SocketError::new("LISTEN_FDS", Fault::System(error)))?);
        }
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

impl Socket {
    /// Listens at `endpoint`; the file of a unix socket is of the mode and the group that `server` says.
    fn bind(endpoint: &Endpoint, server: &Server) -> Result<(Self, Option<SocketFile>), Fault> {
        match endpoint {
            Endpoint::Tcp(address) => Ok((Self::Tcp(TcpListener::bind(address).map_err(Fault::System)?), None)),
            Endpoint::Unix(path) => {
                if look_at(path)? == Found::DeadSocket {
                    fs::remove_file(path).map_err(Fault::System)?;
                }
                // Nobody may connect before the file's group and mode are what they are to be. No other thread is there yet
                // that makes files.
                let umask = rustix::process::umask(Mode::RWXU | Mode::RWXG | Mode::RWXO);
                let socket = UnixListener::bind(path);
                rustix::process::umask(umask);
                let socket = socket.map_err(Fault::System)?;
                let file = SocketFile::new(path).map_err(Fault::System)?;
                if let Some(group) = server.unix_group {
                    chown(path, None, Some(group)).map_err(Fault::Group)?;
                }
                fs::set_permissions(path, Permissions::from_mode(server.unix_mode)).map_err(Fault::System)?;
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
        let probe = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            None,
        )?;
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
    /// Device and inode.
    id: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), id: Self::id(path)? })
    }

    fn id(path: &Path) -> io::Result<(u64, u64)> {
        fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if Self::id(&self.path).is_ok_and(|id| id == self.id) {
            // What is left over, the next start replaces.
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
            Fault::Group(_) | Fault::NoSocket(_) | Fault::Collides(_) | Fault::Empty => None,
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
            Fault::Group(_) | Fault::NoSocket(_) | Fault::Collides(_) | Fault::Empty => true,
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
            Fault::Empty => write!(f, "is empty, and systemd passed no socket"),
        }
    }
}

impl std::error::Error for SocketError {}
