//! Whether a start could listen where the configuration says, asked without listening there for anybody.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::{Fault, Found, SocketError, Tried, look_at};
use crate::config::Server;
use crate::datahub::transport::Endpoint;

/// Places that are tried one after the other, as a start does. What could be had is held until the end, so that two that
/// cannot be had together are found; and nothing is left behind or taken away.
#[derive(Debug)]
pub struct Trial<'a> {
    server: &'a Server,
    tried: Tried<'a>,
    held: Vec<TcpListener>,
}

impl<'a> Trial<'a> {
    /// Nothing is tried yet; `server` says whose the file of a unix socket is to be.
    pub fn new(server: &'a Server) -> Self {
        Self { server, tried: Tried::default(), held: Vec::new() }
    }

    /// Tries the place that `key` names; what is there, in words.
    ///
    /// # Errors
    /// [`SocketError`], as a start would have it.
    pub fn listen(&mut self, key: &'static str, endpoint: &'a Endpoint) -> Result<&'static str, SocketError> {
        let found = match endpoint {
            Endpoint::Tcp(address) => TcpListener::bind(address).map_err(Fault::System).map(|socket| {
                self.held.push(socket);
                "free"
            }),
            // No socket is left there by a trial, so that a second one finds none.
            Endpoint::Unix(_) if self.tried.has(endpoint) => Err(Fault::System(io::ErrorKind::AddrInUse.into())),
            Endpoint::Unix(path) => look_at(path).and_then(|found| {
                self.try_folder(path)?;
                Ok(match found {
                    Found::Nothing => "free",
                    Found::DeadSocket => "nobody listens at the socket that is there: the start replaces it",
                })
            }),
        };
        self.tried.note(key, endpoint, found)
    }

    /// Whether a socket can be made in the folder of `path`, and given to its group.
    fn try_folder(&self, path: &Path) -> Result<(), Fault> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        // Beside its own name, which a gateway that starts at this moment may need.
        let trial = folder.join(format!(".check-{}", std::process::id()));
        let _socket = match UnixListener::bind(&trial) {
            Ok(socket) => socket,
            // The trial's name may be the longer one; then whether its own is too long.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                return rustix::net::SocketAddrUnix::new(path).map(drop).map_err(|error| Fault::System(error.into()));
            }
            Err(error) => return Err(Fault::System(error)),
        };
        let given = self.server.unix_group.map_or(Ok(()), |group| chown(&trial, None, Some(group)));
        fs::remove_file(&trial).map_err(Fault::System)?;
        given.map_err(Fault::Group)
    }
}
