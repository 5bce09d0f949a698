//! A second place, beside the image, that says that what the log's folder says is void.
//!
//! The log may stand on another disk than the image. If that disk fails, the state in it cannot be changed any more, and still
//! claims that every write has a record. The next open looks here first. For a device there is no such place.

use std::path::{Path, PathBuf};

use crate::durable::{self, Step};
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
        let note = durable::read(&self.path)
            .map_err(|error| Error::io("read the note beside the image", &self.path, error))?;
        Ok(note.map(|text| String::from_utf8_lossy(&text).into_owned()))
    }

    /// Leaves the note; durable on return.
    pub fn declare(&self, why: &str) -> Result<()> {
        // That it is there is the note: a torn one says the same.
        durable::write(Step::VoidDeclared, &self.path, why.as_bytes())
            .map_err(|error| Error::io("note beside the image that tracking is void", &self.path, error))
    }

    /// Takes the note away, once the state is durably right again.
    pub fn lift(&self) -> Result<()> {
        durable::remove_for_good(Step::VoidLifted, &self.path)
            .map_err(|error| Error::io("remove the note beside the image", &self.path, error))
    }
}
