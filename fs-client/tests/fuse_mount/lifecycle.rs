//! Mounting, taking over what a dead process left, unmounting.

use crate::mounted::{Mounted, eventually, is_mounted};
use fs_client::fuse::mount::{FILE_SYSTEM_TYPE, unmount};
use fs_client::fuse::mountinfo::top_at;
use fs_client::fuse::{Mount, MountError, MountOptions, Unmount};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

#[test]
fn a_mount_shows_its_type_and_source_and_reads_far_ahead() {
    let mounted = Mounted::new();
    let info = top_at(mounted.mountpoint()).expect("mountinfo is readable").expect("it is mounted");
    assert_eq!((info.kind.as_str(), info.source.to_str()), (FILE_SYSTEM_TYPE, Some("memory:/")));
    let device = fs::metadata(mounted.mountpoint()).expect("it answers").dev();
    assert_eq!((libc::major(device), libc::minor(device)), (info.major, info.minor));
    let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", info.major, info.minor);
    assert_eq!(fs::read_to_string(path).expect("readable").trim(), "4096");
}

#[test]
fn a_plain_unmount_ends_the_daemon_and_a_busy_one_is_refused() {
    let mut mounted = Mounted::new();
    let open = File::create(mounted.path("f")).expect("created");
    let busy = unmount(mounted.mountpoint(), Unmount::IfIdle).expect_err("in use");
    assert_eq!(busy.raw_os_error(), Some(libc::EBUSY));
    drop(open);
    // RELEASE is not waited for by close(2), so the file may count as open for a moment.
    eventually("it can be unmounted", Duration::from_secs(5), || {
        unmount(mounted.mountpoint(), Unmount::IfIdle).is_ok()
    });
    assert_eq!(mounted.ended(), Some(0));
    assert!(!is_mounted(mounted.mountpoint()));
}

#[test]
fn a_dead_mount_is_taken_over() {
    let mut mounted = Mounted::new();
    fs::write(mounted.path("old"), b"x").expect("written");
    mounted.kill();
    let dead = File::open(mounted.path("old")).expect_err("it is dead");
    assert!(matches!(dead.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)), "{dead}");
    mounted.restart();
    assert!(!mounted.path("old").exists(), "this is the new one");
    fs::write(mounted.path("new"), b"y").expect("written");
}

#[test]
fn a_dead_mount_that_is_busy_is_taken_over_too() {
    let mut mounted = Mounted::new();
    let open = File::create(mounted.path("open")).expect("created");
    mounted.kill();
    mounted.restart();
    fs::write(mounted.path("new"), b"y").expect("written");
    let error = open.sync_all().expect_err("its mount is dead");
    assert!(matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)), "{error}");
    drop(open);
    unmount(mounted.mountpoint(), Unmount::Detach).expect("mounted");
    assert!(!is_mounted(mounted.mountpoint()), "nothing was left below");
}

#[test]
fn a_live_mount_is_not_mounted_over() {
    let mounted = Mounted::new();
    assert_eq!(mounted.second(), Some(3));
    let error = Mount::establish(mounted.mountpoint(), &MountOptions::default()).expect_err("it is live");
    assert!(matches!(error, MountError::AlreadyMounted { .. }), "{error}");
    assert!(error.to_string().contains("memory:/"), "{error}");
    fs::write(mounted.path("f"), b"x").expect("it still works");
}

#[test]
fn an_aborted_mount_is_dead_and_detached_when_it_is_dropped() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = MountOptions { read_only: true, read_ahead_kib: 0, ..MountOptions::default() };
    let mount = Mount::establish(directory.path(), &options).expect("mounted");
    assert!(mount.is_mounted());
    assert_eq!(mount.granted().missing(), fuser::InitFlags::empty());
    let mountpoint = mount.mountpoint().to_owned();
    // Nobody serves this mount, so the call waits until the abort.
    let opened = std::thread::spawn({
        let mountpoint = mountpoint.clone();
        move || File::open(mountpoint).map(drop)
    });
    mount.abort().expect("fusectl works");
    let error = opened.join().expect("no panic").expect_err("it is dead");
    assert!(matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)), "{error}");
    assert!(mount.is_mounted(), "dead, but there");
    drop(mount);
    assert!(!is_mounted(&mountpoint));
}
