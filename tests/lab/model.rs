//! A disk as a plain vector of bytes, and how files compare with it.

use std::path::Path;

use super::Random;
use super::client::{Client, FUA, NO_HOLE, SEND_TRIM};
use super::history::difference;

/// What a disk must hold.
#[derive(Clone)]
pub struct Model(Vec<u8>);

impl Model {
    /// A disk of zeroes.
    pub fn new(size: u64) -> Self {
        Self(vec![0; usize::try_from(size).expect("a size that fits in memory")])
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let start = usize::try_from(offset).expect("an offset on the disk");
        self.0[start..start + data.len()].copy_from_slice(data);
    }

    pub fn zero(&mut self, offset: u64, len: usize) {
        let start = usize::try_from(offset).expect("an offset on the disk");
        self.0[start..start + len].fill(0);
    }

    /// Any request that a client may make, with the answer that this disk must give.
    pub fn any_request(&mut self, client: &mut Client, random: &mut Random) {
        let size = self.0.len() as u64;
        // Mostly small, sometimes big; every offset and length, and now and then whole blocks.
        let limit = [600, 9_000, 70_000, 1_500_000][usize::try_from(random.below(4)).expect("small")];
        let (mut len, mut offset) = (1 + random.below(limit), 0);
        if random.below(3) == 0 {
            len = len.next_multiple_of(4096);
        }
        if size > len {
            offset = random.below(size - len);
        }
        if random.below(3) == 0 {
            offset = offset / 4096 * 4096;
        }
        let len = usize::try_from(len).expect("a length");
        match random.below(10) {
            0 => client.flush(),
            1 if client.flags() & SEND_TRIM != 0 => {
                client.trim(offset, len);
                self.zero(offset, len);
            }
            2 => {
                client.zero(offset, len, if random.below(2) == 0 { NO_HOLE } else { 0 });
                self.zero(offset, len);
            }
            3 => {
                let start = usize::try_from(offset).expect("an offset");
                assert!(
                    client.read(offset, len) == self.bytes()[start..start + len],
                    "a read at {offset}+{len}"
                );
            }
            kind => {
                let mut data = vec![0; len];
                random.fill(&mut data);
                client.write(offset, &data, if kind == 4 { FUA } else { 0 });
                self.write(offset, &data);
            }
        }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The file at `path` must be this disk, bit for bit. `context` says what it is, and the seed.
    pub fn expect(&self, path: &Path, context: &str) {
        let found = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(found == self.0, "{context}: {}: {}", path.display(), difference(&self.0, &found));
    }
}

/// Whether two files hold the same bytes; reads them in pieces, so that big ones fit.
pub fn same_file(a: &Path, b: &Path) -> bool {
    let status = std::process::Command::new("cmp").arg("-s").arg(a).arg(b).status().expect("cmp");
    status.success()
}
