//! Any bytes as an entry of a line. Every second input gets true lengths and a true digest and seal around whatever header and list
//! it brings, so that what lies behind them is reached. What decodes is encoded to the same again, and a flipped bit is
//! noticed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use uploader::cipher::Named;
use uploader::digest::{Digest, sha256};
use uploader::point::{MAGIC, decode, decode_header, encode};

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let mut bytes = if first & 1 == 0 { rest.to_vec() } else { entry(rest, first & 2 != 0) };
    let _ = decode_header(&Named::plain("fuzz"), &bytes);
    let _ = uploader::inspect::decode(&Named::plain("fuzz"), &bytes);
    let Ok(entry) = decode(&Named::plain("fuzz"), &bytes) else { return };
    assert!(entry.embedded.end <= bytes.len());
    if entry.embedded.is_empty() && entry.deltas.iter().all(|delta| delta.name.is_some()) {
        let again = encode(&Named::plain("fuzz"), &entry.header, &entry.deltas, None).expect("what was read can be written");
        let again = decode(&Named::plain("fuzz"), &again).expect("what was written can be read");
        assert_eq!((again.header, again.deltas), (entry.header, entry.deltas));
    }
    let at = rest.len() * 7919 % bytes.len();
    bytes[at] ^= 1 << (first >> 5);
    assert!(decode(&Named::plain("fuzz"), &bytes).is_err(), "a flipped bit at {at} went unnoticed");
});

/// Header, list and embedded delta as the input splits them; the header may start from a sound one.
fn entry(rest: &[u8], sound: bool) -> Vec<u8> {
    let mut parts = rest.splitn(3, |byte| *byte == 0);
    let mut part = || parts.next().unwrap_or_default();
    let (mut header, mut list, embedded) = (part().to_vec(), part().to_vec(), part());
    if sound {
        header = SOUND.replace("NAME", &String::from_utf8_lossy(&header).replace(['"', '\\'], "")).into_bytes();
        if list.is_empty() {
            list = b"[]".to_vec();
        }
    }
    let list = zstd::bulk::compress(&list, 1).expect("small input");
    let mut out = MAGIC.to_vec();
    out.push(1);
    out.extend((header.len() as u32).to_le_bytes());
    out.extend((list.len() as u32).to_le_bytes());
    out.extend((embedded.len() as u64).to_le_bytes());
    out.extend([0; 8]);
    let digest = Digest::of(&[&out[..], &header].concat());
    out.extend(digest.0);
    out.extend(header);
    out.extend(list);
    out.extend(embedded);
    let seal = sha256(&out);
    out.extend(seal);
    out
}

const SOUND: &str = r#"{"machine":"NAME","number":7,"generation":1,"writer":"00000000-0000-0000-0000-000000000001","host":"h",
"kind":"crash","parent":null,"time":"2024-01-01T00:00:00Z","disks":[{"name":"NAME","size":4096,
"tracking":"00000000-0000-0000-0000-000000000002","whole":true}],"bytes":1,"logical":2}"#;
