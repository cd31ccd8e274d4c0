//! mount(2), dead mounts, read-ahead, abort.

use super::abi::{IO_PAGES_MAX, IO_SIZE_MAX};
use super::init::{Granted, negotiate};
use super::mountinfo::{MountInfo, top_at};
use super::notify::Notifier;
use std::ffi::{CStr, CString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// File system type of our mounts: `findmnt -t fuse.zabfs`, `mount -t fuse.zabfs`.
pub const FILE_SYSTEM_TYPE: &str = "fuse.zabfs";
/// Where fusectl shows the connections.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";
/// Most pages of one request of mounts made from now on.
const PAGE_LIMIT: &str = "/proc/sys/fs/fuse/max_pages_limit";
/// How long a mount that is found on the mountpoint has to show that it is alive or dead.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Most dead mounts that are taken off one mountpoint.
const DEAD_MOUNTS_MAX: usize = 64;

/// How to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// First column of `/proc/mounts`; any text without NUL.
    pub source: String,
    /// Refuse changes.
    pub read_only: bool,
    /// Let users other than the mounter in.
    pub allow_other: bool,
    /// The kernel checks permission bits; without it the file system gets ACCESS requests.
    pub default_permissions: bool,
    /// Ignore set-user-id bits.
    pub no_suid: bool,
    /// Ignore device nodes.
    pub no_dev: bool,
    /// Refuse to execute.
    pub no_exec: bool,
    /// Read-ahead window in KiB; 0 leaves the kernel's 128.
    pub read_ahead_kib: u32,
    /// Answer ETIMEDOUT to every request that is unanswered for this long; `None` waits for servers to return.
    /// The mount passes it to the dispatcher.
    pub request_timeout: Option<Duration>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            source: "zabfs".to_owned(),
            read_only: false,
            allow_other: true,
            default_permissions: true,
            no_suid: false,
            no_dev: false,
            no_exec: false,
            read_ahead_kib: 4096,
            request_timeout: None,
        }
    }
}

/// Why a mount could not be made. Nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mountpoint cannot be used.
    #[error("{} cannot be mounted on: {cause}; create it as an empty directory", mountpoint.display())]
    Mountpoint {
        /// As resolved.
        mountpoint: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A live zabfs mount is there.
    #[error("{} already has a zabfs mount of '{mounted}' that works; unmount it first", mountpoint.display())]
    AlreadyMounted {
        /// As resolved.
        mountpoint: PathBuf,
        /// Its source.
        mounted: String,
    },
    /// A zabfs mount is there whose process exists but does not answer.
    #[error(
        "{} has a zabfs mount whose process is alive but does not answer; stop that process or run \
         'umount -l' first",
        mountpoint.display()
    )]
    Unresponsive {
        /// As resolved.
        mountpoint: PathBuf,
    },
    /// A step failed.
    #[error("the mount on {} failed to {step}: {cause}", mountpoint.display())]
    Step {
        /// As resolved.
        mountpoint: PathBuf,
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        cause: io::Error,
    },
    /// An option holds a NUL byte.
    #[error("the mount's {option} holds a NUL byte, which mount(2) cannot take")]
    Nul {
        /// Which.
        option: &'static str,
    },
}

/// How to take a mount away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    /// Refuse with EBUSY while anything uses it.
    IfIdle,
    /// Out of the tree at once; gone when its last user is.
    Detach,
}

/// A mount of ours. Dropping it detaches it if it is still there.
#[derive(Debug)]
pub struct Mount {
    mountpoint: PathBuf,
    info: MountInfo,
    granted: Granted,
    device: File,
}

impl Mount {
    /// Mounts on `mountpoint` and answers the kernel's INIT. Dead zabfs mounts there, busy or not, are detached
    /// first. Requests queue in the kernel until a [`Dispatcher`](super::Dispatcher) runs, so this process must
    /// not touch the mount before (nor, ever, from the dispatcher's thread).
    ///
    /// Blocks for up to 2 s on a mountpoint that has a zabfs mount already.
    pub fn establish(mountpoint: &Path, options: &MountOptions) -> Result<Self, MountError> {
        let mountpoint = resolve(mountpoint)?;
        detach_dead(&mountpoint)?;
        match std::fs::metadata(&mountpoint) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(unusable(&mountpoint, io::Error::from_raw_os_error(libc::ENOTDIR))),
            Err(cause) => return Err(unusable(&mountpoint, cause)),
        }
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open("/dev/fuse")
            .map_err(failed(&mountpoint, "open /dev/fuse (is the fuse module loaded?)"))?;
        raise_page_limit();
        mount_device(&mountpoint, &device, options)?;
        let detached = DetachUnlessDone { mountpoint: &mountpoint, done: false };
        let mount = Self::negotiated(&mountpoint, device, options)?;
        detached.done();
        Ok(mount)
    }

    fn negotiated(mountpoint: &Path, device: File, options: &MountOptions) -> Result<Self, MountError> {
        let granted = negotiate(&device).map_err(failed(mountpoint, "negotiate INIT"))?;
        set_nonblocking(&device).map_err(failed(mountpoint, "make its device non-blocking"))?;
        let info = top_at(mountpoint)
            .map_err(failed(mountpoint, "read /proc/self/mountinfo"))?
            .filter(|info| info.kind == FILE_SYSTEM_TYPE)
            .ok_or_else(|| {
                failed(mountpoint, "find itself in /proc/self/mountinfo")(io::Error::other("gone"))
            })?;
        let mount = Self { mountpoint: mountpoint.to_owned(), info, granted, device };
        mount.raise_read_ahead(options.read_ahead_kib);
        tracing::info!(
            mountpoint = %mountpoint.display(),
            connection = mount.info.minor,
            version = ?granted.version,
            granted = ?granted.granted,
            "mounted"
        );
        if !granted.missing().is_empty() {
            tracing::warn!(missing = ?granted.missing(), "this kernel lacks capabilities that zabfs uses; update it");
        }
        Ok(mount)
    }

    /// Where it is.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// What the kernel granted.
    pub fn granted(&self) -> Granted {
        self.granted
    }

    /// Its device number (major, minor), as `st_dev` shows it.
    pub fn device_number(&self) -> (u32, u32) {
        (self.info.major, self.info.minor)
    }

    /// Another descriptor of the device, non-blocking for reads. Writes of replies never block.
    pub fn device(&self) -> io::Result<File> {
        self.device.try_clone()
    }

    /// Sends notifications.
    pub fn notifier(&self) -> io::Result<Notifier> {
        Ok(Notifier::new(self.device()?))
    }

    /// Fails every request, present and future, at once: the mount is dead after it. Where the system has not
    /// mounted fusectl, it is mounted for the moment.
    pub fn abort(&self) -> io::Result<()> {
        let path = format!("{CONNECTIONS}/{}/abort", self.info.minor);
        match std::fs::write(&path, "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                mount_syscall(c"fusectl", &CString::new(CONNECTIONS)?, c"fusectl", 0, c"")?;
                let aborted = std::fs::write(&path, "1");
                unmount(Path::new(CONNECTIONS), Unmount::Detach)?;
                aborted
            }
            result => result,
        }
    }

    /// Whether it is still on top of its mountpoint.
    pub fn is_mounted(&self) -> bool {
        top_at(&self.mountpoint).is_ok_and(|top| top.as_ref() == Some(&self.info))
    }

    /// Takes it away.
    pub fn unmount(&self, how: Unmount) -> io::Result<()> {
        unmount(&self.mountpoint, how)
    }

    fn raise_read_ahead(&self, kib: u32) {
        if kib == 0 {
            return;
        }
        let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", self.info.major, self.info.minor);
        if let Err(error) = std::fs::write(&path, kib.to_string()) {
            tracing::warn!(%path, kib, %error, "read-ahead stays at 128 KiB: the kernel refused to raise it");
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.is_mounted()
            && let Err(error) = self.unmount(Unmount::Detach)
        {
            let mountpoint = self.mountpoint.display();
            tracing::warn!(%mountpoint, %error, "the mount stays as a dead one; run 'umount -l' on it");
        }
    }
}

/// Takes the topmost mount on `mountpoint` away, whatever it is. Works on dead mounts.
pub fn unmount(mountpoint: &Path, how: Unmount) -> io::Result<()> {
    let path = CString::new(mountpoint.as_os_str().as_bytes())?;
    let flags = match how {
        Unmount::IfIdle => libc::UMOUNT_NOFOLLOW,
        Unmount::Detach => libc::UMOUNT_NOFOLLOW | libc::MNT_DETACH,
    };
    #[allow(unsafe_code, reason = "umount2(2) has no safe wrapper in our dependencies")]
    // SAFETY: the path is a NUL-terminated string that lives through the call.
    let status = unsafe { libc::umount2(path.as_ptr(), flags) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Detaches zabfs mounts on `mountpoint` (absolute, resolved) whose process is gone, busy or not. An error if a
/// live one is found.
pub fn detach_dead(mountpoint: &Path) -> Result<(), MountError> {
    for _ in 0..DEAD_MOUNTS_MAX {
        let top = top_at(mountpoint).map_err(failed(mountpoint, "read /proc/self/mountinfo"))?;
        let Some(top) = top.filter(|top| top.kind == FILE_SYSTEM_TYPE) else { return Ok(()) };
        match probe(mountpoint) {
            Some(Err(error)) if is_dead(&error) => {}
            Some(_) => {
                return Err(MountError::AlreadyMounted {
                    mountpoint: mountpoint.to_owned(),
                    mounted: top.source.to_string_lossy().into_owned(),
                });
            }
            None => return Err(MountError::Unresponsive { mountpoint: mountpoint.to_owned() }),
        }
        tracing::info!(mountpoint = %mountpoint.display(), "detaching a dead mount");
        unmount(mountpoint, Unmount::Detach).map_err(failed(mountpoint, "detach a dead mount"))?;
    }
    Err(failed(mountpoint, "detach dead mounts")(io::Error::other("there are more than 64 of them")))
}

/// Tells the kernel that this thread, and those it starts, write file systems back: their memory allocations
/// then never wait for the very pages that they are to write. Needs CAP_SYS_RESOURCE. To be called on the main
/// thread before any other thread exists.
pub fn set_io_flusher() -> io::Result<()> {
    // From `linux/prctl.h`; the libc crate has it for Android only.
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    #[allow(unsafe_code, reason = "prctl(2) has no safe wrapper in our dependencies")]
    // SAFETY: this option takes plain integers.
    let status = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Opens the root of the mount, which always asks its process, in a thread of its own: `None` if it does not
/// answer in time. The thread then ends when the mount does.
fn probe(mountpoint: &Path) -> Option<io::Result<()>> {
    let (sender, receiver) = mpsc::channel();
    let path = mountpoint.to_owned();
    let probing = std::thread::Builder::new().name("probe-mount".to_owned()).spawn(move || {
        // Nobody listens any more after the timeout.
        let _ = sender.send(File::open(path).map(drop));
    });
    match probing {
        Ok(_) => receiver.recv_timeout(PROBE_TIMEOUT).ok(),
        Err(_) => None,
    }
}

fn is_dead(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED | libc::ENODEV))
}

/// The path as mountinfo shows it: absolute, symbolic links resolved, its last component never touched if a dead
/// mount may be there.
fn resolve(mountpoint: &Path) -> Result<PathBuf, MountError> {
    let absolute = std::path::absolute(mountpoint).map_err(|cause| unusable(mountpoint, cause))?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return absolute.canonicalize().map_err(|cause| unusable(mountpoint, cause));
    };
    let resolved = parent.canonicalize().map_err(|cause| unusable(mountpoint, cause))?.join(name);
    if resolved.read_link().is_ok() {
        return resolved.canonicalize().map_err(|cause| unusable(mountpoint, cause));
    }
    Ok(resolved)
}

fn mount_device(mountpoint: &Path, device: &File, options: &MountOptions) -> Result<(), MountError> {
    let nul = |option| move |_| MountError::Nul { option };
    let source = CString::new(options.source.as_str()).map_err(nul("source"))?;
    let target = CString::new(mountpoint.as_os_str().as_bytes()).map_err(nul("mountpoint"))?;
    let kind = CString::new(FILE_SYSTEM_TYPE).map_err(nul("type"))?;
    let data = CString::new(data_of(device, options)).map_err(nul("data"))?;
    mount_syscall(&source, &target, &kind, flags_of(options), &data)
        .map_err(failed(mountpoint, "call mount(2), which needs root"))
}

fn mount_syscall(
    source: &CStr,
    target: &CStr,
    kind: &CStr,
    flags: libc::c_ulong,
    data: &CStr,
) -> io::Result<()> {
    #[allow(unsafe_code, reason = "mount(2) has no safe wrapper in our dependencies")]
    // SAFETY: all four are NUL-terminated strings that live through the call.
    let status =
        unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn flags_of(options: &MountOptions) -> libc::c_ulong {
    [
        (options.read_only, libc::MS_RDONLY),
        (options.no_suid, libc::MS_NOSUID),
        (options.no_dev, libc::MS_NODEV),
        (options.no_exec, libc::MS_NOEXEC),
    ]
    .into_iter()
    .fold(0, |flags, (set, flag)| if set { flags | flag } else { flags })
}

fn data_of(device: &File, options: &MountOptions) -> String {
    #[allow(unsafe_code, reason = "getuid(2) and getgid(2) have no safe wrapper in our dependencies")]
    // SAFETY: neither takes arguments nor can fail.
    let (user, group) = unsafe { (libc::getuid(), libc::getgid()) };
    // The limit in pages has one to spare for buffers that do not begin on a page boundary: hence one in bytes too.
    let mut data = format!(
        "fd={},rootmode=40000,user_id={user},group_id={group},max_read={IO_SIZE_MAX}",
        device.as_raw_fd()
    );
    if options.default_permissions {
        data.push_str(",default_permissions");
    }
    if options.allow_other {
        data.push_str(",allow_other");
    }
    data
}

/// Lets requests have a page more than the kernel's default of 256, see [`init`](super::init). Applies to mounts made
/// after it. Kernels before 6.13 have no such setting, and unprivileged mounts may not change it: then large reads
/// and writes of unaligned buffers are cut in two.
fn raise_page_limit() {
    let limit = std::fs::read_to_string(PAGE_LIMIT).ok().and_then(|text| text.trim().parse::<u32>().ok());
    if limit.is_some_and(|limit| limit < u32::from(IO_PAGES_MAX))
        && let Err(error) = std::fs::write(PAGE_LIMIT, IO_PAGES_MAX.to_string())
    {
        tracing::debug!(%error, "{PAGE_LIMIT} stays as it is: 1 MiB from an unaligned buffer takes two requests");
    }
}

fn set_nonblocking(device: &File) -> io::Result<()> {
    let descriptor = device.as_raw_fd();
    #[allow(unsafe_code, reason = "fcntl(2) has no safe wrapper in our dependencies")]
    // SAFETY: the descriptor is open as long as `device` is borrowed; these commands take plain integers.
    let status = unsafe {
        let flags = libc::fcntl(descriptor, libc::F_GETFL);
        if flags < 0 { flags } else { libc::fcntl(descriptor, libc::F_SETFL, flags | libc::O_NONBLOCK) }
    };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn unusable(mountpoint: &Path, cause: io::Error) -> MountError {
    MountError::Mountpoint { mountpoint: mountpoint.to_owned(), cause }
}

fn failed(mountpoint: &Path, step: &'static str) -> impl FnOnce(io::Error) -> MountError {
    let mountpoint = mountpoint.to_owned();
    move |cause| MountError::Step { mountpoint, step, cause }
}

/// Leaves no dead mount behind when a step after mount(2) fails.
struct DetachUnlessDone<'a> {
    mountpoint: &'a Path,
    done: bool,
}

impl DetachUnlessDone<'_> {
    fn done(mut self) {
        self.done = true;
    }
}

impl Drop for DetachUnlessDone<'_> {
    fn drop(&mut self) {
        if !self.done
            && let Err(error) = unmount(self.mountpoint, Unmount::Detach)
        {
            tracing::warn!(mountpoint = %self.mountpoint.display(), %error, "a failed mount stays behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_flags_and_data() {
        let device = File::open("/dev/null").expect("/dev/null opens");
        let plain =
            MountOptions { allow_other: false, default_permissions: false, ..MountOptions::default() };
        let data = data_of(&device, &plain);
        assert!(data.starts_with(&format!("fd={},rootmode=40000,user_id=", device.as_raw_fd())), "{data}");
        assert!(!data.contains("allow_other") && !data.contains("default_permissions"));
        assert!(data_of(&device, &MountOptions::default()).ends_with(",default_permissions,allow_other"));
        assert_eq!(flags_of(&plain), 0);
        let strict = MountOptions { read_only: true, no_suid: true, no_dev: true, no_exec: true, ..plain };
        assert_eq!(flags_of(&strict), libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC);
    }

    #[test]
    fn a_mountpoint_that_is_no_directory_is_refused_with_a_sentence() {
        let error =
            Mount::establish(Path::new("/dev/null"), &MountOptions::default()).expect_err("no directory");
        assert!(error.to_string().contains("/dev/null cannot be mounted on"), "{error}");
        let error =
            Mount::establish(Path::new("/nonexistent/x"), &MountOptions::default()).expect_err("missing");
        assert!(matches!(error, MountError::Mountpoint { .. }), "{error}");
    }

    #[test]
    fn symbolic_links_are_resolved_but_not_a_missing_last_component() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let real = directory.path().canonicalize().expect("it exists").join("real");
        std::fs::create_dir(&real).expect("created");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&real, &link).expect("linked");
        assert_eq!(resolve(&link).expect("resolves"), real);
        let missing = real.join("missing");
        assert_eq!(resolve(&missing).expect("its parent exists"), missing);
    }
}
