//! Files, directories and attributes through the kernel.

use crate::mounted::Mounted;
use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

fn read_write() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    options
}

/// Bytes of which every eight are different.
fn pattern(length: usize) -> Vec<u8> {
    (0..length.div_ceil(8) as u64).flat_map(u64::to_le_bytes).take(length).collect()
}

#[test]
fn contents_of_many_sizes_come_back() {
    let mounted = Mounted::new();
    // Below, at and above what is copied out of the receive buffer, and above one request.
    for size in [0, 1, 4095, 100_000, (128 << 10) - 80, 128 << 10, 1 << 20, (3 << 20) + 17] {
        let path = mounted.path(&format!("file{size}"));
        fs::write(&path, pattern(size)).expect("written");
        assert_eq!(fs::metadata(&path).expect("exists").len(), size as u64);
        assert!(fs::read(&path).expect("read") == pattern(size), "{size} bytes");
    }
    let file = read_write().open(mounted.path("holes")).expect("created");
    file.write_all_at(b"end", 10_000).expect("written");
    file.sync_all().expect("synced");
    let mut start = [1; 8];
    file.read_exact_at(&mut start, 0).expect("read");
    assert_eq!(start, [0; 8]);
    file.set_len(5).expect("cut");
    assert_eq!(fs::read(mounted.path("holes")).expect("read"), [0; 5]);
    assert_eq!(fs::read(mounted.path("nothing")).expect_err("missing").kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn a_large_directory_is_listed_completely() {
    let mounted = Mounted::new();
    let directory = mounted.path("many");
    fs::create_dir(&directory).expect("made");
    let name = |i: usize| format!("{i}{}", "x".repeat(i % 40));
    for i in 0..1000 {
        File::create(directory.join(name(i))).expect("created");
    }
    let list = || -> BTreeSet<String> {
        let entries = fs::read_dir(&directory).expect("listed");
        entries.map(|entry| entry.expect("listed").file_name().into_string().expect("ASCII")).collect()
    };
    let expected: BTreeSet<String> = (0..1000).map(name).collect();
    assert_eq!(list(), expected);
    // With attributes: READDIRPLUS.
    for entry in fs::read_dir(&directory).expect("listed") {
        assert!(entry.expect("listed").metadata().expect("has attributes").is_file());
    }
    assert_eq!(list(), expected);
    assert_eq!(fs::remove_dir(&directory).expect_err("full").raw_os_error(), Some(libc::ENOTEMPTY));
}

#[test]
fn names_links_and_nodes() {
    let mounted = Mounted::new();
    let path = |name| mounted.path(name);
    fs::write(path("a"), b"1").expect("written");
    fs::rename(path("a"), path("b")).expect("renamed");
    assert!(!path("a").exists());
    fs::hard_link(path("b"), path("c")).expect("linked");
    let (b, c) = (fs::metadata(path("b")).expect("exists"), fs::metadata(path("c")).expect("exists"));
    assert_eq!((b.ino(), c.nlink()), (c.ino(), 2));
    symlink("b", path("s")).expect("linked");
    assert_eq!(fs::read_link(path("s")).expect("a link"), Path::new("b"));
    assert_eq!(fs::read(path("s")).expect("followed"), b"1");
    fs::remove_file(path("b")).expect("removed");
    assert_eq!(fs::read(path("c")).expect("the other name"), b"1");
    fs::create_dir(path("d")).expect("made");
    fs::rename(path("c"), path("d").join("moved")).expect("moved");
    fs::remove_file(path("d").join("moved")).expect("removed");
    fs::remove_dir(path("d")).expect("removed");

    let fifo = CString::new(path("fifo").as_os_str().as_bytes()).expect("no NUL");
    let old = CString::new(path("s").as_os_str().as_bytes()).expect("no NUL");
    #[allow(unsafe_code, reason = "mkfifo(3) and renameat2(2) have no safe wrapper in our dependencies")]
    // SAFETY: the paths are NUL-terminated and live through the calls.
    let (made, refused) = unsafe {
        let made = libc::mkfifo(fifo.as_ptr(), 0o600);
        let at = libc::AT_FDCWD;
        (made, libc::renameat2(at, old.as_ptr(), at, fifo.as_ptr(), libc::RENAME_NOREPLACE))
    };
    assert_eq!((made, refused), (0, -1));
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EEXIST));
    assert!(fs::metadata(path("fifo")).expect("exists").file_type().is_fifo());
}

#[test]
fn attributes_times_and_figures() {
    let mounted = Mounted::new();
    let path = mounted.path("f");
    let file = File::create(&path).expect("created");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4710)).expect("changed");
    std::os::unix::fs::chown(&path, Some(1000), Some(100)).expect("changed");
    let before = SystemTime::UNIX_EPOCH - Duration::from_millis(1500);
    file.set_times(fs::FileTimes::new().set_modified(before).set_accessed(before)).expect("changed");
    let metadata = fs::metadata(&path).expect("exists");
    assert_eq!(
        (metadata.mode(), metadata.uid(), metadata.gid()),
        (0o104_710 & !0o6000 | metadata.mode() & 0o6000, 1000, 100)
    );
    assert_eq!(metadata.modified().expect("has one"), before);
    // Birth time comes by STATX only.
    let born = SystemTime::UNIX_EPOCH + Duration::new(900_000_000, 5);
    assert_eq!(metadata.created().expect("has one"), born);
    let mountpoint = CString::new(mounted.mountpoint().as_os_str().as_bytes()).expect("no NUL");
    #[allow(unsafe_code, reason = "statvfs(3) has no safe wrapper in our dependencies")]
    // SAFETY: the path is NUL-terminated; the struct is plain integers, for which zero is legal.
    let figures = unsafe {
        let mut figures: libc::statvfs = std::mem::zeroed();
        assert_eq!(libc::statvfs(mountpoint.as_ptr(), &mut figures), 0);
        figures
    };
    assert_eq!((figures.f_blocks, figures.f_bavail, figures.f_namemax), (1000, 400, 255));
}

#[test]
fn extended_attributes() {
    let mounted = Mounted::new();
    let path = mounted.path("f");
    File::create(&path).expect("created");
    let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    let mut value = [0_u8; 64];
    #[allow(unsafe_code, reason = "setxattr(2) and its kin have no safe wrapper in our dependencies")]
    // SAFETY: every name is NUL-terminated, every buffer as long as said.
    let (listed, short) = unsafe {
        let (name, data) = (c"user.key".as_ptr(), value.as_mut_ptr().cast());
        assert_eq!(libc::setxattr(path.as_ptr(), name, c"a value".as_ptr().cast(), 7, 0), 0);
        assert_eq!(libc::getxattr(path.as_ptr(), name, std::ptr::null_mut(), 0), 7);
        assert_eq!(libc::getxattr(path.as_ptr(), name, data, 64), 7);
        assert_eq!(&value[..7], b"a value");
        let short = libc::getxattr(path.as_ptr(), name, value.as_mut_ptr().cast(), 3);
        let short = (short, std::io::Error::last_os_error().raw_os_error());
        (libc::listxattr(path.as_ptr(), value.as_mut_ptr().cast(), 64), short)
    };
    assert_eq!(short, (-1, Some(libc::ERANGE)));
    assert_eq!(&value[..listed as usize], b"user.key\0");
    #[allow(unsafe_code, reason = "removexattr(2) has no safe wrapper in our dependencies")]
    // SAFETY: both are NUL-terminated.
    let removed = unsafe { libc::removexattr(path.as_ptr(), c"user.key".as_ptr()) };
    assert_eq!(removed, 0);
}

#[test]
fn shared_mappings_reach_the_file() {
    let mounted = Mounted::new();
    let path = mounted.path("mapped");
    fs::write(&path, vec![b'.'; 8192]).expect("written");
    let file = read_write().open(&path).expect("opened");
    #[allow(unsafe_code, reason = "mmap(2) has no safe wrapper in our dependencies")]
    // SAFETY: the mapping is as long as the file, used only while it exists, and by this thread only.
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let base = libc::mmap(std::ptr::null_mut(), 8192, protection, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(base, libc::MAP_FAILED);
        let bytes = std::slice::from_raw_parts_mut(base.cast::<u8>(), 8192);
        assert_eq!(bytes[5000], b'.');
        bytes[5000] = b'x';
        assert_eq!(libc::msync(base, 8192, libc::MS_SYNC), 0);
        assert_eq!(libc::munmap(base, 8192), 0);
    }
    // Past the page cache: what the daemon has.
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path).expect("opened");
    let mut buffer = vec![0_u8; 3 * 4096];
    let start = buffer.as_ptr().align_offset(4096);
    let length = direct.read_at(&mut buffer[start..start + 8192], 0).expect("read");
    assert_eq!((length, buffer[start + 5000]), (8192, b'x'));
}

#[test]
fn direct_io_of_several_requests() {
    let mounted = Mounted::new();
    let path = mounted.path("direct");
    let file = read_write().custom_flags(libc::O_DIRECT).open(&path).expect("created");
    let size = 3 << 20;
    let mut buffer = vec![0_u8; size + 4096];
    let start = buffer.as_ptr().align_offset(4096);
    buffer[start..start + size].copy_from_slice(&pattern(size));
    file.write_all_at(&buffer[start..start + size], 0).expect("written");
    buffer.fill(0);
    file.read_exact_at(&mut buffer[start..start + size], 0).expect("read");
    assert!(buffer[start..start + size] == pattern(size));
    assert!(fs::read(&path).expect("read") == pattern(size));
}

#[test]
fn unnamed_files_copies_and_holes() {
    let mounted = Mounted::new();
    let mut unnamed =
        read_write().create(false).custom_flags(libc::O_TMPFILE).open(mounted.mountpoint()).expect("opened");
    unnamed.write_all(&pattern(100_000)).expect("written");
    let copy = read_write().open(mounted.path("copy")).expect("created");
    #[allow(unsafe_code, reason = "copy_file_range(2) has no safe wrapper in our dependencies")]
    // SAFETY: both descriptors are open and the offset lives through the call.
    let copied = unsafe {
        let mut offset = 10;
        libc::copy_file_range(
            unnamed.as_raw_fd(),
            &mut offset,
            copy.as_raw_fd(),
            std::ptr::null_mut(),
            50_000,
            0,
        )
    };
    assert_eq!(copied, 50_000);
    assert!(fs::read(mounted.path("copy")).expect("read") == pattern(100_000)[10..50_010]);
    #[allow(unsafe_code, reason = "lseek(2) with SEEK_HOLE has no safe wrapper in our dependencies")]
    // SAFETY: the descriptor is open.
    let hole = unsafe { libc::lseek(copy.as_raw_fd(), 5, libc::SEEK_HOLE) };
    assert_eq!(hole, 50_000);
    unnamed.seek(SeekFrom::Start(0)).expect("sought");
    let mut all = Vec::new();
    unnamed.read_to_end(&mut all).expect("read");
    assert!(all == pattern(100_000));
}

#[test]
fn notifications_make_the_kernel_ask_again() {
    let mounted = Mounted::new();
    let path = mounted.path("f");
    File::create(&path).expect("created");
    let mode = || fs::metadata(&path).expect("exists").mode() & 0o777;
    let mut expected = mode();
    for (command, mode_after) in
        [("inval f", "601"), ("expire f", "602"), ("drop f", "603"), ("epoch", "604")]
    {
        mounted.control(&format!("mode f {mode_after}"));
        assert_eq!(mode(), expected, "cached until {command}");
        mounted.control(command);
        expected = u32::from_str_radix(mode_after, 8).expect("octal");
        crate::mounted::eventually(command, Duration::from_secs(5), || mode() == expected);
    }
}

#[test]
fn a_bug_costs_one_request_and_not_the_mount() {
    let mounted = Mounted::new();
    File::create(mounted.path("panic")).expect("created");
    fs::write(mounted.path("fine"), b"x").expect("written");
    let file = OpenOptions::new().read(true).write(true).open(mounted.path("panic")).expect("opened");
    file.set_len(10).expect("grown");
    assert_eq!(file.read_at(&mut [0; 4], 0).expect_err("it panics").raw_os_error(), Some(libc::EIO));
    assert_eq!(fs::read(mounted.path("fine")).expect("read"), b"x");
}
