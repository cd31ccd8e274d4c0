//! Lengths of the straws of a legacy straw bucket.
//!
//! The one place where floating point reaches a mapping: the definition uses `pow` on doubles. The lengths are
//! computed once, when the bucket is built, and travel with the serialized map, so that all members of a
//! cluster use the same ones whatever their mathematics library. straw2 has no such lengths.

/// One straw length per weight; `version` is the tunable `straw_calc_version`.
pub(crate) fn straw_lengths(weights: &[u32], version: u32) -> Vec<u32> {
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|&item| weights[item]);
    let sorted: Vec<u32> = order.iter().map(|&item| weights[item]).collect();
    let mut lengths = vec![0; weights.len()];
    let (mut straw, mut below, mut last) = (1.0f64, 0.0f64, 0.0f64);
    let mut left = sorted.len() as u32;
    for (position, &weight) in sorted.iter().enumerate() {
        if weight == 0 {
            // Version 0 kept counting items that can never be chosen, which skewed the others.
            left -= u32::from(version >= 1);
            continue;
        }
        lengths[order[position]] = fixed_point(straw);
        let Some(&next) = sorted.get(position + 1) else { break };
        if version == 0 && next == weight {
            continue;
        }
        below += (f64::from(weight) - last) * f64::from(left);
        left -= match version {
            0 => sorted[position + 1..].iter().take_while(|&&other| other == next).count() as u32,
            _ => 1,
        };
        let step = f64::from(left.wrapping_mul(next - weight));
        let share = below / (below + step);
        straw *= (1.0 / share).powf(1.0 / f64::from(left));
        last = f64::from(weight);
    }
    lengths
}

/// A length as 16.16 fixed point. One that does not fit (weights that differ by a factor of many thousands)
/// keeps its low 32 bits, as the reference's conversion on x86-64 does: mappings depend on it.
fn fixed_point(straw: f64) -> u32 {
    const BEYOND: f64 = 9_223_372_036_854_775_808.0;
    let scaled = straw * 65536.0;
    if scaled < BEYOND { scaled as i64 as u32 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What crushtool 16.2.15 writes into its binary map for these weights.
    #[test]
    fn lengths_beyond_32_bits_keep_the_low_ones() {
        assert_eq!(straw_lengths(&[4_128_768, 13], 1), [1_817_134_316, 65_536]);
        assert_eq!(straw_lengths(&[5_718_340, 13], 1), [1_528_866_658, 65_536]);
        assert_eq!(fixed_point(1e15), 0);
    }
}
