use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_bytes_of_every_reply() {
    assert_eq!(hex(&simple(0x0102, None)), "67446698000000000000000000000102");
    assert_eq!(hex(&simple(1, Some(Errno::NoSpc))), "674466980000001c0000000000000001");
    assert_eq!(hex(&none(2)), "668e33ef00010000000000000000000200000000");
    assert_eq!(hex(&data(3, 0x10, 5, false)), "668e33ef0000000100000000000000030000000d0000000000000010");
    assert_eq!(
        hex(&hole(4, 0x20, 6, true)),
        "668e33ef0001000200000000000000040000000c000000000000002000000006"
    );
    let mut out = Vec::new();
    error(&mut out, true, 5, Errno::Io, "no");
    assert_eq!(hex(&out), "668e33ef00018001000000000000000500000008".to_owned() + "0000000500026e6f");
    out.clear();
    error(&mut out, false, 5, Errno::Io, "no");
    assert_eq!(out, simple(5, Some(Errno::Io)));
    out.clear();
    block_status(&mut out, 6, &[(7, 0), (8, 3)]);
    let extents = "00000007000000000000000800000003";
    assert_eq!(hex(&out), "668e33ef0001000500000000000000060000001400000001".to_owned() + extents);
}

#[test]
fn error_texts_are_cut_at_a_character() {
    let mut out = Vec::new();
    error(&mut out, true, 1, Errno::Io, &"ä".repeat(200));
    assert_eq!(out.len(), wire::CHUNK_LEN + 6 + 256);
    out.clear();
    error(&mut out, true, 1, Errno::Io, &("x".to_owned() + &"ä".repeat(200)));
    assert_eq!(out.len(), wire::CHUNK_LEN + 6 + 255);
    assert!(std::str::from_utf8(&out[wire::CHUNK_LEN + 6..]).is_ok());
}

#[test]
fn device_errors_become_the_few_that_the_wire_knows() {
    for (errno, expected) in [
        (1, Errno::Perm),
        (13, Errno::Perm),
        (30, Errno::Perm),
        (5, Errno::Io),
        (12, Errno::NoMem),
        (22, Errno::Inval),
        (27, Errno::NoSpc),
        (28, Errno::NoSpc),
        (122, Errno::NoSpc),
        (75, Errno::Overflow),
        (95, Errno::NotSup),
        (108, Errno::Shutdown),
        (32, Errno::Io),
        (110, Errno::Io),
    ] {
        assert_eq!(Errno::from(&std::io::Error::from_raw_os_error(errno)), expected, "{errno}");
    }
    assert_eq!(Errno::from(&std::io::Error::other("x")), Errno::Io);
    assert_eq!(Errno::from(&std::io::ErrorKind::Unsupported.into()), Errno::NotSup);
}
