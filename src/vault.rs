//! From configuration and environment to a vault: the one place that knows both sides.

mod credentials;

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nbd_proxy::{Error, Kind, Result};
use uploader::replicate::Connect;
use uploader::store::limit::Limit;
use uploader::store::{self, StoreConfig};
use uploader::vault::{Protection, Secret, Vault, is_locked};
use zeroize::Zeroizing;

use crate::config::{Config, VaultConfig, VaultKey};

/// The variable with the passphrase of the vault.
const PASSPHRASE: &str = "LIFEBOAT_PASSPHRASE";

/// The kinds of vault, as their URLs begin.
const SCHEMES: [&str; 3] = ["file://", "s3://", "azure://"];
/// What the environment says of a vault begins so.
const VARIABLES: [&str; 2] = ["AWS_", "AZURE_"];
/// The variables that name a file of credentials, and the profile in it.
const SHARED_FILE: &str = "AWS_SHARED_CREDENTIALS_FILE";
const PROFILE: &str = "AWS_PROFILE";

/// Refuses a URL of a kind that no vault has; makes no request.
pub fn check_url(url: &str) -> Result<()> {
    if SCHEMES.iter().any(|scheme| url.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty())) {
        return Ok(());
    }
    Err(Error::new(Kind::InvalidInput, "vault.url", format!("\"{url}\" is no vault that Lifeboat knows"))
        .remedy("use file:///FOLDER, s3://BUCKET/PREFIX or azure://CONTAINER/PREFIX"))
}

/// The vault's place, with what is said of it: the environment's variables, over them the file of credentials, over that the
/// configuration's options.
pub fn store_config(vault: &VaultConfig) -> Result<StoreConfig> {
    let variables = std::env::vars_os().filter_map(|(name, value)| {
        let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
        let ours = VARIABLES.iter().any(|prefix| name.starts_with(prefix)) && !value.is_empty();
        ours.then_some((name, value))
    });
    let mut options: BTreeMap<String, String> = variables.collect();
    let file = vault.credentials_file.clone();
    if let Some(file) = file.or_else(|| options.get(SHARED_FILE).map(PathBuf::from)) {
        let profile = options.get(PROFILE).cloned();
        overlay(&mut options, credentials::read(&file, profile.as_deref())?);
    }
    let stated = vault.options.iter().map(|(name, value)| (name.clone(), value.expose().to_owned()));
    overlay(&mut options, stated.collect());
    Ok(StoreConfig {
        url: vault.url.clone(),
        options,
        ca_file: vault.ca_file.clone(),
        allow_http: vault.allow_http,
        single_writer: vault.single_writer,
        undelete: vault.undelete,
    })
}

/// Puts `over` over what means the same in `options`.
fn overlay(options: &mut BTreeMap<String, String>, over: BTreeMap<String, String>) {
    let states = |name: &str| over.keys().any(|other| means_the_same(other, name));
    // A token belongs to the key that it came with.
    let another_key = states("aws_access_key_id");
    let outlived = |name: &str| another_key && means_the_same(name, "aws_session_token");
    options.retain(|name, _| !states(name) && !outlived(name));
    options.extend(over);
}

/// Whether the two names say one thing: `endpoint` and `AWS_ENDPOINT_URL` do.
fn means_the_same(option: &str, variable: &str) -> bool {
    fn bare(name: &str) -> String {
        let name = name.to_ascii_lowercase();
        let name = ["aws_", "azure_storage_", "azure_"]
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix))
            .unwrap_or(&name);
        name.strip_suffix("_url").unwrap_or(name).to_owned()
    }
    bare(option) == bare(variable)
}

/// What opens the vault, as far as that was said: by a file, or by `LIFEBOAT_PASSPHRASE`.
pub fn secret(vault: &VaultConfig) -> Result<Option<Secret>> {
    match &vault.key {
        VaultKey::Unencrypted => Ok(None),
        VaultKey::File(path) => Secret::from_key_file(path).map(Some),
        VaultKey::PassphraseFile(path) => Secret::from_passphrase_file(path).map(Some),
        VaultKey::Unstated => match std::env::var(PASSPHRASE) {
            Ok(text) if !text.is_empty() => Secret::passphrase(&text).map(Some),
            _ => Ok(None),
        },
    }
}

/// Opens a vault to read it. Somebody at a terminal is asked for the passphrase, if that is all that is missing.
pub async fn open(vault: &VaultConfig) -> Result<Vault> {
    let config = store_config(vault)?;
    match Vault::open(&config, secret(vault)?.as_ref()).await {
        Err(error)
            if is_locked(&error) && vault.key == VaultKey::Unstated && std::io::stdin().is_terminal() =>
        {
            Vault::open(&config, Some(&ask("Passphrase of the vault: ")?)).await
        }
        opened => opened,
    }
}

/// Asks for a passphrase at the terminal, without showing it.
pub fn ask(prompt: &str) -> Result<Secret> {
    let typed = rpassword::prompt_password(prompt)
        .map_err(|e| Error::new(Kind::InvalidInput, "passphrase", format!("cannot ask for it: {e}")))?;
    Secret::passphrase(&Zeroizing::new(typed))
}

/// How a machine's replication reaches the vault, which it writes to no faster than `limit`. Refuses at once what can never work; what may
/// work later (the network, a bucket that is still to be made) is found out, and retried, by replication itself.
///
/// Whenever the vault is opened, which is also after a refusal, the file of credentials and the configuration's options are
/// read again; tokens that are named by file, and those that a host gets from its cloud, are renewed below.
pub fn connect(config: &Config, limit: &Arc<Limit>) -> Result<Connect> {
    let checked = store_config(&config.vault).and_then(|config| store::open(&config, false));
    if let Err(error) = checked
        && error.kind == Kind::InvalidInput
    {
        return Err(error);
    }
    let secret = secret(&config.vault)?;
    let (file, vault, limit) = (config.file.clone(), config.vault.clone(), Arc::clone(limit));
    Ok(Box::new(move || {
        let (vault, secret, limit) = (renewed(&file, &vault), secret.clone(), Arc::clone(&limit));
        Box::pin(async move {
            let config = store_config(&vault)?;
            let vault = match secret {
                Some(secret) => Vault::open_or_create(&config, &Protection::Secret(secret)).await,
                None if vault.key == VaultKey::Unencrypted => {
                    Vault::open_or_create(&config, &Protection::None).await
                }
                None => Vault::open(&config, None).await.map_err(unstated),
            };
            vault.map(|vault| Vault { store: vault.store.clone().limited(limit), ..vault })
        })
    }))
}

/// `vault` with the options that stand in the configuration now. A file that is being edited, or that speaks of another vault by now,
/// changes nothing before a restart.
fn renewed(file: &Path, vault: &VaultConfig) -> VaultConfig {
    match Config::load(file) {
        Ok(now) if now.vault.url == vault.url => {
            let VaultConfig { options, credentials_file, .. } = now.vault;
            VaultConfig { options, credentials_file, ..vault.clone() }
        }
        _ => vault.clone(),
    }
}

/// A vault that is not there may be made, once its owner has said how.
fn unstated(error: Error) -> Error {
    if error.kind != Kind::NotFound {
        return error;
    }
    error.remedy(
        "to make a new vault there, name a key_file in [vault] (`openssl rand -hex 32` makes one), or write encryption = \"none\": its \
         content will be readable by whoever has the bucket",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_goes_over_the_variable_that_means_the_same() {
        assert!(means_the_same("endpoint", "AWS_ENDPOINT_URL"));
        assert!(means_the_same("aws_secret_access_key", "AWS_SECRET_ACCESS_KEY"));
        assert!(means_the_same("account_name", "AZURE_STORAGE_ACCOUNT_NAME"));
        assert!(!means_the_same("access_key_id", "AWS_SECRET_ACCESS_KEY"));
    }

    #[test]
    fn another_key_does_not_keep_the_token_of_the_last() {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let mut options: BTreeMap<_, _> =
            [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SESSION_TOKEN", "t"), ("AWS_REGION", "r")]
                .iter()
                .map(own)
                .collect();
        overlay(&mut options, [("aws_access_key_id", "b")].iter().map(own).collect());
        let left: Vec<_> = options.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(left, [("AWS_REGION", "r"), ("aws_access_key_id", "b")]);
    }

    #[test]
    fn only_known_kinds_of_vault_are_taken() {
        for url in ["file:///srv/vault", "s3://bucket/prefix", "azure://container"] {
            check_url(url).unwrap();
        }
        for url in ["gopher://x", "/srv/vault", "s3://", ""] {
            assert_eq!(check_url(url).unwrap_err().kind, Kind::InvalidInput, "{url}");
        }
    }
}
