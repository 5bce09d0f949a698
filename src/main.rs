//! Lifeboat keeps a running VM's disks recoverable from object storage.
//!
//! This package is what users touch: the command line ([`cli`], [`commands`]), the configuration ([`config`]), the
//! daemons that put the data path and the replication loop to work ([`daemon`]), the control API between the two and
//! towards the commands ([`control`]), and how all of it is shown ([`status`], [`output`]). It knows neither NBD's bytes
//! nor the vault's keys: those are the packages `nbd-proxy` and `uploader`.

mod cli;
mod commands;
mod config;
mod control;
mod daemon;
mod demo;
mod guest_agent;
mod logging;
mod output;
mod status;
mod vault;

use std::process::ExitCode;

use nbd_proxy::{Error, Kind, durable};

/// Done.
const EXIT_DONE: u8 = 0;
/// The command was understood and failed.
const EXIT_FAILED: u8 = 1;
/// The arguments or the configuration can never work.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(refused) => return ExitCode::from(refused.print()),
    };
    let json = cli.json;
    let planned = durable::plan_failpoints(|| std::env::var("LIFEBOAT_FAILPOINTS").ok());
    match planned.and_then(|()| commands::run(cli)) {
        Ok(()) => ExitCode::from(EXIT_DONE),
        Err(error) => {
            output::print_error(&error, json);
            ExitCode::from(exit_code(&error))
        }
    }
}

fn exit_code(error: &Error) -> u8 {
    match error.kind {
        Kind::InvalidInput => EXIT_USAGE,
        _ => EXIT_FAILED,
    }
}
