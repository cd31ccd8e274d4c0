//! Bytes of `/dev/fuse` to typed requests. Pure: no I/O, and no panic whatever the bytes are.
//!
//! A request is a 40-byte header, the operation's fixed struct, then names (each ended by NUL) or data, then
//! extensions of which the header says the length:
//!
//! | offset | size | header field |
//! |---|---|---|
//! | 0 | 4 | length of the whole request |
//! | 4 | 4 | opcode |
//! | 8 | 8 | unique |
//! | 16 | 8 | node |
//! | 24 | 4 + 4 + 4 | uid, gid, pid |
//! | 36 | 2 | length of the extensions in units of 8 bytes |
//! | 38 | 2 | padding |

#![allow(
    clippy::host_endian_bytes,
    reason = "the kernel on this machine is the peer: its byte order is ours"
)]

use super::abi::{fattr, flag, opcode};
use super::operation::{
    FileLock, LockKind, LockRequest, Operation, RequestHeader, SetAttr, TimeOrNow, Write,
};
use bytes::Bytes;
use protocol::Timestamp;
use std::ops::Range;

/// Bytes of the header.
pub const HEADER_SIZE: usize = 40;
/// Bytes of the header of a WRITE and its fixed struct, before the data.
pub const WRITE_HEAD_SIZE: usize = HEADER_SIZE + 40;

/// What one read of the device gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// An operation of the file system; to be answered.
    Operation(RequestHeader, Operation),
    /// The kernel dropped (node, lookups); not to be answered.
    Forget(Vec<(u64, u64)>),
    /// A signal came for the caller of `unique`; not to be answered.
    Interrupt {
        /// The request that is interrupted.
        unique: u64,
    },
    /// The last message of a mount; to be answered with `Done`.
    Destroy(RequestHeader),
    /// An operation that we do not know; to be answered with ENOSYS, after which the kernel stops asking.
    Unsupported(RequestHeader, u32),
}

/// Why a request cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not even a header: it cannot be answered.
    #[error("the kernel sent {length} bytes, less than the {HEADER_SIZE} of a request header")]
    Header {
        /// Bytes received.
        length: usize,
    },
    /// The header's length is not what was received, or the extensions are longer than the request.
    #[error("request {unique} (opcode {opcode}) says it has {stated} bytes but {received} came")]
    Length {
        /// The request.
        unique: u64,
        /// Its opcode.
        opcode: u32,
        /// Bytes that the header states.
        stated: usize,
        /// Bytes received.
        received: usize,
    },
    /// A field, name or value is missing or malformed.
    #[error("request {unique} (opcode {opcode}) has a missing or malformed {field}")]
    Field {
        /// The request.
        unique: u64,
        /// Its opcode.
        opcode: u32,
        /// What is wrong.
        field: &'static str,
    },
}

impl ParseError {
    /// The request to answer with EIO, if one can be named and expects an answer.
    pub fn unique(&self) -> Option<u64> {
        match *self {
            Self::Header { .. } => None,
            Self::Length { unique, opcode, .. } | Self::Field { unique, opcode, .. } => {
                expects_reply(opcode).then_some(unique)
            }
        }
    }
}

/// Whether the kernel waits for an answer to this opcode.
pub fn expects_reply(opcode: u32) -> bool {
    !matches!(opcode, opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT | opcode::NOTIFY_REPLY)
}

/// The opcode of `message`, 0 if it has none.
pub fn opcode_of(message: &[u8]) -> u32 {
    message.get(4..8).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// Understands one request. `payload` makes an owned value of a range of `message`: a copy, or a slice of the
/// buffer that holds it. `setxattr_ext`: that capability was negotiated, so SETXATTR has 8 bytes more.
pub fn parse(
    message: &[u8],
    payload: impl Fn(Range<usize>) -> Bytes,
    setxattr_ext: bool,
) -> Result<Request, ParseError> {
    let mut reader = Reader { bytes: message, at: 0, end: message.len() };
    let head = Head::read(&mut reader).map_err(|_| ParseError::Header { length: message.len() })?;
    let extensions = usize::from(head.extension_words) * 8;
    if head.length != message.len() || HEADER_SIZE + extensions > message.len() {
        return Err(ParseError::Length {
            unique: head.request.unique,
            opcode: head.opcode,
            stated: head.length.max(HEADER_SIZE + extensions),
            received: message.len(),
        });
    }
    reader.end -= extensions;
    body(&mut reader, &head, &payload, setxattr_ext).map_err(|Missing(field)| ParseError::Field {
        unique: head.request.unique,
        opcode: head.opcode,
        field,
    })
}

struct Head {
    length: usize,
    opcode: u32,
    request: RequestHeader,
    extension_words: u16,
}

impl Head {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Missing> {
        let length = reader.u32()? as usize;
        let opcode = reader.u32()?;
        let (unique, node) = (reader.u64()?, reader.u64()?);
        let (uid, gid, pid) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let extension_words = reader.u16()?;
        reader.u16()?;
        Ok(Self { length, opcode, request: RequestHeader { unique, node, uid, gid, pid }, extension_words })
    }
}

fn body(
    reader: &mut Reader<'_>,
    head: &Head,
    payload: &impl Fn(Range<usize>) -> Bytes,
    setxattr_ext: bool,
) -> Result<Request, Missing> {
    let operation = match head.opcode {
        opcode::FORGET => return Ok(Request::Forget(vec![(head.request.node, reader.u64()?)])),
        opcode::BATCH_FORGET => return batch_forget(reader),
        opcode::INTERRUPT => return Ok(Request::Interrupt { unique: reader.u64()? }),
        opcode::DESTROY => return Ok(Request::Destroy(head.request)),
        opcode::LOOKUP..=opcode::LINK | opcode::RENAME2 => namespace(reader, head.opcode)?,
        opcode::SETXATTR => set_xattr(reader, payload, setxattr_ext)?,
        opcode::GETXATTR | opcode::LISTXATTR | opcode::REMOVEXATTR => xattr(reader, head.opcode)?,
        opcode::GETLK | opcode::SETLK | opcode::SETLKW => lock(reader, head.opcode)?,
        opcode::WRITE => write(reader, payload)?,
        opcode::IOCTL => ioctl(reader, payload)?,
        opcode => match open_file(reader, opcode)? {
            Some(operation) => operation,
            None => return Ok(Request::Unsupported(head.request, opcode)),
        },
    };
    Ok(Request::Operation(head.request, operation))
}

fn batch_forget(reader: &mut Reader<'_>) -> Result<Request, Missing> {
    let count = reader.u32()? as usize;
    reader.u32()?;
    // The kernel's count is not trusted for the allocation; what is there bounds it.
    let mut forgotten = Vec::with_capacity(count.min(reader.remaining() / 16));
    for _ in 0..count {
        forgotten.push((reader.u64()?, reader.u64()?));
    }
    Ok(Request::Forget(forgotten))
}

/// Operations on names and attributes: opcodes 1 to 13, and RENAME2.
fn namespace(reader: &mut Reader<'_>, opcode: u32) -> Result<Operation, Missing> {
    Ok(match opcode {
        opcode::LOOKUP => Operation::Lookup { name: reader.name()? },
        opcode::GETATTR => {
            let flags = reader.u32()?;
            reader.u32()?;
            let handle = reader.u64()?;
            Operation::GetAttr { handle: (flags & flag::GETATTR_FH != 0).then_some(handle) }
        }
        opcode::SETATTR => set_attr(reader)?,
        opcode::READLINK => Operation::ReadLink,
        opcode::SYMLINK => Operation::Symlink { name: reader.name()?, target: reader.name()? },
        opcode::MKNOD => {
            let (mode, rdev, umask) = (reader.u32()?, reader.u32()?, reader.u32()?);
            reader.u32()?;
            Operation::MkNod { name: reader.name()?, mode, rdev, umask }
        }
        opcode::MKDIR => {
            let (mode, umask) = (reader.u32()?, reader.u32()?);
            Operation::MkDir { name: reader.name()?, mode, umask }
        }
        opcode::UNLINK => Operation::Unlink { name: reader.name()? },
        opcode::RMDIR => Operation::RmDir { name: reader.name()? },
        opcode::RENAME => {
            let new_parent = reader.u64()?;
            Operation::Rename { name: reader.name()?, new_parent, new_name: reader.name()?, flags: 0 }
        }
        opcode::RENAME2 => {
            let (new_parent, flags) = (reader.u64()?, reader.u32()?);
            reader.u32()?;
            Operation::Rename { name: reader.name()?, new_parent, new_name: reader.name()?, flags }
        }
        opcode::LINK => Operation::Link { source: reader.u64()?, name: reader.name()? },
        _ => return Err(Missing("opcode")),
    })
}

fn set_attr(reader: &mut Reader<'_>) -> Result<Operation, Missing> {
    let valid = reader.u32()?;
    reader.u32()?;
    let (handle, size, lock_owner) = (reader.u64()?, reader.u64()?, reader.u64()?);
    let seconds = [reader.i64()?, reader.i64()?, reader.i64()?];
    let nanoseconds = [reader.u32()?, reader.u32()?, reader.u32()?];
    let mode = reader.u32()?;
    reader.u32()?;
    let (uid, gid) = (reader.u32()?, reader.u32()?);
    reader.u32()?;
    let has = |bit: u32| valid & bit != 0;
    let time = |i: usize| Timestamp { seconds: seconds[i], nanoseconds: nanoseconds[i].min(999_999_999) };
    let time_or_now = |i: usize, set: u32, now: u32| match (has(set), has(now)) {
        (_, true) => Some(TimeOrNow::Now),
        (true, false) => Some(TimeOrNow::At(time(i))),
        (false, false) => None,
    };
    Ok(Operation::SetAttr(SetAttr {
        handle: has(fattr::FH).then_some(handle),
        mode: has(fattr::MODE).then_some(mode),
        uid: has(fattr::UID).then_some(uid),
        gid: has(fattr::GID).then_some(gid),
        size: has(fattr::SIZE).then_some(size),
        atime: time_or_now(0, fattr::ATIME, fattr::ATIME_NOW),
        mtime: time_or_now(1, fattr::MTIME, fattr::MTIME_NOW),
        ctime: has(fattr::CTIME).then(|| time(2)),
        lock_owner: has(fattr::LOCKOWNER).then_some(lock_owner),
        kill_suid_gid: has(fattr::KILL_SUIDGID),
    }))
}

fn set_xattr(
    reader: &mut Reader<'_>,
    payload: &impl Fn(Range<usize>) -> Bytes,
    extended: bool,
) -> Result<Operation, Missing> {
    let (size, flags) = (reader.u32()? as usize, reader.u32()?);
    let more = if extended { reader.u32()? } else { 0 };
    if extended {
        reader.u32()?;
    }
    let name = reader.name()?;
    let value = payload(reader.range(size, "value")?);
    Ok(Operation::SetXattr { name, value, flags, kill_sgid: more & flag::SETXATTR_ACL_KILL_SGID != 0 })
}

fn xattr(reader: &mut Reader<'_>, opcode: u32) -> Result<Operation, Missing> {
    if opcode == opcode::REMOVEXATTR {
        return Ok(Operation::RemoveXattr { name: reader.name()? });
    }
    let size = reader.u32()?;
    reader.u32()?;
    Ok(match opcode {
        opcode::GETXATTR => Operation::GetXattr { name: reader.name()?, size },
        _ => Operation::ListXattr { size },
    })
}

fn lock(reader: &mut Reader<'_>, opcode: u32) -> Result<Operation, Missing> {
    let (handle, owner) = (reader.u64()?, reader.u64()?);
    let (start, end) = (reader.u64()?, reader.u64()?);
    let kind = match i32::try_from(reader.u32()?).map_err(|_| Missing("lock type"))? {
        libc::F_RDLCK => LockKind::Read,
        libc::F_WRLCK => LockKind::Write,
        libc::F_UNLCK => LockKind::Unlock,
        _ => return Err(Missing("lock type")),
    };
    let (pid, flags) = (reader.u32()?, reader.u32()?);
    let lock = LockRequest {
        handle,
        owner,
        lock: FileLock { start, end, kind, pid },
        flock: flags & flag::LK_FLOCK != 0,
    };
    Ok(match opcode {
        opcode::GETLK => Operation::GetLock(lock),
        opcode => Operation::SetLock { lock, wait: opcode == opcode::SETLKW },
    })
}

fn write(reader: &mut Reader<'_>, payload: &impl Fn(Range<usize>) -> Bytes) -> Result<Operation, Missing> {
    let (handle, offset) = (reader.u64()?, reader.u64()?);
    let (size, write_flags) = (reader.u32()? as usize, reader.u32()?);
    let (lock_owner, flags) = (reader.u64()?, reader.u32()?);
    reader.u32()?;
    Ok(Operation::Write(Write {
        handle,
        offset,
        data: payload(reader.range(size, "data")?),
        flags,
        lock_owner: (write_flags & flag::WRITE_LOCKOWNER != 0).then_some(lock_owner),
        from_cache: write_flags & flag::WRITE_CACHE != 0,
        kill_suid_gid: write_flags & flag::WRITE_KILL_SUIDGID != 0,
    }))
}

fn ioctl(reader: &mut Reader<'_>, payload: &impl Fn(Range<usize>) -> Bytes) -> Result<Operation, Missing> {
    let (handle, flags, command) = (reader.u64()?, reader.u32()?, reader.u32()?);
    let (argument, input_size, output_size) = (reader.u64()?, reader.u32()? as usize, reader.u32()?);
    let input = payload(reader.range(input_size, "ioctl input")?);
    Ok(Operation::Ioctl { handle, flags, command, argument, input, output_size })
}

/// Operations on open files and the rest; `None` for an opcode that we do not know.
fn open_file(reader: &mut Reader<'_>, opcode: u32) -> Result<Option<Operation>, Missing> {
    Ok(Some(match opcode {
        opcode::OPEN => {
            let (flags, open_flags) = (reader.u32()?, reader.u32()?);
            Operation::Open { flags, kill_suid_gid: open_flags & flag::OPEN_KILL_SUIDGID != 0 }
        }
        opcode::CREATE | opcode::TMPFILE => create(reader, opcode)?,
        opcode::READ | opcode::READDIR | opcode::READDIRPLUS => read(reader, opcode)?,
        opcode::STATFS => Operation::StatFs,
        opcode::RELEASE | opcode::RELEASEDIR => release(reader, opcode)?,
        opcode::FSYNC | opcode::FSYNCDIR => {
            let handle = reader.u64()?;
            let data_only = reader.u32()? & flag::FSYNC_FDATASYNC != 0;
            if opcode == opcode::FSYNC {
                Operation::Fsync { handle, data_only }
            } else {
                Operation::FsyncDir { handle, data_only }
            }
        }
        opcode::FLUSH => {
            let handle = reader.u64()?;
            reader.u64()?;
            Operation::Flush { handle, lock_owner: reader.u64()? }
        }
        opcode::OPENDIR => Operation::OpenDir { flags: reader.u32()? },
        opcode::ACCESS => Operation::Access { mask: reader.u32()? },
        opcode::POLL => {
            let (handle, poll_handle, flags, events) =
                (reader.u64()?, reader.u64()?, reader.u32()?, reader.u32()?);
            Operation::Poll { handle, poll_handle, events, notify: flags & flag::POLL_SCHEDULE_NOTIFY != 0 }
        }
        opcode::FALLOCATE => Operation::Fallocate {
            handle: reader.u64()?,
            offset: reader.u64()?,
            length: reader.u64()?,
            mode: reader.u32()?,
        },
        opcode::LSEEK => {
            Operation::Seek { handle: reader.u64()?, offset: reader.u64()?, whence: reader.u32()? }
        }
        opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64 => Operation::CopyFileRange {
            handle: reader.u64()?,
            offset: reader.u64()?,
            target_node: reader.u64()?,
            target_handle: reader.u64()?,
            target_offset: reader.u64()?,
            length: reader.u64()?,
            flags: reader.u64()?,
        },
        opcode::SYNCFS => Operation::SyncFs,
        opcode::STATX => {
            let getattr_flags = reader.u32()?;
            reader.u32()?;
            let (handle, flags, mask) = (reader.u64()?, reader.u32()?, reader.u32()?);
            Operation::Statx {
                handle: (getattr_flags & flag::GETATTR_FH != 0).then_some(handle),
                flags,
                mask,
            }
        }
        _ => return Ok(None),
    }))
}

fn create(reader: &mut Reader<'_>, opcode: u32) -> Result<Operation, Missing> {
    let (flags, mode, umask, open_flags) = (reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?);
    if opcode == opcode::TMPFILE {
        // A name follows, but it is a placeholder of the kernel's.
        return Ok(Operation::TmpFile { flags, mode, umask });
    }
    let kill_suid_gid = open_flags & flag::OPEN_KILL_SUIDGID != 0;
    Ok(Operation::Create { name: reader.name()?, flags, mode, umask, kill_suid_gid })
}

fn read(reader: &mut Reader<'_>, opcode: u32) -> Result<Operation, Missing> {
    let (handle, offset, size) = (reader.u64()?, reader.u64()?, reader.u32()?);
    let (read_flags, lock_owner, flags) = (reader.u32()?, reader.u64()?, reader.u32()?);
    Ok(match opcode {
        opcode::READ => {
            let lock_owner = (read_flags & flag::READ_LOCKOWNER != 0).then_some(lock_owner);
            Operation::Read { handle, offset, size, flags, lock_owner }
        }
        opcode => Operation::ReadDir { handle, offset, size, plus: opcode == opcode::READDIRPLUS },
    })
}

fn release(reader: &mut Reader<'_>, opcode: u32) -> Result<Operation, Missing> {
    let (handle, flags, release_flags, lock_owner) =
        (reader.u64()?, reader.u32()?, reader.u32()?, reader.u64()?);
    Ok(match opcode {
        opcode::RELEASE => Operation::Release {
            handle,
            flags,
            lock_owner,
            flush: release_flags & flag::RELEASE_FLUSH != 0,
            flock_unlock: release_flags & flag::RELEASE_FLOCK_UNLOCK != 0,
        },
        _ => Operation::ReleaseDir { handle, flags },
    })
}

/// The field that is missing or malformed.
struct Missing(&'static str);

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Reader<'a> {
    fn remaining(&self) -> usize {
        self.end - self.at
    }

    fn range(&mut self, length: usize, field: &'static str) -> Result<Range<usize>, Missing> {
        if length > self.remaining() {
            return Err(Missing(field));
        }
        let range = self.at..self.at + length;
        self.at = range.end;
        Ok(range)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Missing> {
        let range = self.range(N, "fixed struct")?;
        self.bytes[range].try_into().map_err(|_| Missing("fixed struct"))
    }

    fn u16(&mut self) -> Result<u16, Missing> {
        self.array().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Result<u32, Missing> {
        self.array().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, Missing> {
        self.array().map(u64::from_ne_bytes)
    }

    fn i64(&mut self) -> Result<i64, Missing> {
        self.array().map(i64::from_ne_bytes)
    }

    /// A name or target: not empty, up to the next NUL.
    fn name(&mut self) -> Result<Vec<u8>, Missing> {
        let rest: &'a [u8] = &self.bytes[self.at..self.end];
        let length = rest.iter().position(|b| *b == 0).ok_or(Missing("name"))?;
        if length == 0 {
            return Err(Missing("name"));
        }
        self.at += length + 1;
        Ok(rest[..length].to_vec())
    }
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
