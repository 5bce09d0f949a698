//! Test parts: a machine behind a real proxy, stores that fail on request, a vault read back as plain bytes.

mod clocked;
mod faults;
mod lying;
mod rig;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use object_store::memory::InMemory;

use crate::blockmap::{self, BlockMap, Held};
use crate::cipher::{Cipher, DataKey};
use crate::keys::PointId;
use crate::store::Store;
use crate::vault::{Protection, Vault};

pub(crate) use clocked::Clocked;
pub(crate) use faults::{Ask, Fault, Faulty};
pub(crate) use lying::{Lie, Lying};
pub(crate) use rig::Rig;

/// Random numbers from a seed that a failing test prints.
pub(crate) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn size(&mut self, limit: usize) -> usize {
        usize::try_from(self.below(limit as u64)).unwrap()
    }

    /// Bytes that compress to about half.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0x5a; len];
        for chunk in bytes.chunks_mut(16) {
            let half = chunk.len().div_ceil(2);
            chunk[..half].copy_from_slice(&self.next().to_le_bytes()[..half]);
        }
        bytes
    }
}

type Hooks = BTreeMap<String, Box<dyn FnOnce() + Send>>;

/// What happens once between the verifying and the packing read of a disk's segments, by the disk's name.
pub(crate) static BETWEEN_READS: Mutex<Hooks> = Mutex::new(BTreeMap::new());

pub(crate) fn between_reads(disk: &str) {
    let hook = BETWEEN_READS.lock().unwrap().remove(disk);
    hook.into_iter().for_each(|hook| hook());
}

/// The most memory that this process ever held, in bytes.
pub(crate) fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    most.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// A vault in memory, encrypted as vaults should be.
pub(crate) async fn memory_vault() -> Vault {
    vault_in(Arc::new(InMemory::new())).await
}

/// The cipher of encrypted test vaults.
pub(crate) fn test_cipher() -> Cipher {
    Cipher::aes(DataKey::new([42; 32].into()))
}

pub(crate) async fn vault_in(store: Arc<dyn object_store::ObjectStore>) -> Vault {
    let vault = Vault::at_or_create(Store::new(store, "memory://test"), &Protection::None).await.unwrap();
    Vault { cipher: test_cipher(), ..vault }
}

/// With an odd seed a vault is encrypted, with an even one it is not.
pub(crate) fn by_seed(vault: Vault, seed: u64) -> Vault {
    let cipher = if seed.is_multiple_of(2) { Cipher::None } else { test_cipher() };
    Vault { cipher, ..vault }
}

/// What `point` says of each disk, byte by byte, every frame verified.
pub(crate) async fn contents(
    vault: &Vault,
    machine: &str,
    point: PointId,
) -> nbd_proxy::Result<BTreeMap<String, Vec<u8>>> {
    contents_of(&blockmap::load(vault, machine, point, &[]).await?).await
}

/// What a block map says of each disk, byte by byte, every frame verified.
pub(crate) async fn contents_of(map: &BlockMap) -> nbd_proxy::Result<BTreeMap<String, Vec<u8>>> {
    let at = |n: u64| usize::try_from(n).unwrap();
    let mut disks = BTreeMap::new();
    for disk in &map.disks {
        let mut bytes = vec![0; at(disk.disk.size)];
        for (offset, len, held) in disk.map.iter() {
            let Held::Data { delta, at: start } = *held else { continue };
            let delta = &map.deltas[delta as usize];
            let mut done = 0;
            while done < len {
                let number = delta.index.frame_at(start + done);
                let frame = delta.index.frames[number];
                let raw = delta.unpack(number, &delta.fetch(number..number + 1).await?)?;
                let from = at(start + done - frame.start);
                let take = (raw.len() - from).min(at(len - done));
                let to = at(offset + done);
                bytes[to..to + take].copy_from_slice(&raw[from..from + take]);
                done += take as u64;
            }
        }
        disks.insert(disk.disk.name.clone(), bytes);
    }
    Ok(disks)
}
