//! Any bytes as what an encrypted vault holds: a delta, an entry, a small object, a wrapped key. Nothing of it opens, whatever it begins
//! with, and what we sealed ourselves opens until a bit is flipped.
#![no_main]

use libfuzzer_sys::fuzz_target;
use uploader::cipher::wrap::{Secret, WrappedKey};
use uploader::cipher::{Cipher, DataKey, Named};
use uploader::delta::DeltaWriter;
use uploader::delta::reader::check;
use uploader::{inspect, point};

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let cipher = Cipher::aes(DataKey::new([7; 32].into()));
    let named = Named { cipher: cipher.clone(), key: "machines/m/line/1".to_owned(), object: "fuzz".to_owned() };
    let magic: &[u8] = if first & 1 == 0 { b"LBDELTA\x02" } else { b"LBENTRY\x02" };
    let bytes = if first & 2 == 0 { [magic, rest].concat() } else { rest.to_vec() };
    match first >> 2 & 3 {
        0 => assert!(check("fuzz", &cipher, &bytes).is_err(), "nobody without the key made this"),
        1 => {
            let _ = point::header_end("fuzz", &bytes);
            let _ = point::clear_header("fuzz", &bytes);
            let _ = inspect::is_sealed(&bytes);
            assert!(point::decode_header(&named, &bytes).is_err() && point::decode(&named, &bytes).is_err());
            assert!(cipher.open_object("fuzz", "x", &bytes).is_err());
        }
        2 => {
            let Ok(key) = WrappedKey::decode("fuzz", rest) else { return };
            assert!(!matches!(key.unwrap("fuzz", &Secret::KeyFile([1; 32].into())), Ok(Some(_))));
        }
        _ => pack(&cipher, rest),
    }
});

fn pack(cipher: &Cipher, rest: &[u8]) {
    let Some((at, content)) = rest.split_first_chunk::<3>() else { return };
    let mut writer = DeltaWriter::new(512, cipher).expect("a writer");
    writer.begin_disk("root");
    writer.data(4096, content).expect("in order");
    let mut delta = writer.finish().expect("a delta").to_vec();
    check("fuzz", cipher, &delta).expect("our own delta opens");
    check("fuzz", &Cipher::None, &delta).expect_err("without the key");
    let bit = usize::from(u16::from_le_bytes([at[0], at[1]])) % delta.len();
    delta[bit] ^= 1 << (at[2] & 7);
    check("fuzz", cipher, &delta).expect_err("a bit was flipped");
}
