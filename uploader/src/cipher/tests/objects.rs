//! What somebody with the bucket, and without a key, learns and can do.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nbd_proxy::{Error, Kind};
use object_store::memory::InMemory;

use crate::cipher::{Cipher, Named, witness};
use crate::commit;
use crate::delta::DeltaWriter;
use crate::digest::{Digest, hex, sha256};
use crate::keys::PointId;
use crate::point::{self, DeltaRef};
use crate::replicate::{self, Connect, CutReport};
use crate::store::Store;
use crate::testing::{Fault, Faulty, Random, Rig, by_seed, contents, memory_vault, vault_in};
use crate::vault::Vault;
use crate::{keys, listing};

const MIB: u64 = 1 << 20;

fn connect(vault: &Vault) -> Connect {
    let vault = vault.clone();
    Box::new(move || {
        let vault = vault.clone();
        Box::pin(async move { Ok(vault) })
    })
}

async fn objects(vault: &Vault) -> Vec<(String, Bytes)> {
    let mut objects = Vec::new();
    for listed in vault.store.list("").await.unwrap() {
        objects.push((listed.key.clone(), vault.store.get(&listed.key, 1 << 30).await.unwrap()));
    }
    objects
}

/// Which of `needles` are in the bucket.
async fn found(vault: &Vault, needles: &[(&'static str, Vec<u8>)]) -> Vec<&'static str> {
    let objects = objects(vault).await;
    let holds = |needle: &[u8]| {
        objects.iter().any(|(_, bytes)| bytes.windows(needle.len()).any(|window| window == needle))
    };
    needles.iter().filter(|(_, needle)| holds(needle)).map(|(name, _)| *name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_marker_written_to_the_disk_is_findable_in_the_bucket() {
    let mut random = Random::new(77);
    // Eight bytes of every sixteen are random: zstd leaves them as they are. The other one shrinks to a few bytes.
    let (marker, words) = (random.bytes(3000), b"the secret words ".repeat(300));
    let large = random.bytes(600_000);
    let text = |digest: Digest| hex(&digest.0).into_bytes();
    let needles = [
        ("marker", marker[..8].to_vec()),
        ("words", b"the secret words".to_vec()),
        ("large", large[4096..4104].to_vec()),
        ("digest of the marker", Digest::of(&marker).0.to_vec()),
        ("digest of the words", Digest::of(&words).0.to_vec()),
        ("digest of a cell", Digest::of(&large[..64 << 10]).0.to_vec()),
        ("digest in digits", text(Digest::of(&marker))),
        ("whole hash", sha256(&marker).to_vec()),
        ("its digits", hex(&sha256(&marker)).into_bytes()),
    ];
    let mut seen = Vec::new();
    for seed in [0, 1] {
        let rig = Rig::new(&[("root", 4 * MIB)], 50 + seed);
        rig.write("root", MIB, &large);
        let vault = by_seed(memory_vault().await, seed);
        let handle = replicate::start(rig.settings(), rig.clone(), connect(&vault));
        handle.cut().await.unwrap();
        // In the copy, in a large delta, embedded in a point.
        rig.write("root", 100, &marker);
        rig.write("root", 3 * MIB, &words);
        handle.cut().await.unwrap();
        handle.stop().await;
        seen.push(found(&vault, &needles).await);
    }
    for needle in ["marker", "words", "large", "digest of the marker", "digest of a cell"] {
        assert!(
            seen[0].contains(&needle),
            "without encryption it is there to be found: {needle} in {:?}",
            seen[0]
        );
    }
    assert_eq!(seen[1], Vec::<&str>::new());
}

/// A vault with a copy in a delta of its own, and a few points; the newest.
async fn history() -> (Vault, Rig, CutReport) {
    let rig = Rig::new(&[("root", 4 * MIB)], 61);
    let mut random = Random::new(61);
    let vault = memory_vault().await;
    let handle = replicate::start(rig.settings(), rig.clone(), connect(&vault));
    let mut newest = handle.cut().await.unwrap();
    for round in 0..4 {
        // Too large to be embedded, every other time.
        rig.write("root", round * MIB, &random.bytes(if round % 2 == 0 { 700_000 } else { 9000 }));
        newest = handle.cut().await.unwrap();
    }
    handle.stop().await;
    (vault, rig, newest)
}

async fn copy_of(vault: &Vault) -> Vault {
    let store = Store::new(Arc::new(InMemory::new()), "memory://test");
    for (key, bytes) in objects(vault).await {
        store.put(&key, bytes.into()).await.unwrap();
    }
    Vault { store, ..vault.clone() }
}

/// Puts objects in the place of others, and reads the newest point.
async fn with(vault: &Vault, point: PointId, changes: &[(&str, Bytes)]) -> Error {
    let vault = copy_of(vault).await;
    for (key, bytes) in changes {
        vault.store.put(key, bytes.clone().into()).await.unwrap();
    }
    contents(&vault, "m", point).await.expect_err("it was believed")
}

fn refused(error: &Error, keys: &[&str]) {
    let named = keys.iter().any(|key| error.object == format!("memory://test/{key}"));
    assert!(error.kind == Kind::Corrupt && named, "{error} names none of {keys:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_swapped_moved_or_truncated_are_refused_by_name() {
    let (vault, rig, newest) = history().await;
    assert!(contents(&vault, "m", newest.point).await.unwrap() == rig.cuts()[&newest.time]);
    let mut needed = Vec::new();
    for (key, bytes) in objects(&vault).await.into_iter().filter(|(key, _)| key.starts_with("machines")) {
        let without = copy_of(&vault).await;
        without.store.delete(&key).await.unwrap();
        if contents(&without, "m", newest.point).await.is_err() {
            needed.push((key, bytes));
        }
    }
    assert!(needed.iter().filter(|(key, _)| key.contains("/deltas/")).count() >= 2, "{}", needed.len());
    assert!(needed.iter().filter(|(key, _)| key.contains("/line/")).count() >= 4, "{}", needed.len());
    for (first, one) in &needed {
        // A delta of nothing but zeroes is hardly more than its trailer, which a point makes dispensable.
        refused(&with(&vault, newest.point, &[(first, one.slice(..one.len() / 4))]).await, &[first]);
        for (second, two) in needed.iter().filter(|(second, _)| second != first) {
            let error = with(&vault, newest.point, &[(first, two.clone()), (second, one.clone())]).await;
            refused(&error, &[first, second]);
            // In the place of the other, and still in its own.
            refused(&with(&vault, newest.point, &[(first, two.clone())]).await, &[first]);
        }
    }
    // To another machine's line.
    let entry = needed.iter().rev().find(|(key, _)| key.contains("/line/")).unwrap();
    let moved = entry.0.replace("/m/", "/n/");
    vault.store.put(&moved, entry.1.clone().into()).await.unwrap();
    let error = listing::header(&vault, "n", number(&moved)).await.unwrap_err();
    refused(&error, &[&moved]);
}

fn number(key: &str) -> u64 {
    keys::parse_line_entry(key).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_version_of_an_entry_is_refused_by_its_child() {
    let (vault, _, newest) = history().await;
    // The same writer sealed another entry of that number once, for a cut that it then gave up.
    let line = commit::line(&vault, "m");
    let number = newest.point.number - 1;
    let stored = line.read(number).await.unwrap().unwrap();
    let entry = point::decode(&line.named(number), &stored).unwrap();
    let mut writer = DeltaWriter::new(4096, &vault.cipher).unwrap();
    writer.begin_disk("root");
    writer.data(0, b"what the disk held a little earlier").unwrap();
    let delta = writer.finish().unwrap();
    let list = [DeltaRef::to(&delta, None)];
    let earlier = point::encode(&line.named(number), &entry.header, &list, Some(&delta)).unwrap();
    let parent = entry.header.id();
    let key = line.key(number);
    let replayed = copy_of(&vault).await;
    replayed.store.put(&key, earlier.clone().into()).await.unwrap();
    contents(&replayed, "m", parent).await.expect("it is sound in itself");
    let error = with(&vault, newest.point, &[(&key, earlier)]).await;
    refused(&error, &[&key]);
    assert!(error.message.contains("another version"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_edited_in_the_bucket_is_refused_and_so_is_a_plain_entry() {
    let (vault, _, newest) = history().await;
    let line = commit::line(&vault, "m");
    let number = newest.point.number;
    let stored = line.read(number).await.unwrap().unwrap();
    let entry = point::decode(&line.named(number), &stored).unwrap();
    let at = stored.windows(7).position(|window| window == b"\"crash\"").expect("the header is readable");
    let mut edited = stored[..stored.len() - 32].to_vec();
    edited[at + 1..at + 6].copy_from_slice(b"claim");
    edited.extend(sha256(&edited));
    let plain = point::encode(&Named::plain("e"), &entry.header, &[], None).unwrap();
    let key = line.key(number);
    for forged in [Bytes::from(edited), plain] {
        refused(&with(&vault, newest.point, &[(&key, forged.clone())]).await, &[&key]);
        let vault = copy_of(&vault).await;
        vault.store.put(&key, forged.into()).await.unwrap();
        refused(&listing::points(&vault, "m").await.unwrap_err(), &[&key]);
    }
    let without = Vault { cipher: Cipher::None, ..vault };
    refused(&listing::points(&without, "m").await.unwrap_err(), &["machines/m/line/00000000000000000001"]);
}

/// Every test watches for it; this one does what could bring it about: lost replies, killed uploaders, adopted entries.
#[tokio::test(flavor = "multi_thread")]
async fn no_key_meets_a_nonce_twice_whatever_is_retried_lost_or_adopted() {
    let before = witness::count();
    let rig = Rig::new(&[("a", MIB), ("b", MIB / 4)], 71);
    rig.churn(20);
    let memory = Arc::new(InMemory::new());
    let clean = vault_in(Arc::clone(&memory) as Arc<dyn object_store::ObjectStore>).await;
    let mut random = Random::new(71);
    for _ in 0..12 {
        let (last, after) = (random.below(8), random.below(2) == 0);
        let fault = if after { Fault::HangAfter } else { Fault::HangBefore };
        let plan = move |number, _, _: &str| if number > last { fault } else { Fault::None };
        let faulty = Faulty::new(Arc::clone(&memory), plan);
        let vault = Vault { store: Store::new(faulty.clone(), "memory://test"), ..clean.clone() };
        let mut settings = rig.settings();
        settings.interval = Duration::from_millis(2);
        let handle = replicate::start(settings, rig.clone(), connect(&vault));
        tokio::time::timeout(Duration::from_secs(20), faulty.hung.notified()).await.expect("a last request");
        handle.stop().await;
        rig.churn(3);
    }
    let handle = replicate::start(rig.settings(), rig.clone(), connect(&clean));
    let newest = handle.cut().await.unwrap();
    handle.stop().await;
    assert!(contents(&clean, "m", newest.point).await.unwrap() == rig.cuts()[&newest.time]);
    assert!(witness::count() - before > 30, "all of it was watched");
}

#[test]
#[should_panic(expected = "two contents were sealed under one key and one nonce")]
fn a_nonce_used_twice_is_noticed() {
    let (_, units) = crate::testing::test_cipher().sealer("x").unwrap();
    units.seal(1, b"one".to_vec()).unwrap();
    units.seal(1, b"one".to_vec()).unwrap();
    let _ = units.seal(1, b"two".to_vec());
}
