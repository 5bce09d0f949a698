//! The commands, one thin file each: arguments, then what is done with them.

pub mod cut;
pub mod demo;
pub mod hold_guest;
pub mod inspect;
pub mod jobs;
pub mod machines;
pub mod pause;
pub mod pin;
pub mod points;
pub mod proxy;
pub mod prune;
pub mod restore;
pub mod resume;
pub mod resync;
pub mod run;
pub mod status;
pub mod unpin;
pub mod uploader;
pub mod vault;
pub mod wait;

use std::path::PathBuf;
use std::time::Duration;

use nbd_proxy::{Error, Kind, Result};

use crate::cli::{Cli, Command, LogFormat};
use crate::config::{Config, VaultConfig, VaultKey, parse_span};
use crate::control::client::Client;
use crate::control::remote::Done;
use crate::daemon::sockets::Passed;
use crate::{daemon, logging};

/// What every command is given.
#[derive(Clone, Debug)]
pub struct Context {
    /// Where the configuration is; read only by those who need it.
    pub config: PathBuf,
    /// Answer as JSON.
    pub json: bool,
}

impl Context {
    /// The configuration.
    pub fn load(&self) -> Result<Config> {
        Config::load(&self.config)
    }

    /// The uploader's control socket, for an answer that may take as long as `patience`.
    pub fn uploader(&self, patience: Option<Duration>) -> Result<Client> {
        let client = Client::new(self.load()?.uploader_socket(), "uploader");
        Ok(match patience {
            Some(patience) => client.patience(patience),
            None => client,
        })
    }
}

/// How a command that only reads the vault reaches it.
#[derive(Clone, Debug, clap::Args)]
pub struct VaultArgs {
    /// The vault; needs no configuration, daemon or local state
    #[arg(long, value_name = "URL")]
    pub vault: Option<String>,
    /// Authorities to trust besides the system's, a PEM file; with --vault
    #[arg(long, value_name = "FILE", requires = "vault")]
    pub ca_file: Option<PathBuf>,
    /// The vault's key file; with --vault
    #[arg(long, value_name = "FILE", requires = "vault", conflicts_with = "passphrase_file")]
    pub key_file: Option<PathBuf>,
    /// A file with the vault's passphrase, which may also be in LIFEBOAT_PASSPHRASE; with --vault
    #[arg(long, value_name = "FILE", requires = "vault")]
    pub passphrase_file: Option<PathBuf>,
    /// Plain http to a host that is not loopback; with --vault
    #[arg(long, requires = "vault")]
    pub allow_http: bool,
    /// Look past delete markers and later versions at what was first written: for an S3 bucket that keeps versions, after somebody
    /// has emptied the vault
    #[arg(long)]
    pub undelete: bool,
}

impl VaultArgs {
    fn key(&self) -> VaultKey {
        match (&self.key_file, &self.passphrase_file) {
            (Some(path), _) => VaultKey::File(path.clone()),
            (None, Some(path)) => VaultKey::PassphraseFile(path.clone()),
            (None, None) => VaultKey::Unstated,
        }
    }

    /// The vault of the command line, else that of the configuration.
    pub fn resolve(&self, context: &Context) -> Result<VaultConfig> {
        match &self.vault {
            None => Ok(VaultConfig { undelete: self.undelete, ..context.load()?.vault }),
            Some(url) => {
                crate::vault::check_url(url)?;
                let ca_file = self.ca_file.clone();
                Ok(VaultConfig {
                    url: url.clone(),
                    key: self.key(),
                    ca_file,
                    allow_http: self.allow_http,
                    undelete: self.undelete,
                    ..VaultConfig::default()
                })
            }
        }
    }
}

/// Reads a duration of the command line.
pub fn duration(text: &str) -> Result<Duration, String> {
    parse_span(text)
}

/// Asks the uploader to do `what` with `machine`.
async fn ask(context: &Context, machine: &str, what: &str) -> Result<()> {
    ::uploader::keys::check_name("machine", machine)?;
    let Done {} = context.uploader(None)?.post(&format!("/v1/machines/{machine}/{what}"), &Done {}).await?;
    Ok(())
}

/// An argument that can never work.
fn usage(object: &str, message: impl Into<String>, remedy: &str) -> Error {
    Error::new(Kind::InvalidInput, object, message).remedy(remedy)
}

/// Runs what was typed.
pub fn run(cli: Cli) -> Result<()> {
    start_log(&cli)?;
    let context = Context { config: cli.config, json: cli.json };
    let passed = match cli.command {
        Command::Run(_) | Command::Proxy(_) => Passed::take()?,
        _ => Passed::default(),
    };
    daemon::block_on(async {
        match cli.command {
            Command::Run(args) => run::run(&context, &args, passed).await,
            Command::Proxy(args) => proxy::run(&context, &args, passed).await,
            Command::Uploader(args) => uploader::run(&context, &args).await,
            Command::Status(args) => status::run(&context, &args).await,
            Command::Jobs(args) => jobs::run(&context, &args).await,
            Command::Wait(args) => wait::run(&context, &args).await,
            Command::Machines(args) => machines::run(&context, &args).await,
            Command::Points(args) => points::run(&context, &args).await,
            Command::Cut(args) => cut::run(&context, &args).await,
            Command::Pause(args) => pause::run(&context, &args).await,
            Command::Resume(args) => resume::run(&context, &args).await,
            Command::Resync(args) => resync::run(&context, &args).await,
            Command::Pin(args) => pin::run(&context, &args).await,
            Command::Unpin(args) => unpin::run(&context, &args).await,
            Command::Prune(args) => prune::run(&context, &args).await,
            Command::Restore(args) => restore::run(&context, &args).await,
            Command::HoldGuest(args) => hold_guest::run(&args).await,
            Command::Vault(args) => vault::run(&context, &args).await,
            Command::Inspect(args) => inspect::run(&context, &args).await,
            Command::Demo(args) => demo::run(&context, &args).await,
        }
    })
}

fn start_log(cli: &Cli) -> Result<()> {
    let quiet = match cli.command {
        Command::Run(_) | Command::Proxy(_) | Command::Uploader(_) => "info",
        _ => "warn",
    };
    let format: LogFormat = cli.log_format;
    logging::start(format, quiet)
}
