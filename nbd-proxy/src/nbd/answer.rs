//! Replies as a client takes them in: bytes in, outcomes out, no I/O.
//!
//! The server is taken for hostile. A reply must name a request that was made; a read must be covered by chunks exactly, none
//! outside and none twice; nothing is allocated by a length that the server says, but only as its bytes arrive, up to what the
//! request or [`MAX_STATUS`] allows. Anything else is a [`Violation`]: where the stream stands is not known from then on, and
//! the connection is spent. An error that the server *answers* leaves it in step.

use std::collections::BTreeMap;
use std::ops::Range;

use super::wire::{self, Cookie, chunk};

/// What a server did that no server may.
pub type Violation = &'static str;

/// Runs in the answer to one question about allocation, and disjoint pieces of one read.
const MAX_RUNS: usize = 1 << 20;
const MAX_PIECES: usize = 4096;
/// The longest payload of a chunk about allocation.
const MAX_STATUS: u64 = 4 + 8 * MAX_RUNS as u64;
/// The longest payload of a chunk about an error, and what is kept of its text.
const MAX_ERROR: u64 = 64 << 10;
const MAX_TEXT: usize = 200;

/// What a request wants to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// That it is done.
    Plain,
    /// `len` bytes from `offset` on. Allocated when the request is made: whoever asks bounds it.
    Read {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: usize,
    },
    /// What is allocated, in the words of a context.
    Status {
        /// The context's id.
        context: u32,
    },
}

/// What it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// The bytes, all of them.
    Data(Vec<u8>),
    /// Consecutive runs from the request's offset on, as (length, status); none is empty, and there is at least one.
    Runs(Vec<(u32, u32)>),
}

/// The server's word for why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The number on the wire; not zero.
    pub code: u32,
    /// For people; may be empty.
    pub text: String,
}

/// A request that was answered, by the ticket under which it was expected.
#[derive(Debug, PartialEq, Eq)]
pub struct Answered<T> {
    /// Whose it is.
    pub ticket: T,
    /// What came of it.
    pub outcome: Result<Answer, Refused>,
}

#[derive(Debug)]
struct Pending<T> {
    ticket: T,
    question: Question,
    data: Vec<u8>,
    /// What of `data` has come, sorted, joined where it touches.
    covered: Vec<Range<usize>>,
    runs: Vec<(u32, u32)>,
    refused: Option<Refused>,
}

/// The header of a chunk whose payload is being gathered.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    kind: u16,
    done: bool,
    cookie: Cookie,
    len: u64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Before or within a header.
    Head,
    /// Within a payload that is looked at as a whole.
    Payload(Chunk),
    /// Within the bytes of a read: where the next goes, and how many come.
    Data { cookie: Cookie, done: bool, at: usize, left: usize },
}

/// The requests under way on one connection, and the reply that is being taken in.
#[derive(Debug)]
pub struct Replies<T> {
    structured: bool,
    pending: BTreeMap<Cookie, Pending<T>>,
    gathered: Vec<u8>,
    state: State,
}

impl<T> Replies<T> {
    /// A connection on which nothing was asked yet.
    pub fn new(structured: bool) -> Self {
        Self { structured, pending: BTreeMap::new(), gathered: Vec::new(), state: State::Head }
    }

    /// A request goes out under `cookie`, which no other has had.
    pub fn ask(&mut self, cookie: Cookie, question: Question, ticket: T) {
        let len = if let Question::Read { len, .. } = question { len } else { 0 };
        let (covered, runs) = (Vec::new(), Vec::new());
        let data = vec![0; len];
        self.pending.insert(cookie, Pending { ticket, question, data, covered, runs, refused: None });
    }

    /// The ticket of the request that waits longest.
    pub fn oldest(&self) -> Option<&T> {
        self.pending.first_key_value().map(|(_, pending)| &pending.ticket)
    }

    /// Gives up: whose requests will not be answered.
    pub fn take_all(&mut self) -> impl Iterator<Item = T> + use<T> {
        std::mem::take(&mut self.pending).into_values().map(|pending| pending.ticket)
    }

    /// Takes in bytes up to the end of a reply, if they reach so far: how many were used, and who was answered.
    ///
    /// # Errors
    /// The connection is spent.
    pub fn feed(&mut self, input: &[u8]) -> Result<(usize, Option<Answered<T>>), Violation> {
        let mut used = 0;
        while used < input.len() {
            let rest = &input[used..];
            match self.state {
                State::Head => {
                    used += self.gather(rest, self.head_len());
                    if self.gathered.len() < 4 || self.gathered.len() < self.head_len() {
                        continue;
                    }
                    let head = std::mem::take(&mut self.gathered);
                    if let Some(answered) = self.head(&head)? {
                        return Ok((used, Some(answered)));
                    }
                }
                State::Payload(chunk) => {
                    let wanted = if chunk.kind == chunk::OFFSET_DATA { 8 } else { chunk.len };
                    let wanted = usize::try_from(wanted).map_err(|_| "an endless chunk")?;
                    used += self.gather(rest, wanted);
                    if self.gathered.len() < wanted {
                        continue;
                    }
                    let payload = std::mem::take(&mut self.gathered);
                    self.state = State::Head;
                    if let Some(answered) = self.payload(chunk, &payload)? {
                        return Ok((used, Some(answered)));
                    }
                }
                State::Data { cookie, done, at, left } => {
                    let some = left.min(rest.len());
                    self.data(cookie, at, &rest[..some])?;
                    used += some;
                    self.state = State::Data { cookie, done, at: at + some, left: left - some };
                    if some == left {
                        self.state = State::Head;
                        if done {
                            return Ok((used, Some(self.finish(cookie)?)));
                        }
                    }
                }
            }
        }
        Ok((used, None))
    }

    /// Moves bytes until there are `wanted`; how many.
    fn gather(&mut self, from: &[u8], wanted: usize) -> usize {
        let some = wanted.saturating_sub(self.gathered.len()).min(from.len());
        self.gathered.extend_from_slice(&from[..some]);
        some
    }

    /// The first four bytes of a header tell how long it is.
    fn head_len(&self) -> usize {
        match self.gathered.first_chunk().map(|magic| u32::from_be_bytes(*magic)) {
            None => 4,
            Some(wire::SIMPLE_REPLY_MAGIC) => wire::SIMPLE_REPLY_LEN,
            Some(_) => wire::CHUNK_LEN,
        }
    }

    fn head(&mut self, head: &[u8]) -> Result<Option<Answered<T>>, Violation> {
        let mut fields = Fields(head);
        match fields.u32()? {
            wire::SIMPLE_REPLY_MAGIC => {
                let (code, cookie) = (fields.u32()?, fields.u64()?);
                self.simple(code, cookie)
            }
            wire::CHUNK_MAGIC if self.structured => {
                let (flags, kind) = (fields.u16()?, fields.u16()?);
                let (cookie, len) = (fields.u64()?, u64::from(fields.u32()?));
                let chunk = Chunk { kind, done: flags & chunk::DONE != 0, cookie, len };
                self.check(chunk)?;
                if len == 0 {
                    return Ok(Some(self.finish(cookie)?));
                }
                self.state = State::Payload(chunk);
                Ok(None)
            }
            _ => Err("a reply begins with no magic number that was agreed on"),
        }
    }

    fn simple(&mut self, code: u32, cookie: Cookie) -> Result<Option<Answered<T>>, Violation> {
        let structured = self.structured;
        let pending = self.asked(cookie)?;
        if code != 0 {
            pending.refused = Some(Refused { code, text: String::new() });
            return self.finish(cookie).map(Some);
        }
        match pending.question {
            Question::Plain => return self.finish(cookie).map(Some),
            Question::Read { len, .. } if !structured => {
                self.cover(cookie, 0..len)?;
                self.state = State::Data { cookie, done: true, at: 0, left: len };
            }
            _ => return Err("a simple reply to a request that wants chunks"),
        }
        Ok(None)
    }

    /// Whether such a chunk may come at all, before anything of it is taken in.
    fn check(&mut self, chunk: Chunk) -> Result<(), Violation> {
        let question = self.asked(chunk.cookie)?.question;
        let fits = match (chunk.kind, question) {
            (chunk::NONE, _) => chunk.done && chunk.len == 0,
            (chunk::OFFSET_DATA, Question::Read { len, .. }) => {
                chunk.len > 8 && chunk.len - 8 <= u64::try_from(len).unwrap_or(u64::MAX)
            }
            (chunk::OFFSET_HOLE, Question::Read { .. }) => chunk.len == 12,
            (chunk::BLOCK_STATUS, Question::Status { .. }) => {
                (12..=MAX_STATUS).contains(&chunk.len) && chunk.len % 8 == 4
            }
            (kind, _) => kind & (1 << 15) != 0 && (6..=MAX_ERROR).contains(&chunk.len),
        };
        if fits { Ok(()) } else { Err("a chunk of a kind or length that the request does not allow") }
    }

    fn payload(&mut self, chunk: Chunk, payload: &[u8]) -> Result<Option<Answered<T>>, Violation> {
        let mut fields = Fields(payload);
        match chunk.kind {
            chunk::OFFSET_DATA => {
                let place = self.place(chunk.cookie, fields.u64()?, chunk.len - 8)?;
                self.cover(chunk.cookie, place.clone())?;
                let Chunk { cookie, done, .. } = chunk;
                self.state = State::Data { cookie, done, at: place.start, left: place.len() };
                return Ok(None);
            }
            chunk::OFFSET_HOLE => {
                let (offset, len) = (fields.u64()?, u64::from(fields.u32()?));
                let place = self.place(chunk.cookie, offset, len)?;
                // What has not come is zero.
                self.cover(chunk.cookie, place)?;
            }
            chunk::BLOCK_STATUS => {
                let pending = self.asked(chunk.cookie)?;
                let context = fields.u32()?;
                if pending.question != (Question::Status { context }) || !pending.runs.is_empty() {
                    return Err("an answer about a context that was not asked about, or a second one");
                }
                while !fields.0.is_empty() {
                    let (len, status) = (fields.u32()?, fields.u32()?);
                    if len == 0 {
                        return Err("an empty run in an answer about allocation");
                    }
                    pending.runs.push((len, status));
                }
            }
            _ => {
                let (code, len) = (fields.u32()?, usize::from(fields.u16()?));
                let said = fields.0.get(..len).ok_or("an error text longer than its chunk")?;
                if code == 0 {
                    return Err("an error of number zero");
                }
                let text = String::from_utf8_lossy(said).chars().take(MAX_TEXT).collect();
                self.asked(chunk.cookie)?.refused.get_or_insert(Refused { code, text });
            }
        }
        if chunk.done { self.finish(chunk.cookie).map(Some) } else { Ok(None) }
    }

    fn asked(&mut self, cookie: Cookie) -> Result<&mut Pending<T>, Violation> {
        self.pending.get_mut(&cookie).ok_or("a reply to a request that was not made, or was answered")
    }

    /// Where in the request's data a chunk of `len` bytes at `offset` belongs.
    fn place(&mut self, cookie: Cookie, offset: u64, len: u64) -> Result<Range<usize>, Violation> {
        let Question::Read { offset: asked, len: most } = self.asked(cookie)?.question else {
            return Err("data that was not asked for");
        };
        let start = offset.checked_sub(asked).and_then(|at| usize::try_from(at).ok());
        let end = start.and_then(|start| start.checked_add(usize::try_from(len).ok()?));
        match (start, end) {
            (Some(start), Some(end)) if start < end && end <= most => Ok(start..end),
            _ => Err("a chunk outside of what was asked for"),
        }
    }

    /// Notes that `range` has come; no byte comes twice.
    fn cover(&mut self, cookie: Cookie, range: Range<usize>) -> Result<(), Violation> {
        let covered = &mut self.asked(cookie)?.covered;
        let at = covered.partition_point(|piece| piece.end <= range.start);
        if covered.get(at).is_some_and(|next| next.start < range.end) {
            return Err("chunks of one read overlap");
        }
        covered.insert(at, range);
        let join = |covered: &mut Vec<Range<usize>>, left: usize| {
            if let Some([one, other]) = covered.get(left..left + 2)
                && one.end == other.start
            {
                covered[left].end = other.end;
                covered.remove(left + 1);
            }
        };
        join(covered, at);
        if at > 0 {
            join(covered, at - 1);
        }
        if covered.len() > MAX_PIECES { Err("a read in more pieces than can be kept") } else { Ok(()) }
    }

    fn data(&mut self, cookie: Cookie, at: usize, bytes: &[u8]) -> Result<(), Violation> {
        let place = self.asked(cookie)?.data.get_mut(at..at + bytes.len());
        place.ok_or("data outside of what was asked for")?.copy_from_slice(bytes);
        Ok(())
    }

    /// The last chunk has come. A request that was answered wrongly stays among those that wait: somebody has to tell it.
    fn finish(&mut self, cookie: Cookie) -> Result<Answered<T>, Violation> {
        let Pending { question, covered, runs, refused, .. } = self.asked(cookie)?;
        let whole = match *question {
            _ if refused.is_some() => true,
            Question::Plain => true,
            Question::Read { len, .. } => len == 0 || (covered.len() == 1 && covered[0] == (0..len)),
            Question::Status { .. } => !runs.is_empty(),
        };
        let pending = if whole { self.pending.remove(&cookie) } else { None };
        let Pending { ticket, question, data, runs, refused, .. } =
            pending.ok_or("a request was said to be done and was not: chunks are missing")?;
        let answer = match question {
            Question::Plain => Answer::Done,
            Question::Read { .. } => Answer::Data(data),
            Question::Status { .. } => Answer::Runs(runs),
        };
        Ok(Answered { ticket, outcome: refused.map_or(Ok(answer), Err) })
    }
}

/// Takes big-endian fields off the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Violation> {
        let (field, rest) = self.0.split_first_chunk().ok_or("a chunk is too short")?;
        self.0 = rest;
        Ok(*field)
    }

    fn u16(&mut self) -> Result<u16, Violation> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Violation> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Violation> {
        self.take().map(u64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests;
