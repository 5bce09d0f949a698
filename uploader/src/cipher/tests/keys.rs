//! The secrets that open a vault.

use std::sync::Arc;

use nbd_proxy::Kind;
use object_store::memory::InMemory;
use uuid::Uuid;

use crate::cipher::wrap::{KeyKind, WrappedKey};
use crate::cipher::{Secret, ring};
use crate::keys::{self, MARKER};
use crate::replicate::{self, Connect};
use crate::store::Store;
use crate::testing::{Rig, contents};
use crate::vault::{Encryption, Protection, Vault, is_locked};

fn file(byte: u8) -> Secret {
    Secret::KeyFile([byte; 32].into())
}

fn empty() -> Store {
    Store::new(Arc::new(InMemory::new()), "memory://test")
}

async fn vault_of(store: &Store, secret: Secret) -> Vault {
    Vault::at_or_create(store.clone(), &Protection::Secret(secret)).await.unwrap()
}

#[tokio::test]
async fn an_encrypted_vault_opens_with_its_key_and_says_so_at_once_with_another() {
    let store = empty();
    let made = vault_of(&store, file(1)).await;
    assert_eq!(made.cipher.encryption(), Encryption::Aes256Gcm);
    let opened = Vault::at(store.clone(), Some(&file(1))).await.unwrap();
    assert_eq!((opened.id, &opened.key_id), (made.id, &made.key_id));
    let sealed = made.cipher.seal_object("x", b"content".to_vec()).unwrap();
    assert_eq!(&*opened.cipher.open_object("x", "x", &sealed).unwrap(), b"content", "both have one data key");

    let wrong = Vault::at(store.clone(), Some(&file(2))).await.unwrap_err();
    assert_eq!((wrong.kind, wrong.object.as_str()), (Kind::Denied, "memory://test"));
    assert!(wrong.message.contains("key file opens none") && wrong.remedy.contains("removed"), "{wrong}");
    let none = Vault::at(store.clone(), None).await.unwrap_err();
    assert!(is_locked(&none) && none.remedy.contains("--key-file"), "{none}");
    let denied = Vault::at_or_create(store, &Protection::None).await.unwrap_err();
    assert!(is_locked(&denied), "what is there is never taken for unencrypted: {denied}");
}

#[tokio::test]
async fn a_passphrase_opens_the_vault_too() {
    let store = empty();
    let words = |text: &str| Secret::passphrase(text).unwrap();
    let made = vault_of(&store, words("correct horse")).await;
    assert_eq!(Vault::at(store.clone(), Some(&words("correct horse"))).await.unwrap().key_id, made.key_id);
    for wrong in [words("correct horse "), file(1)] {
        assert_eq!(Vault::at(store.clone(), Some(&wrong)).await.unwrap_err().kind, Kind::Denied);
    }
    assert_eq!(ring::all(&store).await.unwrap()[0].kind, KeyKind::Passphrase);
}

#[tokio::test]
async fn a_key_where_nothing_is_encrypted_is_a_surprise_and_refused() {
    let store = empty();
    Vault::at_or_create(store.clone(), &Protection::None).await.unwrap();
    let error = Vault::at(store, Some(&file(1))).await.unwrap_err();
    assert_eq!(error.kind, Kind::InvalidInput);
    assert!(error.message.contains("not encrypted"), "{error}");
}

#[tokio::test]
async fn of_two_who_make_an_encrypted_vault_at_once_one_wins_and_leaves_no_other_key() {
    let store = empty();
    let protection = Protection::Secret(file(1));
    let (one, two) = tokio::join!(
        Vault::at_or_create(store.clone(), &protection),
        Vault::at_or_create(store.clone(), &protection)
    );
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!((one.id, &one.key_id), (two.id, &two.key_id));
    assert_eq!(ring::all(&store).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_changed_marker_is_noticed_by_whoever_has_the_key() {
    let store = empty();
    let made = vault_of(&store, file(1)).await;
    let marker = String::from_utf8(store.get(MARKER, 10_000).await.unwrap().to_vec()).unwrap();
    let other = Uuid::new_v4();
    let forged = marker.replace(&made.id.to_string(), &other.to_string());
    store.put(MARKER, forged.into_bytes().into()).await.unwrap();
    // With the wrapped key made to fit, as far as that goes without the secret.
    let id = made.key_id.unwrap();
    let key = store.get(&keys::wrapped_key(&id), 10_000).await.unwrap();
    let key = String::from_utf8(key.to_vec()).unwrap().replace(&made.id.to_string(), &other.to_string());
    store.put(&keys::wrapped_key(&id), key.into_bytes().into()).await.unwrap();
    assert_eq!(Vault::at(store.clone(), Some(&file(1))).await.unwrap_err().kind, Kind::Denied);

    let plain = marker.replace("aes-256-gcm", "none");
    store.put(MARKER, plain.into_bytes().into()).await.unwrap();
    let error = Vault::at(store, Some(&file(1))).await.unwrap_err();
    assert!(error.message.contains("somebody put another one in its place"), "{error}");
}

#[tokio::test]
async fn a_removed_key_no_longer_opens_and_the_last_one_stays() {
    let store = empty();
    let vault = vault_of(&store, file(1)).await;
    let first = vault.key_id.clone().unwrap();
    let second = ring::add(&vault, &file(2), "here").await.unwrap();
    let other = Vault::at(store.clone(), Some(&file(2))).await.unwrap();
    assert_eq!((other.id, other.key_id.as_ref()), (vault.id, Some(&second.id)));

    ring::remove(&other, &first).await.unwrap();
    let gone = Vault::at(store.clone(), Some(&file(1))).await.unwrap_err();
    assert_eq!(gone.kind, Kind::Denied);
    assert!(gone.message.contains("none of the vault's 1 keys") && gone.remedy.contains("removed"), "{gone}");
    Vault::at(store.clone(), Some(&file(2))).await.unwrap();

    let last = ring::remove(&other, &second.id).await.unwrap_err();
    assert!(last.kind == Kind::InvalidInput && last.remedy.contains("key add"), "{last}");
    assert_eq!(ring::remove(&other, "0000000000000000").await.unwrap_err().kind, Kind::NotFound);
    // A key of a vault that was never made opens nothing, so it does not count.
    let foreign =
        WrappedKey::wrap(&crate::cipher::DataKey::draw().unwrap(), Uuid::new_v4(), &file(3), "").unwrap();
    ring::write(&store, &foreign).await.unwrap();
    ring::remove(&other, &second.id).await.unwrap_err();
    ring::remove(&other, &foreign.id).await.unwrap();
    Vault::at(store, Some(&file(2))).await.unwrap();
}

#[tokio::test]
async fn two_who_remove_each_other_s_key_leave_a_vault_that_opens() {
    for _ in 0..50 {
        let store = empty();
        let vault = vault_of(&store, file(1)).await;
        let second = ring::add(&vault, &file(2), "").await.unwrap();
        let first = vault.key_id.clone().unwrap();
        let (one, two) = tokio::join!(ring::remove(&vault, &second.id), ring::remove(&vault, &first));
        assert!(one.is_err() || two.is_err());
        let left = ring::all(&store).await.unwrap();
        assert!(!left.is_empty(), "nothing opens the vault any more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_added_and_one_removed_while_a_writer_runs_disturb_nobody() {
    let store = empty();
    let vault = vault_of(&store, file(1)).await;
    let rig = Rig::new(&[("root", 1 << 20)], 5);
    rig.churn(10);
    let writing = vault.clone();
    let connect: Connect = Box::new(move || {
        let vault = writing.clone();
        Box::pin(async move { Ok(vault) })
    });
    let handle = replicate::start(rig.settings(), rig.clone(), connect);
    handle.cut().await.unwrap();
    ring::add(&vault, &file(2), "").await.unwrap();
    let other = Vault::at(store.clone(), Some(&file(2))).await.unwrap();
    ring::remove(&other, vault.key_id.as_ref().unwrap()).await.unwrap();
    rig.churn(10);
    let point = handle.cut().await.unwrap();
    handle.stop().await;
    let shown = contents(&other, "m", point.point).await.unwrap();
    assert!(rig.cuts()[&point.time] == shown, "what was written under the first key reads under the second");
}

#[test]
fn key_files_of_another_length_are_refused_and_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vault.key");
    let hex = "0123456789abcdef".repeat(4);
    let (line, upper) = (format!("{hex}\n"), hex.to_uppercase());
    let good: [&[u8]; 4] = [&[7; 32], hex.as_bytes(), line.as_bytes(), upper.as_bytes()];
    let opened: Vec<Secret> = good
        .iter()
        .map(|content| {
            std::fs::write(&path, content).unwrap();
            Secret::from_key_file(&path).unwrap()
        })
        .collect();
    let raw = |secret: &Secret| match secret {
        Secret::KeyFile(bytes) => **bytes,
        Secret::Passphrase(_) => panic!("no key file"),
    };
    assert_eq!(raw(&opened[0]), [7; 32]);
    assert!(opened[1..].iter().all(|secret| raw(secret)[..4] == [0x01, 0x23, 0x45, 0x67]));
    for bad in
        [&b""[..], &[7; 31], &[7; 33], &hex.as_bytes()[1..], b"secret words", &[b'a'; 9000], &[b'g'; 64]]
    {
        std::fs::write(&path, bad).unwrap();
        let error = Secret::from_key_file(&path).unwrap_err();
        assert_eq!((error.kind, error.object), (Kind::InvalidInput, path.display().to_string()));
        assert!(!error.message.contains("secret") && error.remedy.contains("openssl"), "{}", error.message);
    }
    assert_eq!(Secret::from_key_file(&dir.path().join("none")).unwrap_err().kind, Kind::NotFound);
    for (content, fine) in
        [(&b"two words\r\nmore"[..], true), (b"\nwords", false), (b"", false), (b"\xff\xfe", false)]
    {
        std::fs::write(&path, content).unwrap();
        assert_eq!(Secret::from_passphrase_file(&path).is_ok(), fine, "{content:?}");
    }
    assert_eq!(
        format!("{:?} {:?}", opened[0], Secret::passphrase("hush").unwrap()),
        "key file *** passphrase ***"
    );
}

/// Wrapped keys of today stay readable for ever: made once, by other implementations of Argon2, HKDF and AES-GCM.
#[test]
fn the_bytes_of_wrapped_keys() {
    let decode = |text: &str| WrappedKey::decode("k", text.as_bytes()).unwrap();
    let key = decode(BY_FILE).unwrap("k", &file(9)).unwrap().unwrap();
    assert_eq!(key.expose(), &[42; 32]);
    let words = Secret::passphrase("correct horse").unwrap();
    let key = decode(BY_WORDS).unwrap("k", &words).unwrap().unwrap();
    assert_eq!(key.expose(), &[42; 32]);
    // Whatever is changed, it does not open, or is not understood: least of all for a cheaper passphrase.
    for (from, to) in [("\"passes\":3", "\"passes\":1"), ("0303", "0403"), ("8899", "8890")] {
        let changed = decode(&BY_WORDS.replacen(from, to, 1));
        assert!(changed.unwrap("k", &words).unwrap().is_none(), "{from}");
    }
    let dear = decode(&BY_WORDS.replace("65536", "4294967295"));
    assert_eq!(dear.unwrap("k", &words).unwrap_err().kind, Kind::Corrupt);
    let later = BY_FILE.replace("\"format\":1", "\"format\":2");
    assert!(WrappedKey::decode("k", later.as_bytes()).unwrap_err().message.contains("format is 2"));
}

const BY_FILE: &str = r#"{"format":1,"id":"0011223344556677","vault":"00000000-0000-0000-0000-000000000005","kind":"key-file",
    "created":"2026-01-01T00:00:00Z","host":"here","salt":"03030303030303030303030303030303",
    "wrapped":"c486b543cc7fced9bbe205d72b687668f20ee48d7337f995cfb8c9423231b307a5d778dc7d99e10dcdabf218740b9a01"}"#;
const BY_WORDS: &str = r#"{"format":1,"id":"8899aabbccddeeff","vault":"00000000-0000-0000-0000-000000000005","kind":"passphrase",
    "created":"2026-01-01T00:00:00Z","host":"","salt":"03030303030303030303030303030303",
    "argon2":{"memory_kib":65536,"passes":3,"lanes":4},
    "wrapped":"6fd33c5b479426e6aea05cd622b0cff472f8cd2ea8e137d9e7000558dbf661c0af4342a2cfc9659db0bc412d57bfcc8f"}"#;
