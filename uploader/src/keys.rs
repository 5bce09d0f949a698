//! All object names of a vault, formatted and parsed; nothing else builds or takes apart a key.
//!
//! ```text
//! lifeboat.json                                 the vault's marker
//! keys/<16 hex>.json                            the vault's data key, wrapped for one secret
//! machines/<machine>/line/<n, 20 digits>        entry n of the machine's line: a point or a claim
//! machines/<machine>/deltas/<n, 20 digits>-<32 hex>   a delta made for entry n; the hex digits are random
//! machines/<machine>/branches/<g, 20 digits>-<32 hex>/<n, 20 digits>   entry n of a branch: what the writer of generation g, whose
//!                                               id the hex digits are, wrote after it was fenced
//! machines/<machine>/deltas/g<g>-<n, 20 digits>-<32 hex>   a delta made for entry n of the branch of generation g
//! machines/<machine>/catalogue/<n, 20 digits>   catalogue n: what thinning left
//! machines/<machine>/holds/<32 hex>             somebody reads a point
//! machines/<machine>/clock/<32 hex>             written to learn the store's time, and removed
//! ```
//!
//! Twenty digits hold any `u64`, so that names sort as numbers do. A delta's name is drawn anew for each upload: it is
//! never used twice, so an upload that is repeated or abandoned cannot disturb another.
//!
//! A branch numbers its entries from above what the line had reached when its writer was fenced, so that no two entries of a
//! generation share a number. The line grows past these numbers: how old a delta of a branch is says its branch, not the line, and
//! therefore its name has another form.

use std::fmt;
use std::str::FromStr;

use nbd_proxy::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::cipher::Salt;

/// The vault's marker.
pub const MARKER: &str = "lifeboat.json";

/// The folder of wrapped data keys.
pub const KEYS: &str = "keys";

/// The folder that holds one folder for each machine.
pub const MACHINES: &str = "machines";

const NAME_MAX: usize = 128;

/// Refuses names that could not be part of an object's name on every store.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > NAME_MAX || name.starts_with('.') || !name.chars().all(fine) {
        let message = format!("is no valid name for a {what}");
        let remedy = "use up to 128 letters, digits, '-', '_' and '.', not starting with '.'";
        return Err(Error::new(Kind::InvalidInput, name, message).remedy(remedy));
    }
    Ok(())
}

/// The name of the wrapped key `id`.
pub fn wrapped_key(id: &str) -> String {
    format!("{KEYS}/{id}.json")
}

/// The folder of a machine.
pub fn machine_folder(machine: &str) -> String {
    format!("{MACHINES}/{machine}")
}

/// The folder of a machine's line.
pub fn line_folder(machine: &str) -> String {
    format!("{MACHINES}/{machine}/line")
}

/// The name of entry `number` in a line's folder.
pub fn line_entry(folder: &str, number: u64) -> String {
    format!("{folder}/{number:020}")
}

/// The number of the entry that `key` names; `None` if it names none.
pub fn parse_line_entry(key: &str) -> Option<u64> {
    let name = key.rsplit('/').next()?;
    (name.len() == 20 && name.bytes().all(|b| b.is_ascii_digit())).then(|| name.parse().ok())?
}

/// The machine's folder of deltas.
pub fn delta_folder(machine: &str) -> String {
    format!("{MACHINES}/{machine}/deltas")
}

/// A name, never used before, for a delta meant for entry `number`; that of an encrypted one says its salt.
pub fn new_delta(number: u64, salt: Option<Salt>) -> String {
    format!("{number:020}-{}", salt.unwrap_or_else(Salt::draw))
}

/// A name, never used before, for a delta meant for the entry `point` of a branch.
pub fn new_branch_delta(point: PointId, salt: Option<Salt>) -> String {
    format!("g{}-{}", point.generation, new_delta(point.number, salt))
}

/// The folder that holds one folder for each branch of a machine's line.
pub fn branches_folder(machine: &str) -> String {
    format!("{MACHINES}/{machine}/branches")
}

/// The folder of the branch that `writer`, fenced, has made after its `generation`.
pub fn branch_folder(machine: &str, generation: u64, writer: Uuid) -> String {
    format!("{}/{generation:020}-{}", branches_folder(machine), writer.simple())
}

/// The generation and the writer of the branch whose folder is named `name`; `None` if that is no name of a branch.
pub fn parse_branch(name: &str) -> Option<(u64, Uuid)> {
    let (generation, writer) = name.split_once('-')?;
    let digits = generation.len() == 20 && generation.bytes().all(|b| b.is_ascii_digit());
    let parsed = (generation.parse().ok().filter(|_| digits)?, Uuid::try_parse(writer).ok()?);
    (writer.len() == 32).then_some(parsed)
}

/// The full name of the delta `name` of `machine`.
pub fn delta(machine: &str, name: &str) -> String {
    format!("{}/{name}", delta_folder(machine))
}

/// The entry for which the delta `name` was made, as its name says; `None` if it is no delta's name.
pub fn parse_delta(name: &str) -> Option<u64> {
    let (number, random) = name.split_once('-')?;
    let hex = random.len() == 32 && random.bytes().all(|b| b.is_ascii_hexdigit());
    if hex { parse_line_entry(number) } else { None }
}

/// The machine's folder of catalogues.
pub fn catalogue_folder(machine: &str) -> String {
    format!("{MACHINES}/{machine}/catalogue")
}

/// The name of catalogue `number`; [`parse_line_entry`] reads the number back.
pub fn catalogue(machine: &str, number: u64) -> String {
    line_entry(&catalogue_folder(machine), number)
}

/// The machine's folder of holds.
pub fn hold_folder(machine: &str) -> String {
    format!("{MACHINES}/{machine}/holds")
}

/// A name, never used before, for a hold.
pub fn new_hold(machine: &str) -> String {
    format!("{}/{}", hold_folder(machine), Salt::draw())
}

/// The machine's folder of objects that were written to learn the time.
pub fn clock_folder(machine: &str) -> String {
    format!("{MACHINES}/{machine}/clock")
}

/// A name, never used before, for an object that is written to learn the time.
pub fn new_clock(machine: &str) -> String {
    format!("{}/{}", clock_folder(machine), Salt::draw())
}

/// Names a point or a claim, uniquely over all generations of a machine: `g<generation>-<number>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PointId {
    /// The generation it belongs to.
    pub generation: u64,
    /// Its number on the line.
    pub number: u64,
}

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "g{}-{}", self.generation, self.number)
    }
}

impl FromStr for PointId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (generation, number) = text.strip_prefix('g')?.split_once('-')?;
            Some(Self { generation: decimal(generation)?, number: decimal(number)? })
        };
        parse().ok_or_else(|| {
            Error::new(Kind::InvalidInput, text, "is no point id").remedy("`lifeboat points` lists them")
        })
    }
}

/// A number in the one form that [`PointId`] prints.
fn decimal(text: &str) -> Option<u64> {
    let canonical = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if canonical { text.parse().ok() } else { None }
}

impl Serialize for PointId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PointId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| serde::de::Error::custom("no point id"))
    }
}

#[cfg(test)]
mod tests;
