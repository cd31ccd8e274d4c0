use super::*;
use proptest::prelude::*;

const HEADER: RequestHeader = RequestHeader { unique: 0x1122, node: 7, uid: 1000, gid: 100, pid: 4321 };

/// A request as the kernel lays it out.
fn message(opcode: u32, body: &[&[u8]]) -> Vec<u8> {
    extended(opcode, body, 0)
}

fn extended(opcode: u32, body: &[&[u8]], extension_words: u16) -> Vec<u8> {
    let body = body.concat();
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&((HEADER_SIZE + body.len()) as u32).to_ne_bytes());
    bytes.extend_from_slice(&opcode.to_ne_bytes());
    bytes.extend_from_slice(&HEADER.unique.to_ne_bytes());
    bytes.extend_from_slice(&HEADER.node.to_ne_bytes());
    for word in [HEADER.uid, HEADER.gid, HEADER.pid] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(&extension_words.to_ne_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&body);
    bytes
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

fn parse_copied(message: &[u8], setxattr_ext: bool) -> Result<Request, ParseError> {
    parse(message, |range| Bytes::copy_from_slice(&message[range]), setxattr_ext)
}

#[track_caller]
fn check(opcode: u32, body: &[&[u8]], expected: Operation) {
    let message = message(opcode, body);
    assert_eq!(parse_copied(&message, true), Ok(Request::Operation(HEADER, expected.clone())));
    // What is cut short is refused, or only padding was cut.
    for length in HEADER_SIZE..message.len() {
        let mut cut = message[..length].to_vec();
        cut[..4].copy_from_slice(&(length as u32).to_ne_bytes());
        if let Ok(Request::Operation(_, operation)) = parse_copied(&cut, true) {
            assert_eq!(operation, expected, "cut at {length}");
        }
    }
}

#[test]
fn names() {
    check(opcode::LOOKUP, &[b"a b\0"], Operation::Lookup { name: b"a b".to_vec() });
    check(opcode::UNLINK, &[b"x\0"], Operation::Unlink { name: b"x".to_vec() });
    check(opcode::RMDIR, &[b"x\0"], Operation::RmDir { name: b"x".to_vec() });
    let symlink = Operation::Symlink { name: b"l".to_vec(), target: b"../t".to_vec() };
    check(opcode::SYMLINK, &[b"l\0", b"../t\0"], symlink);
    let node = Operation::MkNod { name: b"n".to_vec(), mode: 0o10644, rdev: 5, umask: 0o22 };
    check(opcode::MKNOD, &[&words(&[0o10644, 5, 0o22, 0]), b"n\0"], node);
    let directory = Operation::MkDir { name: b"d".to_vec(), mode: 0o755, umask: 0o77 };
    check(opcode::MKDIR, &[&words(&[0o755, 0o77]), b"d\0"], directory);
    check(
        opcode::LINK,
        &[&longs(&[99]), b"other\0"],
        Operation::Link { source: 99, name: b"other".to_vec() },
    );
    assert_eq!(
        parse_copied(&message(opcode::READLINK, &[]), true),
        Ok(Request::Operation(HEADER, Operation::ReadLink))
    );
}

#[test]
fn both_forms_of_rename() {
    let rename =
        |flags| Operation::Rename { name: b"old".to_vec(), new_parent: 12, new_name: b"new".to_vec(), flags };
    check(opcode::RENAME, &[&longs(&[12]), b"old\0new\0"], rename(0));
    check(opcode::RENAME2, &[&longs(&[12]), &words(&[2, 0]), b"old\0new\0"], rename(2));
}

#[test]
fn attributes() {
    check(opcode::GETATTR, &[&words(&[0, 0]), &longs(&[9])], Operation::GetAttr { handle: None });
    check(opcode::GETATTR, &[&words(&[1, 0]), &longs(&[9])], Operation::GetAttr { handle: Some(9) });
    let statx = Operation::Statx { handle: Some(9), flags: 0x800, mask: 0xfff };
    check(opcode::STATX, &[&words(&[1, 0]), &longs(&[9]), &words(&[0x800, 0xfff])], statx);
    let fields: [&[u8]; 4] = [
        &longs(&[3, 4096, 77, (-5_i64) as u64, 6, 7]),
        &words(&[500, 4_000_000_000, 9]),
        &words(&[0o100600, 0, 1, 2, 0]),
        &[],
    ];
    let all = |valid: u32| [&words(&[valid, 0])[..], fields[0], fields[1], fields[2]].concat();
    check(opcode::SETATTR, &[&all(0)], Operation::SetAttr(SetAttr::default()));
    let everything = SetAttr {
        handle: Some(3),
        mode: Some(0o100600),
        uid: Some(1),
        gid: Some(2),
        size: Some(4096),
        atime: Some(TimeOrNow::At(Timestamp { seconds: -5, nanoseconds: 500 })),
        mtime: Some(TimeOrNow::Now),
        ctime: Some(Timestamp { seconds: 7, nanoseconds: 9 }),
        lock_owner: Some(77),
        kill_suid_gid: true,
    };
    let valid = 0b1111_1111_1111 & !fattr::ATIME_NOW;
    check(opcode::SETATTR, &[&all(valid)], Operation::SetAttr(everything));
    // Nanoseconds out of range are capped, not trusted.
    let capped = SetAttr {
        mtime: Some(TimeOrNow::At(Timestamp { seconds: 6, nanoseconds: 999_999_999 })),
        ..SetAttr::default()
    };
    check(opcode::SETATTR, &[&all(fattr::MTIME)], Operation::SetAttr(capped));
}

#[test]
fn open_files() {
    let open = Operation::Open { flags: 0o1001, kill_suid_gid: true };
    check(opcode::OPEN, &[&words(&[0o1001, 1])], open);
    let create = Operation::Create {
        name: b"f".to_vec(),
        flags: 0o102,
        mode: 0o100644,
        umask: 0o22,
        kill_suid_gid: false,
    };
    check(opcode::CREATE, &[&words(&[0o102, 0o100644, 0o22, 0]), b"f\0"], create);
    let unnamed = Operation::TmpFile { flags: 2, mode: 0o100600, umask: 0 };
    check(opcode::TMPFILE, &[&words(&[2, 0o100600, 0, 0]), b"/\0"], unnamed);
    let read_body =
        [&longs(&[5, 1 << 40])[..], &words(&[4096, 2]), &longs(&[77]), &words(&[0o40000, 0])].concat();
    let read =
        Operation::Read { handle: 5, offset: 1 << 40, size: 4096, flags: 0o40000, lock_owner: Some(77) };
    check(opcode::READ, &[&read_body], read);
    let list = |plus| Operation::ReadDir { handle: 5, offset: 1 << 40, size: 4096, plus };
    check(opcode::READDIR, &[&read_body], list(false));
    check(opcode::READDIRPLUS, &[&read_body], list(true));
    let release_body = [&longs(&[5])[..], &words(&[1, 3]), &longs(&[77])].concat();
    let release = Operation::Release { handle: 5, flags: 1, lock_owner: 77, flush: true, flock_unlock: true };
    check(opcode::RELEASE, &[&release_body], release);
    check(opcode::RELEASEDIR, &[&release_body], Operation::ReleaseDir { handle: 5, flags: 1 });
    check(opcode::FSYNC, &[&longs(&[5]), &words(&[1, 0])], Operation::Fsync { handle: 5, data_only: true });
    check(
        opcode::FSYNCDIR,
        &[&longs(&[5]), &words(&[0, 0])],
        Operation::FsyncDir { handle: 5, data_only: false },
    );
    check(opcode::FLUSH, &[&longs(&[5, 0, 77])], Operation::Flush { handle: 5, lock_owner: 77 });
    check(opcode::OPENDIR, &[&words(&[0o200000, 0])], Operation::OpenDir { flags: 0o200000 });
    check(opcode::ACCESS, &[&words(&[4, 0])], Operation::Access { mask: 4 });
    let seek = Operation::Seek { handle: 5, offset: 8192, whence: 3 };
    check(opcode::LSEEK, &[&longs(&[5, 8192]), &words(&[3, 0])], seek);
    let allocate = Operation::Fallocate { handle: 5, offset: 1, length: 2, mode: 3 };
    check(opcode::FALLOCATE, &[&longs(&[5, 1, 2]), &words(&[3, 0])], allocate);
    let poll = Operation::Poll { handle: 5, poll_handle: 6, events: 0x41, notify: true };
    check(opcode::POLL, &[&longs(&[5, 6]), &words(&[1, 0x41])], poll);
    let copy = Operation::CopyFileRange {
        handle: 1,
        offset: 2,
        target_node: 3,
        target_handle: 4,
        target_offset: 5,
        length: 6,
        flags: 0,
    };
    check(opcode::COPY_FILE_RANGE, &[&longs(&[1, 2, 3, 4, 5, 6, 0])], copy.clone());
    check(opcode::COPY_FILE_RANGE_64, &[&longs(&[1, 2, 3, 4, 5, 6, 0])], copy);
    check(opcode::SYNCFS, &[&longs(&[0])], Operation::SyncFs);
    check(opcode::STATFS, &[], Operation::StatFs);
}

#[test]
fn data_of_a_write_and_an_ioctl() {
    let body = |size: u32, flags: u32| {
        [&longs(&[5, 100])[..], &words(&[size, flags]), &longs(&[77]), &words(&[0o100001, 0])].concat()
    };
    let write = |lock_owner, from_cache, kill_suid_gid| {
        Operation::Write(Write {
            handle: 5,
            offset: 100,
            data: Bytes::from_static(b"hello"),
            flags: 0o100001,
            lock_owner,
            from_cache,
            kill_suid_gid,
        })
    };
    check(opcode::WRITE, &[&body(5, 2), b"hello"], write(Some(77), false, false));
    check(opcode::WRITE, &[&body(5, 5), b"hello"], write(None, true, true));
    let short = message(opcode::WRITE, &[&body(6, 0), b"hello"]);
    let expected = ParseError::Field { unique: HEADER.unique, opcode: opcode::WRITE, field: "data" };
    assert_eq!(parse_copied(&short, true), Err(expected));
    let ioctl = Operation::Ioctl {
        handle: 5,
        flags: 4,
        command: 0x8008_6601,
        argument: 0xdead,
        input: Bytes::from_static(b"in"),
        output_size: 8,
    };
    let fixed = [&longs(&[5])[..], &words(&[4, 0x8008_6601]), &longs(&[0xdead]), &words(&[2, 8])].concat();
    check(opcode::IOCTL, &[&fixed, b"in"], ioctl);
}

#[test]
fn data_of_a_write_is_a_slice_of_the_message_if_the_caller_says_so() {
    let fixed = [&longs(&[5, 0])[..], &words(&[3, 0]), &longs(&[0]), &words(&[0, 0])].concat();
    let message = Bytes::from(message(opcode::WRITE, &[&fixed, b"abc"]));
    let request = parse(&message, |range| message.slice(range), false);
    let Ok(Request::Operation(_, Operation::Write(write))) = request else { panic!("{request:?}") };
    assert_eq!(write.data.as_ptr(), message[WRITE_HEAD_SIZE..].as_ptr());
}

#[test]
fn extended_attributes_in_both_forms() {
    let set = |kill_sgid| Operation::SetXattr {
        name: b"user.k".to_vec(),
        value: Bytes::from_static(b"v\0w"),
        flags: 2,
        kill_sgid,
    };
    let long = message(opcode::SETXATTR, &[&words(&[3, 2, 1, 0]), b"user.k\0v\0w"]);
    assert_eq!(parse_copied(&long, true), Ok(Request::Operation(HEADER, set(true))));
    let short = message(opcode::SETXATTR, &[&words(&[3, 2]), b"user.k\0v\0w"]);
    assert_eq!(parse_copied(&short, false), Ok(Request::Operation(HEADER, set(false))));
    let get = Operation::GetXattr { name: b"user.k".to_vec(), size: 64 };
    check(opcode::GETXATTR, &[&words(&[64, 0]), b"user.k\0"], get);
    check(opcode::LISTXATTR, &[&words(&[64, 0])], Operation::ListXattr { size: 64 });
    check(opcode::REMOVEXATTR, &[b"user.k\0"], Operation::RemoveXattr { name: b"user.k".to_vec() });
}

#[test]
fn flock_is_told_from_fcntl() {
    let body = |kind: u32, flags: u32| {
        [&longs(&[5, 0xabc, 10, i64::MAX as u64])[..], &words(&[kind, 4321, flags, 0])].concat()
    };
    let lock = |kind, flock| LockRequest {
        handle: 5,
        owner: 0xabc,
        lock: FileLock { start: 10, end: i64::MAX as u64, kind, pid: 4321 },
        flock,
    };
    check(opcode::GETLK, &[&body(0, 0)], Operation::GetLock(lock(LockKind::Read, false)));
    let set = |kind, flock, wait| Operation::SetLock { lock: lock(kind, flock), wait };
    check(opcode::SETLK, &[&body(1, 1)], set(LockKind::Write, true, false));
    check(opcode::SETLKW, &[&body(2, 0)], set(LockKind::Unlock, false, true));
    assert!(parse_copied(&message(opcode::SETLK, &[&body(3, 0)]), true).is_err());
}

#[test]
fn messages_that_are_no_operations() {
    let forget = message(opcode::FORGET, &[&longs(&[3])]);
    assert_eq!(parse_copied(&forget, true), Ok(Request::Forget(vec![(7, 3)])));
    let batch = message(opcode::BATCH_FORGET, &[&words(&[2, 0]), &longs(&[10, 1, 11, 2])]);
    assert_eq!(parse_copied(&batch, true), Ok(Request::Forget(vec![(10, 1), (11, 2)])));
    let liar = message(opcode::BATCH_FORGET, &[&words(&[u32::MAX, 0]), &longs(&[10, 1])]);
    assert_eq!(parse_copied(&liar, true).map_err(|error| error.unique()), Err(None));
    let interrupt = message(opcode::INTERRUPT, &[&longs(&[0x42])]);
    assert_eq!(parse_copied(&interrupt, true), Ok(Request::Interrupt { unique: 0x42 }));
    assert_eq!(parse_copied(&message(opcode::DESTROY, &[]), true), Ok(Request::Destroy(HEADER)));
    assert_eq!(parse_copied(&message(9999, &[]), true), Ok(Request::Unsupported(HEADER, 9999)));
    assert_eq!(
        parse_copied(&message(opcode::BMAP, &[]), true),
        Ok(Request::Unsupported(HEADER, opcode::BMAP))
    );
}

#[test]
fn extensions_are_no_part_of_the_body() {
    let with = extended(opcode::MKDIR, &[&words(&[0o755, 0]), b"d\0", &[0xff; 16]], 2);
    let expected = Operation::MkDir { name: b"d".to_vec(), mode: 0o755, umask: 0 };
    assert_eq!(parse_copied(&with, true), Ok(Request::Operation(HEADER, expected)));
    let too_long = extended(opcode::MKDIR, &[&words(&[0o755, 0])], 2);
    assert!(matches!(parse_copied(&too_long, true), Err(ParseError::Length { .. })));
}

#[test]
fn what_cannot_be_understood_names_the_request_if_it_can() {
    assert_eq!(parse_copied(&[0; 39], true), Err(ParseError::Header { length: 39 }));
    assert_eq!(ParseError::Header { length: 39 }.unique(), None);
    let mut longer = message(opcode::STATFS, &[]);
    longer.push(0);
    let error = parse_copied(&longer, true).expect_err("a byte too many");
    assert_eq!(error.unique(), Some(HEADER.unique));
    let nameless = parse_copied(&message(opcode::LOOKUP, &[b"\0"]), true).expect_err("an empty name");
    assert_eq!(nameless.unique(), Some(HEADER.unique));
    assert!(nameless.to_string().contains("malformed name"), "{nameless}");
    let endless = parse_copied(&message(opcode::LOOKUP, &[b"abc"]), true);
    assert!(endless.is_err());
    let forget = parse_copied(&message(opcode::FORGET, &[]), true).expect_err("no count");
    assert_eq!(forget.unique(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), extended in any::<bool>()) {
        let _ = parse_copied(&bytes, extended);
    }

    #[test]
    fn an_arbitrary_body_never_panics(
        opcode in 0u32..60,
        body in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..160),
        extension_words in 0u16..4,
        extended_form in any::<bool>(),
    ) {
        let bytes = extended(opcode, &[&body], extension_words);
        if let Ok(Request::Operation(header, operation)) = parse_copied(&bytes, extended_form) {
            prop_assert_eq!(header, HEADER);
            prop_assert!(!operation.name().is_empty());
        }
    }
}
