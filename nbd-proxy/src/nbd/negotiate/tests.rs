use proptest::prelude::*;

use super::*;
use crate::device::Capabilities;

const CAN: Capabilities =
    Capabilities { read_only: false, trim: true, fast_zero: true, rotational: false, preferred_block: 4096 };

fn export(name: &str) -> ExportInfo {
    ExportInfo { name: name.into(), description: String::new(), size: 1 << 20, capabilities: CAN, cut: None }
}

fn option(number: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend(length(payload).to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn string(text: &str) -> Vec<u8> {
    [&length(text.as_bytes()).to_be_bytes(), text.as_bytes()].concat()
}

fn go(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut payload = string(name);
    payload.extend(u16::try_from(infos.len()).unwrap().to_be_bytes());
    infos.iter().for_each(|info| payload.extend(info.to_be_bytes()));
    payload
}

fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut payload = string(name);
    payload.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    queries.iter().for_each(|query| payload.extend(string(query)));
    payload
}

/// A handshake over two exports that remembers the replies.
struct Client {
    negotiation: Negotiation,
}

impl Client {
    fn new(exports: &[ExportInfo]) -> Self {
        Self::with(exports, Tls::Off)
    }

    fn with(exports: &[ExportInfo], tls: Tls) -> Self {
        let mut negotiation = Negotiation::new(exports.into(), tls);
        assert_eq!(negotiation.step(&3_u32.to_be_bytes(), &mut Vec::new()), Step::Used(4));
        Self { negotiation }
    }

    /// Sends one option; gives `(type, payload)` of the replies.
    fn ask(&mut self, number: u32, payload: &[u8]) -> (Step, Vec<(u32, Vec<u8>)>) {
        let message = option(number, payload);
        let mut out = Vec::new();
        let mut rest = &message[..];
        loop {
            match self.negotiation.step(rest, &mut out) {
                Step::Used(used) if used < rest.len() => rest = &rest[used..],
                step => return (step, replies(number, &out)),
            }
        }
    }

    fn kinds(&mut self, number: u32, payload: &[u8]) -> Vec<u32> {
        self.ask(number, payload).1.into_iter().map(|(kind, _)| kind).collect()
    }

    fn chosen(&mut self, name: &str) -> Negotiated {
        match self.ask(opt::GO, &go(name, &[])).0 {
            Step::Go(_, chosen) => chosen,
            other => panic!("{other:?}"),
        }
    }
}

fn replies(number: u32, mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut replies = Vec::new();
    while !bytes.is_empty() {
        let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(bytes[..8], wire::OPTION_REPLY_MAGIC.to_be_bytes());
        assert_eq!(word(8), number, "a reply repeats its option");
        let end = 20 + word(16) as usize;
        replies.push((word(12), bytes[20..end].to_vec()));
        bytes = &bytes[end..];
    }
    replies
}

fn two() -> Client {
    Client::new(&[export("m/one"), export("m/two")])
}

#[test]
fn go_tells_size_and_flags_and_what_was_asked_for() {
    let mut client = Client::new(&[ExportInfo { description: "a disk".into(), ..export("m/one") }]);
    let (step, replies) = client.ask(opt::GO, &go("", &[1, 2, 3, 99]));
    assert!(matches!(step, Step::Go(..)));
    let flags = export("x").flags(Framing::Simple).to_be_bytes();
    let mut size = 0_u16.to_be_bytes().to_vec();
    size.extend((1_u64 << 20).to_be_bytes());
    size.extend(flags);
    let mut blocks = 3_u16.to_be_bytes().to_vec();
    [1_u32, 4096, 32 << 20].iter().for_each(|word| blocks.extend(word.to_be_bytes()));
    let expected = vec![
        (rep::INFO, size),
        (rep::INFO, b"\0\x01m/one".to_vec()),
        (rep::INFO, b"\0\x02a disk".to_vec()),
        (rep::INFO, blocks),
        (rep::ACK, Vec::new()),
    ];
    assert_eq!(replies, expected, "unknown information types are ignored");
}

#[test]
fn info_then_go_agree() {
    let mut client = two();
    client.ask(opt::STRUCTURED_REPLY, &[]);
    let info = client.ask(opt::INFO, &go("m/two", &[1, 3]));
    let go = client.ask(opt::GO, &go("m/two", &[1, 3]));
    assert_eq!(info.1, go.1);
    assert!(matches!(info.0, Step::Used(_)));
    let Step::Go(_, chosen) = go.0 else { panic!("{:?}", go.0) };
    assert_eq!((chosen.export, chosen.framing), (1, Framing::Structured));
    assert!(chosen.contexts.is_empty());
}

#[test]
fn short_or_trailing_data_is_invalid_and_the_handshake_goes_on() {
    let mut client = two();
    let good = go("m/one", &[3]);
    for payload in [&good[..good.len() - 1], &[&good[..], &[0]].concat(), &[], &[0xff; 6]] {
        assert_eq!(client.kinds(opt::GO, payload), [rep::ERR_INVALID]);
        assert_eq!(client.kinds(opt::INFO, payload), [rep::ERR_INVALID]);
    }
    assert_eq!(client.kinds(opt::LIST, b"x"), [rep::ERR_INVALID]);
    assert_eq!(client.kinds(opt::STRUCTURED_REPLY, b"x"), [rep::ERR_INVALID]);
    assert_eq!(client.chosen("m/one").framing, Framing::Simple);
}

#[test]
fn a_name_longer_than_a_string_may_be_is_invalid() {
    assert_eq!(two().kinds(opt::GO, &go(&"n".repeat(4097), &[])), [rep::ERR_INVALID]);
    let (_, replies) = two().ask(opt::GO, &go(&"n".repeat(4096), &[]));
    assert_eq!(replies[0].0, rep::ERR_UNKNOWN);
    assert!(replies[0].1.len() < 150, "an echoed name is truncated");
}

#[test]
fn unknown_options_are_read_and_refused() {
    let mut client = two();
    for number in [opt::STARTTLS, 4, 77, u32::MAX] {
        assert_eq!(client.kinds(number, &[7; 5000]), [rep::ERR_UNSUP]);
    }
    assert_eq!(client.chosen("m/two").export, 1);
}

#[test]
fn an_option_too_long_to_look_at_is_read_and_refused() {
    let mut client = two();
    let long = vec![0; wire::MAX_OPTION as usize + 1];
    assert_eq!(client.kinds(opt::GO, &long), [rep::ERR_TOO_BIG]);
    assert_eq!(client.chosen("m/one").export, 0);
}

#[test]
fn what_no_client_needs_drops_the_connection() {
    let mut header = option(opt::GO, &[]);
    header[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
    let step = |message: &[u8]| two().negotiation.step(message, &mut Vec::new());
    assert_eq!(step(&header), Step::Drop(Violation::OptionTooLong(u32::MAX)));
    assert_eq!(step(&[0; 16]), Step::Drop(Violation::BadMagic));
    let mut client = two();
    for _ in 0..wire::MAX_OPTIONS {
        assert!(matches!(client.ask(99, &[]).0, Step::Used(_)));
    }
    assert_eq!(client.ask(99, &[]).0, Step::Drop(Violation::TooManyOptions));
}

#[test]
fn flags_that_were_not_offered_drop_the_connection() {
    for flags in [4_u32, 1 << 16, u32::MAX] {
        let step =
            Negotiation::new(Arc::from([export("a")]), Tls::Off).step(&flags.to_be_bytes(), &mut Vec::new());
        assert_eq!(step, Step::Drop(Violation::UnknownFlags(flags)));
    }
}

#[test]
fn export_name_pads_unless_told_not_to_and_drops_unknown_names() {
    for (flags, len) in [(0_u32, 134), (1, 134), (3, 10)] {
        let mut negotiation = Negotiation::new(Arc::from([export("a")]), Tls::Off);
        let mut out = Vec::new();
        negotiation.step(&flags.to_be_bytes(), &mut out);
        assert!(matches!(negotiation.step(&option(opt::EXPORT_NAME, b"a"), &mut out), Step::Go(17, _)));
        assert_eq!(out.len(), len);
        assert_eq!(out[..8], (1_u64 << 20).to_be_bytes());
    }
    let unknown = Step::Drop(Violation::UnknownExport);
    assert_eq!(two().ask(opt::EXPORT_NAME, b"nope").0, unknown);
    assert_eq!(two().ask(opt::EXPORT_NAME, b"").0, unknown, "the empty name means nothing among several");
}

#[test]
fn abort_is_acknowledged() {
    assert_eq!(two().ask(opt::ABORT, b"whatever"), (Step::Close, vec![(rep::ACK, Vec::new())]));
}

#[test]
fn list_names_every_export() {
    let (_, replies) = two().ask(opt::LIST, &[]);
    let expected = [(rep::SERVER, string("m/one")), (rep::SERVER, string("m/two")), (rep::ACK, vec![])];
    assert_eq!(replies, expected);
}

#[test]
fn contexts_need_structured_replies_first() {
    let mut client = two();
    for number in [opt::SET_META_CONTEXT, opt::LIST_META_CONTEXT] {
        assert_eq!(client.kinds(number, &contexts("m/one", &["base:allocation"])), [rep::ERR_INVALID]);
    }
    assert!(!client.chosen("m/one").contexts.allocation);
}

#[test]
fn wildcards_work_in_list_only_and_other_namespaces_are_ignored() {
    let mut client = two();
    client.ask(opt::STRUCTURED_REPLY, &[]);
    for queries in [&[][..], &["base:"], &["x:y", "base:allocation"]] {
        let kinds = client.kinds(opt::LIST_META_CONTEXT, &contexts("m/one", queries));
        assert_eq!(kinds, [rep::META_CONTEXT, rep::ACK]);
    }
    assert_eq!(client.kinds(opt::LIST_META_CONTEXT, &contexts("m/one", &["x:y"])), [rep::ACK]);
    for queries in [&[][..], &["base:"], &["x:y"]] {
        assert_eq!(client.kinds(opt::SET_META_CONTEXT, &contexts("m/one", queries)), [rep::ACK]);
    }
    let (_, replies) = client.ask(opt::SET_META_CONTEXT, &contexts("m/one", &["base:allocation"]));
    assert_eq!(replies[0], (rep::META_CONTEXT, [&1_u32.to_be_bytes()[..], b"base:allocation"].concat()));
    assert!(client.chosen("m/one").contexts.allocation);
}

const CUT: uuid::Uuid = super::super::fuzz::CUT;

#[test]
fn the_changes_of_the_cut_that_is_out_are_a_context_of_their_own() {
    let mut client = Client::new(&[ExportInfo { cut: Some(CUT), ..export("m/one") }, export("m/two")]);
    client.ask(opt::STRUCTURED_REPLY, &[]);
    let name = format!("qemu:dirty-bitmap:{CUT}");
    let reply = |id: u32, name: &str| (rep::META_CONTEXT, [&id.to_be_bytes()[..], name.as_bytes()].concat());
    let done = || (rep::ACK, Vec::new());
    let listed = |client: &mut Client, export: &str, queries: &[&str]| {
        client.ask(opt::LIST_META_CONTEXT, &contexts(export, queries)).1
    };
    for queries in [&["qemu:"][..], &["qemu:dirty-bitmap:"], &[&name]] {
        assert_eq!(listed(&mut client, "m/one", queries), [reply(0, &name), done()]);
        assert_eq!(listed(&mut client, "m/two", queries), [done()], "no cut of that disk is out");
    }
    let all = [reply(0, wire::BASE_ALLOCATION), reply(0, &name), done()];
    assert_eq!(listed(&mut client, "m/one", &[]), all);
    for queries in
        [&["qemu:"][..], &["qemu:dirty-bitmap:"], &["qemu:dirty-bitmap:other"], &["qemu:dirty-bitmap"]]
    {
        assert_eq!(client.kinds(opt::SET_META_CONTEXT, &contexts("m/one", queries)), [rep::ACK]);
    }
    let (_, replies) = client.ask(opt::SET_META_CONTEXT, &contexts("m/one", &[&name, "base:allocation"]));
    assert_eq!(replies, [reply(1, wire::BASE_ALLOCATION), reply(2, &name), done()]);
    assert_eq!(client.chosen("m/one").contexts, Contexts { allocation: true, changes: Some(CUT) });
}

#[test]
fn extended_headers_imply_structured_replies_and_are_agreed_on_once() {
    let mut client = two();
    assert_eq!(client.kinds(opt::EXTENDED_HEADERS, b"x"), [rep::ERR_INVALID]);
    assert_eq!(client.kinds(opt::STRUCTURED_REPLY, &[]), [rep::ACK]);
    assert_eq!(client.kinds(opt::EXTENDED_HEADERS, &[]), [rep::ACK]);
    assert_eq!(client.kinds(opt::EXTENDED_HEADERS, &[]), [rep::ERR_INVALID]);
    assert_eq!(client.kinds(opt::STRUCTURED_REPLY, &[]), [rep::ERR_EXT_HEADER_REQD]);
    client.ask(opt::SET_META_CONTEXT, &contexts("m/one", &["base:allocation"]));
    let chosen = client.chosen("m/one");
    assert_eq!(chosen.framing, Framing::Extended);
    assert!(chosen.contexts.allocation, "contexts need nothing else");
    assert!(chosen.flags & tflag::BLOCK_STATUS_PAYLOAD != 0);
}

#[test]
fn where_tls_is_required_nothing_is_told_before_it() {
    let mut client = Client::with(&[export("m/one")], Tls::Required);
    let options = [opt::LIST, opt::INFO, opt::GO, opt::STRUCTURED_REPLY, opt::EXTENDED_HEADERS, 77];
    for number in options.into_iter().chain([opt::LIST_META_CONTEXT, opt::SET_META_CONTEXT]) {
        assert_eq!(client.kinds(number, &go("m/one", &[])), [rep::ERR_TLS_REQD], "{number}");
    }
    assert_eq!(client.kinds(opt::STARTTLS, b"x"), [rep::ERR_INVALID]);
    assert!(matches!(client.ask(opt::STARTTLS, &[]).0, Step::StartTls(16)));
    assert_eq!(client.kinds(opt::STARTTLS, &[]), [rep::ERR_INVALID], "TLS begins once");
    assert_eq!(client.chosen("m/one").export, 0);

    let mut client = Client::with(&[export("m/one")], Tls::Required);
    assert_eq!(client.ask(opt::EXPORT_NAME, b"m/one").0, Step::Drop(Violation::NotSecure));
    let mut client = Client::with(&[export("m/one")], Tls::Required);
    assert_eq!(client.ask(opt::ABORT, &[]).0, Step::Close);
}

/// What was agreed on in the clear may have been asked by somebody in between.
#[test]
fn starttls_forgets_what_was_negotiated_before() {
    let mut client = Client::with(&[export("m/one")], Tls::Required);
    // Nothing can be agreed on before today; should that change, it must not survive.
    client.negotiation.framing = Framing::Extended;
    client.negotiation.contexts = Some((0, Contexts { allocation: true, changes: None }));
    client.ask(opt::STARTTLS, &[]);
    let chosen = client.chosen("m/one");
    assert_eq!((chosen.framing, chosen.contexts), (Framing::Simple, Contexts::default()));
}

#[test]
fn a_choice_that_cannot_be_had_is_refused_in_the_words_of_its_option() {
    let mut client = two();
    client.chosen("m/one");
    assert_eq!(replies(opt::GO, &client.negotiation.refusal("full")), [(rep::ERR_POLICY, b"full".to_vec())]);
    let mut client = two();
    client.negotiation.step(&option(opt::EXPORT_NAME, b"m/one"), &mut Vec::new());
    assert!(client.negotiation.refusal("full").is_empty(), "EXPORT_NAME has no answer but the good one");
}

#[test]
fn a_new_set_replaces_the_last_even_when_it_fails() {
    let fails: [Vec<u8>; 4] =
        [contexts("nope", &[]), vec![1], contexts("m/one", &[]), vec![0; wire::MAX_OPTION as usize + 1]];
    for payload in fails {
        let mut client = two();
        client.ask(opt::STRUCTURED_REPLY, &[]);
        client.ask(opt::SET_META_CONTEXT, &contexts("m/one", &["base:allocation"]));
        client.ask(opt::SET_META_CONTEXT, &payload);
        assert!(!client.chosen("m/one").contexts.allocation);
    }
}

#[test]
fn contexts_die_when_another_export_is_chosen() {
    let mut client = two();
    client.ask(opt::STRUCTURED_REPLY, &[]);
    client.ask(opt::SET_META_CONTEXT, &contexts("m/one", &["base:allocation"]));
    assert!(!client.chosen("m/two").contexts.allocation);
}

#[test]
fn flags_advertise_only_what_works() {
    let none = Capabilities { trim: false, fast_zero: false, ..CAN };
    let flags = |capabilities, framing| ExportInfo { capabilities, ..export("a") }.flags(framing);
    let (simple, structured, extended) = (Framing::Simple, Framing::Structured, Framing::Extended);
    let base =
        tflag::HAS_FLAGS | tflag::SEND_FLUSH | tflag::SEND_FUA | tflag::CAN_MULTI_CONN | tflag::SEND_CACHE;
    assert_eq!(flags(none, simple), base | tflag::SEND_WRITE_ZEROES);
    assert_eq!(flags(none, structured), base | tflag::SEND_WRITE_ZEROES | tflag::SEND_DF);
    let payload = tflag::BLOCK_STATUS_PAYLOAD;
    assert_eq!(flags(none, extended), base | tflag::SEND_WRITE_ZEROES | tflag::SEND_DF | payload);
    let all = tflag::SEND_WRITE_ZEROES | tflag::SEND_TRIM | tflag::SEND_FAST_ZERO;
    assert_eq!(flags(CAN, simple), base | all);
    assert_eq!(flags(Capabilities { read_only: true, ..CAN }, simple), base | tflag::READ_ONLY);
}

fn texts(queries: &[String]) -> Vec<&str> {
    queries.iter().map(String::as_str).collect()
}

/// Options of every kind, well-formed and not.
fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![Just("a"), Just("b"), Just(""), Just("nope")];
    let cut = format!("qemu:dirty-bitmap:{CUT}");
    let query = prop_oneof![
        Just("base:".to_owned()),
        Just("base:allocation".into()),
        Just("x:y".into()),
        Just("qemu:".into()),
        Just(cut)
    ];
    let queries = proptest::collection::vec(query, 0..3);
    prop_oneof![
        (name.clone(), proptest::collection::vec(0..5_u16, 0..4))
            .prop_map(|(name, infos)| option(opt::INFO, &go(name, &infos))),
        (name.clone(), queries.clone())
            .prop_map(|(name, queries)| option(opt::SET_META_CONTEXT, &contexts(name, &texts(&queries)))),
        (name.clone(), queries)
            .prop_map(|(name, queries)| option(opt::LIST_META_CONTEXT, &contexts(name, &texts(&queries)))),
        Just(option(opt::STRUCTURED_REPLY, &[])),
        Just(option(opt::EXTENDED_HEADERS, &[])),
        Just(option(opt::STARTTLS, &[])),
        Just(option(opt::LIST, &[])),
        name.prop_map(|name| option(opt::GO, &go(name, &[3]))),
        (0..13_u32, proptest::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(number, payload)| option(number, &payload)),
        Just(option(opt::GO, &vec![0; wire::MAX_OPTION as usize + 5])),
    ]
}

proptest! {
    #[test]
    fn however_bytes_are_split_the_handshake_is_the_same(
        options in proptest::collection::vec(any_option(), 1..8),
        cuts in proptest::collection::vec(1..200_usize, 1..50),
        required in any::<bool>(),
    ) {
        let mut input = 1_u32.to_be_bytes().to_vec();
        options.iter().for_each(|option| input.extend(option));
        let tls = if required { Tls::Required } else { Tls::Off };
        let (whole, expected) = super::super::fuzz::negotiation(&input, tls);

        let exports = Arc::from([ExportInfo { cut: Some(CUT), ..export("a") }, ExportInfo {
            capabilities: Capabilities { read_only: true, trim: false, ..CAN }, ..export("b")
        }].map(|export| ExportInfo {
            size: super::super::fuzz::EXPORT_SIZE, description: "fuzzed".into(), ..export
        }));
        let mut negotiation = Negotiation::new(exports, tls);
        let (mut out, mut start, mut end) = (Vec::new(), 0, 0);
        let mut sizes = cuts.into_iter().cycle();
        let last = loop {
            match negotiation.step(&input[start..end], &mut out) {
                Step::Used(used) | Step::StartTls(used) => start += used,
                Step::More if end == input.len() => break Step::More,
                Step::More => end = (end + sizes.next().unwrap()).min(input.len()),
                step => break step,
            }
        };
        prop_assert_eq!(last, whole);
        prop_assert_eq!(out, expected);
    }

    #[test]
    fn arbitrary_bytes_break_nothing(input in proptest::collection::vec(any::<u8>(), 0..300)) {
        super::super::fuzz::negotiation(&input, Tls::Off);
        super::super::fuzz::negotiation(&input, Tls::Required);
        super::super::fuzz::transmission(&input);
    }
}
