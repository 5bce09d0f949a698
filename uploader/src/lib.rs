//! Lifeboat's vault: points, deltas, restore and the replication loop.
//!
//! Read in the order in which data flows: [`changes`] (what a cut changed) → [`delta`] (the packed changes) →
//! [`commit`] (how a point comes to exist) → [`point`] and [`line`] (what it is and where it stands) → [`listing`],
//! [`blockmap`] and [`restore`] (the way back). [`replicate`] turns the crank for one machine, [`store`], [`vault`] and
//! [`keys`] are the ground it stands on.
//!
//! The crate knows nothing of NBD, the command line or TOML, reads no environment and starts no runtime: a caller
//! hands in settings as plain data and polls what it gets.

pub mod blockmap;
pub mod branches;
pub mod catalogue;
pub mod changes;
pub mod check;
pub mod cipher;
pub mod clock;
pub mod commit;
pub mod delta;
pub mod digest;
pub mod elapsed;
pub mod holds;
pub mod inspect;
pub mod intervals;
pub mod jobs;
pub mod keys;
pub mod line;
pub mod listing;
pub mod pins;
pub mod point;
pub mod prune;
pub mod replicate;
pub mod restore;
pub mod retention;
pub mod seed;
pub mod source;
pub mod store;
pub mod usage;
pub mod vault;

#[cfg(test)]
mod testing;
