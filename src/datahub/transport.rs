//! A connection to a DataHUB: TCP, a unix socket or a tunnel through a proxy, with TLS over it where the address says `https`.
//!
//! Both ways out go through here, the proxy's and the back channel's, so that certificates are checked in one place. No
//! proxy of the environment is asked, no address but the configured one is ever dialled. A name with several IP addresses
//! is reached as long as one of them answers (Happy Eyeballs, RFC 8305).

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use openidconnect::HttpRequest;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use crate::access_log::{self, Event, LastSaid};
use crate::datahub::REPORT_INTERVAL;
use crate::datahub::health::Outcome;
use crate::datahub::tls_error::{self, TlsError};
use crate::http::client::Stream;
use crate::http::tunnel::{self, TunnelError};

/// Where one DataHUB is: what it calls itself, and how it is reached.
#[derive(Debug, Clone)]
pub struct Address {
    url: Url,
    host_header: String,
    connect_to: Endpoint,
    tunnel: Option<Tunnel>,
    tls: Option<(ServerName<'static>, Arc<ClientConfig>)>,
    memory: Arc<Memory>,
}

/// What is dialled in the place of an address, and where it is asked to lead.
#[derive(Debug, Clone)]
struct Tunnel {
    proxy: OutgoingProxy,
    /// `host:port`, which the proxy looks up.
    authority: String,
}

/// What all clones of an address remember.
#[derive(Debug)]
struct Memory {
    /// The IP address that worked last, which is tried first.
    last_good: Mutex<Option<SocketAddr>>,
    /// When it was last said that the TLS there is not right.
    tls_reported: LastSaid,
    /// One permit for each thread that may look up the name.
    lookups: Arc<Semaphore>,
}

impl Default for Memory {
    fn default() -> Self {
        let (last_good, tls_reported) = Default::default();
        Self { last_good, tls_reported, lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)) }
    }
}

impl Address {
    /// The address `url`, reached at `connect_to` where it is not to be dialled as it says; `tls` is for `https`.
    ///
    /// # Errors
    /// [`AddressError`] for a URL that cannot be a DataHUB's.
    pub fn new(url: Url, connect_to: Option<Endpoint>, tls: Arc<ClientConfig>) -> Result<Self, AddressError> {
        let has_tls = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(AddressError::Scheme),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(AddressError::Credentials);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(AddressError::QueryOrFragment);
        }
        let host = url.host().ok_or(AddressError::Scheme)?;
        let port = url.port_or_known_default().ok_or(AddressError::Scheme)?;
        let host_header = url.port().map_or_else(|| host.to_string(), |port| format!("{host}:{port}"));
        let name = match &host {
            Host::Domain(domain) => ServerName::try_from((*domain).to_owned()).map_err(|_| AddressError::Scheme)?,
            Host::Ipv4(ip) => ServerName::from(std::net::IpAddr::from(*ip)),
            Host::Ipv6(ip) => ServerName::from(std::net::IpAddr::from(*ip)),
        };
        let connect_to = connect_to.unwrap_or_else(|| Endpoint::Tcp(format!("{host}:{port}")));
        let tls = has_tls.then_some((name, tls));
        Ok(Self { connect_to, tunnel: None, host_header, tls, url, memory: Arc::default() })
    }

    /// The same, reached through `proxy`. TLS is between us and the DataHUB all the same.
    ///
    /// # Errors
    /// [`AddressError::SocketThroughProxy`] for a unix socket.
    pub fn through(self, proxy: OutgoingProxy) -> Result<Self, AddressError> {
        let Endpoint::Tcp(authority) = self.connect_to else { return Err(AddressError::SocketThroughProxy) };
        let connect_to = Endpoint::Tcp(proxy.0.clone());
        Ok(Self { connect_to, tunnel: Some(Tunnel { proxy, authority }), ..self })
    }

    /// The proxy that it is reached through.
    pub fn proxy(&self) -> Option<&OutgoingProxy> {
        self.tunnel.as_ref().map(|tunnel| &tunnel.proxy)
    }

    /// The address as configured, without a slash at its end: what GitLab writes into its own links.
    pub fn as_str(&self) -> &str {
        self.url.as_str().trim_end_matches('/')
    }

    /// Its path without a slash at its end: GitLab's relative URL root, mostly empty.
    pub fn root(&self) -> &str {
        self.url.path().trim_end_matches('/')
    }

    /// The value of the Host field.
    pub fn host_header(&self) -> &str {
        &self.host_header
    }

    /// Whether `url` is at this address: the same scheme, host and port.
    pub fn is_origin_of(&self, url: &Url) -> bool {
        self.url.origin() == url.origin()
    }

    /// Of `addresses` the one that a request is for, and its URL.
    ///
    /// # Errors
    /// [`ForeignAddress`] if none of them is.
    pub(super) fn of<'a>(addresses: &'a [Self], request: &HttpRequest) -> Result<(&'a Self, Url), ForeignAddress> {
        let url = Url::parse(&request.uri().to_string()).map_err(|_| ForeignAddress)?;
        let address = addresses.iter().find(|address| address.is_origin_of(&url)).ok_or(ForeignAddress)?;
        Ok((address, url))
    }

    /// Whether this is its host, in whatever case, with or without the root's dot.
    pub fn has_host(&self, host: &str) -> bool {
        let own = self.url.host_str().unwrap_or_default();
        own.trim_end_matches('.').eq_ignore_ascii_case(host.strip_suffix('.').unwrap_or(host))
    }

    /// Whether `url` is at this address, in whatever scheme: its host and port, or another of the two usual ports if it has
    /// one of them.
    pub fn is_at(&self, url: &Url) -> bool {
        let ports = [&self.url, url].map(|url| url.port_or_known_default().unwrap_or(0));
        let is_same_port = ports[0] == ports[1] || ports.iter().all(|port| matches!(port, 80 | 443));
        is_same_port && url.host_str().is_some_and(|host| self.has_host(host))
    }

    /// A new connection, TLS included, which may take `limit`.
    ///
    /// # Errors
    /// [`ConnectError`]
    pub async fn connect(&self, limit: Duration) -> Result<Stream, ConnectError> {
        // In a box, since nearly every call has a connection already and should not hold room for making one.
        let connecting = Box::pin(async {
            match &self.connect_to {
                Endpoint::Tcp(name) => {
                    let addresses = self.look_up(name).await.map_err(|error| self.unreachable(error))?;
                    self.connect_to_any(addresses).await
                }
                Endpoint::Unix(path) => self.secure(Box::new(connect_unix(path).await?)).await,
            }
        });
        let connected = timeout(limit, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        connected.map_err(ConnectError::from)
    }

    /// The IP addresses of `host:port`. Where a name server is silent, the thread that asks goes on after everybody has given
    /// up. Threads are for all DataHUBs, so only a few ask for one, and whoever comes then waits for one of them.
    async fn look_up(&self, name: &str) -> io::Result<std::vec::IntoIter<SocketAddr>> {
        if let Ok(address) = name.parse() {
            return Ok(vec![address].into_iter());
        }
        let permit = Arc::clone(&self.memory.lookups).acquire_owned().await.map_err(io::Error::other)?;
        let name = name.to_owned();
        let (sender, found) = oneshot::channel();
        let lookup = thread::Builder::new().name("lookup".to_owned()).spawn(move || {
            let found = name.to_socket_addrs();
            drop(permit);
            let _ = sender.send(found);
        });
        // The runtime's own threads would do, but it panics where the system gives it none. That is a shortage of ours.
        lookup.map_err(|error| io::Error::new(io::ErrorKind::OutOfMemory, error))?;
        found.await.map_err(io::Error::other)?
    }

    /// A connection to the first of these IP addresses that answers. Each but the first has to wait until the one before has
    /// failed, or has had its head start.
    async fn connect_to_any(&self, addresses: impl Iterator<Item = SocketAddr>) -> io::Result<Stream> {
        let mut addresses = in_order(addresses, *self.last_good());
        let (mut attempts, mut failure) = (FuturesUnordered::new(), None);
        loop {
            attempts.extend(addresses.pop_front().map(|address| self.connect_to_one(address)));
            let head_start = if addresses.is_empty() { Duration::MAX } else { HEAD_START };
            match timeout(head_start, attempts.next()).await {
                Ok(Some(Ok((stream, address)))) => {
                    *self.last_good() = Some(address);
                    return Ok(stream);
                }
                // What is said about a certificate, or about ourselves, is worth more than that nobody was there.
                Ok(Some(Err(error))) => failure = failure.filter(tells_more).or(Some(error)),
                Ok(None) => return Err(failure.unwrap_or_else(|| io::ErrorKind::NotFound.into())),
                Err(_) => {}
            }
        }
    }

    async fn connect_to_one(&self, address: SocketAddr) -> io::Result<(Stream, SocketAddr)> {
        let socket = TcpStream::connect(address).await.map_err(|error| match error.kind() {
            // What a machine without IPv6 says; elsewhere it means that no port is left.
            io::ErrorKind::AddrNotAvailable if address.is_ipv6() => io::ErrorKind::NetworkUnreachable.into(),
            _ => error,
        });
        let socket = socket.map_err(|error| self.unreachable(error))?;
        socket.set_nodelay(true)?;
        let socket: Stream = match &self.tunnel {
            None => Box::new(socket),
            Some(Tunnel { proxy, authority }) => {
                let opened = tunnel::open(Box::new(socket), authority).await;
                opened.map_err(|reason| io::Error::other(ProxyError { proxy: proxy.clone(), reason }))?
            }
        };
        Ok((self.secure(socket).await?, address))
    }

    /// What it means that nobody was there: if a proxy was to be, that it was not. Our own want says nothing about it.
    fn unreachable(&self, error: io::Error) -> io::Error {
        match self.proxy() {
            Some(proxy) if !is_own_shortage(&error) => {
                io::Error::other(ProxyError { proxy: proxy.clone(), reason: error.into() })
            }
            _ => error,
        }
    }

    /// Puts TLS over a socket if the address says so.
    async fn secure(&self, socket: Stream) -> io::Result<Stream> {
        let Some((name, config)) = &self.tls else { return Ok(socket) };
        let tls = TlsConnector::from(Arc::clone(config)).connect(name.clone(), socket).await;
        let explain = |error| tls_error::explain(error, self.proxy().map(ToString::to_string).as_deref());
        Ok(Box::new(tls.map_err(explain).inspect_err(|error| self.report_tls(error))?))
    }

    /// Says what is wrong with the TLS there, if it is that; once a minute, since the proxy tries again and again.
    fn report_tls(&self, error: &io::Error) {
        let is_tls = error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<TlsError>);
        if is_tls && self.memory.tls_reported.is_due(REPORT_INTERVAL, Instant::now()) {
            access_log::process_event(Event::DatahubTlsFailed, &format!("{}: {error}", self.as_str()));
        }
    }

    fn last_good(&self) -> MutexGuard<'_, Option<SocketAddr>> {
        self.memory.last_good.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection to a unix socket. One at which too many wait to be accepted refuses at once, where TCP would wait.
async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(BACKLOG_PAUSE).await,
            outcome => return outcome,
        }
    }
}

/// The order in which IP addresses are tried (RFC 8305 section 4): as the resolver gives them, but both families in turn;
/// the one that worked last comes first.
fn in_order(addresses: impl Iterator<Item = SocketAddr>, last_good: Option<SocketAddr>) -> VecDeque<SocketAddr> {
    let mut addresses = addresses.peekable();
    let is_first_ipv6 = addresses.peek().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses.partition(|address| address.is_ipv6() == is_first_ipv6);
    let mut order = VecDeque::with_capacity(first.len() + second.len());
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    while first.len() + second.len() > 0 {
        order.extend(first.next().into_iter().chain(second.next()));
    }
    let last_good = order.iter().position(|address| Some(*address) == last_good).and_then(|at| order.remove(at));
    if let Some(address) = last_good {
        order.push_front(address);
    }
    order.truncate(MAX_ADDRESSES);
    order
}

/// The DataHUB's metadata name an address that is not its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the DataHUB's metadata lead to another address: see that GitLab's external_url is the DataHUB's url")]
pub struct ForeignAddress;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// We have no file descriptor, port, thread or memory left. That says nothing about the DataHUB.
    #[error(
        "this process has no file descriptor, port, thread or memory left: raise its limits (LimitNOFILE, TasksMax)"
    )]
    OutOfResources(#[source] io::Error),
    /// The DataHUB's certificate is not right, or its TLS.
    #[error("its TLS is not to be trusted")]
    Untrusted(#[source] io::Error),
    /// Nobody answered in time.
    #[error("connecting took longer than timeouts.connect: see that this machine reaches its url, or the proxy of via")]
    Timeout,
    /// The proxy on the way gave no connection.
    #[error("there is no way through {proxy}: see that it lets the gateway CONNECT to the host and port of the url")]
    Proxy {
        /// The one of `via`.
        proxy: OutgoingProxy,
        /// What it did instead.
        #[source]
        reason: TunnelError,
    },
    /// Nobody is there, as far as the network knows.
    #[error("cannot connect: check its url and connect, and the network between")]
    Failed(#[source] io::Error),
}

impl ConnectError {
    /// What it says about the DataHUB, if anything.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        (!matches!(self, Self::OutOfResources(_))).then_some(Outcome::Unreachable)
    }
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        let error = match error.downcast::<ProxyError>() {
            Ok(ProxyError { proxy, reason }) => return Self::Proxy { proxy, reason },
            Err(error) => error,
        };
        match error.kind() {
            io::ErrorKind::InvalidData => Self::Untrusted(error),
            io::ErrorKind::TimedOut => Self::Timeout,
            _ if is_own_shortage(&error) => Self::OutOfResources(error),
            _ => Self::Failed(error),
        }
    }
}

/// [`ConnectError::Proxy`], as long as it is one of the errors of several attempts.
#[derive(Debug, thiserror::Error)]
#[error("{proxy}: {reason}")]
struct ProxyError {
    proxy: OutgoingProxy,
    reason: TunnelError,
}

/// Whether an error says more than that nobody was there.
fn tells_more(error: &io::Error) -> bool {
    let proxy = error.get_ref().and_then(|error| error.downcast_ref::<ProxyError>());
    proxy.is_some_and(|error| !matches!(error.reason, TunnelError::Unreachable(_)))
        || error.kind() == io::ErrorKind::InvalidData
        || is_own_shortage(error)
}

/// Whether it is we who have nothing left. The resolver hides that behind words of its own; whoever can open no file then
/// has no file descriptor.
fn is_own_shortage(error: &io::Error) -> bool {
    let is_shortage = |error: &io::Error| {
        matches!(error.kind(), io::ErrorKind::OutOfMemory | io::ErrorKind::AddrNotAvailable)
            || matches!(error.raw_os_error(), Some(ENFILE | EMFILE | ENOBUFS))
    };
    is_shortage(error)
        || error.raw_os_error().is_none() && std::fs::File::open("/dev/null").is_err_and(|error| is_shortage(&error))
}

/// How long an IP address is tried before the next one is, too (RFC 8305 section 5).
const HEAD_START: Duration = Duration::from_millis(250);
/// How long to wait for a unix socket's listener.
const BACKLOG_PAUSE: Duration = Duration::from_millis(10);
/// How many IP addresses of one name are tried.
const MAX_ADDRESSES: usize = 16;
/// How many threads look up one name at a time.
const MAX_LOOKUPS: usize = 8;
/// The numbers of Linux, which std has no kinds for.
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;
const ENOBUFS: i32 = 105;

/// A place to dial or to listen at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `host:port`.
    Tcp(String),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl FromStr for Endpoint {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                _ if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') => {
                    Err(AddressError::Endpoint)
                }
                _ if path.len() > MAX_SOCKET_PATH_BYTES => Err(AddressError::SocketPath),
                _ => Ok(Self::Unix(path.into())),
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or(AddressError::Endpoint)?;
        let is_port = !port.starts_with('+') && port.parse::<u16>().is_ok();
        match host {
            "*" if is_port => Err(AddressError::Wildcard),
            _ if is_port && is_host(host) => Ok(Self::Tcp(text.to_owned())),
            _ => Err(AddressError::Endpoint),
        }
    }
}

/// Whether a text can be a host's name or address.
fn is_host(text: &str) -> bool {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let is_name = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    // Behind `%` stands the interface of an address that is its own alone.
    let (address, _) = bare.split_once('%').unwrap_or((bare, ""));
    !text.is_empty() && is_name(text) || address.parse::<std::net::Ipv6Addr>().is_ok()
}

/// A proxy between us and a DataHUB, as `http://host:port`. It knows the gateway by its address: no password is kept for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingProxy(String);

impl FromStr for OutgoingProxy {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let url = Url::parse(text).map_err(|_| AddressError::Proxy)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(AddressError::ProxyCredentials);
        }
        let is_place = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        match (url.scheme(), url.host(), url.port_or_known_default()) {
            ("http", Some(host), Some(port)) if is_place => Ok(Self(format!("{host}:{port}"))),
            _ => Err(AddressError::Proxy),
        }
    }
}

impl fmt::Display for OutgoingProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.0)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why a text is not a DataHUB's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither `http` nor `https`, or no host.
    #[error("must be an http:// or https:// address")]
    Scheme,
    /// A user or a password in it.
    #[error("must hold no user and no password")]
    Credentials,
    /// A query or a fragment in it.
    #[error("must hold no query and no fragment")]
    QueryOrFragment,
    /// A route that is neither.
    #[error("must be host:port or unix:/path")]
    Endpoint,
    /// An asterisk for every address.
    #[error("must name an address: 0.0.0.0 is every one of IPv4 and [::] every one, such as 0.0.0.0:8000")]
    Wildcard,
    /// More than the system takes.
    #[error("must be a shorter path: that of a unix socket has 107 bytes at most")]
    SocketPath,
    /// No proxy of ours.
    #[error(
        "must be http://host:port: the proxy is asked by CONNECT, and TLS to the DataHUB goes through it end to end"
    )]
    Proxy,
    /// One that wants a password.
    #[error("must hold no user and no password: let the proxy know the gateway by its address")]
    ProxyCredentials,
    /// A unix socket behind a proxy.
    #[error("must not be a unix socket where via is set: it is on this machine")]
    SocketThroughProxy,
}

/// Trust for connections to DataHUBs: the authorities of `ca_file` (PEM) and no others, or those of the system, or, where
/// the system has none (an empty container), those of Mozilla. TLS 1.2 or newer, HTTP/1.1 only.
///
/// # Errors
/// [`CaFileError`] when `ca_file` holds no certificate, or one that is none.
pub fn tls_config(ca_file: Option<&[u8]>) -> Result<Arc<ClientConfig>, CaFileError> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    let mut roots = rustls::RootCertStore::empty();
    if let Some(pem) = ca_file {
        for certificate in CertificateDer::pem_slice_iter(pem) {
            roots.add(certificate.map_err(|_| CaFileError)?).map_err(|_| CaFileError)?;
        }
        if roots.is_empty() {
            return Err(CaFileError);
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring supports the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A file of certificates that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("holds no PEM certificate of an authority")]
pub struct CaFileError;

/// Longest path of a unix socket, in bytes: `sun_path` of unix(7) less the zero at its end.
const MAX_SOCKET_PATH_BYTES: usize = 107;

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket, UnixSocket};

    use super::*;

    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(test)
    }

    /// An address that swallows packets as long as this is kept: so many wait there to be accepted that no more may.
    async fn dead() -> (SocketAddr, TcpListener, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let (listener, mut waiting) = (socket.listen(1).expect("it is bound"), Vec::new());
        let address = listener.local_addr().expect("it is bound");
        while let Ok(connected) = timeout(Duration::from_millis(100), TcpStream::connect(address)).await {
            waiting.push(connected.expect("somebody listens"));
        }
        (address, listener, waiting)
    }

    #[test]
    fn of_several_addresses_one_that_works_is_enough() {
        run(async {
            let (dead, _listener, _waiting) = dead().await;
            let live = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let closed =
                TcpListener::bind("127.0.0.1:0").await.and_then(|gone| gone.local_addr()).expect("a free port");
            let live = live.local_addr().expect("it is bound");
            let hub = address("http://a.example").expect("an address");
            let connect = async |addresses: Vec<SocketAddr>| {
                let (begun, limit) = (Instant::now(), Duration::from_millis(800));
                let stream = timeout(limit, hub.connect_to_any(addresses.into_iter())).await;
                (stream.map(|stream| stream.is_ok()), begun.elapsed())
            };
            let (is_connected, took) = connect(vec![dead, live]).await;
            assert_eq!(is_connected, Ok(true), "the dead one is an outage");
            assert!(took >= HEAD_START, "{took:?}: it had no head start");
            for (case, addresses) in [
                ("the last that worked comes first", vec![dead, live]),
                ("one that refuses costs nothing", vec![closed, live]),
            ] {
                let (is_connected, took) = connect(addresses).await;
                assert_eq!((is_connected, took < HEAD_START), (Ok(true), true), "{case}: {took:?}");
            }
            assert_eq!(connect(vec![closed, closed]).await.0, Ok(false), "nobody is there");
            assert!(connect(vec![dead, closed]).await.0.is_err(), "one may yet answer");
            let hub = Address { connect_to: Endpoint::Tcp(dead.to_string()), ..hub.clone() };
            let outcome = hub.connect(Duration::from_millis(50)).await;
            assert!(matches!(outcome, Err(ConnectError::Timeout)), "{outcome:?}");
        });
    }

    #[test]
    fn a_unix_socket_at_which_many_wait_is_waited_for() {
        run(async {
            let path = std::env::temp_dir().join(format!("arcmanager-gateway-backlog-{}.sock", std::process::id()));
            let _ = std::fs::remove_file(&path);
            let socket = UnixSocket::new_stream().expect("a socket");
            socket.bind(&path).expect("a path of our own");
            let listener = socket.listen(1).expect("it is bound");
            let connect_to = Endpoint::Unix(path.clone());
            let hub = Address { connect_to, ..address("http://a.example").expect("an address") };
            let mut waiting = Vec::new();
            let full = loop {
                match hub.connect(Duration::from_millis(50)).await {
                    Ok(stream) => waiting.push(stream),
                    Err(error) => break error,
                }
            };
            assert!(matches!(full, ConnectError::Timeout), "{full:?}");
            let (connected, accepted) = tokio::join!(hub.connect(Duration::from_secs(5)), listener.accept());
            std::fs::remove_file(&path).expect("it is there");
            assert!(connected.is_ok() && accepted.is_ok(), "{connected:?}");
        });
    }

    #[test]
    fn both_families_are_tried_in_turn_and_the_last_that_worked_first() {
        let parse = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let [six_a, six_b, six_c] = ["[::a]:1", "[::b]:1", "[::c]:1"].map(parse);
        let [four_a, four_b] = ["192.0.2.1:1", "192.0.2.2:1"].map(parse);
        for (given, last_good, order) in [
            (vec![six_a, six_b, six_c, four_a, four_b], None, vec![six_a, four_a, six_b, four_b, six_c]),
            (vec![four_a, six_a, six_b], None, vec![four_a, six_a, six_b]),
            (vec![four_a, four_b], None, vec![four_a, four_b]),
            (vec![six_a, six_b, four_a, four_b], Some(four_b), vec![four_b, six_a, four_a, six_b]),
            (vec![six_a, four_a], Some(four_b), vec![six_a, four_a]),
            (vec![], Some(four_b), vec![]),
            (vec![six_a; 100], None, vec![six_a; MAX_ADDRESSES]),
            ([vec![six_a; 15], vec![four_a; 3]].concat(), None, [[six_a, four_a].repeat(3), vec![six_a; 10]].concat()),
        ] {
            assert_eq!(in_order(given.iter().copied(), last_good), order, "{given:?}");
        }
    }

    #[test]
    fn our_own_want_is_not_the_datahubs_fault() {
        let outcome = |error: io::Error| ConnectError::from(error).outcome();
        for ours in [ENFILE, EMFILE, ENOBUFS, 12, 99] {
            assert_eq!(outcome(io::Error::from_raw_os_error(ours)), None, "{ours}");
        }
        for theirs in [101, 104, 110, 111, 113] {
            assert_eq!(outcome(io::Error::from_raw_os_error(theirs)), Some(Outcome::Unreachable), "{theirs}");
        }
        for kind in [io::ErrorKind::InvalidData, io::ErrorKind::TimedOut, io::ErrorKind::UnexpectedEof] {
            assert_eq!(outcome(kind.into()), Some(Outcome::Unreachable), "{kind}");
        }
    }

    fn address(url: &str) -> Result<Address, AddressError> {
        let tls = tls_config(None).expect("the system's roots, or Mozilla's");
        Address::new(Url::parse(url).expect(url), None, tls)
    }

    #[test]
    fn an_address_knows_its_host_and_its_root() {
        for (url, host, root) in [
            ("https://git.example.org", "git.example.org", ""),
            ("https://git.example.org/", "git.example.org", ""),
            ("https://git.example.org:8443/gitlab/", "git.example.org:8443", "/gitlab"),
            ("http://127.0.0.1:8081", "127.0.0.1:8081", ""),
            ("http://[::1]:8081", "[::1]:8081", ""),
        ] {
            let address = address(url).expect(url);
            assert_eq!((address.host_header(), address.root()), (host, root), "{url}");
        }
    }

    #[test]
    fn an_address_with_more_than_a_place_in_it_is_refused() {
        assert_eq!(address("ftp://git.example.org").unwrap_err(), AddressError::Scheme);
        assert_eq!(address("https://user@git.example.org").unwrap_err(), AddressError::Credentials);
        assert_eq!(address("https://git.example.org/?a").unwrap_err(), AddressError::QueryOrFragment);
        assert_eq!(address("https://git.example.org/#a").unwrap_err(), AddressError::QueryOrFragment);
    }

    #[test]
    fn a_route_is_a_port_or_a_socket() {
        assert_eq!("10.0.0.1:80".parse(), Ok(Endpoint::Tcp("10.0.0.1:80".into())));
        assert_eq!("unix:/run/gitlab.sock".parse(), Ok(Endpoint::Unix("/run/gitlab.sock".into())));
        let longest = format!("unix:/{}", "a".repeat(MAX_SOCKET_PATH_BYTES - 1));
        for text in
            ["localhost:0", "0.0.0.0:80", "[::]:80", "::1:80", "[fe80::1%eth0]:80", "a_b-c.example:80", &longest]
        {
            assert!(text.parse::<Endpoint>().is_ok(), "{text}");
        }
        for text in
            ["", "host", "host:", ":80", "host:99999", "host:+80", "unix:relative", "unix:", "unix:/run/", "unix:/a\0"]
        {
            assert_eq!(text.parse::<Endpoint>(), Err(AddressError::Endpoint), "{text}");
        }
        for text in ["http://host:80", "a b:80", "[host]:80", "a,b:80", "hôst:80"] {
            assert_eq!(text.parse::<Endpoint>(), Err(AddressError::Endpoint), "{text}");
        }
        assert_eq!("*:80".parse::<Endpoint>(), Err(AddressError::Wildcard));
        assert_eq!(format!("{longest}a").parse::<Endpoint>(), Err(AddressError::SocketPath));
    }

    #[test]
    fn a_proxy_is_a_place_and_nothing_more() {
        for (text, shown) in [
            ("http://proxy.example:3128", "http://proxy.example:3128"),
            ("http://proxy.example:3128/", "http://proxy.example:3128"),
            ("http://proxy.example", "http://proxy.example:80"),
            ("http://192.0.2.1:8080", "http://192.0.2.1:8080"),
            ("http://[::1]:3128", "http://[::1]:3128"),
        ] {
            assert_eq!(text.parse::<OutgoingProxy>().expect(text).to_string(), shown);
        }
        for text in [
            "",
            "proxy:3128",
            "https://proxy:3128",
            "socks5://proxy:1080",
            "http://",
            "http://proxy/path",
            "http://proxy/?a",
        ] {
            assert_eq!(text.parse::<OutgoingProxy>(), Err(AddressError::Proxy), "{text}");
        }
        for text in ["http://user@proxy:3128", "http://user:canary@proxy:3128", "http://:canary@proxy:3128"] {
            assert_eq!(text.parse::<OutgoingProxy>(), Err(AddressError::ProxyCredentials), "{text}");
        }
        let proxy = || "http://proxy:3128".parse::<OutgoingProxy>().expect("a proxy");
        let through =
            address("https://git.example.org").and_then(|address| address.through(proxy())).expect("an address");
        assert_eq!(through.connect_to, Endpoint::Tcp("proxy:3128".into()));
        assert_eq!(through.tunnel.expect("through it").authority, "git.example.org:443");
        let socket =
            Address { connect_to: Endpoint::Unix("/a".into()), ..address("http://a.example").expect("an address") };
        assert_eq!(socket.through(proxy()).unwrap_err(), AddressError::SocketThroughProxy);
    }

    #[test]
    fn a_file_without_a_certificate_is_refused() {
        assert_eq!(tls_config(Some(b"nothing")).unwrap_err(), CaFileError);
    }
}
