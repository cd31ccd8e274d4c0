use super::*;
use crate::fuse::abi::opcode;

fn header(unique: u64) -> RequestHeader {
    RequestHeader { unique, node: 5, uid: 0, gid: 0, pid: unique as u32 + 100 }
}

fn read() -> Operation {
    Operation::Read { handle: 1, offset: 0, size: 1, flags: 0, lock_owner: None }
}

fn release() -> Operation {
    Operation::Release { handle: 1, flags: 0, lock_owner: 0, flush: false, flock_unlock: false }
}

fn register(waiting: &Waiting, unique: u64, operation: &Operation, now: Instant) -> Interrupt {
    waiting.register(header(unique), operation, opcode::READ, now)
}

fn uniques(suspects: &[Suspect]) -> Vec<u64> {
    suspects.iter().map(|suspect| suspect.unique).collect()
}

#[test]
fn an_interrupt_reaches_its_request_whether_it_comes_after_or_before_it() {
    let (waiting, now) = (Waiting::default(), Instant::now());
    let late = register(&waiting, 2, &Operation::StatFs, now);
    assert!(!late.is_signalled());
    assert!(matches!(waiting.signal(2, now), Signalled::Look(Suspect { unique: 2, pid: 102, .. })));
    assert!(late.is_signalled());
    assert_eq!(waiting.signal(4, now), Signalled::Later);
    assert!(register(&waiting, 4, &Operation::StatFs, now).is_signalled());
    assert_eq!(uniques(&waiting.suspects(10, now)), [2, 4]);
}

#[test]
fn early_interrupts_are_bounded_and_the_oldest_go_first() {
    let (waiting, now) = (Waiting::default(), Instant::now());
    for unique in 0..=EARLY_MAX as u64 {
        waiting.signal(unique, now);
        waiting.signal(unique, now);
    }
    assert!(!register(&waiting, 0, &Operation::StatFs, now).is_signalled());
    assert!(register(&waiting, 1, &Operation::StatFs, now).is_signalled());
    assert!(register(&waiting, EARLY_MAX as u64, &Operation::StatFs, now).is_signalled());
    assert!(waiting.0.borrow().early.order.len() <= EARLY_MAX);
}

#[test]
fn an_operation_that_listens_gets_the_first_word() {
    let (waiting, now) = (Waiting::default(), Instant::now());
    let interrupt = register(&waiting, 2, &Operation::StatFs, now);
    let mut listening = std::pin::pin!(interrupt.any_signal());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(Future::poll(listening.as_mut(), &mut context).is_pending());
    assert_eq!(waiting.signal(2, now), Signalled::Later);
    assert!(Future::poll(listening.as_mut(), &mut context).is_ready());
    assert_eq!(uniques(&waiting.suspects(10, now)), [2]);
}

#[test]
fn release_and_writeback_are_never_suspects_and_old_reads_are_without_a_signal() {
    let (waiting, now) = (Waiting::default(), Instant::now());
    register(&waiting, 2, &release(), now);
    let writeback = Operation::Write(crate::fuse::operation::Write {
        handle: 1,
        offset: 0,
        data: bytes::Bytes::new(),
        flags: 0,
        lock_owner: None,
        from_cache: true,
        kill_suid_gid: false,
    });
    register(&waiting, 4, &writeback, now);
    register(&waiting, 6, &read(), now);
    register(&waiting, 8, &Operation::StatFs, now);
    assert_eq!(waiting.signal(2, now), Signalled::Later);
    assert_eq!(waiting.signal(4, now), Signalled::Later);
    assert_eq!(waiting.suspects(10, now), []);
    let later = now + WATCH_AFTER;
    assert_eq!(uniques(&waiting.suspects(10, later)), [6]);
    waiting.note_process(6, 42);
    let expected = Suspect { unique: 6, pid: 106, process: Some(42), signalled_for: None };
    assert_eq!(waiting.suspects(10, later), [expected]);
}

#[test]
fn suspects_that_did_not_fit_come_first_the_next_time() {
    let (waiting, now) = (Waiting::default(), Instant::now());
    for unique in [1, 2, 3, 4, 5] {
        register(&waiting, unique, &Operation::StatFs, now);
        waiting.signal(unique, now);
    }
    assert_eq!(uniques(&waiting.suspects(2, now)), [1, 2]);
    assert_eq!(uniques(&waiting.suspects(2, now)), [3, 4]);
    assert_eq!(uniques(&waiting.suspects(2, now)), [5, 1]);
    assert_eq!(uniques(&waiting.suspects(9, now)), [2, 3, 4, 5, 1]);
}

#[test]
fn an_abandoned_operation_is_shown_until_it_ends() {
    let (waiting, now) = (Waiting::default(), Instant::now());
    let interrupt = register(&waiting, 2, &read(), now);
    register(&waiting, 4, &Operation::StatFs, now + Duration::from_secs(1));
    let timeout = Duration::from_secs(1);
    assert_eq!(waiting.overdue(timeout, now + timeout), [2]);
    assert_eq!(waiting.abandon(2).map(|pending| pending.name), Some("READ"));
    assert!(waiting.abandon(2).is_none());
    assert!(interrupt.is_abandoned() && interrupt.is_signalled());
    assert_eq!((waiting.in_flight(), waiting.abandoned()), (1, 1));
    let list = waiting.list(now + timeout);
    let expected = InFlight { operation: "READ", node: 5, pid: 102, age: timeout, abandoned: true };
    assert_eq!(list[0], expected);
    assert_eq!((list[1].operation, list[1].abandoned), ("STATFS", false));
    assert!(matches!(waiting.finish(2), Some(Finished::Abandoned(_))));
    assert!(matches!(waiting.finish(4), Some(Finished::Unanswered(_))));
    assert!(waiting.finish(4).is_none());
}

#[test]
fn at_the_bound_only_what_gives_back_is_accepted() {
    let (waiting, now) = (Waiting::default(), Instant::now());
    for unique in 0..ABANDONED_MAX as u64 {
        assert!(!waiting.is_full_for(&read()));
        register(&waiting, unique, &read(), now);
        waiting.abandon(unique);
    }
    assert!(waiting.is_full_for(&read()));
    assert!(!waiting.is_full_for(&release()));
    assert!(!waiting.is_full_for(&Operation::Flush { handle: 1, lock_owner: 1 }));
    waiting.finish(0);
    assert!(!waiting.is_full_for(&read()));
}
