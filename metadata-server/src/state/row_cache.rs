//! Rows of the disk layer that were read lately, so that what every request looks at (its session, its pool, rights
//! that nobody holds) is not looked up in the file each time.

use super::layers::row_bytes;
use super::rows::Rows;
use bytes::Bytes;

/// Bytes of rows kept. At the bound everything is forgotten.
const BYTES_MAX: usize = 4 << 20;

/// Rows by key; `None` is known to be absent.
#[derive(Debug, Default)]
pub(super) struct RowCache {
    rows: Rows<Option<Bytes>>,
    bytes: usize,
}

impl RowCache {
    /// What is known about `key`; `None` if nothing is.
    pub(super) fn get(&self, key: &[u8]) -> Option<&Option<Bytes>> {
        self.rows.get(key)
    }

    /// The disk layer was asked for `key`.
    pub(super) fn note(&mut self, key: &[u8], value: Option<Bytes>) {
        if self.bytes > BYTES_MAX {
            *self = Self::default();
        }
        let bytes = row_bytes(key.len(), value.as_ref());
        if self.rows.insert(key.to_vec(), value).is_none() {
            self.bytes += bytes;
        }
    }

    /// `key` changes: the disk layer will say something else after the next checkpoint.
    pub(super) fn forget(&mut self, key: &[u8]) {
        if let Some(value) = self.rows.remove_if(key, |_| true) {
            self.bytes -= row_bytes(key.len(), value.as_ref());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded() {
        let mut cache = RowCache::default();
        let value = Bytes::from(vec![7; 1000]);
        for number in 0..20_000_u32 {
            cache.note(&number.to_be_bytes(), Some(value.clone()));
            assert!(cache.bytes <= BYTES_MAX + 2000);
        }
        assert_eq!(cache.get(&19_999_u32.to_be_bytes()), Some(&Some(value)));
        cache.forget(&19_999_u32.to_be_bytes());
        assert_eq!(cache.get(&19_999_u32.to_be_bytes()), None);
    }
}
