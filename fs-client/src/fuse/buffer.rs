//! Receive buffers: page-aligned data of a WRITE goes on to the file system without a copy.

use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};

use super::abi::IO_SIZE_MAX;
use super::parse::WRITE_HEAD_SIZE;

/// Room for the largest request: 1 MiB of data and 64 KiB for header, names and extensions.
pub const RECEIVE_SIZE: usize = IO_SIZE_MAX + (64 << 10);
/// WRITEs from this size on lend their buffer; smaller ones are copied out of it, so that a small piece that is
/// kept for long never pins a large buffer.
pub const LEND_SIZE_MIN: usize = 128 << 10;
/// Most buffers that are lent at a time (about 70 MiB); beyond it data is copied into memory of its own size.
pub const LENT_MAX: usize = 64;
/// Most idle buffers that are kept: their pages are already there, a fresh one costs 270 page faults.
const IDLE_MAX: usize = 16;
const PAGE: usize = 4096;

/// Hands out receive buffers and takes them back when the last [`Bytes`] of them is dropped, on any thread.
#[derive(Clone, Debug, Default)]
pub struct Buffers(Arc<Mutex<Shelf>>);

#[derive(Debug, Default)]
struct Shelf {
    idle: Vec<Vec<u8>>,
    lent: usize,
}

/// One buffer. Requests are read to `start..`, which puts the data of a WRITE on a page boundary.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffers {
    /// An idle buffer, or a new one.
    pub fn take(&self) -> Buffer {
        let idle = self.shelf().idle.pop();
        let bytes = idle.unwrap_or_else(|| vec![0; RECEIVE_SIZE + 2 * PAGE]);
        let to_boundary = bytes.as_ptr().align_offset(PAGE);
        let boundary = if to_boundary < WRITE_HEAD_SIZE { to_boundary + PAGE } else { to_boundary };
        // `align_offset` may decline; then the data is merely not aligned.
        let start = if boundary <= 2 * PAGE { boundary - WRITE_HEAD_SIZE } else { 0 };
        Buffer { bytes, start }
    }

    /// Turns the first `length` received bytes into shared ones. Gives the buffer back if too many are lent.
    pub fn lend(&self, buffer: Buffer, length: usize) -> Result<Bytes, Buffer> {
        {
            let mut shelf = self.shelf();
            if shelf.lent >= LENT_MAX {
                return Err(buffer);
            }
            shelf.lent += 1;
        }
        let range = buffer.start..buffer.start + length;
        Ok(Bytes::from_owner(Lent { bytes: buffer.bytes, home: self.clone() }).slice(range))
    }

    fn shelf(&self) -> std::sync::MutexGuard<'_, Shelf> {
        // The shelf is consistent after every statement, so a panic elsewhere leaves it usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffer {
    /// Where to read the next request to.
    pub fn space(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + RECEIVE_SIZE]
    }

    /// The first `length` bytes that were read.
    pub fn received(&self, length: usize) -> &[u8] {
        &self.bytes[self.start..self.start + length]
    }
}

struct Lent {
    bytes: Vec<u8>,
    home: Buffers,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut shelf = self.home.shelf();
        shelf.lent -= 1;
        if shelf.idle.len() < IDLE_MAX {
            shelf.idle.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_of_a_write_is_page_aligned_and_not_copied() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take();
        assert_eq!(buffer.space().len(), RECEIVE_SIZE);
        buffer.space()[WRITE_HEAD_SIZE] = 7;
        let at = buffer.received(WRITE_HEAD_SIZE + 1).as_ptr();
        let bytes = buffers.lend(buffer, WRITE_HEAD_SIZE + 1).expect("none is lent yet");
        assert_eq!(bytes.as_ptr(), at);
        let data = bytes.slice(WRITE_HEAD_SIZE..);
        assert_eq!(&data[..], [7]);
        assert_eq!(data.as_ptr().align_offset(PAGE), 0);
    }

    #[test]
    fn a_buffer_comes_back_when_its_last_slice_is_dropped() {
        let buffers = Buffers::default();
        let bytes = buffers.lend(buffers.take(), 10).expect("none is lent yet");
        let slice = bytes.slice(2..4);
        drop(bytes);
        assert_eq!(buffers.shelf().lent, 1);
        std::thread::spawn(move || drop(slice)).join().expect("dropping does not panic");
        let shelf = buffers.shelf();
        assert_eq!((shelf.lent, shelf.idle.len()), (0, 1));
    }

    #[test]
    fn at_the_bound_the_buffer_is_given_back_for_copying() {
        let buffers = Buffers::default();
        let lent: Vec<_> =
            (0..LENT_MAX).map(|_| buffers.lend(buffers.take(), 1).expect("below the bound")).collect();
        assert!(buffers.lend(buffers.take(), 1).is_err());
        drop(lent);
        assert_eq!(buffers.shelf().idle.len(), IDLE_MAX);
        assert!(buffers.lend(buffers.take(), 1).is_ok());
    }
}
