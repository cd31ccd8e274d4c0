#![allow(
    clippy::host_endian_bytes,
    reason = "the kernel on this machine is the peer: its byte order is ours"
)]

use super::*;

#[track_caller]
fn check(message: &Encoded, code: i32, body: &[&[u8]]) {
    let body = body.concat();
    let whole = [message.head.clone(), message.parts.concat()].concat();
    let mut expected = ((16 + body.len()) as u32).to_ne_bytes().to_vec();
    expected.extend(code.to_ne_bytes());
    expected.extend([0; 8]);
    expected.extend(body);
    assert_eq!(whole, expected);
}

#[test]
fn messages_have_unique_zero_and_the_code_in_place_of_the_error() {
    let longs = |longs: &[i64]| longs.iter().flat_map(|long| long.to_ne_bytes()).collect::<Vec<u8>>();
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    check(&inval_inode(7, -1, 0), notify::INVAL_INODE, &[&longs(&[7, -1, 0])]);
    check(&inval_entry(7, b"abc", 1), notify::INVAL_ENTRY, &[&longs(&[7]), &words(&[3, 1]), b"abc\0"]);
    check(&delete(7, 8, b"abc"), notify::DELETE, &[&longs(&[7, 8]), &words(&[3, 0]), b"abc\0"]);
    let data = Bytes::from_static(b"data");
    check(&store(7, 9, data), notify::STORE, &[&longs(&[7, 9]), &words(&[4, 0]), b"data"]);
    check(&Writer::notification(notify::INC_EPOCH).finish(Vec::new()), notify::INC_EPOCH, &[]);
}
