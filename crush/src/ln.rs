//! The fixed-point logarithm behind straw2's draws.

use crate::ln_tables::{HIGH, LOW};

/// `2^55 / (128 + k)`, rounded up, for every k that a normalised argument has.
const RECIPROCALS: [u64; 129] = {
    let mut reciprocals = [0; 129];
    let mut k = 0;
    while k < 129 {
        reciprocals[k] = (1u64 << 55).div_ceil(128 + k as u64);
        k += 1;
    }
    reciprocals
};

/// About `2^44 * log2(u + 1)`.
///
/// Not monotone at the very end (`crush_ln(65535) < crush_ln(65534)`): that is part of the definition.
/// Only the low 16 bits of a hash are ever passed, hence the type.
#[inline]
pub fn crush_ln(u: u16) -> u64 {
    let mut x = u64::from(u) + 1;
    let mut exponent = 15u64;
    // Normalise to 1.0 <= x < 2.0 with 15 fraction bits; 65536 is already past it and is left alone.
    if x & 0x1_8000 == 0 {
        let shift = 15 - x.ilog2();
        x <<= shift;
        exponent -= u64::from(shift);
    }
    let k = (x >> 8) - 128;
    let low = (x * RECIPROCALS[k as usize]) >> 48;
    (exponent << 44) + ((HIGH[k as usize] + LOW[(low & 0xff) as usize]) >> 4)
}
