//! The secrets that open a vault: the objects in `keys/`, and what is done with them.
//!
//! A vault is made in this order: the data key is drawn; it is wrapped and the wrapped key written; the marker is created. Whoever
//! makes the same vault at the same moment and loses has written a key that opens nothing, and takes it away again. Death before
//! that leaves it: such a key is told from others by the marker's check value, never counts, and can be removed.
//!
//! The last secret is never removed: after a removal the folder is looked at again, and if by then nothing is left (two operators,
//! two keys, one moment) what was removed is written back.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use nbd_proxy::durable::{self, Op, Step};
use nbd_proxy::{Error, Kind, Result};
use tokio::task::spawn_blocking;
use uuid::Uuid;

use super::Cipher;
use super::wrap::{Secret, WrappedKey};
use crate::keys;
use crate::store::{self, Store};
use crate::vault::Vault;

const KEY_LIMIT: u64 = 64 << 10;
const PARALLEL: usize = 8;

/// The wrapped keys in `store`, oldest first. One that cannot be understood is an error with its name only if nothing else is there.
pub async fn all(store: &Store) -> Result<Vec<WrappedKey>> {
    let listed = store.list(keys::KEYS).await?;
    let read = |key: String| async move {
        match store.get(&key, KEY_LIMIT).await {
            Ok(bytes) => Ok(Some(WrappedKey::decode(&store.name_of(&key), &bytes))),
            // Removed in this moment.
            Err(e) if store::is_missing_object(&e) => Ok(None),
            Err(e) => Err(e),
        }
    };
    let read = stream::iter(listed.into_iter().map(|object| object.key)).map(read).buffered(PARALLEL);
    let read: Vec<Option<Result<WrappedKey>>> = read.try_collect().await?;
    let (mut keys, mut broken) = (Vec::new(), None);
    for key in read.into_iter().flatten() {
        match key {
            Ok(key) => keys.push(key),
            Err(e) => broken = Some(e),
        }
    }
    keys.sort_by(|a, b| a.created.cmp(&b.created).then_with(|| a.id.cmp(&b.id)));
    match broken {
        Some(broken) if keys.is_empty() => Err(broken),
        _ => Ok(keys),
    }
}

/// What `secret` opens of the vault `vault` in `store`: what its data key opens, if that `fits`, and the id of its wrapping.
pub(crate) async fn unlock(
    store: &Store,
    vault: Uuid,
    secret: &Secret,
    fits: impl Fn(&Cipher) -> Result<bool>,
) -> Result<(Cipher, String)> {
    let (mut of_kind, mut total) = (0, 0);
    for key in all(store).await?.into_iter().filter(|key| key.vault == vault) {
        total += 1;
        of_kind += usize::from(key.kind == secret.kind());
        let (object, secret) = (store.name_of(&keys::wrapped_key(&key.id)), secret.clone());
        let (opened, id) =
            spawn_blocking(move || (key.unwrap(&object, &secret), key.id)).await.map_err(ended)?;
        if let Some(cipher) = opened?.map(Cipher::aes)
            && fits(&cipher)?
        {
            return Ok((cipher, id));
        }
    }
    let kind = secret.kind();
    let message = format!("the {kind} opens none of the vault's {total} keys ({of_kind} are for a {kind})");
    let remedy = "it is another vault's, mistyped, or was removed: `lifeboat vault key list`, with a key that opens it, shows what is \
                  there";
    Err(Error::new(Kind::Denied, store.url(), message).remedy(remedy))
}

/// Makes `secret` open `vault` too.
pub async fn add(vault: &Vault, secret: &Secret, host: &str) -> Result<WrappedKey> {
    let Cipher::Aes(key) = vault.cipher.clone() else { return Err(unencrypted(vault)) };
    let (id, secret, host) = (vault.id, secret.clone(), host.to_owned());
    let wrap = move || WrappedKey::wrap(&key, id, &secret, &host);
    let wrapped = spawn_blocking(wrap).await.map_err(ended)??;
    write(&vault.store, &wrapped).await?;
    Ok(wrapped)
}

/// Writes a wrapped key under its name, which was drawn for it.
pub(crate) async fn write(store: &Store, wrapped: &WrappedKey) -> Result<()> {
    let (key, bytes) = (keys::wrapped_key(&wrapped.id), wrapped.encode()?);
    durable::request(Step::KeyPut, Op::Put, store.put(&key, bytes.into())).await
}

/// Removes a wrapped key.
pub(crate) async fn delete(store: &Store, id: &str) -> Result<()> {
    let key = keys::wrapped_key(id);
    durable::request(Step::KeyRemoved, Op::Delete, store.delete(&key)).await
}

/// Takes the wrapped key `id` away, unless nothing would open the vault then.
pub async fn remove(vault: &Vault, id: &str) -> Result<()> {
    if vault.cipher.is_none() {
        return Err(unencrypted(vault));
    }
    let there = all(&vault.store).await?;
    let missing = || {
        let remedy = "`lifeboat vault key list` shows the vault's keys";
        Error::new(Kind::NotFound, vault.store.url(), format!("the vault has no key {id}")).remedy(remedy)
    };
    let key = there.iter().find(|key| key.id == id).ok_or_else(missing)?;
    let opens = |keys: &[WrappedKey]| keys.iter().any(|key| key.vault == vault.id && key.id != id);
    if key.vault == vault.id && !opens(&there) {
        return Err(last(vault, id));
    }
    delete(&vault.store, id).await?;
    if key.vault == vault.id && !opens(&all(&vault.store).await?) {
        write(&vault.store, key).await?;
        return Err(last(vault, id));
    }
    Ok(())
}

fn last(vault: &Vault, id: &str) -> Error {
    let message = format!("{id} is the only key that opens the vault: without it nothing could ever be read");
    Error::new(Kind::InvalidInput, vault.store.url(), message)
        .remedy("add another with `lifeboat vault key add` first")
}

fn unencrypted(vault: &Vault) -> Error {
    let message =
        "the vault is not encrypted: it has no keys, and what is in it cannot be encrypted afterwards";
    Error::new(Kind::InvalidInput, vault.store.url(), message)
        .remedy("for an encrypted vault, name another URL and a key_file in [vault]")
}

fn ended(error: tokio::task::JoinError) -> Error {
    Error::new(Kind::Io, "encryption", format!("a worker ended early: {error}")).source(error)
}
