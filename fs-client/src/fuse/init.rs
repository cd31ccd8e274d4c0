//! INIT: which capabilities we ask the kernel for, through `fuser`, whose part ends there.
//!
//! `fuser` talks to a socket instead of the device, because one field of its answer has to be changed on the way: it
//! derives `max_pages` from the largest request, 256 pages for 1 MiB. A buffer of 1 MiB that does not begin on a page
//! boundary, as malloc(3) gives them, touches 257, and the kernel would cut every such read or write into two
//! requests, one after the other.

use super::abi::{IO_PAGES_MAX, IO_SIZE_MAX};
use super::buffer::RECEIVE_SIZE;
use fuser::{Config, InitFlags, KernelConfig, Session, SessionACL};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex, PoisonError};

/// Most background requests (read-ahead, writeback, RELEASE, asynchronous direct I/O) that the kernel has
/// outstanding. Large, or a RELEASE waits behind reads that hang and a dead process keeps its lock.
pub const BACKGROUND_MAX: u16 = 8192;

/// What we ask for, and why.
///
/// Not asked for: WRITEBACK_CACHE (cannot be revoked safely), POSIX_ACL (ACLs are not enforced), passthrough,
/// io_uring, SECURITY_CTX, idmapped mounts.
const WANTED: [InitFlags; 18] = [
    // Pages of one file are read in parallel.
    InitFlags::FUSE_ASYNC_READ,
    // fcntl and flock locks are the cluster's.
    InitFlags::FUSE_POSIX_LOCKS,
    InitFlags::FUSE_FLOCK_LOCKS,
    // OPEN truncates: no SETATTR behind it.
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    // open_by_handle_at finds inodes by their number with LOOKUP of `.` and `..`; numbers are never reused.
    InitFlags::FUSE_EXPORT_SUPPORT,
    InitFlags::FUSE_BIG_WRITES,
    // Default ACLs and the umask are applied where the inode is made.
    InitFlags::FUSE_DONT_MASK,
    // A changed mtime or size drops pages.
    InitFlags::FUSE_AUTO_INVAL_DATA,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_ASYNC_DIO,
    // Names of one directory are looked up in parallel.
    InitFlags::FUSE_PARALLEL_DIROPS,
    // Requests of 1 MiB.
    InitFlags::FUSE_MAX_PAGES,
    // A symbolic link never changes its target.
    InitFlags::FUSE_CACHE_SYMLINKS,
    // Without it every buffered write asks for `security.capability` first.
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_SETXATTR_EXT,
    InitFlags::FUSE_HAS_EXPIRE_ONLY,
    // MAP_SHARED works on files opened for direct I/O.
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
];

/// Wanted for diagnosis only: reads of an aborted connection say ECONNABORTED instead of ENODEV.
const ABORT_ERROR: InitFlags = InitFlags::FUSE_ABORT_ERROR;

/// What the kernel offered and granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Version of the kernel's protocol.
    pub version: (u32, u32),
    /// Every capability that the kernel offered.
    pub offered: InitFlags,
    /// Those in force.
    pub granted: InitFlags,
}

impl Granted {
    /// Whether SETXATTR has its extended form.
    pub fn setxattr_ext(&self) -> bool {
        self.granted.contains(InitFlags::FUSE_SETXATTR_EXT)
    }

    /// Wanted but not offered: an older kernel.
    pub fn missing(&self) -> InitFlags {
        wanted() & !self.granted
    }
}

/// Where `max_pages` (u16) is in the answer to INIT: behind `fuse_out_header` and 28 bytes of `fuse_init_out`.
const MAX_PAGES_AT: usize = 16 + 28;

/// Answers the kernel's INIT, which mount(2) queued on `device` (blocking).
pub(super) fn negotiate(mut device: &File) -> io::Result<Granted> {
    let (ours, theirs) = UnixDatagram::pair()?;
    let mut message = vec![0; RECEIVE_SIZE];
    let length = device.read(&mut message)?;
    ours.send(&message[..length])?;
    // Whatever else `fuser` might want to read ends in an error instead of waiting for ever.
    ours.shutdown(Shutdown::Write)?;
    let granted = Arc::new(Mutex::new(None));
    let negotiator = Negotiator(granted.clone());
    // The session owns no mount, so dropping it closes its descriptor and nothing else.
    drop(Session::from_fd(negotiator, OwnedFd::from(theirs), SessionACL::All, Config::default())?);
    let granted = granted.lock().unwrap_or_else(PoisonError::into_inner).take();
    let granted =
        granted.ok_or_else(|| io::Error::other("the kernel's INIT never reached the negotiation"))?;
    let length = ours.recv(&mut message)?;
    raise_max_pages(&mut message[..length]);
    device.write_all(&message[..length])?;
    Ok(granted)
}

/// The kernel lowers it again to what it allows.
#[allow(clippy::host_endian_bytes, reason = "the kernel on this machine reads it")]
fn raise_max_pages(answer: &mut [u8]) {
    if let Some(field) = answer.get_mut(MAX_PAGES_AT..MAX_PAGES_AT + 2) {
        field.copy_from_slice(&IO_PAGES_MAX.to_ne_bytes());
    }
}

fn wanted() -> InitFlags {
    WANTED.into_iter().fold(ABORT_ERROR, |all, flag| all | flag)
}

/// Answers INIT and nothing else: its other methods are never called.
struct Negotiator(Arc<Mutex<Option<Granted>>>);

impl fuser::Filesystem for Negotiator {
    fn init(&mut self, _: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        let refused = |what: &str, nearest: u32| {
            io::Error::other(format!("fuser refuses {what}; the nearest it takes is {nearest}"))
        };
        config.set_max_write(IO_SIZE_MAX as u32).map_err(|nearest| refused("requests of 1 MiB", nearest))?;
        config
            .set_max_background(BACKGROUND_MAX)
            .map_err(|nearest| refused("the number of background requests", nearest.into()))?;
        let offered = config.capabilities();
        let granted = wanted() & offered;
        config
            .add_capabilities(granted)
            .map_err(|bits| io::Error::other(format!("the kernel offered {bits:?} and took it back")))?;
        let version = (config.kernel_abi().0, config.kernel_abi().1);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Granted { version, offered, granted });
        Ok(())
    }
}
