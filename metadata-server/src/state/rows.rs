//! One layer's rows, and how many it has of each table: most tables have none in most layers, which is then known
//! without a search.

use super::key::Key;
use std::collections::BTreeMap;
use std::collections::btree_map::{Entry, Range};
use std::ops::Bound;
use std::sync::Arc;

/// Number of rows by table.
#[derive(Clone, Copy, Debug, Default)]
struct Tables([usize; 32]);

impl Tables {
    /// Tables beyond 32 share a number: an answer is then "perhaps" more often.
    fn of(&mut self, key: &[u8]) -> &mut usize {
        &mut self.0[usize::from(key.first().copied().unwrap_or_default()) % 32]
    }

    fn may_have(&self, key: &[u8]) -> bool {
        self.0[usize::from(key.first().copied().unwrap_or_default()) % 32] > 0
    }
}

/// Rows by key. Frozen by [`share`](Self::share): then they are only read.
#[derive(Debug)]
pub(super) struct Rows<V> {
    rows: Arc<BTreeMap<Key, V>>,
    tables: Tables,
}

impl<V> Default for Rows<V> {
    fn default() -> Self {
        Self { rows: Arc::default(), tables: Tables::default() }
    }
}

impl<V> Rows<V> {
    /// Nobody else can have them: they are shared only once they are not changed any more.
    fn rows(&mut self) -> &mut BTreeMap<Key, V> {
        Arc::get_mut(&mut self.rows).expect("only a frozen layer is shared")
    }

    pub(super) fn share(&self) -> Arc<BTreeMap<Key, V>> {
        self.rows.clone()
    }

    pub(super) fn into_shared(self) -> Arc<BTreeMap<Key, V>> {
        self.rows
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&V> {
        if self.tables.may_have(key) { self.rows.get(key) } else { None }
    }

    pub(super) fn contains_key(&self, key: &[u8]) -> bool {
        self.get(key).is_some()
    }

    pub(super) fn range(&self, range: (Bound<&[u8]>, Bound<&[u8]>)) -> Range<'_, Key, V> {
        self.rows.range::<[u8], _>(range)
    }

    /// Sets a row. Returns the one before.
    pub(super) fn insert(&mut self, key: Key, value: V) -> Option<V> {
        let in_table = self.tables.of(&key);
        let rows = Arc::get_mut(&mut self.rows).expect("only a frozen layer is shared");
        match rows.entry(key) {
            Entry::Vacant(row) => {
                *in_table += 1;
                row.insert(value);
                None
            }
            Entry::Occupied(mut row) => Some(row.insert(value)),
        }
    }

    /// Removes a row for which `is_it` holds.
    pub(super) fn remove_if(&mut self, key: &[u8], is_it: impl FnOnce(&V) -> bool) -> Option<V> {
        if !self.get(key).is_some_and(is_it) {
            return None;
        }
        *self.tables.of(key) -= 1;
        self.rows().remove(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_table_are_counted() {
        let mut rows = Rows::default();
        assert_eq!(rows.insert(vec![1, 7], 'a'), None);
        assert_eq!(rows.insert(vec![1, 7], 'b'), Some('a'));
        assert_eq!((rows.get(&[1, 7]), rows.get(&[1, 8]), rows.get(&[2, 7])), (Some(&'b'), None, None));
        assert_eq!(rows.remove_if(&[1, 7], |value| *value == 'a'), None);
        assert_eq!(rows.remove_if(&[1, 7], |value| *value == 'b'), Some('b'));
        assert!(!rows.tables.may_have(&[1]));
    }
}
