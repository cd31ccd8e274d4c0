//! The kernel's edge: mounts, reads requests, writes replies. No filesystem logic lives here.
//!
//! Model. [`Mount::establish`] makes the mount and negotiates INIT through `fuser`; a [`Dispatcher`] then reads
//! every request from a duplicate of that descriptor, turns it into an [`Operation`] and hands it to one
//! [`Filesystem`]. `fuser`'s own loop never runs: it loses INTERRUPT, the flock flag of SETLK, TMPFILE, STATX and
//! the flags of notifications.
//!
//! | module | what |
//! |---|---|
//! | [`abi`] | numbers of the kernel's FUSE protocol, 7.45 |
//! | [`operation`], [`reply`] | typed requests and replies: what `fs` codes against |
//! | [`parse`], [`encode`] | bytes to [`Operation`], [`Reply`] to bytes; pure |
//! | [`interrupt`], [`fatal`] | who wants to stop waiting, and who must |
//! | [`dispatch`], [`waiting`] | the loop: one thread, any number of requests in flight; which those are |
//! | [`buffer`] | receive buffers: data of a WRITE is not copied |
//! | [`notify`] | invalidations; blocking, for threads that serve no requests |
//! | [`mount`], [`mountinfo`], [`init`] | mount(2), dead mounts, read-ahead, capabilities |
//!
//! Invariants:
//! - Requests are independent: one that hangs delays no other.
//! - Every request but FORGET, BATCH_FORGET and INTERRUPT is answered exactly once.
//! - A reply that the kernel will never see (its request was answered EINTR or ETIMEDOUT before) is undone: its
//!   lookups are forgotten, its handles released.
//! - Nothing that the kernel or a user sends makes this layer panic.

use std::future::Future;
use std::rc::Rc;

pub mod abi;
pub mod buffer;
pub mod dispatch;
pub mod encode;
pub mod fatal;
pub mod init;
pub mod interrupt;
pub mod mount;
pub mod mountinfo;
pub mod notify;
pub mod operation;
pub mod parse;
pub mod reply;
pub mod waiting;

pub use dispatch::{Dispatcher, Ended};
pub use interrupt::Interrupt;
pub use mount::{Mount, MountError, MountOptions, Unmount};
pub use notify::Notifier;
pub use operation::{Operation, RequestHeader};
pub use reply::{Directory, DirectoryEntry, Entry, Opened, Reply};
pub use waiting::Waiting;

/// What answers the requests of one mount. Everything runs on one thread, in a `LocalSet`.
pub trait Filesystem: 'static {
    /// Answers one request. Requests run concurrently and in no particular order; one that waits delays no other.
    ///
    /// The future is polled once on the spot and becomes a task of its own only if it has to wait, so an answer
    /// from a cache costs no hop. It is never cancelled: when its caller was killed or `request_timeout` passed,
    /// it runs on and its reply is undone (see [`Interrupt::is_abandoned`]).
    ///
    /// A panic is answered with EIO and logged.
    fn handle(
        self: Rc<Self>,
        request: RequestHeader,
        operation: Operation,
        interrupt: Interrupt,
    ) -> impl Future<Output = Reply> + 'static;

    /// The kernel dropped `lookups` of the references that replies with an entry gave it. Called inline, must
    /// not block.
    fn forget(&self, node: u64, lookups: u64);

    /// The mount is gone: no further request will come. Operations may still be running.
    fn destroy(&self);
}
