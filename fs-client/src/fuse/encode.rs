//! Typed replies to the bytes that the kernel takes. Pure.
//!
//! A reply is a 16-byte header (length, negative errno, unique), then the operation's struct or data. It goes
//! out in one writev, so data is never copied into the header's buffer.

#![allow(
    clippy::host_endian_bytes,
    reason = "the kernel on this machine is the peer: its byte order is ours"
)]

use super::abi::opcode;
use super::operation::{FileLock, LockKind};
use super::reply::{DATA_PARTS_MAX, Directory, DirectoryEntry, Entry, Opened, Reply, Statfs};
use bytes::{Bytes, BytesMut};
use protocol::{Attr, Errno, FileKind, Timestamp};
use std::time::Duration;

/// Bytes of a reply's header.
pub const HEADER_SIZE: usize = 16;

const DIRENT_SIZE: usize = 24;
const ENTRY_SIZE: usize = 128;
/// Errors beyond this are refused by the kernel, which would leave the request unanswered.
const ERRNO_MAX: i32 = 511;

/// A reply ready to be written: `head`, then `parts` in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Header and fixed struct.
    pub head: Vec<u8>,
    /// Data.
    pub parts: Vec<Bytes>,
}

/// Encodes the reply to request `unique`. `opcode` decides where the kernel has two forms of one answer.
pub fn encode(reply: Reply, unique: u64, opcode: u32) -> Encoded {
    let mut writer = Writer::header(unique);
    let mut parts = Vec::new();
    match reply {
        Reply::Error(errno) => writer.error(errno),
        Reply::Done => {}
        Reply::Entry(entry) => writer.entry(&entry),
        Reply::Attributes(attr, valid) => {
            writer.duration(valid);
            writer.u32(0);
            writer.attr(&attr);
        }
        Reply::Statx(attr, valid) => writer.statx(&attr, valid),
        Reply::Opened(opened) => writer.opened(opened),
        Reply::Created(entry, opened) => {
            writer.entry(&entry);
            writer.opened(opened);
        }
        Reply::Data(data) => parts.push(data),
        Reply::DataParts(data) if data.len() > DATA_PARTS_MAX => parts.push(joined(&data)),
        Reply::DataParts(data) => parts = data,
        Reply::Written(size) | Reply::XattrSize(size) | Reply::Poll(size) => writer.u32_padded(size),
        Reply::Statfs(figures) => writer.statfs(&figures),
        Reply::Directory(directory) => parts.push(Bytes::from(directory.bytes)),
        Reply::Lock(lock) => writer.lock(&lock),
        Reply::Seek(offset) => writer.u64(offset),
        // The old form has 32 bits; the caller asks again for the rest.
        Reply::Copied(size) if opcode == opcode::COPY_FILE_RANGE => {
            writer.u32_padded(size.min(1 << 31) as u32)
        }
        Reply::Copied(size) => writer.u64(size),
        Reply::Ioctl(result, output) => {
            writer.u32(result as u32);
            writer.zero(12);
            parts.push(output);
        }
    }
    parts.retain(|part| !part.is_empty());
    writer.finish(parts)
}

/// Encodes an error.
pub fn error(errno: Errno, unique: u64) -> Encoded {
    encode(Reply::Error(errno), unique, 0)
}

fn joined(parts: &[Bytes]) -> Bytes {
    let mut whole = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| whole.extend_from_slice(part));
    whole.freeze()
}

impl Directory {
    /// An empty listing for a request with a buffer of `size_max` bytes.
    pub fn new(size_max: u32) -> Self {
        let size_max = size_max as usize;
        Self { bytes: Vec::with_capacity(size_max.min(64 << 10)), size_max, lookups: Vec::new() }
    }

    /// Adds an entry to a READDIR answer. `false`: it does not fit; answer what there is.
    #[must_use]
    pub fn push(&mut self, entry: &DirectoryEntry<'_>) -> bool {
        if !self.fits(DIRENT_SIZE, entry) {
            return false;
        }
        self.append_dirent(entry);
        true
    }

    /// Adds an entry to a READDIRPLUS answer, with one lookup of `node.node` unless that is 0 (attributes not
    /// at hand) or the name is `.` or `..`. `false`: it does not fit; count no lookup, answer what there is.
    #[must_use]
    pub fn push_plus(&mut self, entry: &DirectoryEntry<'_>, node: Option<&Entry>) -> bool {
        if !self.fits(ENTRY_SIZE + DIRENT_SIZE, entry) {
            return false;
        }
        let mut writer = Writer(std::mem::take(&mut self.bytes));
        match node {
            Some(node) => writer.entry(node),
            None => writer.zero(ENTRY_SIZE),
        }
        self.bytes = writer.0;
        if let Some(node) = node.filter(|node| node.node != 0 && !matches!(entry.name, b"." | b"..")) {
            self.lookups.push(node.node);
        }
        self.append_dirent(entry);
        true
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn fits(&self, fixed: usize, entry: &DirectoryEntry<'_>) -> bool {
        self.bytes.len() + (fixed + entry.name.len()).next_multiple_of(8) <= self.size_max
    }

    fn append_dirent(&mut self, entry: &DirectoryEntry<'_>) {
        let mut writer = Writer(std::mem::take(&mut self.bytes));
        writer.u64(entry.inode);
        writer.u64(entry.offset);
        writer.u32(entry.name.len() as u32);
        writer.u32(entry.kind.mode_bits() >> 12);
        writer.0.extend_from_slice(entry.name);
        let padded = writer.0.len().next_multiple_of(8);
        writer.0.resize(padded, 0);
        self.bytes = writer.0;
    }
}

/// Appends fields in the machine's byte order.
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    fn header(unique: u64) -> Self {
        let mut writer = Self(Vec::with_capacity(HEADER_SIZE + 144));
        writer.zero(8);
        writer.u64(unique);
        writer
    }

    /// Starts a notification.
    pub(super) fn notification(code: i32) -> Self {
        let mut writer = Self::header(0);
        writer.0[4..8].copy_from_slice(&code.to_ne_bytes());
        writer
    }

    /// Fills in the length.
    pub(super) fn finish(mut self, parts: Vec<Bytes>) -> Encoded {
        let length = self.0.len() + parts.iter().map(Bytes::len).sum::<usize>();
        self.0[..4].copy_from_slice(&(length as u32).to_ne_bytes());
        Encoded { head: self.0, parts }
    }

    fn error(&mut self, errno: Errno) {
        let number = if (1..=ERRNO_MAX).contains(&errno.0) { errno.0 } else { Errno::EIO.0 };
        self.0[4..8].copy_from_slice(&(-number).to_ne_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    fn u32_padded(&mut self, value: u32) {
        self.u32(value);
        self.u32(0);
    }

    pub(super) fn zero(&mut self, count: usize) {
        let length = self.0.len() + count;
        self.0.resize(length, 0);
    }

    fn duration(&mut self, duration: Duration) {
        self.u64(duration.as_secs());
        self.u32(duration.subsec_nanos());
    }

    fn entry(&mut self, entry: &Entry) {
        self.u64(entry.node);
        self.u64(entry.generation);
        self.u64(entry.entry_valid.as_secs());
        self.u64(entry.attr_valid.as_secs());
        self.u32(entry.entry_valid.subsec_nanos());
        self.u32(entry.attr_valid.subsec_nanos());
        self.attr(&entry.attr);
    }

    fn attr(&mut self, attr: &Attr) {
        self.u64(attr.inode.0);
        self.u64(attr.size);
        self.u64(attr.blocks);
        self.u64(attr.atime.seconds as u64);
        self.u64(attr.mtime.seconds as u64);
        self.u64(attr.ctime.seconds as u64);
        self.u32(attr.atime.nanoseconds);
        self.u32(attr.mtime.nanoseconds);
        self.u32(attr.ctime.nanoseconds);
        self.u32(mode(attr.kind, attr.mode));
        self.u32(attr.nlink);
        self.u32(attr.uid);
        self.u32(attr.gid);
        self.u32(attr.rdev);
        // Block size 0: the kernel's page size. Flags: none.
        self.zero(8);
    }

    fn statx(&mut self, attr: &Attr, valid: Duration) {
        self.duration(valid);
        self.zero(4 + 16);
        self.u32(libc::STATX_BASIC_STATS | libc::STATX_BTIME);
        self.u32(0);
        self.u64(0);
        self.u32(attr.nlink);
        self.u32(attr.uid);
        self.u32(attr.gid);
        self.u16(mode(attr.kind, attr.mode) as u16);
        self.u16(0);
        self.u64(attr.inode.0);
        self.u64(attr.size);
        self.u64(attr.blocks);
        self.u64(0);
        [attr.atime, attr.btime, attr.ctime, attr.mtime].into_iter().for_each(|time| self.statx_time(time));
        self.u32((attr.rdev >> 8) & 0xfff);
        self.u32((attr.rdev & 0xff) | ((attr.rdev >> 12) & 0xf_ff00));
        self.zero(8 + 112);
    }

    fn statx_time(&mut self, time: Timestamp) {
        self.u64(time.seconds as u64);
        self.u32(time.nanoseconds);
        self.u32(0);
    }

    fn opened(&mut self, opened: Opened) {
        self.u64(opened.handle);
        self.u32(opened.flags);
        self.u32(0);
    }

    fn statfs(&mut self, figures: &Statfs) {
        self.u64(figures.blocks);
        self.u64(figures.blocks_free);
        self.u64(figures.blocks_available);
        self.u64(figures.files);
        self.u64(figures.files_free);
        self.u32(figures.block_size);
        self.u32(figures.name_max);
        self.u32(figures.block_size);
        self.zero(4 + 24);
    }

    fn lock(&mut self, lock: &FileLock) {
        self.u64(lock.start);
        self.u64(lock.end);
        self.u32(match lock.kind {
            LockKind::Read => libc::F_RDLCK,
            LockKind::Write => libc::F_WRLCK,
            LockKind::Unlock => libc::F_UNLCK,
        } as u32);
        self.u32(lock.pid);
    }
}

fn mode(kind: FileKind, permissions: u32) -> u32 {
    kind.mode_bits() | (permissions & 0o7777)
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
