//! `lifeboat vault key`

use std::path::PathBuf;

use ::uploader::cipher::ring;
use ::uploader::cipher::wrap::{KeyKind, WrappedKey};
use ::uploader::vault::{Secret, Vault};
use jiff::Timestamp;
use nbd_proxy::Result;
use serde::Serialize;

use crate::commands::{Context, VaultArgs, usage};
use crate::output;

/// Say which secrets open the vault: list, add or remove them
///
/// All of them open the same vault: none has to be known to add or remove another but the one that opens the vault now. Nobody who
/// has the vault open notices, and nothing is encrypted anew; so a removed secret opens the vault no more, but whoever had it and kept a
/// copy of the vault's key is only kept out by a new vault.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lifeboat vault key list
  lifeboat vault key add --new-key-file /media/key/second.key
  lifeboat vault key remove 5f0c3a1b9e774d21 --vault s3://backups/vms --key-file /media/key/second.key")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// List the secrets that open the vault
    List {
        #[command(flatten)]
        vault: VaultArgs,
    },
    /// Let one more secret open the vault; asked for as a passphrase, unless a file is named
    Add {
        /// A key file: 32 bytes, or 64 hexadecimal digits, as `openssl rand -hex 32` makes them
        #[arg(long, value_name = "FILE", conflicts_with = "new_passphrase_file")]
        new_key_file: Option<PathBuf>,
        /// A file whose first line is the passphrase
        #[arg(long, value_name = "FILE")]
        new_passphrase_file: Option<PathBuf>,
        #[command(flatten)]
        vault: VaultArgs,
    },
    /// Let a secret open the vault no more; the last one stays
    Remove {
        /// Its id, as `list` shows it
        id: String,
        #[command(flatten)]
        vault: VaultArgs,
    },
}

/// A secret that opens the vault.
#[derive(Debug, Serialize)]
struct Key {
    id: String,
    kind: KeyKind,
    created: Timestamp,
    host: String,
    /// The vault was opened with it just now.
    used: bool,
}

impl Key {
    fn of(vault: &Vault, key: WrappedKey) -> Self {
        let used = vault.key_id.as_ref() == Some(&key.id);
        Self { id: key.id, kind: key.kind, created: key.created, host: key.host, used }
    }
}

#[derive(Serialize)]
struct Answer {
    keys: Vec<Key>,
}

#[derive(Serialize)]
struct Removed {
    removed: String,
}

pub async fn run(context: &Context, args: &Args) -> Result<()> {
    match &args.what {
        What::List { vault } => {
            let vault = open(context, vault).await?;
            let keys = ring::all(&vault.store).await?.into_iter().filter(|key| key.vault == vault.id);
            let keys = keys.map(|key| Key::of(&vault, key)).collect();
            output::answer(context.json, &Answer { keys }, people)
        }
        What::Add { new_key_file, new_passphrase_file, vault } => {
            let secret = match (new_key_file, new_passphrase_file) {
                (Some(path), _) => Secret::from_key_file(path)?,
                (None, Some(path)) => Secret::from_passphrase_file(path)?,
                (None, None) => ask_twice()?,
            };
            let vault = open(context, vault).await?;
            let key = ring::add(&vault, &secret, &crate::config::host_name()?).await?;
            output::answer(context.json, &Key::of(&vault, key), |key| {
                format!("the {} {} opens the vault too", key.kind, key.id)
            })
        }
        What::Remove { id, vault } => {
            let vault = open(context, vault).await?;
            ring::remove(&vault, id).await?;
            let removed = Removed { removed: id.clone() };
            output::answer(context.json, &removed, |answer| {
                format!("{} opens the vault no more", answer.removed)
            })
        }
    }
}

async fn open(context: &Context, args: &VaultArgs) -> Result<Vault> {
    crate::vault::open(&args.resolve(context)?).await
}

fn ask_twice() -> Result<Secret> {
    match (crate::vault::ask("New passphrase: ")?, crate::vault::ask("Again: ")?) {
        (Secret::Passphrase(one), Secret::Passphrase(two)) if one == two => Ok(Secret::Passphrase(one)),
        _ => Err(usage("passphrase", "what was typed differs", "type the same twice")),
    }
}

fn people(answer: &Answer) -> String {
    if answer.keys.is_empty() {
        return "the vault is not encrypted: it has no keys".to_owned();
    }
    let rows = answer.keys.iter().map(|key| {
        let used = if key.used { "opened the vault now" } else { "" };
        let host = if key.host.is_empty() { "-" } else { &key.host };
        vec![
            key.id.clone(),
            key.kind.to_string(),
            output::time(key.created),
            host.to_owned(),
            used.to_owned(),
        ]
    });
    output::table(&["ID", "KIND", "CREATED", "HOST", ""], rows)
}
