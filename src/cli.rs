//! The command line: what may be typed. Each command's own arguments stand in its file in [`crate::commands`].

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand, ValueEnum};
use nbd_proxy::{Error, Kind};

use crate::commands;
use crate::config::DEFAULT_CONFIG;

const EXAMPLES: &str = "Examples:
  lifeboat run                              protect the machines of the configuration
  lifeboat status                           health, RPO and progress
  lifeboat points web1 --vault s3://bucket  recovery points, from any host
  lifeboat restore web1 --to /images        newest point to raw disks
  lifeboat demo                             the whole story on a scratch folder

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.";

/// Disaster recovery for virtual machines: tracked disks, recovery points in object storage, restore at any of them.
#[derive(Debug, Parser)]
#[command(name = "lifeboat", version, after_help = EXAMPLES, disable_help_subcommand = true)]
pub struct Cli {
    /// The configuration file
    #[arg(long, global = true, env = "LIFEBOAT_CONFIG", value_name = "FILE", default_value = DEFAULT_CONFIG)]
    pub config: PathBuf,
    /// Answer on stdout and errors on stderr as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// How the log on stderr is written; LIFEBOAT_LOG (or RUST_LOG) says what is in it
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// The commands, in the order of `--help`.
#[derive(Debug, Subcommand)]
pub enum Command {
    Run(commands::run::Args),
    Proxy(commands::proxy::Args),
    Uploader(commands::uploader::Args),
    Status(commands::status::Args),
    Jobs(commands::jobs::Args),
    Wait(commands::wait::Args),
    Machines(commands::machines::Args),
    Points(commands::points::Args),
    Cut(commands::cut::Args),
    Pause(commands::pause::Args),
    Resume(commands::resume::Args),
    Resync(commands::resync::Args),
    Restore(commands::restore::Args),
    Pin(commands::pin::Args),
    Unpin(commands::unpin::Args),
    Prune(commands::prune::Args),
    Vault(commands::vault::Args),
    Inspect(commands::inspect::Args),
    #[command(hide = true)]
    HoldGuest(commands::hold_guest::Args),
    Demo(commands::demo::Args),
}

/// Why there is nothing to run.
pub struct Refused {
    error: clap::Error,
    json: bool,
}

impl Refused {
    /// Prints help, version or what is wrong; the exit code.
    pub fn print(self) -> u8 {
        let asked = matches!(self.error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
        if self.json && !asked {
            let text = self.error.to_string();
            let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            let error = Error::new(Kind::InvalidInput, "command line", message).remedy("see lifeboat --help");
            crate::output::print_error(&error, true);
        } else {
            // Nothing is left to do if the terminal is gone.
            let _ = self.error.print();
        }
        if asked { crate::EXIT_DONE } else { crate::EXIT_USAGE }
    }
}

/// Reads the command line.
pub fn parse() -> Result<Cli, Refused> {
    Cli::try_parse().map_err(|error| Refused { error, json: std::env::args_os().any(|arg| arg == "--json") })
}
