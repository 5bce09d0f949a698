//! The time that passes, as replication counts it: for how long a line's head is believed, and until the next attempt.
//!
//! A moment has two readings, of the clock since boot, which counts while the host sleeps, and of the clock on the wall, which also
//! counts while a host that is itself a machine stands still, once it has been set right. What passed between two moments is the
//! larger of what either says: too much is only asked or tried too early, too little could be believed too long.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

/// A moment; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Moment {
    boot: Duration,
    wall: Duration,
}

impl Moment {
    /// A moment at which the two clocks show this.
    pub fn new(boot: Duration, wall: Duration) -> Self {
        Self { boot, wall }
    }

    /// What passed since `earlier`.
    pub fn since(self, earlier: Self) -> Duration {
        self.boot.saturating_sub(earlier.boot).max(self.wall.saturating_sub(earlier.wall))
    }

    /// The clock since boot: it is never put back.
    pub fn boot(self) -> Duration {
        self.boot
    }
}

type Now = Arc<dyn Fn() -> Moment + Send + Sync>;
type Sleep = Arc<dyn Fn(Duration) -> BoxFuture<'static, ()> + Send + Sync>;

/// What tells the time, and waits.
#[derive(Clone)]
pub struct Elapsed {
    now: Now,
    sleep: Sleep,
}

impl Elapsed {
    /// This host's clocks.
    pub fn of_host() -> Self {
        Self::new(|| {
            let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
            let boot = Duration::new(boot.tv_sec.unsigned_abs(), u32::try_from(boot.tv_nsec).unwrap_or(0));
            Moment::new(boot, SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
        })
    }

    /// A clock that `now` reads.
    pub fn new(now: impl Fn() -> Moment + Send + Sync + 'static) -> Self {
        let sleep = |gap| tokio::time::sleep(gap).boxed();
        Self { now: Arc::new(now), sleep: Arc::new(sleep) }
    }

    /// The same, with `sleep` to wait by.
    #[must_use]
    pub fn sleeping<F: Future<Output = ()> + Send + 'static>(
        self,
        sleep: impl Fn(Duration) -> F + Send + Sync + 'static,
    ) -> Self {
        Self { sleep: Arc::new(move |gap| sleep(gap).boxed()), ..self }
    }

    /// Now.
    pub fn now(&self) -> Moment {
        (self.now)()
    }

    /// Waits.
    pub(crate) fn sleep(&self, gap: Duration) -> BoxFuture<'static, ()> {
        (self.sleep)(gap)
    }
}

impl fmt::Debug for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Elapsed")
    }
}

#[cfg(test)]
mod tests;
