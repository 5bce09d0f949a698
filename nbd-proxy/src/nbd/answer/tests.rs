//! What a server may say to a request, and what it may not.

use super::*;

fn simple(code: u32, cookie: u64) -> Vec<u8> {
    [&wire::SIMPLE_REPLY_MAGIC.to_be_bytes()[..], &code.to_be_bytes(), &cookie.to_be_bytes()].concat()
}

fn chunk_of(kind: u16, done: bool, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    let mut bytes = wire::CHUNK_MAGIC.to_be_bytes().to_vec();
    bytes.extend(u16::from(done).to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn data(done: bool, offset: u64, bytes: &[u8]) -> Vec<u8> {
    chunk_of(chunk::OFFSET_DATA, done, 1, &[&offset.to_be_bytes()[..], bytes].concat())
}

fn hole(done: bool, offset: u64, len: u32) -> Vec<u8> {
    chunk_of(chunk::OFFSET_HOLE, done, 1, &[&offset.to_be_bytes()[..], &len.to_be_bytes()].concat())
}

fn error(done: bool, code: u32, text_len: u16, text: &[u8]) -> Vec<u8> {
    let payload = [&code.to_be_bytes()[..], &text_len.to_be_bytes(), text].concat();
    chunk_of(chunk::ERROR, done, 1, &payload)
}

fn status(context: u32, runs: &[(u32, u32)]) -> Vec<u8> {
    let mut payload = context.to_be_bytes().to_vec();
    runs.iter().for_each(|(len, status)| {
        payload.extend(len.to_be_bytes());
        payload.extend(status.to_be_bytes());
    });
    chunk_of(chunk::BLOCK_STATUS, true, 1, &payload)
}

/// Feeds `says` in pieces of `step` to a connection where `question` was asked under cookie 1.
fn ask(
    structured: bool,
    question: Question,
    says: &[Vec<u8>],
    step: usize,
) -> Result<Result<Answer, Refused>, Violation> {
    let mut replies = Replies::new(structured);
    replies.ask(1, question, "mine");
    for piece in says.concat().chunks(step) {
        let mut rest = piece;
        while !rest.is_empty() {
            let fed = replies.feed(rest);
            let waits = replies.oldest().is_some();
            let (used, answered) = fed.inspect_err(|_| assert!(waits, "who waits is still known"))?;
            rest = &rest[used..];
            if let Some(answered) = answered {
                assert!(rest.is_empty() && answered.ticket == "mine");
                return Ok(answered.outcome);
            }
        }
    }
    Err("no answer")
}

const READ: Question = Question::Read { offset: 4096, len: 8 };

#[test]
fn a_read_is_put_together_however_its_bytes_are_split() {
    let says = [data(false, 4100, b"5678"), hole(false, 4096, 2), data(true, 4098, b"34")];
    for step in [1, 3, 7, 1000] {
        assert_eq!(ask(true, READ, &says, step), Ok(Ok(Answer::Data(b"\0\x00345678".to_vec()))), "{step}");
        let plain = [simple(0, 1), b"abcdefgh".to_vec()];
        assert_eq!(ask(false, READ, &plain, step), Ok(Ok(Answer::Data(b"abcdefgh".to_vec()))), "{step}");
    }
}

#[test]
fn an_answered_error_is_taken_with_a_bounded_text_and_leaves_the_stream_in_step() {
    let long = vec![b'x'; 60_000];
    let says = [data(false, 4096, b"12"), error(true, 5, 60_000, &long)];
    let Ok(Err(refused)) = ask(true, READ, &says, 4096) else { panic!("refused") };
    assert_eq!((refused.code, refused.text.len()), (5, MAX_TEXT));
    let refused = Refused { code: 28, text: String::new() };
    assert_eq!(ask(true, Question::Plain, &[simple(28, 1)], 5), Ok(Err(refused)));
}

#[test]
fn runs_are_told_as_they_are() {
    let question = Question::Status { context: 7 };
    let answer = Ok(Ok(Answer::Runs(vec![(4096, 3), (512, 0)])));
    assert_eq!(ask(true, question, &[status(7, &[(4096, 3), (512, 0)])], 9), answer);
}

#[test]
fn whatever_no_server_may_say_spends_the_connection() {
    let question = Question::Status { context: 7 };
    let hostile: [(&str, Question, Vec<u8>); 16] = [
        ("bad magic", READ, b"HTTP/1.1 400 Bad Request".to_vec()),
        ("unknown handle", READ, simple(5, 9)),
        ("chunks missing", READ, data(true, 4096, b"1234")),
        ("nothing at all", READ, chunk_of(chunk::NONE, true, 1, &[])),
        ("overlap", READ, [data(false, 4096, b"1234"), data(true, 4098, b"345678")].concat()),
        ("the same twice", READ, [data(false, 4096, b"1234"), hole(true, 4096, 4)].concat()),
        ("before", READ, data(true, 4095, b"12345678")),
        ("behind", READ, data(true, 4098, b"12345678")),
        ("wrapping", READ, hole(true, u64::MAX, 8)),
        ("too long", READ, data(true, 4096, b"123456789")),
        ("a hole of nothing", READ, hole(true, 4096, 0)),
        ("a simple reply with data", READ, simple(0, 1)),
        ("a huge error text", READ, error(true, 5, 6, &vec![b'x'; 70_000])),
        ("a text past its end", READ, error(true, 5, 99, b"short")),
        ("another context", question, status(8, &[(4096, 0)])),
        ("an empty run", question, status(7, &[(0, 0)])),
    ];
    for (what, question, says) in hostile {
        let said = ask(true, question, &[says], 64);
        assert!(matches!(said, Err(why) if why != "no answer"), "{what}: {said:?}");
    }
    assert!(ask(false, READ, &[data(true, 4096, b"12345678")], 64).is_err(), "chunks were not agreed on");
    let mut head = chunk_of(chunk::BLOCK_STATUS, true, 1, &[]);
    head.truncate(16);
    head.extend((u32::MAX - 3).to_be_bytes());
    assert!(matches!(ask(true, question, &[head], 64), Err(why) if why != "no answer"), "an endless status");
}

#[test]
fn a_read_in_crumbs_is_bounded() {
    let len = 4 * MAX_PIECES;
    let crumbs: Vec<_> = (0..2 * MAX_PIECES).map(|at| hole(false, 2 * at as u64, 1)).collect();
    let question = Question::Read { offset: 0, len };
    assert_eq!(ask(true, question, &crumbs, 4096), Err("a read in more pieces than can be kept"));
}
