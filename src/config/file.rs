//! A file that the configuration names, or that is one: read whole, within bounds, and never waited for.
//!
//! Whoever opens a pipe waits for somebody who writes into it, and some devices have no end. Such a file would hang the start, or
//! the taking over of a key while the process runs. So nothing but a plain file is read; symbolic links to one are fine, since all
//! that Kubernetes mounts is links.

use std::fs::{Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

/// Why a file was not read; the end of a sentence. Nothing of its content is in it.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It is something else than a file.
    #[error("it is {0}, and must be a file: it is read again while the gateway runs")]
    Kind(&'static str),
    /// It is longer than any file of ours.
    #[error("it is longer than {} MiB: that is no file for a gateway", MAX_BYTES >> 20)]
    TooLong,
    /// It is no text.
    #[error("it is no UTF-8 text")]
    NoText,
    /// What the system says.
    #[error("{}", told(.0))]
    System(#[from] io::Error),
}

/// The content of the file at `path`, and what else the system knew of it at that moment.
///
/// # Errors
/// [`FileError`], and at once: for whatever is no file, too.
pub fn read(path: &Path) -> Result<(Vec<u8>, Metadata), FileError> {
    // Who opens a pipe like this does not wait for its other end. To a file it makes no difference.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| {
        // Nobody can open one.
        let is_socket = error.raw_os_error() == Some(Errno::NXIO.raw_os_error());
        if is_socket { FileError::Kind("a socket") } else { error.into() }
    })?;
    let metadata = file.metadata()?;
    let kind = metadata.file_type();
    if !kind.is_file() {
        return Err(FileError::Kind(match kind {
            _ if kind.is_dir() => "a folder",
            _ if kind.is_fifo() => "a pipe",
            _ => "a device",
        }));
    }
    // All at once, so that a secret leaves no copies in memory behind.
    let expected = metadata.len().min(MAX_BYTES) + 1;
    let mut content = Vec::with_capacity(usize::try_from(expected).unwrap_or_default());
    file.take(MAX_BYTES + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_BYTES { Err(FileError::TooLong) } else { Ok((content, metadata)) }
}

/// The same of a file that is text.
///
/// # Errors
/// As [`read`], and for a file that is no UTF-8.
pub fn read_text(path: &Path) -> Result<(String, Metadata), FileError> {
    let (content, metadata) = read(path)?;
    Ok((String::from_utf8(content).map_err(|_| FileError::NoText)?, metadata))
}

/// What the system says about a file or a folder, for people.
pub(super) fn told(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it is not there".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "this user may not, see its mode and those of the folders above it".to_owned()
        }
        _ => error.to_string(),
    }
}

/// How long a file may be, in bytes: more than all authorities of the world in PEM.
const MAX_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn a_file_is_read_also_behind_links_and_nothing_else_is_or_is_waited_for() {
        let folder = std::env::temp_dir().join(format!("files-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let path = |name: &str| folder.join(name);
        fs::write(path("file"), "well").expect("a file");
        fs::write(path("binary"), b"\xff").expect("a file");
        fs::write(path("longest"), vec![b'x'; 1 << 20]).expect("a file");
        fs::write(path("longer"), vec![b'x'; (1 << 20) + 1]).expect("a file");
        symlink("file", path("link")).expect("a link");
        symlink("link", path("link-to-a-link")).expect("a link");
        symlink("/dev/zero", path("link-to-a-device")).expect("a link");
        symlink("loop", path("loop")).expect("a link");
        mknodat(CWD, path("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
        let _socket = UnixListener::bind(path("socket")).expect("a short path");
        for (name, expected) in [
            ("file", Ok(4)),
            ("link-to-a-link", Ok(4)),
            ("longest", Ok(1 << 20)),
            ("/proc/self/cmdline", Ok(0)),
            ("longer", Err("it is longer than 1 MiB: that is no file for a gateway")),
            ("binary", Err("it is no UTF-8 text")),
            ("pipe", Err("it is a pipe, and must be a file: it is read again while the gateway runs")),
            ("socket", Err("it is a socket, and must be a file: it is read again while the gateway runs")),
            ("link-to-a-device", Err("it is a device, and must be a file: it is read again while the gateway runs")),
            ("/dev/null", Err("it is a device, and must be a file: it is read again while the gateway runs")),
            (".", Err("it is a folder, and must be a file: it is read again while the gateway runs")),
            ("nothing", Err("it is not there")),
            ("loop", Err("Too many levels of symbolic links (os error 40)")),
        ] {
            match (read_text(&path(name)), expected) {
                // A file of the system may have another length than it says.
                (Ok((text, _)), Ok(length)) => assert!(length == 0 || text.len() == length, "{name}"),
                (Err(error), Err(words)) => assert_eq!(error.to_string(), words, "{name}"),
                (read, _) => panic!("{name}: {read:.80?}"),
            }
        }
        fs::remove_dir_all(&folder).expect("it is ours");
    }
}
