//! How a log segment lies on disk. Pure: bytes in, batches out.
//!
//! A segment is a file of fixed length, zeroed when it is made. It starts with a header, batches follow without
//! gaps, the rest is zeros. One group commit writes exactly one batch, and only after the one before it is durable.
//! All numbers are little endian.
//!
//! ```text
//! segment header, 128 bytes
//!   0   8  magic "zabfslog"
//!   8   4  crc32c of bytes 12..128
//!  12   4  format, 2 (1 had no operation of kind 3)
//!  16   8  log generation
//!  24   8  number of this segment, dense within the generation
//!  32  16  prev: the log's last zxid when the segment was made (epoch, counter)
//!  48   8  where the segment before it ends (0 for the first)
//!  56   8  sequence of the first batch
//!  64  64  zeros
//!
//! batch, a multiple of 8 bytes long                operation, in the body
//!   0   4  magic "zbat"                              0   1  kind: 1 transaction, 2 truncate, 3 membership
//!   4   4  crc32c of the rest, padding included      1   3  zeros
//!   8   4  length of the body                        4   4  length of what follows
//!  12   4  operations in the body                    8  16  zxid (of the entry; or the new end)
//!  16   8  log generation                           24   …  transaction
//!  24   8  sequence of this batch, dense                (a membership: zab's, in postcard)
//!  32   8  durable end before it: segment number
//!  40   8  durable end before it: offset
//!  48  16  prev: the log's end before it
//!  64  16  zxid of the first operation
//!  80  16  last: the log's end after it
//!  96   …  body, then zeros up to a multiple of 8
//! ```
//!
//! Truncation is an operation like an append, so that cutting is atomic and never rewrites a durable byte.

use bytes::{Buf, BufMut, Bytes};
use zab::{Entry, Payload, Zxid};

pub(super) const SEGMENT_HEADER_BYTES: usize = 128;
pub(super) const BATCH_HEADER_BYTES: usize = 96;
const OPERATION_HEADER_BYTES: usize = 24;
const SEGMENT_MAGIC: &[u8; 8] = b"zabfslog";
const BATCH_MAGIC: &[u8; 4] = b"zbat";
/// The newest format that this version reads, and the one that it writes.
pub(super) const FORMAT: u32 = 2;
const KIND_ENTRY: u8 = 1;
const KIND_TRUNCATE: u8 = 2;
const KIND_MEMBERSHIP: u8 = 3;
const ALIGNMENT: usize = 8;

/// A place in the log: which segment, and the offset in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) segment: u64,
    pub(super) offset: u64,
}

/// The start of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) generation: u64,
    pub(super) number: u64,
    pub(super) prev: Zxid,
    pub(super) previous_end: u64,
    pub(super) sequence: u64,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        let mut rest = &mut bytes[12..];
        rest.put_u32_le(FORMAT);
        rest.put_u64_le(self.generation);
        rest.put_u64_le(self.number);
        put_zxid(&mut rest, self.prev);
        rest.put_u64_le(self.previous_end);
        rest.put_u64_le(self.sequence);
        let crc = crc32c::crc32c(&bytes[12..]);
        bytes[..8].copy_from_slice(SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The format of an intact header, known or not.
    pub(super) fn format(bytes: &[u8]) -> Option<u32> {
        let bytes = bytes.get(..SEGMENT_HEADER_BYTES)?;
        let mut rest = bytes.strip_prefix(SEGMENT_MAGIC)?;
        (rest.get_u32_le() == crc32c::crc32c(&bytes[12..])).then(|| rest.get_u32_le())
    }

    /// `None` if the bytes are no intact header of a known format.
    pub(super) fn decode(bytes: &[u8]) -> Option<SegmentHeader> {
        if !(1..=FORMAT).contains(&SegmentHeader::format(bytes)?) {
            return None;
        }
        let mut rest = bytes.get(16..SEGMENT_HEADER_BYTES)?;
        Some(SegmentHeader {
            generation: rest.get_u64_le(),
            number: rest.get_u64_le(),
            prev: get_zxid(&mut rest),
            previous_end: rest.get_u64_le(),
            sequence: rest.get_u64_le(),
        })
    }
}

/// One thing that happened to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Append(Entry),
    Truncate(Zxid),
}

/// The start of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchHeader {
    pub(super) generation: u64,
    pub(super) sequence: u64,
    pub(super) durable: Position,
    pub(super) prev: Zxid,
    pub(super) first: Zxid,
    pub(super) last: Zxid,
}

/// A batch being gathered. Encoding happens in place; nothing is copied again before the write.
#[derive(Debug)]
pub(super) struct BatchBuilder {
    buffer: Vec<u8>,
    operations: u32,
    first: Zxid,
}

impl Default for BatchBuilder {
    fn default() -> Self {
        BatchBuilder { buffer: vec![0; BATCH_HEADER_BYTES], operations: 0, first: Zxid::ZERO }
    }
}

impl BatchBuilder {
    /// Buffers larger than this are given back after a commit.
    const KEPT_BYTES_MAX: usize = 4 << 20;

    pub(super) fn is_empty(&self) -> bool {
        self.operations == 0
    }

    /// Length on disk.
    pub(super) fn len(&self) -> usize {
        self.buffer.len().next_multiple_of(ALIGNMENT)
    }

    pub(super) fn append(&mut self, entry: &Entry) {
        match &entry.payload {
            Payload::Txn(txn) => self.operation(KIND_ENTRY, entry.zxid, txn),
            Payload::Membership(membership) => {
                let encoded = postcard::to_stdvec(membership)
                    .expect("a membership is made of numbers, maps and strings, which always encode");
                self.operation(KIND_MEMBERSHIP, entry.zxid, &encoded);
            }
        }
    }

    pub(super) fn truncate(&mut self, after: Zxid) {
        self.operation(KIND_TRUNCATE, after, &[]);
    }

    fn operation(&mut self, kind: u8, zxid: Zxid, txn: &[u8]) {
        if self.operations == 0 {
            self.first = zxid;
        }
        self.operations += 1;
        // `len` is checked against u32 before the batch is written.
        self.buffer.put_slice(&[kind, 0, 0, 0]);
        self.buffer.put_u32_le(txn.len() as u32);
        put_zxid(&mut self.buffer, zxid);
        self.buffer.put_slice(txn);
    }

    /// The finished bytes. `header.first` is filled in here.
    pub(super) fn seal(&mut self, header: BatchHeader) -> &[u8] {
        let body = self.buffer.len() - BATCH_HEADER_BYTES;
        self.buffer.resize(self.len(), 0);
        let mut rest = &mut self.buffer[8..BATCH_HEADER_BYTES];
        rest.put_u32_le(body as u32);
        rest.put_u32_le(self.operations);
        rest.put_u64_le(header.generation);
        rest.put_u64_le(header.sequence);
        rest.put_u64_le(header.durable.segment);
        rest.put_u64_le(header.durable.offset);
        put_zxid(&mut rest, header.prev);
        put_zxid(&mut rest, self.first);
        put_zxid(&mut rest, header.last);
        let crc = crc32c::crc32c(&self.buffer[8..]);
        self.buffer[..4].copy_from_slice(BATCH_MAGIC);
        self.buffer[4..8].copy_from_slice(&crc.to_le_bytes());
        &self.buffer
    }

    pub(super) fn clear(&mut self) {
        if self.buffer.capacity() > Self::KEPT_BYTES_MAX {
            *self = BatchBuilder::default();
        }
        self.buffer.clear();
        self.buffer.resize(BATCH_HEADER_BYTES, 0);
        self.operations = 0;
    }
}

/// An intact batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) header: BatchHeader,
    pub(super) operations: Vec<Operation>,
    /// Length on disk.
    pub(super) len: usize,
}

/// Decodes the batch at the start of `bytes`; `None` if there is no intact one.
pub(super) fn decode_batch(bytes: &[u8]) -> Option<Batch> {
    let (header, body_len, count) = decode_batch_header(bytes)?;
    let len = (BATCH_HEADER_BYTES + body_len).next_multiple_of(ALIGNMENT);
    let crc = u32::from_le_bytes(bytes[4..8].try_into().ok()?);
    if crc32c::crc32c(bytes.get(8..len)?) != crc {
        return None;
    }
    let operations = decode_operations(&bytes[BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + body_len], count)?;
    Some(Batch { header, operations, len })
}

fn decode_batch_header(bytes: &[u8]) -> Option<(BatchHeader, usize, u32)> {
    let mut rest = bytes.get(..BATCH_HEADER_BYTES)?.strip_prefix(BATCH_MAGIC)?;
    rest.advance(4);
    let body_len = rest.get_u32_le() as usize;
    let count = rest.get_u32_le();
    let header = BatchHeader {
        generation: rest.get_u64_le(),
        sequence: rest.get_u64_le(),
        durable: Position { segment: rest.get_u64_le(), offset: rest.get_u64_le() },
        prev: get_zxid(&mut rest),
        first: get_zxid(&mut rest),
        last: get_zxid(&mut rest),
    };
    Some((header, body_len, count))
}

fn decode_operations(mut body: &[u8], count: u32) -> Option<Vec<Operation>> {
    let mut operations = Vec::with_capacity((count as usize).min(body.len() / OPERATION_HEADER_BYTES));
    for _ in 0..count {
        if body.len() < OPERATION_HEADER_BYTES {
            return None;
        }
        let kind = body.get_u32_le();
        let len = body.get_u32_le() as usize;
        let zxid = get_zxid(&mut body);
        let txn = body.get(..len)?;
        body.advance(len);
        operations.push(match u8::try_from(kind).ok()? {
            // Copied: a slice would keep the whole segment in memory for one entry.
            KIND_ENTRY => Operation::Append(Entry::txn(zxid, Bytes::copy_from_slice(txn))),
            KIND_MEMBERSHIP => Operation::Append(Entry::membership(zxid, postcard::from_bytes(txn).ok()?)),
            KIND_TRUNCATE => Operation::Truncate(zxid),
            _ => return None,
        });
    }
    body.is_empty().then_some(operations)
}

/// Whether an intact batch of this generation lies behind `damaged`, at which none does. Its own header says that
/// everything before it was durable when it was written; then the damage is no torn tail.
pub(super) fn has_evidence_behind(segment: &[u8], number: u64, generation: u64, damaged: usize) -> bool {
    let mut offset = (damaged + 1).next_multiple_of(ALIGNMENT);
    while offset + BATCH_HEADER_BYTES <= segment.len() {
        if segment[offset..].starts_with(BATCH_MAGIC)
            && let Some(batch) = decode_batch(&segment[offset..])
            && batch.header.generation == generation
            && batch.header.durable == (Position { segment: number, offset: offset as u64 })
        {
            return true;
        }
        offset += ALIGNMENT;
    }
    false
}

fn put_zxid(buffer: &mut impl BufMut, zxid: Zxid) {
    buffer.put_u64_le(zxid.epoch);
    buffer.put_u64_le(zxid.counter);
}

fn get_zxid(bytes: &mut &[u8]) -> Zxid {
    let epoch = bytes.get_u64_le();
    Zxid::new(epoch, bytes.get_u64_le())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> BatchHeader {
        BatchHeader {
            generation: 3,
            sequence: 9,
            durable: Position { segment: 2, offset: 4096 },
            prev: Zxid::new(1, 4),
            first: Zxid::new(1, 5),
            last: Zxid::new(1, 4),
        }
    }

    #[test]
    fn batches_come_back_and_no_flipped_byte_goes_unnoticed() {
        let entry = Entry::txn(Zxid::new(1, 5), Bytes::from_static(b"transaction"));
        let mut builder = BatchBuilder::default();
        builder.append(&entry);
        builder.truncate(Zxid::new(1, 4));
        let mut bytes = builder.seal(header()).to_vec();
        let batch = decode_batch(&bytes).expect("what was encoded decodes");
        assert_eq!(batch.header, header());
        assert_eq!(batch.operations, [Operation::Append(entry), Operation::Truncate(Zxid::new(1, 4))]);
        assert_eq!(batch.len, bytes.len());
        for index in 0..bytes.len() {
            bytes[index] ^= 1;
            assert_eq!(decode_batch(&bytes), None, "byte {index}");
            assert_eq!(decode_batch(&bytes[..index]), None, "{index} bytes");
            bytes[index] ^= 1;
        }
    }

    #[test]
    fn segment_headers_come_back_and_no_flipped_byte_goes_unnoticed() {
        let header =
            SegmentHeader { generation: 1, number: 2, prev: Zxid::new(3, 4), previous_end: 5, sequence: 6 };
        let mut bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Some(header));
        for index in 0..bytes.len() {
            bytes[index] ^= 0x10;
            assert_eq!(SegmentHeader::decode(&bytes), None, "byte {index}");
            bytes[index] ^= 0x10;
        }
    }
}
