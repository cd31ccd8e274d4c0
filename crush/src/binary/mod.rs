//! Ceph's binary form of a map, as `crushtool -c` writes and `ceph osd getcrushmap` gives it.
//!
//! All numbers are little-endian; a string is its length (u32) and its bytes; a table is its length (u32) and
//! its rows. `docs/FORMATS.md` draws it.

mod read;
mod write;

use crate::map::{CrushMap, MapError};

/// The first four bytes.
pub(crate) const MAGIC: u32 = 0x0001_0000;

/// Bound on the number of bucket and rule slots, used or not.
pub(crate) const SLOTS_MAX: u32 = 1 << 20;

const ALGORITHMS: [(u32, &str); 5] = [(1, "uniform"), (2, "list"), (3, "tree"), (4, "straw"), (5, "straw2")];
const RULE_REPLICATED: u8 = 1;
const RULE_ERASURE: u8 = 3;

/// Why bytes are not a map, or a map cannot be bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BinaryError {
    #[error("byte {at}: the map ends where {wanted} should be; the file is cut off or damaged")]
    Truncated { at: usize, wanted: &'static str },
    #[error("byte {at}: {value} cannot be {what}; the file is damaged or from a newer crushtool")]
    Unexpected { at: usize, value: i64, what: &'static str },
    #[error("byte {at}: a name is not UTF-8")]
    BadName { at: usize },
    #[error("{what} {value} does not fit the binary form, which allows up to {limit}; keep the map as text")]
    DoesNotFit { what: &'static str, value: i64, limit: i64 },
    #[error("the map is not sound: {0}")]
    Map(#[from] MapError),
}

impl CrushMap {
    /// Whether bytes begin like a map in Ceph's binary form. No text does.
    pub fn is_binary(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC.to_le_bytes())
    }

    /// Reads Ceph's binary form. What newer releases append is not read.
    pub fn from_binary(bytes: &[u8]) -> Result<CrushMap, BinaryError> {
        read::read(bytes)
    }

    /// Writes Ceph's binary form; `crushtool` reads it. Every retry setting that the form keeps in eight bits,
    /// and ids far below zero, must fit.
    pub fn to_binary(&self) -> Result<Vec<u8>, BinaryError> {
        write::write(self)
    }
}
