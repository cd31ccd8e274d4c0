//! Work that can wait: on threads of their own that leave the processor to those who answer requests.
//!
//! A checkpoint takes as much processor time as the transactions in it. On a machine that has none to spare it would
//! stall everybody for as long as it takes; it may rather take three times as long.

use tokio::sync::oneshot;

/// As nice(1): a third of the processor time of a thread that has not said so, while they compete for it.
const NICE: libc::c_int = 5;

/// Runs `work` on a thread of its own. The receiver fails if it panics, or if there can be no thread.
pub(crate) fn run<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> oneshot::Receiver<T> {
    let (result, ended) = oneshot::channel();
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        give_way();
        // Nobody may wait for it.
        let _ = result.send(work());
    });
    if let Err(error) = thread {
        tracing::error!("Cannot start the thread {name}: {error}.");
    }
    ended
}

/// The calling thread leaves the processor to others.
fn give_way() {
    #[allow(unsafe_code, reason = "no std function sets a thread's priority")]
    // SAFETY: takes and returns numbers only; on Linux, 0 with PRIO_PROCESS is the calling thread.
    let failed = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    if failed != 0 {
        // Started with a higher number already: that is as good.
        tracing::debug!("the priority of a thread stays: {}", std::io::Error::last_os_error());
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_result_comes_and_a_panic_is_noticed() {
        assert_eq!(super::run("works", || 7).blocking_recv(), Ok(7));
        assert!(super::run("panics", || panic!("on purpose")).blocking_recv().is_err());
    }
}
