use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn tag(cookie: u64) -> Tag {
    Tag { cookie, offset: 0xabcd }
}

const SIMPLE: Framing = Framing::Simple;
const STRUCTURED: Framing = Framing::Structured;
const EXTENDED: Framing = Framing::Extended;

#[test]
fn the_bytes_of_every_reply() {
    for framing in [SIMPLE, STRUCTURED] {
        assert_eq!(hex(&done(framing, tag(0x0102))), "67446698000000000000000000000102");
    }
    assert_eq!(hex(&nothing(SIMPLE, tag(2))), "67446698000000000000000000000002");
    assert_eq!(hex(&nothing(STRUCTURED, tag(2))), "668e33ef00010000000000000000000200000000");
    assert_eq!(hex(&data(SIMPLE, tag(3), 0x10, 5, false)), "67446698000000000000000000000003");
    assert_eq!(
        hex(&data(STRUCTURED, tag(3), 0x10, 5, false)),
        "668e33ef0000000100000000000000030000000d0000000000000010"
    );
    assert_eq!(
        hex(&hole(STRUCTURED, tag(4), 0x20, 6, true)),
        "668e33ef0001000200000000000000040000000c000000000000002000000006"
    );
    let mut out = Vec::new();
    error(&mut out, STRUCTURED, tag(5), Errno::Io, "no");
    assert_eq!(hex(&out), "668e33ef00018001000000000000000500000008".to_owned() + "0000000500026e6f");
    out.clear();
    error(&mut out, SIMPLE, tag(1), Errno::NoSpc, "no");
    assert_eq!(hex(&out), "674466980000001c0000000000000001");
    out.clear();
    block_status(&mut out, STRUCTURED, tag(6), 1, &[(7, 0), (8, 3)], true);
    let extents = "00000007000000000000000800000003";
    assert_eq!(hex(&out), "668e33ef0001000500000000000000060000001400000001".to_owned() + extents);
}

/// With extended headers there is no simple reply, and each chunk repeats the offset of its request.
#[test]
fn the_bytes_of_every_extended_reply() {
    let head = |kind: &str, cookie: u8, len: u8| {
        format!("6e8a278c{kind}00000000000000{cookie:02x}000000000000abcd00000000000000{len:02x}")
    };
    for end in [done, nothing] {
        assert_eq!(hex(&end(EXTENDED, tag(2))), head("00010000", 2, 0));
    }
    assert_eq!(hex(&data(EXTENDED, tag(3), 0x10, 5, false)), head("00000001", 3, 13) + "0000000000000010");
    let hole = hole(EXTENDED, tag(4), 0x20, 6, true);
    assert_eq!(hex(&hole), head("00010002", 4, 12) + "000000000000002000000006");
    assert_eq!(hole.len(), wire::MAX_HEAD, "there is no longer one");
    let mut out = Vec::new();
    error(&mut out, EXTENDED, tag(5), Errno::Io, "no");
    assert_eq!(hex(&out), head("00018001", 5, 8) + "0000000500026e6f");
    out.clear();
    block_status(&mut out, EXTENDED, tag(6), 2, &[(7 << 32, 0), (8, 1)], false);
    let extents = "00000007000000000000000000000000".to_owned() + "00000000000000080000000000000001";
    assert_eq!(hex(&out), head("00000006", 6, 40) + "0000000200000002" + &extents);
}

#[test]
fn error_texts_are_cut_at_a_character() {
    let mut out = Vec::new();
    error(&mut out, STRUCTURED, tag(1), Errno::Io, &"ä".repeat(200));
    assert_eq!(out.len(), wire::CHUNK_LEN + 6 + 256);
    out.clear();
    error(&mut out, STRUCTURED, tag(1), Errno::Io, &("x".to_owned() + &"ä".repeat(200)));
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
