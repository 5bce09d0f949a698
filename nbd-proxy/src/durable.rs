//! Steps that a crash must find done or not done: what creates, syncs, renames or removes something that outlives the process.
//!
//! Every such step of Lifeboat goes through a function here and says which one it is: [`steps`] is the list of all of them. So there is one place
//! where files are made durable, and a failpoint on either side of each step without a word about it where the step is taken.
//! `tests/tidy.rs` refuses a step that goes around this module, and `tests/death_at_every_durable_step/` dies at each.
//!
//! What a step promises when it returns: a *created* file is there for this boot; *synced* content survives a power loss;
//! a name that was created, renamed or removed does so once its *folder is synced*. Functions that do several steps say in
//! which order, and a death between two of them leaves what the one before it has made.

#[cfg(any(test, feature = "failpoints"))]
pub mod failpoint;
pub mod steps;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

pub use self::steps::{Op, Step, When};
use crate::{Error, Kind, Result};

/// Stands before `op` of `step`. Nothing but in a build with failpoints.
///
/// # Errors
/// What a test asked for.
#[inline]
#[cfg_attr(not(any(test, feature = "failpoints")), allow(unused_variables, clippy::missing_const_for_fn))]
pub fn before(step: Step, op: Op) -> io::Result<()> {
    #[cfg(any(test, feature = "failpoints"))]
    failpoint::hit(step, op, When::Before)?;
    Ok(())
}

/// Stands after `op` of `step`, which succeeded. Nothing but in a build with failpoints.
///
/// # Errors
/// What a test asked for: the step was done and is said to have failed.
#[inline]
#[cfg_attr(not(any(test, feature = "failpoints")), allow(unused_variables, clippy::missing_const_for_fn))]
pub fn after(step: Step, op: Op) -> io::Result<()> {
    #[cfg(any(test, feature = "failpoints"))]
    failpoint::hit(step, op, When::After)?;
    Ok(())
}

/// Takes a plan for the failpoints of this process from `wanted`, in a build that has failpoints; see [`failpoint`].
///
/// # Errors
/// `InvalidInput`: it cannot be understood.
#[cfg_attr(not(any(test, feature = "failpoints")), allow(unused_variables, clippy::unnecessary_wraps))]
pub fn plan_failpoints(wanted: impl FnOnce() -> Option<String>) -> Result<()> {
    #[cfg(any(test, feature = "failpoints"))]
    wanted().map_or(Ok(()), |text| failpoint::plan(&text))?;
    Ok(())
}

/// Does `act`, which is `op` of `step`.
#[inline]
pub fn take<T>(step: Step, op: Op, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    before(step, op)?;
    let done = act()?;
    after(step, op)?;
    Ok(done)
}

/// Awaits `act`, a request to a vault that is `op` of `step`.
///
/// # Errors
/// Those of the request, and at a failpoint that the vault cannot be reached.
pub async fn request<T>(step: Step, op: Op, act: impl Future<Output = Result<T>>) -> Result<T> {
    let lost = |error: io::Error| {
        Error::new(Kind::Unavailable, format!("{step:?}"), format!("cannot reach the vault: {error}"))
    };
    before(step, op).map_err(lost)?;
    let done = act.await?;
    after(step, op).map_err(lost)?;
    Ok(done)
}

/// Makes the folder `path` with its parents, unless it is there.
pub fn make_folder(step: Step, path: &Path) -> io::Result<()> {
    take(step, Op::Create, || fs::create_dir_all(path))
}

/// Opens `path` to read and write what is in it; makes it, empty, if it is absent.
pub fn open_or_create(step: Step, path: &Path) -> io::Result<File> {
    let mut options = File::options();
    let open = options.read(true).write(true).create(true).truncate(false);
    take(step, Op::Create, || open.open(path))
}

/// Makes what was written to `file` durable.
pub fn sync(step: Step, file: &File) -> io::Result<()> {
    // Of the metadata, what is needed to read it back: more would cost the file system's journal.
    take(step, Op::Sync, || file.sync_data())
}

/// Gives `from` the name `to`, in the place of what has it.
pub fn rename(step: Step, from: &Path, to: &Path) -> io::Result<()> {
    take(step, Op::Rename, || fs::rename(from, to))
}

/// The same, unless the name is taken: `AlreadyExists`. In one step where the file system can.
pub fn rename_to_new(step: Step, from: &Path, to: &Path) -> io::Result<()> {
    take(step, Op::Rename, || match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) if fs::symlink_metadata(to).is_err() => fs::rename(from, to),
        Err(Errno::INVAL | Errno::NOSYS) => Err(Errno::EXIST.into()),
        other => other.map_err(io::Error::from),
    })
}

/// Removes `path`, which need not be there; whether it was.
pub fn remove(step: Step, path: &Path) -> io::Result<bool> {
    take(step, Op::Remove, || match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    })
}

/// Makes the names in `folder` durable.
pub fn sync_folder(step: Step, folder: &Path) -> io::Result<()> {
    take(step, Op::SyncFolder, || File::open(folder)?.sync_all())
}

/// Makes the name `path` durable.
pub fn sync_name(step: Step, path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    sync_folder(step, folder.unwrap_or(Path::new(".")))
}

/// Makes `path` hold `bytes`: created or emptied, written, synced, the folder synced. A crash leaves it absent, old, torn or new:
/// for what is not believed by itself.
pub fn write(step: Step, path: &Path, bytes: &[u8]) -> io::Result<()> {
    fill(step, path, bytes)?;
    sync_name(step, path)
}

/// Makes `path` hold `bytes` as a whole: written beside it, synced, renamed, the folder synced. A crash leaves old or new.
pub fn replace(step: Step, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = OsString::from(path);
    beside.push(".new");
    let beside = PathBuf::from(beside);
    fill(step, &beside, bytes)?;
    rename(step, &beside, path)?;
    sync_name(step, path)
}

/// Removes `path` durably; it need not be there.
pub fn remove_for_good(step: Step, path: &Path) -> io::Result<()> {
    if remove(step, path)? { sync_name(step, path) } else { Ok(()) }
}

/// What `path` holds; `None` if there is no such file.
pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// An empty file for work that is not to outlive us: its name at `path` is gone before this returns.
pub fn scratch(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    fs::remove_file(path)?;
    Ok(file)
}

fn fill(step: Step, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = take(step, Op::Create, || File::create(path))?;
    file.write_all(bytes)?;
    sync(step, &file)
}

#[cfg(test)]
mod tests;
