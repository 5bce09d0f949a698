//! Units: what opens, what does not, and the bytes of version 1 of all that.

use nbd_proxy::Kind;

use crate::cipher::{Cipher, DataKey, HEADER, Salt, Units};
use crate::digest::{Digest, hex, unhex};
use crate::testing::test_cipher;

const SALT: Salt = Salt([7; 16]);

fn units(name: &str, salt: Salt) -> Units {
    test_cipher().opener("vault/o", name, Some(salt)).unwrap()
}

#[test]
fn a_unit_opens_only_under_its_own_name_salt_and_number() {
    let sealed = units("a", SALT).seal(3, b"content".to_vec()).unwrap();
    assert_eq!(&*units("a", SALT).open("vault/o", 3, &sealed).unwrap(), b"content");
    let other_key = Cipher::aes(DataKey::draw().unwrap()).opener("vault/o", "a", Some(SALT)).unwrap();
    let (other_name, other_salt) = (units("b", SALT), units("a", Salt([8; 16])));
    for (units, number) in [(units("a", SALT), 4), (other_name, 3), (other_salt, 3), (other_key, 3)] {
        let error = units.open("vault/o", number, &sealed).unwrap_err();
        assert_eq!((error.kind, error.object.as_str()), (Kind::Corrupt, "vault/o"));
    }
}

#[test]
fn every_flipped_byte_and_every_cut_of_a_unit_is_refused() {
    let units = units("a", SALT);
    let sealed = units.seal(0, b"content".to_vec()).unwrap();
    for at in 0..sealed.len() {
        let mut bad = sealed.clone();
        bad[at] ^= 0x20;
        units.open("o", 0, &bad).unwrap_err();
        units.open("o", 0, &sealed[..at]).unwrap_err();
    }
}

#[test]
fn a_mark_holds_for_its_bytes_only() {
    for cipher in [Cipher::None, test_cipher()] {
        let (_, units) = cipher.sealer("a").unwrap();
        let mark = units.mark(HEADER, b"clear").unwrap();
        assert!(units.is_marked(HEADER, b"clear", mark));
        assert!(!units.is_marked(HEADER, b"cleaR", mark));
        let flipped = Digest(mark.0.map(|byte| byte ^ 1));
        assert!(!units.is_marked(HEADER, b"clear", flipped));
    }
    // Who has no key can make no mark.
    assert!(!units("a", SALT).is_marked(HEADER, b"clear", Digest::of(b"clear")));
}

#[test]
fn a_plain_object_in_an_encrypted_vault_is_refused_and_the_other_way_round() {
    for (cipher, salt) in [(test_cipher(), None), (Cipher::None, Some(SALT))] {
        let error = cipher.opener("vault/o", "a", salt).unwrap_err();
        assert_eq!((error.kind, error.object.as_str()), (Kind::Corrupt, "vault/o"));
    }
}

#[test]
fn a_small_object_is_sealed_as_a_whole() {
    for cipher in [Cipher::None, test_cipher()] {
        let stored = cipher.seal_object("machines/m/x", b"content".to_vec()).unwrap();
        assert_eq!(&*cipher.open_object("o", "machines/m/x", &stored).unwrap(), b"content");
    }
    let stored = test_cipher().seal_object("machines/m/x", b"content".to_vec()).unwrap();
    assert!(!stored.windows(7).any(|window| window == b"content"));
    test_cipher().open_object("o", "machines/m/y", &stored).unwrap_err();
    (0..stored.len())
        .for_each(|len| drop(test_cipher().open_object("o", "machines/m/x", &stored[..len]).unwrap_err()));
}

/// The bytes of today stay readable for ever: made once, by another implementation of HKDF and AES-GCM.
#[test]
fn the_bytes_of_a_sealed_unit() {
    let units = units("machines/m/line/00000000000000000001", SALT);
    assert_eq!(hex(&units.seal(5, b"some words".to_vec()).unwrap()), SEALED);
    let sealed: [u8; 26] = unhex(SEALED).unwrap();
    assert_eq!(&*units.open("o", 5, &sealed).unwrap(), b"some words");
    assert_eq!(hex(&units.mark(HEADER, b"clear words").unwrap().0), MARK);
}

const SEALED: &str = "4cc7c465e779c775c7c3202cde31d2413e56414c4d1090ef8ac5";
const MARK: &str = "a324a8d48afd92ffc3e2656a58eb0e8a";

#[test]
fn secrets_are_not_printed() {
    let key = DataKey::new([0xab; 32].into());
    let shown = format!("{key:?} {:?} {:?}", Cipher::aes(DataKey::new([0xab; 32].into())), units("a", SALT));
    assert!(!shown.contains("171") && !shown.contains("ab") && shown.contains("***"), "{shown}");
}
