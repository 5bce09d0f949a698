//! What an open believes of the last run; the table is in `recover`.

use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags};

use super::intent::Marks;
use super::state::{DiskState, FoundState};
use crate::backing::Backing;
use crate::tracking::SyncScope;
use crate::{Error, Kind, Result};

/// How much later than the stamp allows a write of ours may have changed the image, in seconds. Suspecting somebody else wrongly
/// costs a resync.
const SLACK: i64 = 5;
/// `STATX_MNT_ID_UNIQUE` (Linux 6.8): a number that no later mount gets again.
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// What has to be the same for the page cache to be the same.
#[derive(Debug)]
pub struct Era {
    /// The host's boot.
    pub boot: String,
    /// The mounts of image and log; empty where the kernel does not number them for good.
    pub mount: String,
}

impl Era {
    /// The present one, for `paths` in a given boot.
    pub fn now(boot: &str, paths: [&Path; 2]) -> Self {
        let numbers: Option<Vec<_>> = paths.into_iter().map(mount_of).collect();
        let mount = numbers.map(|numbers| numbers.join(" ")).unwrap_or_default();
        Self { boot: boot.to_owned(), mount }
    }
}

fn mount_of(path: &Path) -> Option<String> {
    let stat = rustix::fs::statx(CWD, path, AtFlags::empty(), MNT_ID_UNIQUE).ok()?;
    (stat.stx_mask & MNT_ID_UNIQUE.bits() != 0).then(|| stat.stx_mnt_id.to_string())
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// What was left behind counts.
    GoOn,
    /// The log does not; the intent map does.
    Compare(String),
    /// Nothing does.
    Anew(String),
}

/// Weighs what the last run left: its state, a note that this is void, and the marks, against the image as it is now.
///
/// # Errors
/// The disk has shrunk. Refused before anything is changed.
pub fn judge(
    was: &FoundState,
    void: Option<String>,
    backing: &dyn Backing,
    era: &Era,
    marks: Option<&Marks>,
) -> Result<Verdict> {
    let now = backing.found();
    let anew = |cause: &str| Ok(Verdict::Anew(cause.to_owned()));
    // A sync failed, or it is not known whether one did: what the page cache shows since may not be on the disk.
    if was.damaged || void.is_some() || was.state.as_ref().is_none_or(|state| state.sync_failed) {
        backing.drop_cache();
    }
    const DAMAGED: &str = "the state of its tracking is damaged";
    let Some(state) = &was.state else {
        return anew(if was.damaged { DAMAGED } else { "new disk, or the state of its tracking was lost" });
    };
    if now.size < state.image.size {
        return Err(shrunk(backing.path(), state.image.size, now.size));
    }
    if let Some(why) = void {
        return Ok(Verdict::Anew(format!("tracking could not be recorded: {why}")));
    }
    if now.size > state.image.size {
        return Ok(Verdict::Anew(format!(
            "the disk has grown from {} to {} bytes",
            state.image.size, now.size
        )));
    }
    let rebooted = state.boot != era.boot;
    if state.clean {
        return Ok(judge_clean(state, backing, rebooted));
    }
    // Devices may be numbered anew at a boot.
    if !state.image.is_same_file(now, rebooted) {
        return anew("image replaced outside Lifeboat");
    }
    let Some(marks) = marks.filter(|_| state.intent) else {
        return anew("the intent map is not readable, or was not kept");
    };
    if now.changed_after(marks.until + SLACK) {
        return anew("image changed outside Lifeboat after the proxy died");
    }
    let compare = |cause: &str| Ok(Verdict::Compare(cause.to_owned()));
    if rebooted {
        return compare("the host lost power or was reset while the disk was open");
    }
    if state.mount != era.mount {
        return compare("the file system was mounted anew while the disk was open");
    }
    if backing.loses_alone() {
        return compare(
            "the proxy died, and whether the disk's server has lost anything since cannot be told",
        );
    }
    if state.sync_failed {
        return compare("a sync of the disk had failed");
    }
    if !state.logged {
        return Ok(Verdict::Compare(format!(
            "the proxy died while writes were not logged ({})",
            state.cause
        )));
    }
    if state.sync.is_some_and(|scope| scope != SyncScope::Whole) {
        return compare("the proxy died during a catch-up");
    }
    Ok(Verdict::GoOn)
}

/// Weighs a disk that was closed in good order.
fn judge_clean(state: &DiskState, backing: &dyn Backing, rebooted: bool) -> Verdict {
    let now = backing.found();
    if state.image != *now && !(rebooted && state.image.is_same_but_device(now)) {
        return Verdict::Anew("image changed outside Lifeboat".to_owned());
    }
    if state.afar.sample.as_ref().is_some_and(|sample| sample.differs(backing)) {
        return Verdict::Anew("image changed outside Lifeboat: a sample of it is not what it was".to_owned());
    }
    Verdict::GoOn
}

fn shrunk(path: &Path, before: u64, now: u64) -> Error {
    Error::new(
        Kind::InvalidInput,
        path.display().to_string(),
        format!("the disk has shrunk from {before} to {now} bytes: what was cut off would be lost from the next point"),
    )
    .remedy(format!(
        "if that was a mistake, give it its size back (truncate -s {before}); if it was meant, remove the disk's folder in \
         lifeboat-logs: it is then replicated as a new disk of this size, and its earlier points stay"
    ))
}

#[cfg(test)]
mod tests;
