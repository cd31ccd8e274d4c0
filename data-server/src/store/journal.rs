//! The journal: a ring of preallocated segments that holds the transactions since the last checkpoint.
//!
//! Drawn byte by byte in `docs/FORMATS.md`. A segment starts with a header, then come frames, one per
//! transaction, each with its sequence, its length and a crc32c over header, store uuid and body. Sequences are dense,
//! so the end of the written part is the first place where no valid frame with the next sequence stands; zeroing is
//! only there to make `fdatasync` cheap.
//!
//! Each frame also carries the highest sequence that was durable when it was made. That tells a torn tail (never
//! synced: cut it) from damage (was synced: refuse to open, the caller must not serve a shorter history).

use bytes::{BufMut, Bytes, BytesMut};
use protocol::mutant;

use super::{
    disk::DiskFile,
    superblock::{le_u32, le_u64},
    types::{BLOCK_BYTES, StoreError},
};

pub(super) const FILE_NAME: &str = "journal";
const SEGMENT_MAGIC: u32 = u32::from_le_bytes(*b"zSEG");
const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"zFRM");
const SEGMENT_HEADER_BYTES: u64 = 64;
const FRAME_HEADER_BYTES: usize = 40;
const ALIGN: usize = 64;

/// Bytes to put at an offset of the journal file.
#[derive(Clone, Debug)]
pub(super) struct JournalWrite {
    pub(super) offset: u64,
    pub(super) bytes: Bytes,
}

/// Where the next frame goes. Pure: it produces writes and performs none.
#[derive(Debug)]
pub(super) struct Journal {
    uuid: [u8; 16],
    /// The incarnation that writes; frames of others are leftovers.
    incarnation: u64,
    segment_bytes: u64,
    segments: u64,
    /// Running number of the segment being filled; its place is this modulo `segments`.
    segment: u64,
    offset: u64,
    /// First segment that a recovery would need.
    oldest: u64,
}

/// The journal has no free segment until a checkpoint is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct JournalFull;

impl Journal {
    /// A journal that starts with a fresh `segment`; the write is its header.
    pub(super) fn start(
        uuid: [u8; 16],
        incarnation: u64,
        (segment_bytes, segments): (u64, u64),
        segment: u64,
        (next_seq, durable): (u64, u64),
    ) -> (Self, JournalWrite) {
        let mut this =
            Self { uuid, incarnation, segment_bytes, segments, segment, offset: 0, oldest: segment };
        let write = this.open_segment(segment, next_seq, durable);
        (this, write)
    }

    /// The longest body a frame can have.
    pub(super) fn body_bytes_max(&self) -> usize {
        (self.segment_bytes - SEGMENT_HEADER_BYTES) as usize - FRAME_HEADER_BYTES - ALIGN
    }

    pub(super) fn segment(&self) -> u64 {
        self.segment
    }

    /// Whether a transaction of any legal size finds room.
    pub(super) fn has_room(&self) -> bool {
        self.segment + 2 - self.oldest < self.segments
    }

    /// Places a frame. One segment is always left for [`rotate`](Self::rotate).
    pub(super) fn append(
        &mut self,
        seq: u64,
        durable: u64,
        body: &[u8],
    ) -> Result<Vec<JournalWrite>, JournalFull> {
        let len = (FRAME_HEADER_BYTES + body.len()).next_multiple_of(ALIGN);
        let mut writes = Vec::with_capacity(2);
        if self.offset + len as u64 > self.segment_bytes {
            if self.segment + 2 - self.oldest >= self.segments {
                return Err(JournalFull);
            }
            writes.push(self.open_segment(self.segment + 1, seq, durable));
        }
        let mut bytes = BytesMut::with_capacity(len);
        bytes.put_u32_le(FRAME_MAGIC);
        bytes.put_u32_le(body.len() as u32);
        bytes.put_u64_le(seq);
        bytes.put_u64_le(durable);
        bytes.put_u64_le(self.incarnation);
        bytes.put_u32_le(frame_crc(&bytes, &self.uuid, body));
        bytes.put_u32_le(0);
        bytes.put_slice(body);
        bytes.resize(len, 0);
        writes.push(JournalWrite { offset: self.position(), bytes: bytes.freeze() });
        self.offset += len as u64;
        Ok(writes)
    }

    /// Makes the next frame the first of a segment, so that a checkpoint ends at a segment's end. Returns the header
    /// to write, unless the current segment is still empty.
    pub(super) fn rotate(&mut self, next_seq: u64, durable: u64) -> Option<JournalWrite> {
        if self.offset == SEGMENT_HEADER_BYTES {
            return None;
        }
        debug_assert!(self.segment + 1 - self.oldest < self.segments, "append leaves one segment");
        Some(self.open_segment(self.segment + 1, next_seq, durable))
    }

    /// A durable checkpoint covers everything before `segment`: its space is free.
    pub(super) fn release_before(&mut self, segment: u64) {
        self.oldest = segment;
    }

    fn position(&self) -> u64 {
        (self.segment % self.segments) * self.segment_bytes + self.offset
    }

    fn open_segment(&mut self, segment: u64, first_seq: u64, durable: u64) -> JournalWrite {
        self.segment = segment;
        self.offset = 0;
        let mut bytes = BytesMut::with_capacity(SEGMENT_HEADER_BYTES as usize);
        bytes.put_u32_le(SEGMENT_MAGIC);
        bytes.put_u32_le(0);
        bytes.put_u64_le(segment);
        bytes.put_u64_le(self.incarnation);
        bytes.put_u64_le(first_seq);
        bytes.put_u64_le(durable);
        bytes.resize(SEGMENT_HEADER_BYTES as usize, 0);
        let crc = frame_crc(&bytes[8..], &self.uuid, &[]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        let write = JournalWrite { offset: self.position(), bytes: bytes.freeze() };
        self.offset = SEGMENT_HEADER_BYTES;
        write
    }
}

/// A frame found at recovery.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) seq: u64,
    pub(super) body: Bytes,
}

/// What recovery found after a checkpoint.
#[derive(Debug)]
pub(super) struct Scan {
    /// Valid frames with dense sequences from the checkpoint's on.
    pub(super) frames: Vec<Frame>,
    /// Frames up to this sequence are known to have been durable.
    pub(super) durable: u64,
    /// The segment in which the frames end.
    pub(super) last_segment: u64,
}

/// Where to look for frames: what the checkpoint record says.
#[derive(Clone, Copy, Debug)]
pub(super) struct ScanFrom {
    pub(super) uuid: [u8; 16],
    pub(super) incarnation: u64,
    pub(super) segment: u64,
    /// Last sequence the checkpoint covers.
    pub(super) seq: u64,
}

/// Reads the frames after a checkpoint.
pub(super) fn scan(
    file: &dyn DiskFile,
    segment_bytes: u64,
    segments: u64,
    from: ScanFrom,
) -> Result<Scan, StoreError> {
    let mut scan = Scan { frames: Vec::new(), durable: from.seq, last_segment: from.segment };
    let mut expected = from.seq + 1;
    for segment in from.segment..from.segment + segments {
        let bytes = read_segment(file, segment_bytes, segment % segments)?;
        let Some((first_seq, durable)) = segment_header(&bytes, &from, segment) else { break };
        if first_seq != expected {
            break;
        }
        scan.durable = scan.durable.max(durable);
        scan.last_segment = segment;
        let mut at = SEGMENT_HEADER_BYTES as usize;
        while let Some((frame, durable, len)) =
            frame_at(&bytes, at, &from).filter(|(f, ..)| f.seq == expected)
        {
            scan.durable = scan.durable.max(durable);
            scan.frames.push(frame);
            expected += 1;
            at += len;
        }
    }
    if !mutant!("damaged-frame-is-a-torn-tail") {
        refuse_damage(file, segment_bytes, segments, &from, expected)?;
    }
    Ok(scan)
}

/// Looks for anything of this incarnation which says that the missing frame `expected` had been durable.
fn refuse_damage(
    file: &dyn DiskFile,
    segment_bytes: u64,
    segments: u64,
    from: &ScanFrom,
    expected: u64,
) -> Result<(), StoreError> {
    let damaged = || {
        StoreError::Damaged(format!(
            "transaction {expected} was on stable storage and is gone from the journal: rebuild this server from its peers"
        ))
    };
    for place in 0..segments {
        let bytes = read_segment(file, segment_bytes, place)?;
        let number = le_u64(&bytes, 8);
        if segment_header(&bytes, from, number).is_some_and(|(_, durable)| durable >= expected) {
            return Err(damaged());
        }
        for at in (0..bytes.len()).step_by(ALIGN) {
            if frame_at(&bytes, at, from).is_some_and(|(frame, durable, _)| {
                durable >= expected || (frame.seq > expected && mutant!("torn-frame-is-damage"))
            }) {
                return Err(damaged());
            }
        }
    }
    Ok(())
}

fn read_segment(file: &dyn DiskFile, segment_bytes: u64, place: u64) -> Result<Bytes, StoreError> {
    let mut bytes = vec![0; segment_bytes as usize];
    file.read_at(place * segment_bytes, &mut bytes).map_err(|e| StoreError::io("read the journal", &e))?;
    Ok(Bytes::from(bytes))
}

/// `(first sequence, durable)` of a valid header of this segment.
fn segment_header(bytes: &[u8], from: &ScanFrom, segment: u64) -> Option<(u64, u64)> {
    let header = bytes.get(..SEGMENT_HEADER_BYTES as usize)?;
    let valid = le_u32(header, 0) == SEGMENT_MAGIC
        && le_u32(header, 4) == frame_crc(&header[8..], &from.uuid, &[])
        && le_u64(header, 8) == segment
        && le_u64(header, 16) == from.incarnation;
    valid.then(|| (le_u64(header, 24), le_u64(header, 32)))
}

/// The valid frame at `at`, its durable mark and its padded length.
fn frame_at(bytes: &Bytes, at: usize, from: &ScanFrom) -> Option<(Frame, u64, usize)> {
    let header = bytes.get(at..at + FRAME_HEADER_BYTES)?;
    let is_old = le_u64(header, 24) != from.incarnation && !mutant!("frames-of-the-dead-replayed");
    if le_u32(header, 0) != FRAME_MAGIC || is_old {
        return None;
    }
    let len = le_u32(header, 4) as usize;
    let body_at = at + FRAME_HEADER_BYTES;
    let body = bytes.get(body_at..body_at.checked_add(len)?)?;
    let is_torn = le_u32(header, 32) != frame_crc(&header[..32], &from.uuid, body);
    if is_torn && !mutant!("torn-frame-replayed") {
        return None;
    }
    let frame = Frame { seq: le_u64(header, 8), body: bytes.slice(body_at..body_at + len) };
    Some((frame, le_u64(header, 16), (FRAME_HEADER_BYTES + len).next_multiple_of(ALIGN)))
}

fn frame_crc(header: &[u8], uuid: &[u8; 16], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(header), uuid), body)
}

/// Creates the journal's space: zeros really written, which makes later `fdatasync`s cheap.
pub(super) fn preallocate(file: &dyn DiskFile, bytes: u64) -> Result<(), StoreError> {
    let failed = |error: std::io::Error| StoreError::io("preallocate the journal", &error);
    file.allocate(bytes).map_err(failed)?;
    let zeros = vec![0; 256 * BLOCK_BYTES];
    let mut at = 0;
    while at < bytes {
        let len = (zeros.len() as u64).min(bytes - at);
        file.write_at(at, &zeros[..len as usize]).map_err(failed)?;
        at += len;
    }
    file.sync().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Disk, SimDisk};

    const SEGMENT: u64 = 64 << 10;
    const FROM: ScanFrom = ScanFrom { uuid: [7; 16], incarnation: 3, segment: 5, seq: 0 };

    fn put(file: &dyn DiskFile, writes: Vec<JournalWrite>) {
        writes.iter().for_each(|w| file.write_at(w.offset, &w.bytes).unwrap());
    }

    /// A journal with frames 1..=count; `durable` says what each frame knows to be durable.
    fn journal(count: u64, durable: fn(u64) -> u64) -> (std::sync::Arc<dyn DiskFile>, Vec<u64>) {
        let file = SimDisk::new(1).open(FILE_NAME, true).unwrap().unwrap();
        preallocate(&*file, 4 * SEGMENT).unwrap();
        let (mut journal, header) =
            Journal::start(FROM.uuid, FROM.incarnation, (SEGMENT, 4), FROM.segment, (1, 0));
        put(&*file, vec![header]);
        let mut places = Vec::new();
        for seq in 1..=count {
            let writes = journal.append(seq, durable(seq), &[seq as u8; 5000]).unwrap();
            places.push(writes.last().unwrap().offset);
            put(&*file, writes);
        }
        (file, places)
    }

    #[test]
    fn frames_come_back_in_order_across_segments() {
        let (file, _) = journal(25, |_| 0);
        let scan = scan(&*file, SEGMENT, 4, FROM).unwrap();
        assert_eq!(scan.frames.iter().map(|f| f.seq).collect::<Vec<_>>(), (1..=25).collect::<Vec<_>>());
        assert!(scan.frames.iter().all(|f| f.body[..] == [f.seq as u8; 5000]));
        assert_eq!(scan.last_segment, 7);
    }

    #[test]
    fn a_torn_tail_is_cut() {
        let (file, places) = journal(20, |seq| if seq > 10 { 9 } else { 0 });
        file.write_at(places[14] + 3000, &[0; 512]).unwrap();
        let scan = scan(&*file, SEGMENT, 4, FROM).unwrap();
        assert_eq!((scan.frames.len(), scan.durable), (14, 9));
    }

    #[test]
    fn damage_below_a_known_durable_end_is_refused() {
        let (file, places) = journal(20, |seq| if seq > 10 { 9 } else { 0 });
        file.write_at(places[6] + 3000, &[0; 512]).unwrap();
        assert!(matches!(scan(&*file, SEGMENT, 4, FROM), Err(StoreError::Damaged(_))));
    }

    /// The header of a segment was torn, so its frames were cut. The next incarnation puts a new header before them:
    /// they must stay dead, though their sequences fit.
    #[test]
    fn frames_of_an_earlier_incarnation_stay_dead() {
        let (file, _) = journal(30, |_| 0);
        let place = 7 % 4 * SEGMENT;
        file.write_at(place, &[0; 64]).unwrap();
        assert_eq!(scan(&*file, SEGMENT, 4, FROM).unwrap().frames.len(), 24);
        let (mut journal, header) = Journal::start(FROM.uuid, 4, (SEGMENT, 4), 7, (25, 24));
        assert_eq!(header.offset, place);
        put(&*file, vec![header]);
        let from = ScanFrom { incarnation: 4, segment: 7, seq: 24, ..FROM };
        assert_eq!(scan(&*file, SEGMENT, 4, from).unwrap().frames.len(), 0);
        put(&*file, journal.append(25, 24, &[1; 5000]).unwrap());
        assert_eq!(scan(&*file, SEGMENT, 4, from).unwrap().frames.len(), 1);
    }

    #[test]
    fn a_full_ring_says_so_and_goes_on_after_a_checkpoint() {
        let (mut journal, _) = Journal::start([0; 16], 1, (SEGMENT, 3), 0, (1, 0));
        let mut seq = 1;
        while journal.append(seq, 0, &[0; 30_000]).is_ok() {
            seq += 1;
        }
        assert_eq!(seq, 5, "two segments of two frames each");
        assert!(!journal.has_room());
        assert!(journal.rotate(seq, 0).is_some());
        journal.release_before(journal.segment());
        assert!(journal.has_room());
        assert!(journal.append(seq, 0, &[0; 30_000]).is_ok());
    }
}
