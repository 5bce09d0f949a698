//! Any bytes as a delta, as a raw index, and as writes that are packed into a delta. What decodes is encoded to the same
//! again; what was packed is found again; and a flipped bit anywhere in it is noticed, or changes nothing that is read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use uploader::cipher::Cipher;
use uploader::delta::DeltaWriter;
use uploader::delta::format::{Form, Index};
use uploader::delta::reader::check;

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    match first % 4 {
        0 => {
            let _ = check("fuzz", &Cipher::None, rest);
        }
        1 => {
            let Some((end, raw)) = rest.split_first_chunk::<8>() else { return };
            if let Ok(index) = Index::decode(raw, Form::Plain, u64::from_le_bytes(*end)) {
                let again = Index::decode(&index.encode(), Form::Plain, u64::from_le_bytes(*end)).expect("our own encoding is readable");
                assert_eq!(again, index);
            }
        }
        _ => pack(rest),
    }
});

fn pack(mut rest: &[u8]) {
    let Some((flip, more)) = rest.split_first_chunk::<3>() else { return };
    rest = more;
    let mut writer = DeltaWriter::new(4096, &Cipher::None).expect("nothing to seal");
    writer.begin_disk("root");
    let (mut end, mut second, mut wanted) = (0_u64, false, Vec::new());
    while let Some((fields, more)) = rest.split_first_chunk::<4>() {
        let [kind, gap, len, wide] = *fields;
        if kind == 0 && !second {
            writer.begin_disk("data");
            (end, second) = (0, true);
        }
        let offset = end + u64::from(gap) * (1 + u64::from(wide));
        let (data, more) = more.split_at(usize::from(len).min(more.len()));
        rest = more;
        let len = if kind & 2 == 0 { data.len() as u64 } else { 1 + u64::from(len) * 977 };
        if len == 0 {
            continue;
        }
        if kind & 2 == 0 { writer.data(offset, data) } else { writer.zero(offset, len) }.expect("a write in order");
        wanted.push((second, offset, len, kind & 2 != 0));
        end = offset + len;
    }
    let mut bytes = writer.finish().expect("a delta").to_vec();
    let (_, index) = check("fuzz", &Cipher::None, &bytes).expect("our own delta is readable");
    for (second, offset, len, zero) in wanted {
        let extents = index.extents(if second { "data" } else { "root" });
        let holds = |at: u64| extents.iter().any(|it| it.at.is_none() == zero && it.offset <= at && at < it.offset + it.len);
        assert!(holds(offset) && holds(offset + len - 1), "what was written is in the index");
    }
    let at = usize::from(u16::from_le_bytes([flip[0], flip[1]])) % bytes.len();
    bytes[at] ^= 1 << (flip[2] & 7);
    // The compression has bits that mean nothing: flipping one is harmless, and the digests are of what comes out.
    if let Ok((_, again)) = check("fuzz", &Cipher::None, &bytes) {
        assert_eq!(again, index, "a flipped bit at {at} of {} went unnoticed", bytes.len());
    }
}
