use std::sync::Arc;

use object_store::memory::InMemory;
use proptest::prelude::*;

use super::*;
use crate::cipher::{Cipher, DataKey};
use crate::delta::IndexRef;
use crate::point::{EntryKind, PointDisk};
use crate::testing::{Fault, Faulty, memory_vault, vault_in};

fn header(number: u64, kind: EntryKind, parent: Option<u64>) -> Header {
    let disk = PointDisk {
        name: "root".to_owned(),
        size: 1 << 20,
        tracking: Uuid::from_u128(9),
        whole: parent.is_none(),
        unreadable: Vec::new(),
    };
    Header {
        machine: "m".to_owned(),
        number,
        generation: 1,
        writer: Uuid::from_u128(7),
        host: "here".to_owned(),
        kind,
        parent: parent.map(|number| PointId { generation: 1, number }),
        parent_mark: None,
        time: Timestamp::from_second(1_800_000_000).unwrap(),
        disks: vec![disk],
        bytes: 400,
        logical: 4096,
        group: None,
    }
}

fn sample() -> Catalogue {
    let delta = |name: &str| KeptDelta {
        delta: DeltaRef {
            name: Some(name.to_owned()),
            size: 400,
            logical: 4096,
            index: IndexRef { offset: 300, len: 36, raw_len: 40, digest: Digest::of(b"index") },
            salt: None,
        },
        live: 300,
    };
    let stored = Timestamp::from_second(1_800_000_060).unwrap();
    let kept = |number, parent, name| Kept {
        header: header(number, EntryKind::Crash, parent),
        mark: Digest([7; 16]),
        stored,
        deltas: vec![delta(name)],
    };
    Catalogue {
        machine: "m".to_owned(),
        number: 3,
        id: Uuid::from_u128(5),
        floor: 17,
        pins: [PointId { generation: 1, number: 2 }].into(),
        points: vec![kept(2, None, "one"), kept(17, Some(2), "two")],
        claims: vec![header(1, EntryKind::Claim, None)],
    }
}

#[test]
fn a_catalogue_is_read_back() {
    let catalogue = sample();
    assert_eq!(
        decode(&Named::plain("c"), &encode(&Named::plain("c"), &catalogue).unwrap()).unwrap(),
        catalogue
    );
    assert_eq!(catalogue.numbers(), [1, 2, 17]);
    assert_eq!(catalogue.header(17).unwrap().parent, Some(PointId { generation: 1, number: 2 }));
    assert!(catalogue.header(1).is_some() && catalogue.point(1).is_none() && catalogue.header(3).is_none());
    assert_eq!(catalogue.deltas().collect::<Vec<_>>(), ["one", "two"]);
}

#[test]
fn every_flipped_byte_is_found() {
    let bytes = encode(&Named::plain("c"), &sample()).unwrap();
    for at in 0..bytes.len() {
        let mut bad = bytes.to_vec();
        bad[at] ^= 1;
        let error = decode(&Named::plain("vault/c"), &bad).expect_err(&format!("byte {at}"));
        assert_eq!((error.kind, error.object.as_str()), (Kind::Corrupt, "vault/c"));
        assert!(decode(&Named::plain("c"), &bytes[..at]).is_err(), "cut at {at}");
    }
    let mut later = bytes.to_vec();
    later[7] = 3;
    assert!(decode(&Named::plain("c"), &later).unwrap_err().message.contains("version"));
}

#[test]
fn a_catalogue_that_contradicts_itself_is_refused() {
    let broken: [fn(&mut Catalogue); 5] = [
        |c| c.points.reverse(),
        |c| c.floor = 16,
        |c| c.points[1].header.parent = Some(PointId { generation: 1, number: 3 }),
        |c| c.points[1].deltas[0].delta.name = None,
        |c| c.claims[0].number = 99,
    ];
    for break_it in broken {
        let mut catalogue = sample();
        break_it(&mut catalogue);
        assert_eq!(
            decode(&Named::plain("c"), &encode(&Named::plain("c"), &catalogue).unwrap()).unwrap_err().kind,
            Kind::Corrupt
        );
    }
}

/// The layout of version 1 stays readable for ever.
#[test]
fn the_bytes_of_version_1() {
    let body = concat!(
        r#"{"machine":"m","number":3,"id":"00000000-0000-0000-0000-000000000005","floor":17,"pins":["g1-2"],"points":"#,
        r#"[{"header":{"machine":"m","number":2,"generation":1,"writer":"00000000-0000-0000-0000-000000000007","#,
        r#""host":"here","kind":"crash","parent":null,"time":"2027-01-15T08:00:00Z","disks":[{"name":"root","#,
        r#""size":1048576,"tracking":"00000000-0000-0000-0000-000000000009","whole":true}],"bytes":400,"logical":4096},"#,
        r#""mark":"07070707070707070707070707070707","stored":"2027-01-15T08:01:00Z","deltas":[{"delta":{"name":"one","size":400,"logical":4096,"index":"#,
        r#"{"offset":300,"len":36,"raw_len":40,"digest":"1bc04b5291c26a46d918139138b992d2"}},"live":300}]},"#,
        r#"{"header":{"machine":"m","number":17,"generation":1,"writer":"00000000-0000-0000-0000-000000000007","#,
        r#""host":"here","kind":"crash","parent":"g1-2","time":"2027-01-15T08:00:00Z","disks":[{"name":"root","#,
        r#""size":1048576,"tracking":"00000000-0000-0000-0000-000000000009","whole":false}],"bytes":400,"logical":4096},"#,
        r#""mark":"07070707070707070707070707070707","stored":"2027-01-15T08:01:00Z","deltas":[{"delta":{"name":"two","size":400,"logical":4096,"index":"#,
        r#"{"offset":300,"len":36,"raw_len":40,"digest":"1bc04b5291c26a46d918139138b992d2"}},"live":300}]}],"claims":"#,
        r#"[{"machine":"m","number":1,"generation":1,"writer":"00000000-0000-0000-0000-000000000007","host":"here","#,
        r#""kind":"claim","parent":null,"time":"2027-01-15T08:00:00Z","disks":[{"name":"root","size":1048576,"#,
        r#""tracking":"00000000-0000-0000-0000-000000000009","whole":true}],"bytes":400,"logical":4096}]}"#,
    );
    let packed = zstd::bulk::compress(body.as_bytes(), 3).unwrap();
    let mut bytes = [b"LBCATLG\x01", &(packed.len() as u64).to_le_bytes()[..], &packed].concat();
    bytes.extend_from_slice(&sha256(&bytes));
    assert_eq!(decode(&Named::plain("c"), &bytes).unwrap(), sample());
    assert_eq!(
        zstd::bulk::decompress(
            &encode(&Named::plain("c"), &sample()).unwrap()[16..][..packed.len()],
            1 << 16
        )
        .unwrap(),
        body.as_bytes()
    );
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), magic in any::<bool>()) {
        let bytes = if magic { [&MAGIC[..], &bytes].concat() } else { bytes };
        let _ = decode(&Named::plain("c"), &bytes);
    }
}

/// Nothing of an encrypted catalogue can be read without the key, or under another name.
#[test]
fn a_sealed_catalogue_opens_under_its_name_only() {
    let cipher = Cipher::aes(DataKey::draw().unwrap());
    let named = |key: &str| Named { cipher: cipher.clone(), ..Named::plain(key) };
    let bytes = encode(&named("c"), &sample()).unwrap();
    assert_eq!(decode(&named("c"), &bytes).unwrap(), sample());
    assert_eq!(decode(&named("d"), &bytes).unwrap_err().kind, Kind::Corrupt);
    assert_eq!(decode(&Named::plain("c"), &bytes).unwrap_err().kind, Kind::Corrupt);
    let plain = encode(&Named::plain("c"), &sample()).unwrap();
    assert_eq!(decode(&named("c"), &plain).unwrap_err().kind, Kind::Corrupt, "nor one that is not sealed");
}

#[tokio::test]
async fn of_two_who_publish_one_number_one_wins() {
    let vault = memory_vault().await;
    assert_eq!(newest(&vault, "m").await.unwrap(), Catalogue::empty("m"));
    let (a, b) = (Catalogue::empty("m").next(), Catalogue::empty("m").next());
    assert!(publish(&vault, &a).await.unwrap());
    assert!(!publish(&vault, &b).await.unwrap(), "the other looks again");
    assert!(publish(&vault, &a).await.unwrap(), "its own, whose reply was lost");
    assert_eq!(newest(&vault, "m").await.unwrap(), a);
}

#[tokio::test]
async fn one_that_is_deleted_while_it_is_read_is_looked_for_again() {
    let memory = Arc::new(InMemory::new());
    let plain = vault_in(memory.clone()).await;
    let first = Catalogue::empty("m").next();
    let second = first.next();
    publish(&plain, &first).await.unwrap();
    publish(&plain, &second).await.unwrap();
    let key = keys::catalogue("m", 2);
    // The first read of number 2 finds it gone; by then number 3 is there.
    let vanishing = key.clone();
    let faulty = Faulty::new(
        memory,
        move |n, _, key| if n == 1 && key == vanishing { Fault::Missing } else { Fault::None },
    );
    let vault = vault_in(faulty).await;
    assert_eq!(newest(&vault, "m").await.unwrap(), second);
    let moved = plain.store.get(&key, LIMIT).await.unwrap();
    plain.store.put(&keys::catalogue("m", 9), moved.into()).await.unwrap();
    assert_eq!(newest(&plain, "m").await.unwrap_err().kind, Kind::Corrupt, "an object that was moved");
}
