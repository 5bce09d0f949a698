use proptest::prelude::*;

use super::*;

const SIZE: u64 = 1 << 20;
const END: u64 = u64::MAX;

fn session(flags: u16) -> Negotiated {
    Negotiated { export: 0, size: SIZE, flags, structured: true, allocation: true }
}

fn everything() -> Negotiated {
    session(
        tflag::HAS_FLAGS
            | tflag::SEND_FLUSH
            | tflag::SEND_FUA
            | tflag::SEND_TRIM
            | tflag::SEND_WRITE_ZEROES
            | tflag::SEND_DF
            | tflag::SEND_CACHE
            | tflag::SEND_FAST_ZERO,
    )
}

fn raw(command: u16, flags: u16, offset: u64, len: u32) -> RawRequest {
    RawRequest { flags, command, cookie: 7, offset, len }
}

fn errno(session: &Negotiated, request: RawRequest) -> Option<Errno> {
    request.validate(session).err().map(|refusal| refusal.errno)
}

#[test]
fn a_range_past_the_end_is_enospc_for_writes_and_einval_for_the_rest() {
    for (offset, len) in [(SIZE - 1, 2), (SIZE, 1), (SIZE + 1, 0), (END, 1), (END, u32::MAX), (0, u32::MAX)] {
        for (command, expected) in [
            (cmd::READ, Errno::Inval),
            (cmd::WRITE, Errno::NoSpc),
            (cmd::TRIM, Errno::Inval),
            (cmd::CACHE, Errno::Inval),
            (cmd::WRITE_ZEROES, Errno::NoSpc),
            (cmd::BLOCK_STATUS, Errno::Inval),
        ] {
            // The range is looked at before anything else: before flags, and before permission.
            for flags in [0, 1 << 15] {
                assert_eq!(errno(&everything(), raw(command, flags, offset, len)), Some(expected));
            }
            let read_only = session(tflag::HAS_FLAGS | tflag::READ_ONLY);
            assert_eq!(errno(&read_only, raw(command, 0, offset, len)), Some(expected));
        }
    }
}

#[test]
fn a_read_only_export_answers_eperm() {
    let read_only = session(tflag::HAS_FLAGS | tflag::READ_ONLY | tflag::SEND_FLUSH | tflag::SEND_CACHE);
    for command in [cmd::WRITE, cmd::TRIM, cmd::WRITE_ZEROES] {
        assert_eq!(errno(&read_only, raw(command, 0, 0, 512)), Some(Errno::Perm));
    }
    for command in [cmd::READ, cmd::CACHE, cmd::BLOCK_STATUS] {
        assert_eq!(errno(&read_only, raw(command, 0, 0, 512)), None);
    }
    assert_eq!(errno(&read_only, raw(cmd::FLUSH, 0, 0, 0)), None);
}

#[test]
fn unknown_commands_are_einval() {
    for command in [8, 9, 77, u16::MAX] {
        assert_eq!(errno(&everything(), raw(command, 0, 0, 1)), Some(Errno::Inval));
    }
}

#[test]
fn every_flag_is_refused_on_a_command_that_does_not_have_it_but_fua_is_legal_on_all() {
    let own = |command| match command {
        cmd::READ => cflag::DF,
        cmd::WRITE_ZEROES => cflag::NO_HOLE | cflag::FAST_ZERO,
        cmd::BLOCK_STATUS => cflag::REQ_ONE,
        _ => 0,
    };
    for command in
        [cmd::READ, cmd::WRITE, cmd::FLUSH, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES, cmd::BLOCK_STATUS]
    {
        let len = if command == cmd::FLUSH { 0 } else { 512 };
        for bit in 0..16 {
            let flag = 1 << bit;
            let legal = flag & (own(command) | cflag::FUA) != 0;
            let expected = (!legal).then_some(Errno::Inval);
            assert_eq!(errno(&everything(), raw(command, flag, 0, len)), expected, "{command} {bit}");
        }
    }
}

#[test]
fn what_was_not_advertised_is_refused() {
    let bare = session(tflag::HAS_FLAGS | tflag::SEND_FLUSH | tflag::SEND_FUA | tflag::SEND_WRITE_ZEROES);
    for request in [
        raw(cmd::TRIM, 0, 0, 512),
        raw(cmd::CACHE, 0, 0, 512),
        raw(cmd::WRITE_ZEROES, cflag::FAST_ZERO, 0, 512),
        raw(cmd::READ, cflag::DF, 0, 512),
    ] {
        assert_eq!(errno(&bare, request), Some(Errno::Inval));
    }
    let no_context = Negotiated { allocation: false, ..everything() };
    assert_eq!(errno(&no_context, raw(cmd::BLOCK_STATUS, 0, 0, 512)), Some(Errno::Inval));
}

#[test]
fn more_than_64_mib_is_refused_and_exactly_64_mib_is_not() {
    let big = Negotiated { size: 1 << 40, ..everything() };
    for command in [cmd::READ, cmd::WRITE] {
        assert_eq!(errno(&big, raw(command, 0, 0, wire::MAX_PAYLOAD)), None);
        assert_eq!(errno(&big, raw(command, 0, 0, wire::MAX_PAYLOAD + 1)), Some(Errno::Inval));
    }
    for command in [cmd::TRIM, cmd::WRITE_ZEROES, cmd::CACHE, cmd::BLOCK_STATUS] {
        assert_eq!(errno(&big, raw(command, 0, 0, u32::MAX)), None, "those have no payload");
    }
}

#[test]
fn a_flush_has_no_range_and_block_status_is_never_empty() {
    assert_eq!(errno(&everything(), raw(cmd::FLUSH, 0, 1, 0)), Some(Errno::Inval));
    assert_eq!(errno(&everything(), raw(cmd::FLUSH, 0, 0, 1)), Some(Errno::Inval));
    assert_eq!(errno(&everything(), raw(cmd::BLOCK_STATUS, 0, 0, 0)), Some(Errno::Inval));
    for command in [cmd::READ, cmd::WRITE, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES] {
        assert_eq!(errno(&everything(), raw(command, 0, SIZE, 0)), None, "nothing at the very end");
    }
}

#[test]
fn the_payload_of_a_write_is_known_whether_it_is_refused_or_not() {
    assert_eq!(raw(cmd::WRITE, u16::MAX, END, u32::MAX).payload(), u32::MAX);
    assert_eq!(raw(cmd::WRITE_ZEROES, 0, 0, 4096).payload(), 0);
}

#[test]
fn a_header_with_another_magic_is_out_of_step() {
    let mut header = raw(cmd::READ, 0, 0, 1).encode();
    assert!(RawRequest::parse(&header).is_ok());
    header[0] ^= 1;
    assert_eq!(RawRequest::parse(&header), Err(OutOfStep));
}

proptest! {
    #[test]
    fn headers_survive_the_wire_and_the_gate_holds(
        flags in any::<u16>(), command in 0..10_u16, offset in 0..3 * super::super::fuzz::EXPORT_SIZE / 2,
        len in any::<u32>(), cookie in any::<u64>(),
    ) {
        let request = RawRequest { flags: flags & 0x1f, command, cookie, offset, len };
        prop_assert_eq!(RawRequest::parse(&request.encode()), Ok(request));
        super::super::fuzz::transmission(&request.encode());
    }
}
