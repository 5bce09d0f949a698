//! What replication needs of a machine's proxy, and nothing more.
//!
//! The daemon implements it over the proxy's control socket; tests implement it in memory. See
//! [`nbd_proxy::tracking`] for the words.

use std::future::Future;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use nbd_proxy::Result;
use nbd_proxy::device::Extent;
use nbd_proxy::tracking::{Cut, CutRequest, MachineInfo, Round, Sync};
use uuid::Uuid;

/// A protected machine's proxy.
pub trait Source: Send + std::marker::Sync + 'static {
    /// The machine and its disks now.
    fn machine(&self) -> impl Future<Output = Result<MachineInfo>> + Send;

    /// Rolls the logs of all disks over at one instant and hands on what was sealed. An earlier cut that was not
    /// released is merged into this one, so a caller that died in mid-cycle simply cuts again.
    /// Fails with `NotReady` while a disk is not logged. The cut says whether it is as `request` wants it.
    fn cut(&self, request: CutRequest) -> impl Future<Output = Result<Cut>> + Send;

    /// The vault has everything up to `cut` durably: its segments may go. An unknown cut is not an error (the proxy was
    /// restarted and will hand the same records on again, which is harmless).
    fn release(&self, cut: Uuid) -> impl Future<Output = Result<()>> + Send;

    /// Turns logging on for `disk` and says what has to be copied. `known` is the tracking id under which the vault
    /// was last exact, if any. Called again for a sync that is under way, it answers the same.
    fn begin_sync(&self, disk: &str, known: Option<Uuid>) -> impl Future<Output = Result<Sync>> + Send;

    /// Goes on with a sync that has lost its log: with the same round if that is not complete, else with one of what was
    /// written since it began, logged or not. A round that the proxy does not know any more begins anew.
    fn next_round(
        &self,
        disk: &str,
        known: Option<Uuid>,
        have: Round,
        logged: bool,
    ) -> impl Future<Output = Result<Sync>> + Send;

    /// What the sync copies, at or after `from`: extents in order; a hole is to be shipped as zero; a range between two
    /// extents is not to be shipped at all. Empty at the end. The answer may be partial: ask again from its end.
    fn sync_extents(
        &self,
        disk: &str,
        tracking: Uuid,
        from: u64,
    ) -> impl Future<Output = Result<Vec<Extent>>> + Send;

    /// Reads the live disk, at most 1 MiB, on the backing that the proxy has open.
    fn read(&self, disk: &str, offset: u64, len: u32) -> impl Future<Output = Result<Bytes>> + Send;

    /// The point that holds the whole sync is committed: the disk is exact under `tracking`.
    fn end_sync(&self, disk: &str, tracking: Uuid) -> impl Future<Output = Result<()>> + Send;
}

/// A [`Source`] behind a pointer, so that the loop is compiled once and not for each kind of source.
pub(crate) trait AnySource: Send + std::marker::Sync {
    fn machine(&self) -> BoxFuture<'_, Result<MachineInfo>>;
    fn cut(&self, request: CutRequest) -> BoxFuture<'_, Result<Cut>>;
    fn release(&self, cut: Uuid) -> BoxFuture<'_, Result<()>>;
    fn begin_sync<'a>(&'a self, disk: &'a str, known: Option<Uuid>) -> BoxFuture<'a, Result<Sync>>;
    fn next_round<'a>(
        &'a self,
        disk: &'a str,
        known: Option<Uuid>,
        have: Round,
        logged: bool,
    ) -> BoxFuture<'a, Result<Sync>>;
    fn sync_extents<'a>(
        &'a self,
        disk: &'a str,
        tracking: Uuid,
        from: u64,
    ) -> BoxFuture<'a, Result<Vec<Extent>>>;
    fn read<'a>(&'a self, disk: &'a str, offset: u64, len: u32) -> BoxFuture<'a, Result<Bytes>>;
    fn end_sync<'a>(&'a self, disk: &'a str, tracking: Uuid) -> BoxFuture<'a, Result<()>>;
}

impl<S: Source> AnySource for S {
    fn machine(&self) -> BoxFuture<'_, Result<MachineInfo>> {
        Source::machine(self).boxed()
    }

    fn cut(&self, request: CutRequest) -> BoxFuture<'_, Result<Cut>> {
        Source::cut(self, request).boxed()
    }

    fn release(&self, cut: Uuid) -> BoxFuture<'_, Result<()>> {
        Source::release(self, cut).boxed()
    }

    fn begin_sync<'a>(&'a self, disk: &'a str, known: Option<Uuid>) -> BoxFuture<'a, Result<Sync>> {
        Source::begin_sync(self, disk, known).boxed()
    }

    fn next_round<'a>(
        &'a self,
        disk: &'a str,
        known: Option<Uuid>,
        have: Round,
        logged: bool,
    ) -> BoxFuture<'a, Result<Sync>> {
        Source::next_round(self, disk, known, have, logged).boxed()
    }

    fn sync_extents<'a>(
        &'a self,
        disk: &'a str,
        tracking: Uuid,
        from: u64,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Source::sync_extents(self, disk, tracking, from).boxed()
    }

    fn read<'a>(&'a self, disk: &'a str, offset: u64, len: u32) -> BoxFuture<'a, Result<Bytes>> {
        Source::read(self, disk, offset, len).boxed()
    }

    fn end_sync<'a>(&'a self, disk: &'a str, tracking: Uuid) -> BoxFuture<'a, Result<()>> {
        Source::end_sync(self, disk, tracking).boxed()
    }
}
