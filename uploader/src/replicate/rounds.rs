//! Copying under churn that no log can hold.
//!
//! A sync that loses its log does not begin again: the proxy knows what was written since the *round* began, and names that
//! when this one is complete. So the round at hand is finished without a log, whatever is written meanwhile, and then comes
//! another one. It logs, unless so much was written that a second log may be lost like the first: as long as each round has
//! less than half of the one before, rounds go on without a log. The last one logs, and the cut behind it ends the sync.
//!
//! * *It ends.* A round names a fixed set of blocks, so it is complete some time. Of those without a log, each has less than half
//!   of the one before, and the last more than [`LITTLE`]: there are at most as many as the disk's size has bits. If the last round
//!   loses its log as well, it is finished and followed in the same way, with a set that is as small as the guest lets it be.
//! * *It is exact.* A write in mid-round is named by a later round or recorded in the last round's log, and both apply behind
//!   what was copied before. What one round found to be equal with the vault's and left out is in a later round if it was
//!   written after that round began, however it was logged.
//! * *Points of the machine* wait meanwhile, as they do while any disk is inexact; the other disks' logs wait with them, for
//!   without a log there is no cut. Those that overflow join the sync.

use nbd_proxy::Result;
use nbd_proxy::tracking::{MachineInfo, Round, Sync, SyncScope};
use uuid::Uuid;

use super::engine::Work;
use super::journal::Copied;
use super::state::SyncDisk;

/// So little is copied before any log is full.
const LITTLE: u64 = 1 << 20;

/// What comes after copying.
pub(super) enum Rounds {
    /// Every disk is logged: the next cut ends the sync.
    Over,
    /// More copying.
    Begun,
    /// The proxy was restarted: the plan has to be made anew.
    Forgotten,
}

impl SyncDisk {
    /// The round that the disk's copy is in.
    pub fn have(&self, complete: bool) -> Round {
        Round { id: self.round, complete }
    }

    /// The plan after `sync` was answered to a question about this one's round; `None` if the proxy does not know the round
    /// any more.
    pub fn goes_on(&self, sync: &Sync, copied: &Copied) -> Option<Self> {
        let now = Self { tracking: sync.tracking, logged: sync.logged, ..self.clone() };
        if sync.round == self.round {
            return Some(now);
        }
        let next = |_| Self {
            attempt: Uuid::new_v4(),
            round: sync.round,
            number: self.number + 1,
            scope: SyncScope::Dirty,
            tail: self.size,
            // All of it was written.
            compare: false,
            unreadable: [&self.unreadable[..], &copied.unreadable[..]].concat(),
            total: 0,
            ..now
        };
        sync.follows.filter(|before| *before == self.round).map(next)
    }
}

impl Work<'_> {
    /// Whether the round after `disk`'s, which is complete, had better have a log.
    pub fn log_next(disk: &SyncDisk, info: &MachineInfo) -> bool {
        let written = info.disks.iter().find(|now| now.name == disk.name).map_or(0, |now| now.dirty_bytes);
        // The first log that was lost may have been bad luck.
        let lost_again = !disk.logged || disk.number > 0;
        !lost_again || written <= LITTLE || written >= disk.total / 2
    }

    /// Begins the rounds that follow those without a log, which are all complete.
    pub async fn next_rounds(&mut self) -> Result<Rounds> {
        let Some(mut sync) = self.ready.state.sync.clone() else { return Ok(Rounds::Over) };
        if sync.disks.iter().all(|disk| disk.logged) {
            return Ok(Rounds::Over);
        }
        let info = self.ctx.source.machine().await?;
        // All together: no cut releases the log of one as long as another has none.
        let logged = sync.disks.iter().filter(|disk| !disk.logged).all(|disk| Self::log_next(disk, &info));
        for disk in sync.disks.iter_mut().filter(|disk| !disk.logged) {
            let known = self.ready.state.disks.get(&disk.name).map(|known| known.tracking);
            let answer = self.ctx.source.next_round(&disk.name, known, disk.have(true), logged).await?;
            match disk.goes_on(&answer, &self.copied(disk)) {
                Some(next) => *disk = self.counted(next).await?,
                None => return Ok(Rounds::Forgotten),
            }
        }
        self.ready.state.sync = Some(sync);
        self.ready.state.save(&self.ctx.settings.state_dir)?;
        Ok(Rounds::Begun)
    }
}

#[cfg(test)]
mod tests;
