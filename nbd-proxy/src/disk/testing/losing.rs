//! A disk with a volatile cache, for tests: what was not synced may be gone after a power loss, sector by sector.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::Result;
use crate::backing::{Access, Backing, Identity, RawDisk};
use crate::device::{BlockDevice, Capabilities, Extent, Write, ZeroMode};

const SECTOR: usize = 512;

/// What outlives the proxy: the host's memory and the disk itself.
#[derive(Debug, Default)]
pub struct Platter {
    /// What readers see.
    pub cache: Vec<u8>,
    stable: Vec<u8>,
    unsynced: BTreeSet<usize>,
    /// The next sync fails, and what it was to make durable is forgotten.
    pub fail_sync: bool,
}

impl Platter {
    /// Loses of each unsynced sector either the new or the old bytes, as `keep` says.
    pub fn lose_power(&mut self, mut keep: impl FnMut() -> bool) {
        for sector in std::mem::take(&mut self.unsynced) {
            let range = sector * SECTOR..((sector + 1) * SECTOR).min(self.cache.len());
            if keep() {
                self.stable[range.clone()].copy_from_slice(&self.cache[range]);
            }
        }
        self.cache.clone_from(&self.stable);
    }

    /// Reads from the disk again what waits for no sync.
    fn drop_clean(&mut self) {
        for (sector, cached) in self.cache.chunks_mut(SECTOR).enumerate() {
            if !self.unsynced.contains(&sector) {
                let at = sector * SECTOR;
                cached.copy_from_slice(&self.stable[at..at + cached.len()]);
            }
        }
    }

    /// All zeroes, and durable.
    pub fn new(size: usize) -> Self {
        Self { cache: vec![0; size], stable: vec![0; size], ..Self::default() }
    }

    /// Makes a range durable.
    pub fn sync_range(&mut self, at: usize, len: usize) {
        self.stable[at..at + len].copy_from_slice(&self.cache[at..at + len]);
    }

    pub fn write(&mut self, offset: u64, len: usize, data: Option<&[u8]>) {
        let at = usize::try_from(offset).unwrap();
        match data {
            Some(data) => self.cache[at..at + len].copy_from_slice(data),
            None => self.cache[at..at + len].fill(0),
        }
        self.unsynced.extend(at / SECTOR..(at + len).div_ceil(SECTOR));
    }

    pub fn sync(&mut self) -> io::Result<()> {
        let unsynced = std::mem::take(&mut self.unsynced);
        if self.fail_sync {
            return Err(io::Error::from_raw_os_error(5));
        }
        for sector in unsynced {
            let range = sector * SECTOR..((sector + 1) * SECTOR).min(self.cache.len());
            self.stable[range.clone()].copy_from_slice(&self.cache[range]);
        }
        Ok(())
    }
}

/// The disk, opened by one proxy. An empty image file stands for it in the file system.
#[derive(Debug)]
pub struct LosingDisk {
    image: RawDisk,
    path: PathBuf,
    platter: Arc<Mutex<Platter>>,
}

impl LosingDisk {
    /// Opens the disk that `platter` is, with the stand-in at `path`.
    pub fn open(path: &Path, platter: &Arc<Mutex<Platter>>) -> Self {
        let image = RawDisk::open(path, Access::ReadWrite).unwrap();
        let size = usize::try_from(image.size()).unwrap();
        let disk = Self { image, path: path.to_owned(), platter: Arc::clone(platter) };
        let mut platter = disk.lock();
        platter.cache.resize(size, 0);
        platter.stable.resize(size, 0);
        drop(platter);
        disk
    }

    fn lock(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().unwrap()
    }
}

impl Backing for LosingDisk {
    fn path(&self) -> &Path {
        &self.path
    }
    fn found(&self) -> &Identity {
        self.image.found()
    }
    fn identity(&self) -> Result<Identity> {
        self.image.identity()
    }
    fn drop_cache(&self) {
        self.lock().drop_clean();
    }
}

impl BlockDevice for LosingDisk {
    fn size(&self) -> u64 {
        self.image.size()
    }
    fn capabilities(&self) -> Capabilities {
        self.image.capabilities()
    }
    fn try_read(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        self.read(buf, offset).map(|()| true)
    }
    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        buf.copy_from_slice(&self.lock().cache[at..at + buf.len()]);
        Ok(())
    }
    fn write_batch(&self, writes: &[Write<'_>], results: &mut Vec<io::Result<()>>) {
        for write in writes {
            self.lock().write(write.offset, write.data.len(), Some(write.data));
            results.push(if write.fua { self.lock().sync() } else { Ok(()) });
        }
    }
    fn zero(&self, offset: u64, len: u64, _: ZeroMode) -> io::Result<()> {
        self.lock().write(offset, usize::try_from(len).unwrap(), None);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        self.lock().sync()
    }
    fn extents(&self, offset: u64, len: u64, out: &mut Vec<Extent>) -> io::Result<()> {
        out.push(Extent { offset, len, hole: false });
        Ok(())
    }
    fn cache(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}
