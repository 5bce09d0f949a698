use proptest::prelude::*;

use super::*;

const SIZE: u64 = 1 << 20;
const END: u64 = u64::MAX;

fn session(flags: u16) -> Negotiated {
    let contexts = Contexts { allocation: true, changes: None };
    Negotiated { export: 0, size: SIZE, flags, framing: Framing::Structured, contexts }
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

fn raw(command: u16, flags: u16, offset: u64, len: impl Into<u64>) -> RawRequest {
    RawRequest { flags, command, cookie: 7, offset, len: len.into() }
}

fn errno(session: &Negotiated, request: RawRequest) -> Option<Errno> {
    request.validate(session, &[]).err().map(|refusal| refusal.errno)
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
        assert_eq!(errno(&read_only, raw(command, 0, 0, 512_u32)), Some(Errno::Perm));
    }
    for command in [cmd::READ, cmd::CACHE, cmd::BLOCK_STATUS] {
        assert_eq!(errno(&read_only, raw(command, 0, 0, 512_u32)), None);
    }
    assert_eq!(errno(&read_only, raw(cmd::FLUSH, 0, 0, 0_u32)), None);
}

#[test]
fn unknown_commands_are_einval() {
    for command in [8, 9, 77, u16::MAX] {
        assert_eq!(errno(&everything(), raw(command, 0, 0, 1_u32)), Some(Errno::Inval));
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
        let len = if command == cmd::FLUSH { 0_u32 } else { 512 };
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
        raw(cmd::TRIM, 0, 0, 512_u32),
        raw(cmd::CACHE, 0, 0, 512_u32),
        raw(cmd::WRITE_ZEROES, cflag::FAST_ZERO, 0, 512_u32),
        raw(cmd::READ, cflag::DF, 0, 512_u32),
    ] {
        assert_eq!(errno(&bare, request), Some(Errno::Inval));
    }
    let no_context = Negotiated { contexts: Contexts::default(), ..everything() };
    assert_eq!(errno(&no_context, raw(cmd::BLOCK_STATUS, 0, 0, 512_u32)), Some(Errno::Inval));
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
    assert_eq!(errno(&everything(), raw(cmd::FLUSH, 0, 1, 0_u32)), Some(Errno::Inval));
    assert_eq!(errno(&everything(), raw(cmd::FLUSH, 0, 0, 1_u32)), Some(Errno::Inval));
    assert_eq!(errno(&everything(), raw(cmd::BLOCK_STATUS, 0, 0, 0_u32)), Some(Errno::Inval));
    for command in [cmd::READ, cmd::WRITE, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES] {
        assert_eq!(errno(&everything(), raw(command, 0, SIZE, 0_u32)), None, "nothing at the very end");
    }
}

#[test]
fn the_payload_of_a_write_is_known_whether_it_is_refused_or_not() {
    for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
        assert_eq!(raw(cmd::WRITE, u16::MAX, END, u32::MAX).payload(framing), u64::from(u32::MAX));
        assert_eq!(raw(cmd::WRITE, 0, 0, 4096_u32).payload(framing), 4096);
        assert_eq!(raw(cmd::WRITE_ZEROES, 0, 0, 4096_u32).payload(framing), 0);
    }
    let marked = raw(cmd::BLOCK_STATUS, cflag::PAYLOAD_LEN, 0, 12_u32);
    assert_eq!((marked.payload(Framing::Structured), marked.payload(Framing::Extended)), (0, 12));
}

#[test]
fn a_header_with_another_magic_is_out_of_step() {
    for (framing, other) in [(Framing::Simple, Framing::Extended), (Framing::Extended, Framing::Structured)] {
        let mut header = raw(cmd::READ, 0, 0, 1_u32).encode(framing);
        assert_eq!(header.len(), framing.request_len());
        assert!(RawRequest::parse(&header, framing).is_ok());
        header.resize(wire::EXTENDED_REQUEST_LEN, 0);
        assert_eq!(RawRequest::parse(&header, other), Err(OutOfStep));
        header[0] ^= 1;
        assert_eq!(RawRequest::parse(&header, framing), Err(OutOfStep));
    }
}

#[test]
fn a_payload_that_nobody_reads_to_its_end_is_out_of_step() {
    let parse = |len: u64| {
        let request = raw(cmd::WRITE, cflag::PAYLOAD_LEN, 0, len);
        RawRequest::parse(&request.encode(Framing::Extended), Framing::Extended)
    };
    assert!(parse(wire::MAX_DRAINED).is_ok());
    assert_eq!(parse(wire::MAX_DRAINED + 1), Err(OutOfStep));
    assert_eq!(parse(END), Err(OutOfStep));
    let zeroes = raw(cmd::WRITE_ZEROES, 0, 0, END);
    let parsed = RawRequest::parse(&zeroes.encode(Framing::Extended), Framing::Extended);
    assert_eq!(parsed, Ok(zeroes), "a length without a payload may be anything");
}

/// Extended headers, both contexts, a device larger than 32 bits.
fn extended() -> Negotiated {
    let contexts = Contexts { allocation: true, changes: Some(uuid::Uuid::nil()) };
    let flags = everything().flags | tflag::BLOCK_STATUS_PAYLOAD;
    Negotiated { size: 1 << 44, flags, framing: Framing::Extended, contexts, ..everything() }
}

#[test]
fn extended_lengths_reach_past_32_bits_but_payloads_do_not() {
    for command in [cmd::TRIM, cmd::WRITE_ZEROES, cmd::CACHE, cmd::BLOCK_STATUS] {
        assert_eq!(errno(&extended(), raw(command, 0, 1 << 40, 1_u64 << 41)), None);
        let expected = if command == cmd::WRITE_ZEROES { Errno::NoSpc } else { Errno::Inval };
        assert_eq!(errno(&extended(), raw(command, 0, 1, 1_u64 << 44)), Some(expected));
        assert_eq!(errno(&extended(), raw(command, 0, 1, END)), Some(expected), "it overflows");
    }
    assert_eq!(errno(&extended(), raw(cmd::READ, 0, 0, 1_u64 << 32)), Some(Errno::Inval));
    assert_eq!(errno(&extended(), raw(cmd::READ, 0, 0, wire::MAX_PAYLOAD)), None);
    let long = raw(cmd::WRITE, cflag::PAYLOAD_LEN, 0, wire::MAX_PAYLOAD + 1);
    assert_eq!(errno(&extended(), long), Some(Errno::Inval));
}

#[test]
fn only_a_write_has_a_payload_whether_it_says_so_or_not() {
    assert_eq!(errno(&extended(), raw(cmd::WRITE, cflag::PAYLOAD_LEN, 0, 512_u32)), None);
    assert_eq!(errno(&extended(), raw(cmd::WRITE, 0, 0, 512_u32)), None, "QEMU 10.0 forgets it");
    for command in [cmd::READ, cmd::FLUSH, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES] {
        // The length is not one of the device: EINVAL even where a range would be ENOSPC.
        let request = raw(command, cflag::PAYLOAD_LEN, END, 512_u32);
        assert_eq!(errno(&extended(), request), Some(Errno::Inval), "{command}");
    }
    let compact = raw(cmd::WRITE, cflag::PAYLOAD_LEN, 0, 512_u32);
    assert_eq!(errno(&everything(), compact), Some(Errno::Inval), "the flag belongs to extended headers");
}

#[test]
fn a_block_status_may_choose_among_its_contexts_and_only_among_them() {
    let ask = |session: &Negotiated, payload: &[u8]| {
        let len = u64::try_from(payload.len()).unwrap();
        raw(cmd::BLOCK_STATUS, cflag::PAYLOAD_LEN, 4096, len).validate(session, payload)
    };
    let payload = |len: u64, ids: &[u32]| {
        let ids = ids.iter().flat_map(|id| id.to_be_bytes());
        len.to_be_bytes().into_iter().chain(ids).collect::<Vec<u8>>()
    };
    let session = extended();
    let all = session.contexts;
    for (ids, contexts) in [
        (&[1][..], Contexts { changes: None, ..all }),
        (&[2], Contexts { allocation: false, ..all }),
        (&[2, 1], all),
    ] {
        let asked = Request::BlockStatus { offset: 4096, len: 1 << 40, one: false, contexts };
        assert_eq!(ask(&session, &payload(1 << 40, ids)), Ok(asked));
    }
    for ids in [&[][..], &[3], &[1, 1], &[2, 2], &[1, 2, 3], &[0]] {
        assert_eq!(ask(&session, &payload(512, ids)).unwrap_err().errno, Errno::Inval, "{ids:?}");
    }
    for bad in [&[][..], &[0; 7], &payload(512, &[1])[..11], &[&payload(512, &[1])[..], &[0]].concat()] {
        assert_eq!(ask(&session, bad).unwrap_err().errno, Errno::Inval, "{bad:?}");
    }
    assert_eq!(ask(&session, &payload(0, &[1])).unwrap_err().errno, Errno::Inval, "nothing is asked");
    assert_eq!(ask(&session, &payload(END, &[1])).unwrap_err().errno, Errno::Inval, "past the end");
    let one = Negotiated { contexts: Contexts { changes: None, ..all }, ..session };
    assert_eq!(ask(&one, &payload(512, &[2])).unwrap_err().errno, Errno::Inval, "it was not selected");
}

proptest! {
    #[test]
    fn headers_survive_the_wire_and_the_gate_holds(
        flags in any::<u16>(), command in 0..10_u16, offset in 0..3 * super::super::fuzz::EXPORT_SIZE / 2,
        len in any::<u32>(), cookie in any::<u64>(),
    ) {
        let request = RawRequest { flags: flags & 0x3f, command, cookie, offset, len: u64::from(len) };
        for framing in [Framing::Simple, Framing::Extended] {
            let header = request.encode(framing);
            prop_assert_eq!(RawRequest::parse(&header, framing), Ok(request));
            super::super::fuzz::transmission(&header);
        }
    }
}
