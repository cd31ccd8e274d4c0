use super::*;
use protocol::InodeId;

const UNIQUE: u64 = 0x1122_3344;

fn attr() -> Attr {
    let time = |seconds, nanoseconds| Timestamp { seconds, nanoseconds };
    Attr {
        inode: InodeId(0xabcd),
        kind: FileKind::File,
        mode: 0o644,
        nlink: 2,
        uid: 1000,
        gid: 100,
        rdev: 0x0012_3456,
        size: 5000,
        blocks: 16,
        atime: time(-1, 10),
        mtime: time(2, 20),
        ctime: time(3, 30),
        btime: time(4, 40),
    }
}

fn entry(node: u64) -> Entry {
    Entry {
        node,
        generation: 1,
        attr: attr(),
        entry_valid: Duration::new(10, 11),
        attr_valid: Duration::new(12, 13),
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

fn attr_bytes() -> Vec<u8> {
    let minus_one = u64::MAX;
    let numbers = longs(&[0xabcd, 5000, 16, minus_one, 2, 3]);
    [numbers, words(&[10, 20, 30, 0o100_644, 2, 1000, 100, 0x0012_3456, 0, 0])].concat()
}

fn entry_bytes(node: u64) -> Vec<u8> {
    [longs(&[node, 1, 10, 12]), words(&[11, 13]), attr_bytes()].concat()
}

/// The whole reply must be a header with its length, no error and the unique, then `body`.
#[track_caller]
fn check(reply: Reply, opcode: u32, body: &[u8]) {
    let encoded = encode(reply, UNIQUE, opcode);
    let mut expected = words(&[(HEADER_SIZE + body.len()) as u32, 0]);
    expected.extend(longs(&[UNIQUE]));
    expected.extend_from_slice(body);
    let whole = [encoded.head, encoded.parts.concat()].concat();
    assert_eq!(whole, expected);
}

#[test]
fn errors_are_negative_and_never_beyond_what_the_kernel_takes() {
    let number = |errno| {
        let bytes = encode(Reply::Error(Errno(errno)), UNIQUE, 0).head;
        assert_eq!(bytes.len(), HEADER_SIZE);
        i32::from_ne_bytes(bytes[4..8].try_into().expect("four bytes"))
    };
    assert_eq!(number(libc::ENOENT), -libc::ENOENT);
    assert_eq!([number(0), number(-5), number(512), number(i32::MIN)], [-libc::EIO; 4]);
}

#[test]
fn entries_and_attributes() {
    assert_eq!((attr_bytes().len(), entry_bytes(9).len()), (88, ENTRY_SIZE));
    check(Reply::Entry(entry(9)), opcode::LOOKUP, &entry_bytes(9));
    let attributes = [longs(&[12]), words(&[13, 0]), attr_bytes()].concat();
    check(Reply::Attributes(attr(), Duration::new(12, 13)), opcode::GETATTR, &attributes);
    let opened = Opened { handle: 77, flags: 3 };
    let opened_bytes = [longs(&[77]), words(&[3, 0])].concat();
    check(Reply::Opened(opened), opcode::OPEN, &opened_bytes);
    check(Reply::Created(entry(9), opened), opcode::CREATE, &[entry_bytes(9), opened_bytes].concat());
}

#[test]
fn statx_has_birth_time_and_a_split_device_number() {
    let time = |seconds: i64, nanoseconds: u32| [longs(&[seconds as u64]), words(&[nanoseconds, 0])].concat();
    let body = [
        longs(&[12]),
        words(&[13, 0]),
        longs(&[0, 0]),
        words(&[0xfff, 0]),
        longs(&[0]),
        words(&[2, 1000, 100, 0o100_644]),
        longs(&[0xabcd, 5000, 16, 0]),
        time(-1, 10),
        time(4, 40),
        time(3, 30),
        time(2, 20),
        words(&[0x234, 0x156, 0, 0]),
        vec![0; 112],
    ]
    .concat();
    assert_eq!(body.len(), 288);
    check(Reply::Statx(attr(), Duration::new(12, 13)), opcode::STATX, &body);
}

#[test]
fn data_goes_out_as_it_is() {
    let data = Bytes::from_static(b"some data");
    let encoded = encode(Reply::Data(data.clone()), UNIQUE, opcode::READ);
    assert_eq!(encoded.parts[0].as_ptr(), data.as_ptr());
    check(Reply::Data(data.clone()), opcode::READ, b"some data");
    check(Reply::Data(Bytes::new()), opcode::READ, b"");
    let parts = vec![data.slice(..4), Bytes::new(), data.slice(4..)];
    check(Reply::DataParts(parts), opcode::READ, b"some data");
    let many: Vec<Bytes> = (0..=DATA_PARTS_MAX).map(|_| Bytes::from_static(b"x")).collect();
    assert_eq!(encode(Reply::DataParts(many.clone()), UNIQUE, 0).parts.len(), 1);
    check(Reply::DataParts(many), opcode::READ, &[b'x'; DATA_PARTS_MAX + 1]);
}

#[test]
fn numbers() {
    check(Reply::Done, opcode::FLUSH, b"");
    check(Reply::Written(5), opcode::WRITE, &words(&[5, 0]));
    check(Reply::XattrSize(6), opcode::GETXATTR, &words(&[6, 0]));
    check(Reply::Poll(0x41), opcode::POLL, &words(&[0x41, 0]));
    check(Reply::Seek(1 << 40), opcode::LSEEK, &longs(&[1 << 40]));
    check(Reply::Copied(1 << 40), opcode::COPY_FILE_RANGE_64, &longs(&[1 << 40]));
    check(Reply::Copied(1 << 40), opcode::COPY_FILE_RANGE, &words(&[1 << 31, 0]));
    let lock = FileLock { start: 1, end: 2, kind: LockKind::Write, pid: 3 };
    check(Reply::Lock(lock), opcode::GETLK, &[longs(&[1, 2]), words(&[1, 3])].concat());
    let ioctl = [words(&[(-1_i32) as u32, 0, 0, 0]), b"out".to_vec()].concat();
    check(Reply::Ioctl(-1, Bytes::from_static(b"out")), opcode::IOCTL, &ioctl);
    let figures = Statfs {
        blocks: 1,
        blocks_free: 2,
        blocks_available: 3,
        files: 4,
        files_free: 5,
        block_size: 4096,
        name_max: 255,
    };
    let body = [longs(&[1, 2, 3, 4, 5]), words(&[4096, 255, 4096, 0]), vec![0; 24]].concat();
    assert_eq!(body.len(), 80);
    check(Reply::Statfs(figures), opcode::STATFS, &body);
}

fn named(name: &[u8]) -> DirectoryEntry<'_> {
    DirectoryEntry { inode: 5, offset: 6, kind: FileKind::Directory, name }
}

#[test]
fn a_listing_is_filled_to_the_last_byte_and_not_beyond() {
    // An entry with a name of 1 to 8 bytes takes 32.
    let mut listing = Directory::new(64);
    assert!(listing.is_empty());
    assert!(listing.push(&named(b"a")));
    assert!(!listing.push(&named(b"123456789")));
    assert!(listing.push(&named(b"12345678")));
    assert!(!listing.push(&named(b"b")));
    let first = [longs(&[5, 6]), words(&[1, 4]), b"a\0\0\0\0\0\0\0".to_vec()].concat();
    let second = [longs(&[5, 6]), words(&[8, 4]), b"12345678".to_vec()].concat();
    check(Reply::Directory(listing), opcode::READDIR, &[first, second].concat());
    let mut too_small = Directory::new(31);
    assert!(!too_small.push(&named(b"a")));
    check(Reply::Directory(too_small), opcode::READDIR, b"");
}

#[test]
fn a_listing_with_attributes_counts_the_lookups_that_the_kernel_counts() {
    let mut listing = Directory::new(3 * 160);
    assert!(listing.push_plus(&named(b"."), Some(&entry(1))));
    assert!(listing.push_plus(&named(b"a"), Some(&entry(9))));
    assert!(listing.push_plus(&named(b"b"), None));
    assert!(!listing.push_plus(&named(b"c"), Some(&entry(10))));
    assert_eq!(listing.lookups, [9]);
    let dirent = |name: u8| {
        let mut padded = [0; 8];
        padded[0] = name;
        [longs(&[5, 6]), words(&[1, 4]), padded.to_vec()].concat()
    };
    let body =
        [entry_bytes(1), dirent(b'.'), entry_bytes(9), dirent(b'a'), vec![0; ENTRY_SIZE], dirent(b'b')];
    check(Reply::Directory(listing), opcode::READDIRPLUS, &body.concat());
}
