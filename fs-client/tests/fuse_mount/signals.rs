//! Fatal signals end calls, others do not, and what hangs delays nothing else.

use crate::memory::SLOW;
use crate::mounted::{Mounted, Running, eventually};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A file with that name and some length.
fn file(mounted: &Mounted, name: &str) -> String {
    let path = mounted.path(name);
    File::create(&path).expect("created").set_len(1 << 20).expect("grown");
    path.to_str().expect("UTF-8").to_owned()
}

fn hanging(mounted: &Mounted, readers: usize) {
    eventually("all readers hang", Duration::from_secs(20), || mounted.waiting("READ").len() == readers + 1);
}

#[test]
fn sigkill_ends_a_read_within_a_second_while_a_hundred_others_hang() {
    let mounted = Mounted::new();
    let path = file(&mounted, "hang");
    let mut readers: Vec<Running> = (0..101).map(|_| Running::start("cat", &[&path])).collect();
    hanging(&mounted, 101);
    // Everything else goes on.
    fs::write(mounted.path("other"), b"x").expect("written");
    assert_eq!(fs::read(mounted.path("other")).expect("read"), b"x");
    let mut victim = readers.pop().expect("101 were started");
    victim.signal(libc::SIGKILL);
    let took = victim.ends_within(Duration::from_secs(1));
    println!("killed in {took:?}");
    let hang = mounted.waiting("READ");
    assert_eq!(
        hang.iter().filter(|line| line.ends_with("true")).count(),
        1,
        "its operation goes on: {hang:?}"
    );
    // The others end by the default action of other signals: terminating, and dumping core.
    for (reader, signal) in
        readers.iter_mut().zip([libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGALRM])
    {
        reader.signal(signal);
        reader.ends_within(Duration::from_secs(1));
    }
}

#[test]
fn sigkill_ends_direct_io_of_which_the_kernel_sends_no_interrupt() {
    let mounted = Mounted::new();
    let path = file(&mounted, "hang-cached");
    let input = format!("if={path}");
    let mut reader = Running::start("dd", &[&input, "iflag=direct", "bs=1M", "of=/dev/null"]);
    hanging(&mounted, 1);
    reader.signal(libc::SIGKILL);
    reader.ends_within(Duration::from_secs(1));
}

#[test]
fn sigkill_ends_a_buffered_read_and_a_page_fault() {
    let mounted = Mounted::new();
    let path = file(&mounted, "hang-cached");
    let mut reader = Running::start("cat", &[&path]);
    eventually("it hangs", Duration::from_secs(5), || mounted.waiting("READ").len() > 1);
    reader.signal(libc::SIGKILL);
    reader.ends_within(Duration::from_secs(1));
    // Executing a file maps it.
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("changed");
    let started = std::thread::spawn(move || std::process::Command::new(path).spawn().is_ok());
    drop(mounted);
    assert!(!started.join().expect("no panic"));
}

static SIGNALS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::SeqCst);
}

#[test]
fn a_handled_signal_does_not_end_a_read() {
    #[allow(unsafe_code, reason = "sigaction(2) has no safe wrapper in our dependencies")]
    // SAFETY: the handler only adds to an atomic; without SA_RESTART, so that an EINTR would show.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count as extern "C" fn(libc::c_int) as usize;
        assert_eq!(libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut()), 0);
    }
    let mounted = Mounted::new();
    let path = file(&mounted, "slow");
    let reader = std::thread::spawn(move || {
        let file = File::open(path).expect("opened");
        let start = Instant::now();
        (file.read_at(&mut [0; 10], 0).map_err(|error| error.to_string()), start.elapsed())
    });
    eventually("it waits", Duration::from_secs(5), || mounted.waiting("READ").len() > 1);
    #[allow(unsafe_code, reason = "pthread_kill(3) has no safe wrapper in our dependencies")]
    // SAFETY: the thread is not joined yet, so its handle is valid.
    let sent = unsafe { libc::pthread_kill(reader.as_pthread_t(), libc::SIGALRM) };
    assert_eq!(sent, 0);
    let (read, took) = reader.join().expect("no panic");
    assert_eq!(read, Ok(10));
    assert!(took >= SLOW, "{took:?}");
    assert_eq!(SIGNALS.load(Ordering::SeqCst), 1);

    // The same for a change of the namespace, which must not be reported as failed and be done all the same.
    let directory = mounted.path("slow-directory");
    let maker = std::thread::spawn(move || fs::create_dir(directory).map_err(|error| error.to_string()));
    eventually("it waits", Duration::from_secs(5), || mounted.waiting("MKDIR").len() == 1);
    #[allow(unsafe_code, reason = "pthread_kill(3) has no safe wrapper in our dependencies")]
    // SAFETY: the thread is not joined yet, so its handle is valid.
    let sent = unsafe { libc::pthread_kill(maker.as_pthread_t(), libc::SIGALRM) };
    assert_eq!(sent, 0);
    assert_eq!(maker.join().expect("no panic"), Ok(()));
}

#[test]
fn what_a_killed_process_asked_for_is_done_and_its_handle_released() {
    let mounted = Mounted::new();
    let path = mounted.path("slow-create");
    let mut maker = Running::start("sh", &["-c", &format!("exec 3> '{}'; sleep 100", path.display())]);
    eventually("it waits", Duration::from_secs(5), || mounted.waiting("CREATE").len() == 1);
    maker.signal(libc::SIGKILL);
    maker.ends_within(Duration::from_secs(1));
    eventually("it is created", Duration::from_secs(5), || path.exists());
    eventually("its handle is released", Duration::from_secs(5), || mounted.handles() == 0);
    assert_eq!(mounted.waiting("CREATE").len(), 0);
}

#[test]
fn with_a_timeout_every_request_is_answered_in_it() {
    let timeout = Duration::from_millis(800);
    let mounted = Mounted::with(Some(timeout));
    let path = file(&mounted, "hang");
    let open = File::open(path).expect("opened");
    let start = Instant::now();
    let error = open.read_at(&mut [0; 10], 0).expect_err("it hangs");
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
    assert!(start.elapsed() < timeout + Duration::from_millis(200), "{:?}", start.elapsed());
}
