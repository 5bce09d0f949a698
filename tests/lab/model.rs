//! A disk as a plain vector of bytes, and how files compare with it.

use std::path::Path;

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
