//! Names of directory entries, checked once at the edge.

use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// Longest name of a directory entry in bytes, as on every local Linux filesystem (`NAME_MAX`).
pub const NAME_MAX: usize = 255;

/// A legal name of a directory entry: 1 to 255 bytes, no `/`, no NUL, neither `.` nor `..`.
/// The decoder refuses anything else, so nothing behind it checks again.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct EntryName(#[serde(with = "bytes_form")] Vec<u8>);

/// Why a name is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Longer than [`NAME_MAX`] bytes.
    #[error("the name is longer than 255 bytes")]
    TooLong,
    /// Empty, `.`, `..`, or with `/` or NUL in it.
    #[error("the name is empty, '.', '..' or holds '/' or NUL")]
    Illegal,
}

impl EntryName {
    /// Checks `bytes`.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, NameError> {
        let bytes = bytes.into();
        if bytes.len() > NAME_MAX {
            return Err(NameError::TooLong);
        }
        let reserved = matches!(bytes.as_slice(), b"" | b"." | b"..");
        if reserved || bytes.iter().any(|b| matches!(b, b'/' | 0)) {
            return Err(NameError::Illegal);
        }
        Ok(Self(bytes))
    }

    /// The bytes as given.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", String::from_utf8_lossy(&self.0))
    }
}

impl<'de> Deserialize<'de> for EntryName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes: Vec<u8> = bytes_form::deserialize(deserializer)?;
        Self::new(bytes).map_err(serde::de::Error::custom)
    }
}

/// `Vec<u8>` as one byte string instead of a sequence of numbers: compact and fast in `postcard`.
pub mod bytes_form {
    use serde::{Deserializer, Serializer, de::Visitor};
    use std::fmt;

    /// Writes the bytes.
    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    /// Reads the bytes.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a byte string")
            }
            fn visit_bytes<E>(self, v: &[u8]) -> Result<Vec<u8>, E> {
                Ok(v.to_vec())
            }
            fn visit_byte_buf<E>(self, v: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(v)
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_at_the_edge() {
        assert_eq!(EntryName::new("a").map(|n| n.as_bytes().to_vec()), Ok(b"a".to_vec()));
        assert_eq!(EntryName::new(vec![b'x'; 256]), Err(NameError::TooLong));
        for bad in ["", ".", "..", "a/b", "a\0b"] {
            assert_eq!(EntryName::new(bad), Err(NameError::Illegal), "{bad:?}");
        }
    }

    #[test]
    fn a_decoded_name_is_a_legal_name() {
        let good = postcard::to_stdvec(&EntryName::new("x").expect("legal")).expect("encodes");
        assert!(postcard::from_bytes::<EntryName>(&good).is_ok());
        assert!(postcard::from_bytes::<EntryName>(&[1, b'/']).is_err());
    }
}
