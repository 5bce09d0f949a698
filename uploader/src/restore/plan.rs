//! Which frames to fetch together.

use std::ops::Range;

use crate::blockmap::{BlockMap, Held};

/// Stored bytes of one request at most, unless a single frame is longer.
const RUN_MAX: u64 = 4 << 20;
/// Unneeded stored bytes worth fetching to save a request.
const GAP_MAX: u64 = 128 << 10;

/// A range of a disk and where in a delta's stream its bytes are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// Which of the map's disks.
    pub disk: usize,
    /// Where on the disk.
    pub offset: u64,
    /// Where in the stream.
    pub at: u64,
    pub len: u64,
}

/// Frames of one delta that are fetched together.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub delta: usize,
    pub frames: Range<usize>,
    /// The pieces that touch these frames.
    pieces: Range<usize>,
}

/// Everything to fetch and write.
pub(super) struct Plan {
    pub runs: Vec<Run>,
    /// Sorted by delta, then by place in the stream; the pieces of one delta are disjoint there.
    pieces: Vec<Piece>,
}

impl Plan {
    pub fn new(map: &BlockMap) -> Self {
        let mut pieces = Vec::new();
        for (disk, held) in map.disks.iter().enumerate() {
            for (offset, len, held) in held.map.iter() {
                if let Held::Data { delta, at } = *held {
                    pieces.push((delta, Piece { disk, offset, at, len }));
                }
            }
        }
        pieces.sort_unstable_by_key(|(delta, piece)| (*delta, piece.at));
        let mut runs: Vec<Run> = Vec::new();
        for (number, (delta, piece)) in pieces.iter().enumerate() {
            add(&mut runs, map, *delta as usize, number, piece);
        }
        Self { runs, pieces: pieces.into_iter().map(|(_, piece)| piece).collect() }
    }

    /// The pieces of `run` that touch `[start, end)` of the stream.
    pub fn pieces_in(&self, run: &Run, start: u64, end: u64) -> &[Piece] {
        let pieces = &self.pieces[run.pieces.clone()];
        let from = pieces.partition_point(|piece| piece.at + piece.len <= start);
        let to = pieces.partition_point(|piece| piece.at < end);
        &pieces[from..to.max(from)]
    }
}

/// Adds the frames that piece `number` needs, to the last run as far as they fit there.
fn add(runs: &mut Vec<Run>, map: &BlockMap, delta: usize, number: usize, piece: &Piece) {
    let index = &map.deltas[delta].index;
    let frames = &index.frames;
    let needed = index.frame_at(piece.at)..index.frame_at(piece.at + piece.len - 1) + 1;
    for frame in needed {
        let end = frames[frame].offset + u64::from(frames[frame].len);
        let last = runs.last_mut().filter(|run| run.delta == delta).filter(|run| {
            let first = &frames[run.frames.start];
            let gap_start = frames[run.frames.end - 1].offset + u64::from(frames[run.frames.end - 1].len);
            let near = frames[frame].offset.saturating_sub(gap_start) <= GAP_MAX;
            near && end - first.offset <= RUN_MAX
        });
        match last {
            Some(run) => {
                run.frames.end = frame + 1;
                run.pieces.end = number + 1;
            }
            None => runs.push(Run { delta, frames: frame..frame + 1, pieces: number..number + 1 }),
        }
    }
}
