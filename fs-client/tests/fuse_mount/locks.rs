//! flock and fcntl locks.

use crate::mounted::{Mounted, Running, eventually};
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).expect("opened")
}

/// fcntl(2) with a lock of the whole file; the error number, 0 if it worked.
fn fcntl(file: &File, command: i32, kind: i32) -> i32 {
    #[allow(unsafe_code, reason = "fcntl(2) has no safe wrapper in our dependencies")]
    // SAFETY: the descriptor is open, the struct plain integers.
    let status = unsafe {
        let mut lock: libc::flock = std::mem::zeroed();
        lock.l_type = kind as i16;
        libc::fcntl(file.as_raw_fd(), command, &lock)
    };
    if status == 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap_or(-1) }
}

#[test]
fn flock_and_fcntl_locks_do_not_meet() {
    let mounted = Mounted::new();
    let path = mounted.path("f");
    let (one, two) = (open(&path), open(&path));
    one.lock().expect("free");
    assert!(two.try_lock().is_err(), "another open file holds the flock");
    assert_eq!(fcntl(&two, libc::F_OFD_SETLK, libc::F_WRLCK), 0, "a flock is no fcntl lock");
    assert_eq!(fcntl(&one, libc::F_OFD_SETLK, libc::F_WRLCK), libc::EAGAIN);
    assert_eq!(fcntl(&one, libc::F_OFD_SETLK, libc::F_RDLCK), libc::EAGAIN);
    assert_eq!(fcntl(&two, libc::F_OFD_SETLK, libc::F_UNLCK), 0);
    assert_eq!(fcntl(&one, libc::F_SETLK, libc::F_WRLCK), 0);
    assert!(two.try_lock().is_err(), "an fcntl lock is no flock, which is still held");
    drop(one);
    two.lock().expect("RELEASE dropped the flock");
    assert_eq!(fcntl(&two, libc::F_SETLK, libc::F_WRLCK), 0, "FLUSH dropped the fcntl lock");
}

#[test]
fn a_lock_wait_is_granted_when_the_holder_goes() {
    let mounted = Mounted::new();
    let path = mounted.path("f");
    let holder = open(&path);
    holder.lock().expect("free");
    let mut waiter = Running::start("flock", &[path.to_str().expect("UTF-8"), "true"]);
    eventually("the waiter waits", Duration::from_secs(5), || mounted.waiting("SETLKW").len() == 1);
    holder.unlock().expect("held");
    waiter.ends_within(Duration::from_secs(5));
    assert_eq!(mounted.waiting("SETLKW").len(), 0);
}

#[test]
fn sigterm_ends_a_lock_wait_at_once() {
    let mounted = Mounted::new();
    let path = mounted.path("f");
    let holder = open(&path);
    holder.lock().expect("free");
    let mut waiter = Running::start("flock", &[path.to_str().expect("UTF-8"), "true"]);
    eventually("the waiter waits", Duration::from_secs(5), || mounted.waiting("SETLKW").len() == 1);
    waiter.signal(libc::SIGTERM);
    waiter.ends_within(Duration::from_millis(900));
    eventually("its request is gone", Duration::from_secs(1), || mounted.waiting("SETLKW").is_empty());
}
