//! What is compared, on local disk: rows and lists of objects are taken from the cluster once and gone through as
//! often as memory makes necessary.

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use metadata_server::disk_layer::next_row;
use metadata_server::fsck::Checker;
use protocol::PgId;
use protocol::data::ListedObject;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// A row: lengths of key, kept value and value, then key and kept value.
const ROW_HEADER_BYTES: usize = 12;
/// An object: group, inode, chunk, size, allocated.
const OBJECT_BYTES: usize = 36;

/// See the module. The files have no names and go with the process.
pub(crate) struct Spool {
    rows: BufWriter<File>,
    objects: BufWriter<File>,
}

impl Spool {
    pub(crate) fn new(dir: &Path) -> anyhow::Result<Self> {
        let make =
            || tempfile::tempfile_in(dir).with_context(|| format!("cannot make a file in {}", dir.display()));
        Ok(Self {
            rows: BufWriter::with_capacity(256 << 10, make()?),
            objects: BufWriter::with_capacity(256 << 10, make()?),
        })
    }

    /// Keeps of rows what is compared. Returns how many there were.
    pub(crate) fn keep_rows(&mut self, mut rows: Bytes) -> anyhow::Result<u64> {
        let mut count = 0;
        while let Some((key, value)) =
            next_row(&mut rows).map_err(|why| anyhow!("the leader sent no rows: {why}"))?
        {
            count += 1;
            if !Checker::needs_row(&key) {
                continue;
            }
            let kept = if Checker::needs_value(&key) { &value[..] } else { &[] };
            for length in [key.len(), kept.len(), value.len()] {
                self.rows.write_all(&(length as u32).to_le_bytes()).context(FULL)?;
            }
            self.rows.write_all(&key).and_then(|()| self.rows.write_all(kept)).context(FULL)?;
        }
        Ok(count)
    }

    pub(crate) fn keep_object(&mut self, pg: PgId, object: &ListedObject) -> anyhow::Result<()> {
        let mut record = [0; OBJECT_BYTES];
        record[..8].copy_from_slice(&pg.to_u64().to_le_bytes());
        record[8..16].copy_from_slice(&object.inode.0.to_le_bytes());
        record[16..20].copy_from_slice(&object.chunk.to_le_bytes());
        record[20..28].copy_from_slice(&object.size.to_le_bytes());
        record[28..36].copy_from_slice(&object.allocated.to_le_bytes());
        self.objects.write_all(&record).context(FULL)
    }

    /// Hands in every row that was kept.
    pub(crate) fn each_row(&mut self, mut take: impl FnMut(&[u8], &[u8], usize)) -> anyhow::Result<()> {
        let mut input = rewound(&mut self.rows)?;
        let mut header = [0; ROW_HEADER_BYTES];
        let mut row = Vec::new();
        while read_whole(&mut input, &mut header)? {
            let number =
                |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
            let (key, kept, length) = (number(0) as usize, number(4) as usize, number(8) as usize);
            row.resize(key + kept, 0);
            input.read_exact(&mut row).context(READ)?;
            take(&row[..key], &row[key..], length);
        }
        Ok(())
    }

    /// Hands in every object that was kept.
    pub(crate) fn each_object(&mut self, mut take: impl FnMut(PgId, ListedObject)) -> anyhow::Result<()> {
        let mut input = rewound(&mut self.objects)?;
        let mut record = [0; OBJECT_BYTES];
        while read_whole(&mut input, &mut record)? {
            let long = |at: usize| {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&record[at..at + 8]);
                u64::from_le_bytes(bytes)
            };
            let chunk = u32::from_le_bytes([record[16], record[17], record[18], record[19]]);
            let object = ListedObject {
                inode: protocol::InodeId(long(8)),
                chunk,
                size: long(20),
                allocated: long(28),
                truncate_seq: 0,
            };
            take(PgId::from_u64(long(0)), object);
        }
        Ok(())
    }
}

const FULL: &str = "cannot write to the scratch directory; --scratch names another one";
const READ: &str = "cannot read what was written to the scratch directory";

fn rewound(file: &mut BufWriter<File>) -> anyhow::Result<BufReader<&File>> {
    file.flush().context(FULL)?;
    file.get_mut().seek(SeekFrom::Start(0)).context(READ)?;
    Ok(BufReader::with_capacity(256 << 10, file.get_ref()))
}

/// `false` at the end.
fn read_whole(input: &mut impl Read, buffer: &mut [u8]) -> anyhow::Result<bool> {
    match input.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error).context(READ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{InodeId, PoolId};

    #[test]
    fn what_was_kept_comes_back_as_often_as_it_is_asked_for() {
        let mut spool = Spool::new(&std::env::temp_dir()).expect("made");
        let mut rows = Vec::new();
        for (key, value) in [(&[1u8, 1][..], &b"inode"[..]), (&[5, 2], b"xattr"), (&[15, 3], b"group")] {
            rows.extend((key.len() as u32).to_le_bytes());
            rows.extend((value.len() as u32).to_le_bytes());
            rows.extend(key);
            rows.extend(value);
        }
        assert_eq!(spool.keep_rows(rows.into()).expect("kept"), 3);
        let pg = PgId { pool: PoolId(7), seed: 3 };
        let object = ListedObject { inode: InodeId(5), chunk: 6, size: 7, allocated: 8, truncate_seq: 0 };
        spool.keep_object(pg, &object).expect("kept");
        for _ in 0..2 {
            let mut seen = Vec::new();
            spool
                .each_row(|key, value, length| seen.push((key.to_vec(), value.to_vec(), length)))
                .expect("read");
            assert_eq!(
                seen,
                [(vec![1, 1], b"inode".to_vec(), 5), (vec![5, 2], vec![], 5)],
                "contents are not kept"
            );
            let mut objects = Vec::new();
            spool.each_object(|pg, object| objects.push((pg, object))).expect("read");
            assert_eq!(objects, [(pg, object)]);
        }
    }
}
