//! From configuration and environment to a vault: the one place that knows both sides.

use std::collections::BTreeMap;
use std::sync::Arc;

use nbd_proxy::{Error, Kind, Result};
use uploader::replicate::Connect;
use uploader::store::limit::Limit;
use uploader::store::{self, StoreConfig};
use uploader::vault::{Encryption, Vault};

use crate::config::VaultConfig;

/// The kinds of vault, as their URLs begin.
const SCHEMES: [&str; 3] = ["file://", "s3://", "azure://"];
/// What the environment says of a vault begins so.
const VARIABLES: [&str; 2] = ["AWS_", "AZURE_"];

/// Refuses a URL of a kind that no vault has; makes no request.
pub fn check_url(url: &str) -> Result<()> {
    if SCHEMES.iter().any(|scheme| url.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty())) {
        return Ok(());
    }
    Err(Error::new(Kind::InvalidInput, "vault.url", format!("\"{url}\" is no vault that Lifeboat knows"))
        .remedy("use file:///FOLDER, s3://BUCKET/PREFIX or azure://CONTAINER/PREFIX"))
}

/// The vault's place with the environment's variables below the configuration's options.
pub fn store_config(vault: &VaultConfig) -> StoreConfig {
    let mut options: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in std::env::vars_os() {
        if let (Ok(name), Ok(value)) = (name.into_string(), value.into_string())
            && VARIABLES.iter().any(|prefix| name.starts_with(prefix))
            && !value.is_empty()
            && !vault.options.keys().any(|option| means_the_same(option, &name))
        {
            options.insert(name, value);
        }
    }
    options.extend(vault.options.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())));
    StoreConfig {
        url: vault.url.clone(),
        options,
        ca_file: vault.ca_file.clone(),
        allow_http: vault.allow_http,
        single_writer: vault.single_writer,
        undelete: vault.undelete,
    }
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

/// Opens a vault to read it.
pub async fn open(vault: &VaultConfig) -> Result<Vault> {
    Vault::open(&store_config(vault)).await
}

/// How a machine's replication reaches the vault, which it writes to no faster than `limit`. Refuses at once what can never work; what may
/// work later (the network, a bucket that is still to be made) is found out, and retried, by replication itself.
pub fn connect(vault: &VaultConfig, limit: &Arc<Limit>) -> Result<Connect> {
    let config = store_config(vault);
    if let Err(error) = store::open(&config, false)
        && error.kind == Kind::InvalidInput
    {
        return Err(error);
    }
    let (unencrypted, limit) = (vault.unencrypted, Arc::clone(limit));
    Ok(Box::new(move || {
        let (config, limit) = (config.clone(), Arc::clone(&limit));
        Box::pin(async move {
            let vault = if unencrypted {
                Vault::open_or_create(&config, Encryption::None).await
            } else {
                Vault::open(&config).await.map_err(unstated)
            };
            vault.map(|vault| Vault { store: vault.store.clone().limited(limit), ..vault })
        })
    }))
}

/// A vault that is not there may be made, once its owner has said how.
fn unstated(error: Error) -> Error {
    if error.kind != Kind::NotFound {
        return error;
    }
    error.remedy(
        "to make a new vault there, write encryption = \"none\" in [vault]: its content will be readable",
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
    fn only_known_kinds_of_vault_are_taken() {
        for url in ["file:///srv/vault", "s3://bucket/prefix", "azure://container"] {
            check_url(url).unwrap();
        }
        for url in ["gopher://x", "/srv/vault", "s3://", ""] {
            assert_eq!(check_url(url).unwrap_err().kind, Kind::InvalidInput, "{url}");
        }
    }
}
