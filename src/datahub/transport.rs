//! A connection to a DataHUB: TCP or a unix socket, with TLS over it where the address says `https`.
//!
//! Both ways out go through here, the proxy's and the back channel's, so that certificates are checked in one place. No
//! proxy of the environment is asked, no address but the configured one is ever dialled.

use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use crate::access_log::{self, Event};
use crate::http::client::Stream;

/// Where one DataHUB is: what it calls itself, and how it is reached.
#[derive(Debug, Clone)]
pub struct Address {
    url: Url,
    host_header: String,
    connect_to: Endpoint,
    tls: Option<(ServerName<'static>, Arc<ClientConfig>)>,
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
        Ok(Self { connect_to, host_header, tls: has_tls.then_some((name, tls)), url })
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

    /// A new connection, TLS included.
    ///
    /// # Errors
    /// What the network or rustls said; a certificate that is not right is [`io::ErrorKind::InvalidData`].
    pub async fn connect(&self) -> io::Result<Stream> {
        let socket: Stream = match &self.connect_to {
            Endpoint::Tcp(address) => {
                let socket = TcpStream::connect(address).await?;
                socket.set_nodelay(true)?;
                Box::new(socket)
            }
            Endpoint::Unix(path) => Box::new(UnixStream::connect(path).await?),
        };
        match &self.tls {
            Some((name, config)) => {
                let tls = TlsConnector::from(Arc::clone(config)).connect(name.clone(), socket).await;
                let tls = tls.inspect_err(|error| {
                    if error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>) {
                        access_log::process_event(Event::DatahubTlsFailed, &format!("{}: {error}", self.as_str()));
                    }
                })?;
                Ok(Box::new(tls))
            }
            None => Ok(socket),
        }
    }
}

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
            return if path.starts_with('/') { Ok(Self::Unix(path.into())) } else { Err(AddressError::Endpoint) };
        }
        let (host, port) = text.rsplit_once(':').ok_or(AddressError::Endpoint)?;
        if host.is_empty() || port.parse::<u16>().is_err() {
            return Err(AddressError::Endpoint);
        }
        Ok(Self::Tcp(text.to_owned()))
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
}

/// Trust for connections to DataHUBs: the authorities of `ca_file` (PEM) and no others, or those of the system, or, where
/// the system has none (an empty container), those of Mozilla. TLS 1.2 or newer, HTTP/1.1 only.
///
/// # Errors
/// [`CaFileError`] when `ca_file` cannot be read or holds no certificate.
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

#[cfg(test)]
mod tests {
    use super::*;

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
        for text in ["", "host", "host:", ":80", "host:99999", "unix:relative", "unix:"] {
            assert_eq!(text.parse::<Endpoint>(), Err(AddressError::Endpoint), "{text}");
        }
    }

    #[test]
    fn a_file_without_a_certificate_is_refused() {
        assert_eq!(tls_config(Some(b"nothing")).unwrap_err(), CaFileError);
    }
}
