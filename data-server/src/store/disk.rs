//! The file layer: the few calls the store makes on its directory, behind traits so that tests can rebuild what a
//! disk would hold after a power failure ([`SimDisk`](super::SimDisk)).

use std::{
    fmt,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read},
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    sync::Arc,
};

/// A directory of named files.
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Opens a file for reading and writing; a missing one is `None` unless `create`.
    fn open(&self, name: &str, create: bool) -> io::Result<Option<Arc<dyn DiskFile>>>;
    /// Makes created files survive a power failure.
    fn sync_directory(&self) -> io::Result<()>;
    /// Takes the directory for this process; false when another one holds it.
    fn lock(&self) -> io::Result<bool>;
    /// Bytes the filesystem below has free.
    fn free_bytes(&self) -> io::Result<u64>;
    /// Sixteen random bytes, for the store's uuid.
    fn random(&self) -> io::Result<[u8; 16]>;
}

/// A file with positioned reads and writes. Writes become durable with `sync` only, in any order and any part.
#[allow(clippy::len_without_is_empty, reason = "nobody asks a file whether it is empty")]
pub trait DiskFile: fmt::Debug + Send + Sync + 'static {
    fn len(&self) -> io::Result<u64>;
    /// Fills `out` from `offset`; fails with `UnexpectedEof` past the end.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Reserves the blocks up to `len` and extends the file to it, so that later writes there cannot run out of space.
    fn allocate(&self, len: u64) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
    /// A hint: the disk may begin to write this range now, so that the next `sync` has less to wait for. Promises
    /// nothing; what goes wrong is told by `sync`.
    fn start_writeback(&self, _offset: u64, _len: u64) {}
    /// A hint: this range will be read soon.
    fn will_need(&self, _offset: u64, _len: u64) {}
}

/// A directory of the operating system.
#[derive(Debug)]
pub struct OsDisk {
    dir: PathBuf,
    lock_file: File,
}

impl OsDisk {
    /// Creates `dir` if it is missing.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let lock_file = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join("lock"))?;
        Ok(Self { dir: dir.to_path_buf(), lock_file })
    }
}

impl Disk for OsDisk {
    fn open(&self, name: &str, create: bool) -> io::Result<Option<Arc<dyn DiskFile>>> {
        let path = self.dir.join(name);
        match OpenOptions::new().read(true).write(true).create(create).truncate(false).open(path) {
            Ok(file) => Ok(Some(Arc::new(OsFile(file)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn sync_directory(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn lock(&self) -> io::Result<bool> {
        match self.lock_file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    #[allow(unsafe_code, reason = "statvfs has no safe wrapper in std")]
    fn free_bytes(&self) -> io::Result<u64> {
        let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: the descriptor is open for as long as `self` lives and `stat` is a valid place to write to.
        let result = unsafe { libc::fstatvfs(self.lock_file.as_raw_fd(), stat.as_mut_ptr()) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded, so it filled the structure.
        let stat = unsafe { stat.assume_init() };
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn random(&self) -> io::Result<[u8; 16]> {
        let mut bytes = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

#[derive(Debug)]
struct OsFile(File);

impl DiskFile for OsFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    #[allow(unsafe_code, reason = "fallocate has no safe wrapper in std")]
    fn allocate(&self, len: u64) -> io::Result<()> {
        let len_signed = libc::off_t::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        loop {
            // SAFETY: the descriptor is open for as long as `self` lives; the call touches no memory of ours.
            if unsafe { libc::fallocate(self.0.as_raw_fd(), 0, 0, len_signed) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                // The filesystem cannot reserve: running out of space then shows at the write.
                Some(libc::EOPNOTSUPP) if self.len()? < len => return self.set_len(len),
                Some(libc::EOPNOTSUPP) => return Ok(()),
                _ => return Err(error),
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    #[allow(unsafe_code, reason = "sync_file_range has no safe wrapper in std")]
    fn start_writeback(&self, offset: u64, len: u64) {
        let (Ok(offset), Ok(len)) = (offset.try_into(), len.try_into()) else { return };
        // SAFETY: the descriptor is open for as long as `self` lives; the call touches no memory of ours.
        // Without the flags to wait it reports no error of earlier writes, so none is lost for `sync`.
        unsafe { libc::sync_file_range(self.0.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
    }

    #[allow(unsafe_code, reason = "posix_fadvise has no safe wrapper in std")]
    fn will_need(&self, offset: u64, len: u64) {
        let (Ok(offset), Ok(len)) = (offset.try_into(), len.try_into()) else { return };
        // SAFETY: the descriptor is open for as long as `self` lives; the call touches no memory of ours.
        unsafe { libc::posix_fadvise(self.0.as_raw_fd(), offset, len, libc::POSIX_FADV_WILLNEED) };
    }
}
