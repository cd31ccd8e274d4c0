//! Weights between decimal text and 16.16 fixed point.

use crate::WEIGHT_ONE;

/// Digits enough to write any 16.16 number exactly.
const FRACTION_DIGITS_MAX: usize = 16;

/// The 16.16 weight that `crushtool` makes of a decimal: rounded to a 32-bit float, then truncated.
///
/// Going through a 64-bit float would differ in the last bits for many decimals. `None` if the text is not a
/// decimal from 0 up to but not including 65536; the exponent form `1e1` is allowed.
pub fn weight_from_text(text: &str) -> Option<u32> {
    // The standard parser also knows `inf` and `nan`.
    if !text.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let value: f32 = text.parse().ok()?;
    (value < 65536.0).then_some((value * WEIGHT_ONE as f32) as u32)
}

/// The shortest decimal of at least three digits that reads back as `weight`; `None` if there is none.
pub(crate) fn weight_to_text(weight: u32) -> Option<String> {
    (3..=FRACTION_DIGITS_MAX)
        .map(|digits| fixed(weight, digits))
        .find(|text| weight_from_text(text) == Some(weight))
}

/// The decimal with that many fraction digits, rounded up in the last: reading truncates.
pub(crate) fn fixed(weight: u32, digits: usize) -> String {
    let scale = 10u128.pow(digits as u32);
    let scaled = (u128::from(weight) * scale).div_ceil(u128::from(WEIGHT_ONE));
    format!("{}.{:0digits$}", scaled / scale, scaled % scale)
}
