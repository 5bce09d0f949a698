//! The log: to stderr, so that stdout holds answers only. `LIFEBOAT_LOG`, or else `RUST_LOG`, filters it in the usual
//! syntax (`info`, `uploader=debug,warn`).

use std::io::IsTerminal;

use nbd_proxy::{Error, Kind, Result};
use tracing_subscriber::EnvFilter;

use crate::cli::LogFormat;

/// Starts the log; `quiet` is what is shown when nobody asked for more.
pub fn start(format: LogFormat, quiet: &str) -> Result<()> {
    let filter = match ["LIFEBOAT_LOG", "RUST_LOG"]
        .iter()
        .find_map(|name| Some((name, std::env::var(name).ok()?)))
    {
        None => EnvFilter::new(quiet),
        Some((name, text)) => EnvFilter::try_new(&text).map_err(|error| {
            Error::new(Kind::InvalidInput, *name, format!("cannot understand \"{text}\": {error}")).remedy(
                "write a level (error, warn, info, debug, trace) or MODULE=LEVEL, separated by commas",
            )
        })?,
    };
    // An authority that is not known is an error of ours, told once and with its remedy.
    let filter = match "rustls_platform_verifier=off".parse() {
        Ok(quiet) if std::env::var_os("LIFEBOAT_LOG").is_none() => filter.add_directive(quiet),
        _ => filter,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
