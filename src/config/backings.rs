//! What the proxy looks at before it opens anything: does each backing exist, is it a disk, is it ours to write, and is
//! it the only one of its kind.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nbd_proxy::backing::upstream::Address;
use nbd_proxy::{Error, Result};

use super::{Config, DiskConfig, refuse};

/// Refuses a backing that is missing, not a disk, not accessible, or configured twice under whatever names.
///
/// "The same" is decided by what the kernel opens (device and inode, or the number of a block device), so symbolic links,
/// hard links and `..` do not hide it.
pub fn check_backings(config: &Config) -> Result<()> {
    let mut seen: HashMap<Identity, String> = HashMap::new();
    for machine in &config.machines {
        for disk in &machine.disks {
            let place = format!("machine {}, disk {}", machine.name, disk.name);
            let identity = if Address::is_meant(&disk.path) {
                // Asked only when it is opened: a server may let in one client at a time, and that may be the present proxy.
                let Address { place, export, .. } = Address::parse(&disk.path)?;
                Identity::Export { place: format!("{place:?}"), export }
            } else {
                identity(&open(config, &place, disk)?)
            };
            if let Some(other) = seen.insert(identity, place.clone()) {
                let message = format!("{} is the same disk as that of {other}", disk.path.display());
                return Err(refuse(&config.file, place, message, "a disk belongs to one machine, once"));
            }
            if let Some(log_dir) = &disk.log_dir
                && !log_dir.is_dir()
            {
                let message = format!("log_dir {} is not a folder", log_dir.display());
                return Err(refuse(&config.file, place, message, "create it, or leave log_dir out"));
            }
        }
    }
    Ok(())
}

#[derive(PartialEq, Eq, Hash)]
enum Identity {
    File { device: u64, inode: u64 },
    Block { number: u64 },
    Export { place: String, export: String },
}

fn identity(metadata: &Metadata) -> Identity {
    if metadata.file_type().is_block_device() {
        Identity::Block { number: metadata.rdev() }
    } else {
        Identity::File { device: metadata.dev(), inode: metadata.ino() }
    }
}

fn open(config: &Config, place: &str, disk: &DiskConfig) -> Result<Metadata> {
    let key = format!("{place}: path");
    let path = &disk.path;
    let metadata = std::fs::metadata(path).map_err(|error| refused(config, &key, "find", path, &error))?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        let message = format!("{} is a directory", path.display());
        return Err(refuse(&config.file, key, message, "give the path of a raw image or a block device"));
    }
    if !kind.is_file() && !kind.is_block_device() {
        let message = format!("{} is neither a file nor a block device", path.display());
        return Err(refuse(&config.file, key, message, "give the path of a raw image or a block device"));
    }
    File::options()
        .read(true)
        .write(!disk.read_only)
        .open(path)
        .and_then(|file| file.metadata())
        .map_err(|error| refused(config, &key, "open", path, &error))
}

fn refused(config: &Config, key: &str, what: &str, path: &Path, error: &std::io::Error) -> Error {
    let remedy = match error.kind() {
        std::io::ErrorKind::NotFound => "create the disk first: Lifeboat never creates one",
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
            "let the user that runs Lifeboat read and write it, or set read_only = true"
        }
        _ => "check the path and the file system under it",
    };
    refuse(&config.file, key, format!("cannot {what} {}: {error}", path.display()), remedy)
}
