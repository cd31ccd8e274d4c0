//! The loop that reads requests and answers them.
//!
//! One thread: a `current_thread` runtime inside a `LocalSet`. A request's operation is polled once where it was
//! read; what is not ready then becomes a task of its own, so no request waits for another one.
//!
//! Bounds. Requests in flight: the kernel has at most `max_background` (8192) background requests outstanding and
//! every other request has a thread that waits for it, so there are at most 8192 + the machine's threads; we add
//! no limit of our own, because a limit would let requests that hang hold up RELEASE, FLUSH and INTERRUPT.
//! Operations that go on for callers that are gone: [`ABANDONED_MAX`](super::waiting::ABANDONED_MAX).
//!
//! Interrupts. The kernel sends INTERRUPT at the first signal to the caller, whichever it is, and never again.
//! - An operation that awaits [`Interrupt::any_signal`](super::Interrupt::any_signal) answers EINTR itself.
//! - For every other one the caller is looked at in `/proc`, at once and then every 100 ms. If a fatal signal is
//!   pending, or the caller is gone, the request is answered EINTR and its operation goes on by itself.
//! - A caller that cannot be seen (pid 0: another pid namespace; `/proc` missing) is taken for killed 900 ms after
//!   its INTERRUPT: a task that can never be killed is worse than an EINTR that a handler did not ask for.
//! - Direct I/O waits without sending INTERRUPT: callers of READs and WRITEs older than 500 ms are looked at too.
//! - An INTERRUPT whose request is unknown (answered meanwhile, or not registered yet) is kept and not answered.
//!   EAGAIN would have the kernel send it again, for ever if the request is gone.
//! - RELEASE and writeback of mapped pages are never cut short by a signal.

use super::abi::opcode;
use super::buffer::{Buffer, Buffers, LEND_SIZE_MIN};
use super::encode::{Encoded, encode, error};
use super::fatal::{self, Verdict};
use super::mount::Mount;
use super::notify::write_all;
use super::operation::{Operation, RequestHeader};
use super::parse::{self, Request, expects_reply};
use super::reply::{Opened, Reply};
use super::waiting::{Finished, Pending, Signalled, Suspect, Waiting};
use super::{Filesystem, Interrupt};
use bytes::Bytes;
use protocol::Errno;
use std::fs::File;
use std::future::Future;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::Instrument;

/// How often callers and timeouts are looked at while anything is unanswered.
const PATROL_EVERY: Duration = Duration::from_millis(100);
/// Most callers looked at per patrol (some 20 µs each).
const LOOKS_PER_PATROL: usize = 512;
/// A caller that cannot be seen is taken for killed this long after its INTERRUPT.
const UNSEEN_GRACE: Duration = Duration::from_millis(900);
/// Requests read before other tasks get a turn.
const BATCH: usize = 32;

/// The end of a mount shows as an error of the device only.
const INTEREST: Interest = Interest::READABLE.add(Interest::ERROR);

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The last user of the unmounted file system is gone.
    Unmounted,
    /// The connection was aborted: the mount is dead and may still be in the tree.
    Aborted,
}

/// What reading a batch of requests came to.
enum Batch {
    /// There may be more.
    More,
    /// There is nothing more.
    Drained,
    /// The mount is gone.
    Ended(Ended),
}

/// Serves one mount.
pub struct Dispatcher<F> {
    device: Rc<AsyncFd<File>>,
    shared: Rc<Shared<F>>,
    buffers: Buffers,
    buffer: Option<Buffer>,
    setxattr_ext: bool,
    timeout: Option<Duration>,
    next_patrol: Instant,
}

/// What operations that became tasks need to answer.
struct Shared<F> {
    filesystem: Rc<F>,
    device: File,
    waiting: Waiting,
    proc_is_ours: bool,
}

impl<F: Filesystem> Dispatcher<F> {
    /// Prepares to serve `mount`. `waiting` is the table of what is unanswered, for `filesystem` to show;
    /// `timeout` as in [`MountOptions::request_timeout`](super::MountOptions::request_timeout). To be called
    /// in the runtime that will [`run`](Self::run) it.
    pub fn new(
        mount: &Mount,
        filesystem: Rc<F>,
        waiting: Waiting,
        timeout: Option<Duration>,
    ) -> io::Result<Self> {
        let shared =
            Shared { filesystem, device: mount.device()?, waiting, proc_is_ours: fatal::proc_is_ours() };
        Ok(Self {
            device: Rc::new(register(mount.device()?)?),
            shared: Rc::new(shared),
            buffers: Buffers::default(),
            buffer: None,
            setxattr_ext: mount.granted().setxattr_ext(),
            timeout,
            next_patrol: Instant::now() + PATROL_EVERY,
        })
    }

    /// Serves until the file system is unmounted or the connection aborted. Must run inside a `LocalSet`, which
    /// keeps operations that are not finished at the end as long as the caller keeps it.
    pub async fn run(mut self) -> io::Result<Ended> {
        let ended = self.serve().await;
        self.shared.waiting.abandon_all();
        self.shared.filesystem.destroy();
        ended
    }

    async fn serve(&mut self) -> io::Result<Ended> {
        let device = self.device.clone();
        loop {
            // Until there may be a request to read or a patrol to make.
            let ready = device.ready(INTEREST);
            let readable = if self.shared.waiting.in_flight() == 0 {
                Some(ready.await?)
            } else {
                tokio::select! {
                    readable = ready => Some(readable?),
                    () = tokio::time::sleep_until(self.next_patrol.into()) => None,
                }
            };
            if let Some(mut readable) = readable {
                match self.read_batch()? {
                    Batch::More => readable.retain_ready(),
                    Batch::Drained => readable.clear_ready(),
                    Batch::Ended(ended) => return Ok(ended),
                }
            }
            let now = Instant::now();
            if now >= self.next_patrol {
                self.next_patrol = now + PATROL_EVERY;
                self.patrol(now);
            }
            tokio::task::yield_now().await;
        }
    }

    fn read_batch(&mut self) -> io::Result<Batch> {
        for _ in 0..BATCH {
            let mut buffer = self.buffer.take().unwrap_or_else(|| self.buffers.take());
            match self.device.get_ref().read(buffer.space()) {
                Ok(length) => self.buffer = self.receive(buffer, length),
                Err(failure) => {
                    self.buffer = Some(buffer);
                    match failure.raw_os_error() {
                        Some(libc::EAGAIN) => return Ok(Batch::Drained),
                        // The request was withdrawn by a signal before it was read.
                        Some(libc::ENOENT | libc::EINTR) => {}
                        Some(libc::ENODEV) => return Ok(Batch::Ended(Ended::Unmounted)),
                        Some(libc::ECONNABORTED | libc::ENOTCONN) => return Ok(Batch::Ended(Ended::Aborted)),
                        _ => return Err(failure),
                    }
                }
            }
        }
        Ok(Batch::More)
    }

    /// Starts what was received, and gives the buffer back unless the request keeps it.
    fn receive(&self, buffer: Buffer, length: usize) -> Option<Buffer> {
        let opcode = parse::opcode_of(buffer.received(length));
        if opcode == opcode::WRITE && length >= LEND_SIZE_MIN {
            match self.buffers.lend(buffer, length) {
                Ok(message) => {
                    self.start(
                        opcode,
                        parse::parse(&message, |range| message.slice(range), self.setxattr_ext),
                    );
                    None
                }
                Err(buffer) => Some(self.receive_copied(buffer, length, opcode)),
            }
        } else {
            Some(self.receive_copied(buffer, length, opcode))
        }
    }

    fn receive_copied(&self, buffer: Buffer, length: usize, opcode: u32) -> Buffer {
        let message = buffer.received(length);
        let copied = |range| Bytes::copy_from_slice(&message[range]);
        self.start(opcode, parse::parse(message, copied, self.setxattr_ext));
        buffer
    }

    fn start(&self, opcode: u32, request: Result<Request, parse::ParseError>) {
        let shared = &self.shared;
        match request {
            Ok(Request::Operation(header, operation)) => shared.operate(header, operation, opcode),
            Ok(Request::Forget(forgotten)) => {
                forgotten.into_iter().for_each(|(node, lookups)| shared.filesystem.forget(node, lookups));
            }
            Ok(Request::Interrupt { unique }) => shared.interrupted(unique),
            Ok(Request::Destroy(header)) => shared.send(&encode(Reply::Done, header.unique, opcode)),
            Ok(Request::Unsupported(header, opcode)) => {
                tracing::debug!(opcode, "the kernel asks for an operation that zabfs does not have");
                if expects_reply(opcode) {
                    shared.send(&error(Errno::ENOSYS, header.unique));
                }
            }
            Err(malformed) => {
                tracing::error!(%malformed, "a request is answered EIO; this kernel's FUSE protocol is not ours");
                if let Some(unique) = malformed.unique() {
                    shared.send(&error(Errno::EIO, unique));
                }
            }
        }
    }

    /// Lets callers go that wait too long or were killed.
    fn patrol(&self, now: Instant) {
        let waiting = &self.shared.waiting;
        if let Some(timeout) = self.timeout {
            // What would pass its time before the next patrol is answered now, so that the promise is kept.
            let limit = timeout.saturating_sub(PATROL_EVERY).max(timeout / 2);
            for unique in waiting.overdue(limit, now) {
                self.shared.let_go(unique, Errno::ETIMEDOUT);
            }
        }
        for suspect in waiting.suspects(LOOKS_PER_PATROL, now) {
            self.shared.look(&suspect);
        }
    }
}

impl<F: Filesystem> Shared<F> {
    fn operate(self: &Rc<Self>, header: RequestHeader, operation: Operation, opcode: u32) {
        if self.waiting.is_full_for(&operation) {
            tracing::warn!(
                operation = operation.name(),
                "refused with EAGAIN: too many operations of killed processes wait for servers to return"
            );
            return self.send(&error(Errno::EAGAIN, header.unique));
        }
        let interrupt = self.waiting.register(header, &operation, opcode, Instant::now());
        let shared = self.clone();
        let mut running = Guarded(Box::pin(operation_of(&self.filesystem, header, operation, interrupt)));
        // Once here, and as a task only if it has to wait. A task is always polled when it starts, so that a
        // wake-up of this first poll cannot be lost.
        match Pin::new(&mut running).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(reply) => shared.finished(header.unique, reply),
            Poll::Pending => {
                tokio::task::spawn_local(async move {
                    let reply = running.await;
                    shared.finished(header.unique, reply);
                });
            }
        }
    }

    fn finished(self: &Rc<Self>, unique: u64, reply: Reply) {
        match self.waiting.finish(unique) {
            Some(Finished::Unanswered(pending)) => self.answer(&pending, reply),
            Some(Finished::Abandoned(pending)) => self.undo(&pending, reply),
            None => {}
        }
    }

    fn answer(self: &Rc<Self>, pending: &Pending, reply: Reply) {
        let undoable = Undo::of(&reply);
        match write_all(&self.device, &encode(reply, pending.header.unique, pending.opcode)) {
            Ok(()) => {}
            // The kernel withdrew the request (an abort): it never saw the reply.
            Err(failure) if failure.raw_os_error() == Some(libc::ENOENT) => self.take_back(pending, undoable),
            Err(failure) => log_refused(&failure, pending.name),
        }
    }

    fn send(&self, message: &Encoded) {
        if let Err(failure) = write_all(&self.device, message) {
            log_refused(&failure, "a message");
        }
    }

    fn interrupted(self: &Rc<Self>, unique: u64) {
        if let Signalled::Look(suspect) = self.waiting.signal(unique, Instant::now()) {
            self.look(&suspect);
        }
    }

    /// Answers EINTR if the caller is about to end or gone.
    fn look(self: &Rc<Self>, suspect: &Suspect) {
        let task = if self.proc_is_ours { fatal::look(suspect.pid) } else { fatal::Look::unseen() };
        let killed = match course(task.verdict, suspect.signalled_for) {
            Course::LetGo => true,
            Course::Keep => false,
            Course::AskProcess => {
                suspect.process.is_some_and(|process| fatal::look(process).verdict.is_end())
            }
            Course::AskExit => fatal::is_exiting(suspect.pid),
        };
        if killed {
            self.let_go(suspect.unique, Errno::EINTR);
        } else if let (None, Some(process)) = (suspect.process, task.process) {
            self.waiting.note_process(suspect.unique, process);
        }
    }

    /// Answers a request whose operation goes on.
    fn let_go(&self, unique: u64, errno: Errno) {
        if let Some(pending) = self.waiting.abandon(unique) {
            tracing::debug!(operation = pending.name, node = pending.header.node, %errno, "caller let go");
            self.send(&error(errno, unique));
        }
    }

    fn undo(self: &Rc<Self>, pending: &Pending, reply: Reply) {
        self.take_back(pending, Undo::of(&reply));
    }

    /// Forgets lookups and releases the handle that the kernel never heard of.
    fn take_back(self: &Rc<Self>, pending: &Pending, undo: Undo) {
        undo.lookups.into_iter().for_each(|node| self.filesystem.forget(node, 1));
        let Some(opened) = undo.opened else { return };
        let header =
            RequestHeader { unique: 0, node: undo.node.unwrap_or(pending.header.node), ..pending.header };
        let release = if pending.opcode == opcode::OPENDIR {
            Operation::ReleaseDir { handle: opened.handle, flags: 0 }
        } else {
            Operation::Release {
                handle: opened.handle,
                flags: 0,
                lock_owner: 0,
                flush: false,
                flock_unlock: false,
            }
        };
        let running = Guarded(Box::pin(operation_of(&self.filesystem, header, release, Interrupt::new())));
        tokio::task::spawn_local(async move { drop(running.await) });
    }
}

/// What to do about a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    LetGo,
    Keep,
    /// Asynchronous I/O outlives the thread that started it, but not the process.
    AskProcess,
    /// A task that ends waits for its asynchronous I/O after its last signal was taken.
    AskExit,
}

fn course(verdict: Verdict, signalled_for: Option<Duration>) -> Course {
    match (verdict, signalled_for) {
        (Verdict::Fatal, _) | (Verdict::Gone, Some(_)) => Course::LetGo,
        (Verdict::Unknown, Some(since)) if since >= UNSEEN_GRACE => Course::LetGo,
        (Verdict::Gone, None) => Course::AskProcess,
        (Verdict::Alive, None) => Course::AskExit,
        (Verdict::Alive, Some(_)) | (Verdict::Unknown, _) => Course::Keep,
    }
}

fn register(device: File) -> io::Result<AsyncFd<File>> {
    #[allow(unsafe_code, reason = "tokio has no safe way to wait for a device")]
    // SAFETY: the file owns its descriptor, is owned by the `AsyncFd` and never replaced or closed before it.
    let registered = unsafe { AsyncFd::register_with_interest(device, INTEREST) };
    registered.map_err(io::Error::from)
}

/// One operation in its span; it starts when it is polled first.
fn operation_of<F: Filesystem>(
    filesystem: &Rc<F>,
    header: RequestHeader,
    operation: Operation,
    interrupt: Interrupt,
) -> impl Future<Output = Reply> + 'static + use<F> {
    let RequestHeader { unique, node, pid, .. } = header;
    let span = tracing::debug_span!("fuse", operation = operation.name(), unique, node, pid);
    let filesystem = filesystem.clone();
    async move { filesystem.handle(header, operation, interrupt).await }.instrument(span)
}

/// What a reply gives the kernel that would have to be given back.
#[derive(Debug, Default, PartialEq, Eq)]
struct Undo {
    lookups: Vec<u64>,
    opened: Option<Opened>,
    node: Option<u64>,
}

impl Undo {
    fn of(reply: &Reply) -> Self {
        match reply {
            Reply::Entry(entry) if entry.node != 0 => Self { lookups: vec![entry.node], ..Self::default() },
            Reply::Opened(opened) => Self { opened: Some(*opened), ..Self::default() },
            Reply::Created(entry, opened) => {
                Self { lookups: vec![entry.node], opened: Some(*opened), node: Some(entry.node) }
            }
            Reply::Directory(directory) => Self { lookups: directory.lookups.clone(), ..Self::default() },
            _ => Self::default(),
        }
    }
}

fn log_refused(failure: &io::Error, what: &'static str) {
    match failure.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENOTCONN | libc::ECONNABORTED) => {
            tracing::debug!(%failure, what, "the mount or the request ended before its answer");
        }
        _ => tracing::error!(%failure, what, "the kernel refused an answer: the request fails with EIO"),
    }
}

/// An operation that answers EIO instead of taking the mount down when it panics.
struct Guarded<T>(Pin<Box<T>>);

impl<T: Future<Output = Reply>> Future for Guarded<T> {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Reply> {
        // The future is not polled again after a panic, so no broken state of it is seen.
        catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(context))).unwrap_or_else(|_| {
            tracing::error!(
                "an operation panicked; its request is answered EIO. This is a bug: please report it"
            );
            Poll::Ready(Reply::Error(Errno::EIO))
        })
    }
}

#[cfg(test)]
#[path = "dispatch_tests.rs"]
mod tests;
