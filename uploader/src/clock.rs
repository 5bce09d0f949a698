//! The clock on the wall, as something that is handed in.

use std::fmt;
use std::sync::Arc;

use jiff::ZonedDateTime;

type Tell = dyn Fn() -> ZonedDateTime + Send + Sync;

/// Tells the local time.
#[derive(Clone)]
pub struct Clock(Arc<Tell>);

impl Clock {
    /// A clock that asks `tell`.
    pub fn new(tell: impl Fn() -> ZonedDateTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// The local time.
    pub fn now(&self) -> ZonedDateTime {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
