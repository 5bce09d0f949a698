use proptest::prelude::*;

use super::*;
use crate::cipher::Cipher;
use crate::delta::DeltaWriter;
use crate::testing::Random;

fn header(number: u64) -> Header {
    Header {
        machine: "m".to_owned(),
        number,
        generation: 1,
        writer: Uuid::from_u128(7),
        host: "here".to_owned(),
        kind: EntryKind::Crash,
        parent: Some(PointId { generation: 1, number: number - 1 }),
        parent_mark: None,
        time: Timestamp::from_second(1_800_000_000).unwrap(),
        disks: vec![PointDisk {
            name: "root".to_owned(),
            size: 1 << 20,
            tracking: Uuid::from_u128(9),
            whole: false,
            unreadable: Vec::new(),
        }],
        bytes: 0,
        logical: 0,
        group: None,
    }
}

fn delta() -> Encoded {
    let mut writer = DeltaWriter::new(4096, &Cipher::None).unwrap();
    writer.begin_disk("root");
    writer.data(0, &Random::new(3).bytes(5000)).unwrap();
    writer.finish().unwrap()
}

fn sample() -> (Header, Vec<DeltaRef>, Bytes) {
    let (header, delta) = (header(5), delta());
    let of = |name: Option<&str>| DeltaRef::to(&delta, name.map(str::to_owned));
    let list = vec![of(Some("one")), of(None)];
    let bytes = encode(&Named::plain("e"), &header, &list, Some(&delta)).unwrap();
    (header, list, bytes)
}

#[test]
fn an_entry_is_read_back() {
    let (header, list, bytes) = sample();
    let entry = decode(&Named::plain("e"), &bytes).unwrap();
    assert_eq!((&entry.header, &entry.deltas), (&header, &list));
    assert_eq!(bytes[entry.embedded], delta().to_vec());
    let end = header_end("e", &bytes[..48]).unwrap();
    assert_eq!(decode_header(&Named::plain("e"), &bytes[..end]).unwrap(), header, "the header stands alone");
    assert_eq!(decode_header(&Named::plain("e"), &bytes[..end - 1]).unwrap_err().kind, Kind::Corrupt);
    let end = list_end("e", &bytes[..48]).unwrap();
    let start = decode_start(&Named::plain("e"), &bytes[..end]).unwrap();
    assert_eq!(start, (header.clone(), list), "and so does the list after it");
    assert_eq!(decode_start(&Named::plain("e"), &bytes[..end - 1]).unwrap_err().kind, Kind::Corrupt);
    assert_eq!(owner_of(&Named::plain("e"), &bytes).unwrap(), header.owner());
}

#[test]
fn every_flipped_byte_is_found() {
    let (_, _, bytes) = sample();
    let end = header_end("e", &bytes).unwrap();
    for at in 0..bytes.len() {
        let mut bad = bytes.to_vec();
        bad[at] ^= 1;
        let error = decode(&Named::plain("vault/e"), &bad).expect_err(&format!("byte {at}"));
        assert_eq!((error.kind, error.object.as_str()), (Kind::Corrupt, "vault/e"));
        if at < end {
            decode_header(&Named::plain("e"), &bad[..end]).expect_err(&format!("byte {at} of the header"));
        }
    }
    (0..bytes.len())
        .for_each(|len| assert!(decode(&Named::plain("e"), &bytes[..len]).is_err(), "cut at {len}"));
}

#[test]
fn a_later_version_is_refused_as_such() {
    let (_, _, bytes) = sample();
    let mut later = bytes.to_vec();
    later[7] = 3;
    assert!(decode_header(&Named::plain("e"), &later).unwrap_err().message.contains("version"));
}

/// The layout of version 1 stays readable for ever.
#[test]
fn the_bytes_of_version_1() {
    let bytes = encode(&Named::plain("e"), &header(5), &[], None).unwrap();
    assert_eq!(&bytes[..8], b"LBENTRY\x01");
    let json = concat!(
        r#"{"machine":"m","number":5,"generation":1,"writer":"00000000-0000-0000-0000-000000000007","host":"here","#,
        r#""kind":"crash","parent":"g1-4","time":"2027-01-15T08:00:00Z","disks":[{"name":"root","size":1048576,"#,
        r#""tracking":"00000000-0000-0000-0000-000000000009","whole":false}],"bytes":0,"logical":0}"#
    );
    assert_eq!(std::str::from_utf8(&bytes[48..48 + json.len()]).unwrap(), json);
    assert_eq!(usize::from(bytes[8]) | usize::from(bytes[9]) << 8, json.len());
    assert_eq!(bytes[bytes.len() - 32..], sha256(&bytes[..bytes.len() - 32]));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), magic in any::<bool>()) {
        let bytes = if magic { [&MAGIC[..], &bytes].concat() } else { bytes };
        let _ = decode(&Named::plain("e"), &bytes);
        let _ = decode_header(&Named::plain("e"), &bytes);
        let _ = header_end("e", &bytes);
        let _ = list_end("e", &bytes);
        let _ = decode_start(&Named::plain("e"), &bytes);
    }
}
