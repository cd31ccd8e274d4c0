//! A transaction: what the leader decided, ready for every replica to apply blindly.

use super::layers::Writes;
use protocol::meta::Push;
use protocol::{SessionId, Timestamp};
use serde::{Deserialize, Serialize};

/// A decided change. Applying it reads no clock, draws no random number and cannot fail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    /// Number of this transaction: one more than the one before it.
    pub revision: u64,
    /// Its time: later than the one before it.
    pub time: Timestamp,
    /// Keys to set or (`None`) delete, in key order.
    #[serde(with = "writes_form")]
    pub writes: Writes,
    /// What the leader tells other sessions once this is committed.
    pub pushes: Vec<(SessionId, Push)>,
}

/// Keys as strings of bytes. On the wire this is what a map of vectors of bytes is too, but not byte by byte.
mod writes_form {
    use super::Writes;
    use bytes::Bytes;
    use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
    use serde::ser::{Serialize, Serializer};
    use std::fmt;

    struct AsBytes<B>(B);

    impl Serialize for AsBytes<&[u8]> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_bytes(self.0)
        }
    }

    impl<'de> Deserialize<'de> for AsBytes<Vec<u8>> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            <&[u8]>::deserialize(deserializer).map(|key| Self(key.to_vec()))
        }
    }

    pub(super) fn serialize<S: Serializer>(writes: &Writes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(writes.iter().map(|(key, value)| (AsBytes(key.as_slice()), value)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Writes, D::Error> {
        struct Rows;

        impl<'de> Visitor<'de> for Rows {
            type Value = Writes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("rows by key")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut rows: A) -> Result<Writes, A::Error> {
                let mut writes = Writes::new();
                while let Some((AsBytes(key), value)) =
                    rows.next_entry::<AsBytes<Vec<u8>>, Option<Bytes>>()?
                {
                    writes.insert(key, value);
                }
                Ok(writes)
            }
        }

        deserializer.deserialize_map(Rows)
    }
}

impl Txn {
    /// Wire and log form.
    pub fn encode(&self) -> bytes::Bytes {
        super::record::encode(self)
    }

    /// Inverse of [`Self::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, postcard::Error> {
        postcard::from_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The form before keys were taken as strings of bytes.
    #[derive(Serialize)]
    struct ByteByByte {
        revision: u64,
        time: Timestamp,
        writes: Writes,
        pushes: Vec<(SessionId, Push)>,
    }

    #[test]
    fn the_wire_form_is_that_of_a_map() {
        let writes =
            Writes::from([(vec![1, 200, 0], Some(vec![7; 300].into())), (vec![2], None), (vec![], None)]);
        let (revision, time, pushes) = (300, Timestamp { seconds: -1, nanoseconds: 7 }, vec![]);
        let plain = ByteByByte { revision, time, writes: writes.clone(), pushes: vec![] };
        let txn = Txn { revision, time, writes, pushes };
        assert_eq!(txn.encode(), super::super::record::encode(&plain));
        assert_eq!(Txn::decode(&txn.encode()), Ok(txn));
    }
}
