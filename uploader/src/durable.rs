//! Small files that must survive: written beside, synced, renamed, and the folder synced.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use nbd_proxy::{Error, Result};

/// Makes `path` hold `bytes`, durably and as a whole: a crash leaves the old content or the new.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = beside(path);
    let mut file = File::create(&beside).map_err(|e| Error::io("create", &beside, e))?;
    file.write_all(bytes).map_err(|e| Error::io("write", &beside, e))?;
    file.sync_all().map_err(|e| Error::io("sync", &beside, e))?;
    fs::rename(&beside, path).map_err(|e| Error::io("rename to", path, e))?;
    sync_folder(path)
}

/// The content of `path`; `None` if there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path, e)),
    }
}

/// Removes `path` durably; it need not exist.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder(path),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("remove", path, e)),
    }
}

/// Makes the name `path` itself durable.
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io("sync the folder", folder, e))
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}
