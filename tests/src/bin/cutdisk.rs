//! A disk that forgets what was not flushed: one file, served through FUSE, for a loop device.
//!
//! Writes stay in memory until the kernel flushes the device (an fsync of the file); then they reach the
//! backing image. `cut SEED` written to the control file is the power cut: of every block that was not
//! flushed a coin decides whether it had reached the platter, and from then on every call fails with EIO. A
//! new `cutdisk` on the same image is the disk after power came back.
//!
//! ```text
//! MNT/disk     the image
//! MNT/control  takes the line "cut SEED"
//! ```

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::Parser;
use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    Request, TimeOrNow, WriteFlags,
};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// Serves an image as a disk that forgets what was not flushed when it is cut.
#[derive(Debug, Parser)]
struct Cli {
    /// The backing image, an existing file whose length is a multiple of 4 KiB
    image: PathBuf,
    /// An existing directory
    mountpoint: PathBuf,
}

/// Unit of loss. The loop device writes whole pages.
const BLOCK: usize = 4096;
const DISK: INodeNo = INodeNo(2);
const CONTROL: INodeNo = INodeNo(3);
/// Nothing but the kernel looks at the attributes, and they never change.
const TTL: Duration = Duration::from_secs(3600);

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cutdisk: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let image = OpenOptions::new().read(true).write(true).open(&cli.image);
    let image = image.with_context(|| format!("open {}", cli.image.display()))?;
    let len = image.metadata().context("look at the image")?.len();
    let disk = CutDisk { state: Mutex::new(State { image, unflushed: BTreeMap::new(), is_cut: false }), len };
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("cutdisk".to_owned())];
    fuser::mount(disk, &cli.mountpoint, &config)
        .with_context(|| format!("serve {} at {}", cli.image.display(), cli.mountpoint.display()))
}

struct CutDisk {
    state: Mutex<State>,
    len: u64,
}

struct State {
    image: File,
    /// Blocks that were written since the last flush, by number.
    unflushed: BTreeMap<u64, Box<[u8; BLOCK]>>,
    is_cut: bool,
}

impl State {
    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.image.read_exact_at(out, offset)?;
        let end = offset + out.len() as u64;
        let blocks = self.unflushed.range(offset / BLOCK as u64..end.div_ceil(BLOCK as u64));
        for (number, block) in blocks {
            let start = number * BLOCK as u64;
            let (from, to) = (start.max(offset), (start + BLOCK as u64).min(end));
            out[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&block[(from - start) as usize..(to - start) as usize]);
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let mut at = 0;
        while at < data.len() {
            let position = offset + at as u64;
            let (number, within) = (position / BLOCK as u64, (position % BLOCK as u64) as usize);
            let count = (BLOCK - within).min(data.len() - at);
            if !self.unflushed.contains_key(&number) {
                let mut block = Box::new([0; BLOCK]);
                if count < BLOCK {
                    self.image.read_exact_at(&mut block[..], number * BLOCK as u64)?;
                }
                self.unflushed.insert(number, block);
            }
            if let Some(block) = self.unflushed.get_mut(&number) {
                block[within..within + count].copy_from_slice(&data[at..at + count]);
            }
            at += count;
        }
        Ok(())
    }

    /// The image outlives this process, so the page cache of the machine below is stable storage enough.
    fn flush(&mut self) -> std::io::Result<()> {
        for (number, block) in std::mem::take(&mut self.unflushed) {
            self.image.write_all_at(&block[..], number * BLOCK as u64)?;
        }
        Ok(())
    }

    fn cut(&mut self, seed: u64) -> std::io::Result<()> {
        self.is_cut = true;
        let mut coin = ChaCha8Rng::seed_from_u64(seed);
        for (number, block) in std::mem::take(&mut self.unflushed) {
            if coin.next_u32() & 1 == 0 {
                self.image.write_all_at(&block[..], number * BLOCK as u64)?;
            }
        }
        Ok(())
    }
}

impl CutDisk {
    /// The disk while it has power.
    fn powered(&self) -> Result<MutexGuard<'_, State>, Errno> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_cut { Err(Errno::EIO) } else { Ok(state) }
    }

    fn attr(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, size) = match inode {
            INodeNo::ROOT => (FileType::Directory, 0),
            DISK => (FileType::RegularFile, self.len),
            CONTROL => (FileType::RegularFile, 0),
            _ => return None,
        };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: 0o600,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            flags: 0,
            blksize: BLOCK as u32,
        })
    }

    fn control(&self, data: &[u8]) -> Result<(), Errno> {
        let line = String::from_utf8_lossy(data);
        let seed =
            line.trim().strip_prefix("cut ").and_then(|seed| seed.parse().ok()).ok_or(Errno::EINVAL)?;
        self.powered()?.cut(seed).map_err(|_| Errno::EIO)
    }
}

impl Filesystem for CutDisk {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let inode = match name.to_str() {
            Some("disk") => DISK,
            Some("control") => CONTROL,
            _ => return reply.error(Errno::ENOENT),
        };
        match self.attr(inode) {
            Some(attr) => reply.entry(&TTL, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(inode) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    /// Opening the control file truncates it; neither file has anything to change.
    fn setattr(
        &self,
        request: &Request,
        inode: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.getattr(request, inode, handle, reply);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // No pages of ours in the kernel: they would survive the cut.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if inode != DISK || offset >= self.len {
            return reply.data(&[]);
        }
        let mut out = vec![0; u64::from(size).min(self.len - offset) as usize];
        match self.powered().and_then(|state| state.read(offset, &mut out).map_err(|_| Errno::EIO)) {
            Ok(()) => reply.data(&out),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let end = offset.saturating_add(data.len() as u64);
        let done = match inode {
            CONTROL => self.control(data),
            _ if end > self.len => Err(Errno::ENOSPC),
            _ => self.powered().and_then(|mut state| state.write(offset, data).map_err(|_| Errno::EIO)),
        };
        match done {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.powered().and_then(|mut state| state.flush().map_err(|_| Errno::EIO)) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // close(2) is no flush of a disk.
        reply.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> State {
        let image = tempfile::tempfile().unwrap();
        image.set_len(16 * BLOCK as u64).unwrap();
        State { image, unflushed: BTreeMap::new(), is_cut: false }
    }

    fn at(disk: &State, offset: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        disk.read(offset, &mut out).unwrap();
        out
    }

    #[test]
    fn reads_see_writes_that_cross_blocks_before_and_after_the_flush() {
        let mut disk = disk();
        let data: Vec<u8> = (0..9000).map(|n| (n % 251) as u8 + 1).collect();
        disk.write(4000, &data).unwrap();
        assert_eq!(at(&disk, 4000, 9000), data);
        assert_eq!(at(&disk, 3999, 2), [0, 1]);
        disk.flush().unwrap();
        assert!(disk.unflushed.is_empty());
        assert_eq!(at(&disk, 4000, 9000), data);
    }

    #[test]
    fn a_cut_keeps_what_was_flushed_and_some_of_the_rest() {
        let mut disk = disk();
        disk.write(0, &[1; 2 * BLOCK]).unwrap();
        disk.flush().unwrap();
        disk.write(BLOCK as u64, &[2; 15 * BLOCK]).unwrap();
        disk.cut(5).unwrap();
        assert!(disk.is_cut && disk.unflushed.is_empty());
        assert_eq!(at(&disk, 0, BLOCK), [1; BLOCK]);
        let second = at(&disk, BLOCK as u64, BLOCK);
        assert!(second == [1; BLOCK] || second == [2; BLOCK]);
        let kept = (2..16).filter(|n| at(&disk, n * BLOCK as u64, 1) == [2]).count();
        assert!(kept > 0 && kept < 14, "{kept} of 14 blocks survived");
    }
}
