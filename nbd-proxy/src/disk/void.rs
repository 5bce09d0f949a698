//! A second place, beside the image, that says that what the log's folder says is void.
//!
//! The log may stand on another disk than the image. If that disk fails, the state in it cannot be changed any more, and still
//! claims that every write has a record. The next open looks here first. For a device there is no such place.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The place of the note.
#[derive(Debug)]
pub struct Void {
    path: PathBuf,
}

impl Void {
    /// The place beside `image`, a regular file.
    pub fn beside(image: &Path) -> Option<Self> {
        let name = image.file_name()?.to_string_lossy();
        Some(Self { path: image.with_file_name(format!(".{name}.lifeboat-void")) })
    }

    /// What was noted, if anything was.
    pub fn read(&self) -> Result<Option<String>> {
        match fs::read(&self.path) {
            Ok(text) => Ok(Some(String::from_utf8_lossy(&text).into_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read the note beside the image", &self.path, error)),
        }
    }

    /// Leaves the note; durable on return.
    pub fn declare(&self, why: &str) -> Result<()> {
        let mut open = File::options();
        let file = open.write(true).create(true).truncate(true).open(&self.path);
        file.and_then(|mut file| {
            file.write_all(why.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| self.sync_folder())
        .map_err(|error| Error::io("note beside the image that tracking is void", &self.path, error))
    }

    /// Takes the note away, once the state is durably right again.
    pub fn lift(&self) -> Result<()> {
        match fs::remove_file(&self.path).and_then(|()| self.sync_folder()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io("remove the note beside the image", &self.path, error)),
        }
    }

    fn sync_folder(&self) -> std::io::Result<()> {
        let folder = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}
