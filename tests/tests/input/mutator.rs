//! Makes bad inputs of good ones, from a seed.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// Bytes and numbers at which decoders go wrong.
const BYTES: [u8; 8] = [0, 1, 0x7f, 0x80, 0x81, 0xfe, 0xff, 4];
const NUMBERS: [&[u8]; 7] = [
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    &[0x80, 0x80, 0x80, 0x80, 0x08],
    &[0xff, 0xff, 0xff, 0x7f],
    &[0xff, 0xff, 0xff, 0xff],
    &[0, 0, 0, 0x80],
    &[0x80, 0x80, 0x00],
];

pub(crate) struct Mutator {
    rng: ChaCha8Rng,
}

impl Mutator {
    pub(crate) fn new(seed: u64) -> Mutator {
        Mutator { rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// In `0..limit`; 0 for an empty range.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        if limit == 0 { 0 } else { (self.rng.next_u64() % limit as u64) as usize }
    }

    /// Bytes that often are small numbers, as lengths and tags of valid messages are.
    pub(crate) fn small_bytes(&mut self, len: usize) -> Vec<u8> {
        let byte = |mutator: &mut Self| match mutator.below(4) {
            0 => mutator.below(256) as u8,
            1 => 0,
            _ => mutator.below(5) as u8,
        };
        (0..len).map(|_| byte(self)).collect()
    }

    /// One of the seeds with one to four changes.
    pub(crate) fn next(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let chosen = self.below(seeds.len());
        let mut input = seeds[chosen].clone();
        for _ in 0..=self.below(4) {
            self.change(&mut input, seeds);
        }
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let at = self.below(input.len());
        let to = at + self.below(input.len().saturating_sub(at).min(64));
        match self.below(9) {
            0 | 1 if !input.is_empty() => input[at] ^= 1 << self.below(8),
            2 if !input.is_empty() => input[at] = BYTES[self.below(BYTES.len())],
            3 => input.truncate(at),
            4 => drop(input.drain(at..to)),
            5 => {
                let len = self.below(16);
                let fresh = self.small_bytes(len);
                drop(input.splice(at..at, fresh));
            }
            6 => {
                let again = input[at..to].to_vec();
                drop(input.splice(at..at, again));
            }
            7 => {
                let number = NUMBERS[self.below(NUMBERS.len())];
                let end = (at + number.len()).min(input.len());
                drop(input.splice(at..end, number.iter().copied()));
            }
            _ => {
                let other = &seeds[self.below(seeds.len())];
                let from = self.below(other.len());
                drop(input.splice(at..to, other[from..].iter().take(64).copied()));
            }
        }
    }
}
