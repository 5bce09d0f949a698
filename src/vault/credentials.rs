//! A file of credentials, read each time a vault is opened: what is renewed there counts without a restart.
//!
//! Two forms are common, and both are taken. One variable a line, as service managers and shells read them
//! (`AWS_ACCESS_KEY_ID=…`, maybe behind `export`, maybe in quotes); or the profiles of Amazon's tools (`[default]`,
//! `aws_access_key_id = …`), of which the one that `AWS_PROFILE` names counts. Lines that begin with `#` or `;` say nothing. A refusal
//! names the file and the line and never quotes it: it may hold a secret.

use std::collections::BTreeMap;
use std::path::Path;

use nbd_proxy::{Error, Kind, Result};

/// The profile that counts when none is named.
const DEFAULT: &str = "default";

/// What the file at `path` says, for `profile` if it has profiles.
pub fn read(path: &Path, profile: Option<&str>) -> Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        Error::io("read the vault's credentials", path, e)
            .remedy("check vault.credentials_file, or AWS_SHARED_CREDENTIALS_FILE")
    })?;
    parse(&path.display().to_string(), &text, profile.unwrap_or(DEFAULT))
}

fn parse(file: &str, text: &str, profile: &str) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let (mut here, mut profiles, mut has) = (true, false, false);
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            let name = name.trim();
            here = name.strip_prefix("profile ").unwrap_or(name).trim() == profile;
            profiles = true;
            has |= here;
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let Some((name, value)) = line.split_once('=').filter(|(name, _)| is_name(name.trim())) else {
            let message = format!("line {} is no NAME=VALUE", number + 1);
            return Err(Error::new(Kind::InvalidInput, file, message)
                .remedy("one variable a line, or the profiles of an AWS credentials file"));
        };
        if here {
            found.insert(name.trim().to_owned(), unquoted(value.trim()).to_owned());
        }
    }
    if profiles && !has {
        let message = format!("has no profile \"{profile}\"");
        return Err(
            Error::new(Kind::InvalidInput, file, message).remedy("set AWS_PROFILE to one that it has")
        );
    }
    Ok(found)
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn unquoted(value: &str) -> &str {
    let inner = |quote| value.strip_prefix(quote).and_then(|value| value.strip_suffix(quote));
    inner('"').or_else(|| inner('\'')).unwrap_or(value)
}

#[cfg(test)]
mod tests;
