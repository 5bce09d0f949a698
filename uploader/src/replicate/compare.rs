//! What of a live disk has to travel: compared, piece by piece, with what the vault has.
//!
//! Known as equal and left out: cells whose digest is that of the live bytes, and zeroes where the vault has zeroes.
//! Everything else travels. A cell that a later delta overwrote in part says nothing of the rest of it, nor does a cell
//! that reaches beyond the piece at hand: such bytes travel undecided, and are counted.

use std::sync::Arc;

use nbd_proxy::Result;

use super::held::{Content, Held, Window};
use crate::digest::Digest;

const BLOCK: u64 = 4096;
static ZEROES: [u8; 4096] = [0; 4096];

/// Compares pieces that come in address order.
pub(super) struct Compare {
    held: Arc<Held>,
    window: Option<Window>,
    /// Bytes that hashes could not decide upon.
    pub undecided: u64,
    travels: Vec<(u64, u64)>,
}

impl Compare {
    pub fn new(held: Arc<Held>) -> Self {
        Self { held, window: None, undecided: 0, travels: Vec::new() }
    }

    /// Which ranges of `data`, which the disk holds at `offset`, have to travel, as (offset, length).
    pub fn data(&mut self, offset: u64, data: &[u8]) -> Result<&[(u64, u64)]> {
        self.travels.clear();
        let (mut at, end) = (offset, offset + data.len() as u64);
        while at < end {
            let window = self.window_at(at)?;
            let stop = window.end.min(end);
            let slice = |from: u64, to: u64| {
                let index = |at: u64| usize::try_from(at - offset).unwrap_or(usize::MAX);
                &data[index(from)..index(to)]
            };
            self.undecided += match &window.map {
                None => {
                    add(&mut self.travels, at, stop);
                    stop - at
                }
                Some(_) => compare(&window, at, stop, slice, &mut self.travels),
            };
            self.window = Some(window);
            at = stop;
        }
        Ok(&self.travels)
    }

    /// Which ranges of a hole have to travel, as zeroes.
    pub fn hole(&mut self, offset: u64, len: u64) -> Result<&[(u64, u64)]> {
        self.travels.clear();
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let (empty, stop) = self.held.is_empty(at);
            let stop = stop.min(end).max(at + 1);
            if !empty {
                let window = self.window_at(at)?;
                match &window.map {
                    None => add(&mut self.travels, at, stop),
                    Some(map) => map.touching(at, stop).for_each(|(start, len, content)| {
                        if *content != Content::Zero {
                            add(&mut self.travels, start.max(at), (start + len).min(stop));
                        }
                    }),
                }
                self.window = Some(window);
            }
            at = stop;
        }
        Ok(&self.travels)
    }

    fn window_at(&mut self, at: u64) -> Result<Window> {
        match self.window.take().filter(|window| (window.start..window.end).contains(&at)) {
            Some(window) => Ok(window),
            None => self.held.window(at),
        }
    }
}

/// Compares `[from, to)`, which lies in `window` and whose bytes `slice` gives. Returns how many bytes are undecided.
fn compare<'a>(
    window: &Window,
    from: u64,
    to: u64,
    slice: impl Fn(u64, u64) -> &'a [u8],
    travels: &mut Vec<(u64, u64)>,
) -> u64 {
    let (mut at, mut undecided) = (from, 0);
    for (start, len, content) in window.map.iter().flat_map(|map| map.touching(from, to)) {
        let (begin, end) = (start.max(from), (start + len).min(to));
        with_zeroes(at, begin, &slice, travels);
        match *content {
            Content::Zero => with_zeroes(begin, end, &slice, travels),
            Content::Cell { offset, len: whole, digest } if offset == begin && offset + whole == end => {
                if Digest::of(slice(begin, end)) != digest {
                    add(travels, begin, end);
                }
            }
            Content::Cell { .. } => {
                undecided += end - begin;
                add(travels, begin, end);
            }
        }
        at = end;
    }
    with_zeroes(at, to, &slice, travels);
    undecided
}

/// Compares `[from, to)` with zeroes, block by block.
fn with_zeroes<'a>(from: u64, to: u64, slice: &impl Fn(u64, u64) -> &'a [u8], travels: &mut Vec<(u64, u64)>) {
    let mut at = from;
    while at < to {
        let stop = to.min((at / BLOCK + 1) * BLOCK);
        let block = slice(at, stop);
        if *block != ZEROES[..block.len()] {
            add(travels, at, stop);
        }
        at = stop;
    }
}

fn add(travels: &mut Vec<(u64, u64)>, from: u64, to: u64) {
    match travels.last_mut() {
        Some((start, len)) if *start + *len == from => *len = to - *start,
        _ => travels.push((from, to - from)),
    }
}
