//! The data path: what stands between a VM and its disk.
//!
//! Read the modules in the order data flows: [`server`] (sockets and threads), [`nbd`] (bytes to typed requests), [`device`] (what a request is done to),
//! `backing` (files and block devices), `log`, `bitmap`, `disk` (the tracked write), `machine` (the cut over all disks),
//! [`tracking`] (what the layer above may know). Nothing here knows object stores, the command line or TOML.

pub mod backing;
pub mod bitmap;
pub mod client;
pub mod device;
pub mod disk;
pub mod durable;
pub mod error;
pub mod log;
pub mod machine;
pub mod nbd;
pub mod server;
mod ticker;
pub mod tracking;

#[cfg(test)]
mod testing;

pub use error::{Error, Kind, Result};
