//! straw2: every item draws `ln(random) / weight`, an exponential variate with its weight as rate; the greatest wins.
//!
//! The definition needs a hash, a fixed-point logarithm and a division per item. [`Lanes::draw`] gives the same
//! winner with fewer of them: hashes are computed for many items at once; a lower bound on `-ln(random) / weight`
//! costs one multiplication, and only items whose bound is not above the best so far are drawn exactly, most
//! often one per bucket.

use crate::hash::hash3;
use crate::ln::crush_ln;

/// Subtracted from the logarithm so that draws are negative: `2^48` is `log2(2^16)` in its fixed point.
const LN_ONE: u64 = 1 << 48;

/// `-ln(u) >= SLOPE * (START - u)` in the fixed point of [`crush_ln`], for every 16-bit u; a test checks all. It does
/// not start at 65535, since the last two logarithms of the definition are off.
const SLOPE: f64 = 388_208_702.0;
const START: u32 = 65534;

/// `-ln(u) <= SLOPE * d * (1 + CURVE * d) * CURVE_UP` for `d = START - u` in the range where that is close; a test
/// checks all. The factor leaves more than a thousandth for rounding.
const CURVE: f32 = 0.8 / 65536.0;
const CURVE_UP: f32 = 1.006;
const CURVE_RANGE: std::ops::RangeInclusive<u32> = 256..=32768;

/// Items drawn together. The number of the lane fits the mantissa bits that bounds have to spare.
const LANES: usize = 16;
const LANE_BITS: u32 = LANES as u32 - 1;

/// Covers the rounding of a scale and a product to 24 bits, and the lane number in the lowest four.
const SCALE_DOWN: f64 = 1.0 - 1.0 / 65536.0;
const LIMIT_UP: f32 = 1.0 + 1.0 / 16384.0;

/// The items of one straw2 bucket, or one row of a weight set, laid out for drawing.
#[derive(Clone, Debug)]
pub(crate) struct Lanes {
    chunks: Vec<Chunk>,
    /// 16.16.
    weights: Vec<u32>,
    /// For what the fast path does not cover: weights of 32768.0 and more, which are negative in the definition,
    /// and undefined hashes.
    exotic: Option<Box<Exotic>>,
}

/// Sixteen items; the last chunk is filled up with items that are never drawn.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Chunk {
    /// What is hashed for each item.
    ids: [u32; LANES],
    /// A multiplier from `START - u` to the lower bound of the draw.
    scales: [f32; LANES],
}

#[derive(Clone, Debug)]
struct Exotic {
    hash: u8,
    ids: Vec<i32>,
}

impl Lanes {
    /// Lengths agree.
    pub(crate) fn new(hash: u8, weights: &[u32], ids: &[i32]) -> Lanes {
        let chunks =
            weights.chunks(LANES).zip(ids.chunks(LANES)).map(|(weights, ids)| Chunk::new(weights, ids));
        let plain = hash == 0 && weights.iter().all(|weight| *weight <= i32::MAX as u32);
        let exotic = (!plain).then(|| Box::new(Exotic { hash, ids: ids.to_vec() }));
        Lanes { chunks: chunks.collect(), weights: weights.to_vec(), exotic }
    }

    /// The position of the winner.
    #[inline]
    pub(crate) fn draw(&self, x: u32, r: u32) -> usize {
        if let Some(exotic) = &self.exotic {
            return draw_one_by_one(exotic.hash, &self.weights, &exotic.ids, x, r);
        }
        #[cfg(target_arch = "x86_64")]
        if has_avx512() {
            #[allow(unsafe_code, reason = "the same function, compiled for processors with wider vectors")]
            // SAFETY: the processor has the instructions, as was just checked.
            return unsafe { self.draw_avx512(x, r) };
        } else if std::is_x86_feature_detected!("avx2") {
            #[allow(unsafe_code, reason = "the same function, compiled for processors with wider vectors")]
            // SAFETY: the processor has the instructions, as was just checked.
            return unsafe { self.draw_avx2(x, r) };
        }
        self.draw_in_vectors_of::<{ LANES / 2 }>(x, r)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn draw_avx512(&self, x: u32, r: u32) -> usize {
        self.draw_in_vectors_of::<LANES>(x, r)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn draw_avx2(&self, x: u32, r: u32) -> usize {
        self.draw_in_vectors_of::<{ LANES / 2 }>(x, r)
    }

    /// `WIDTH` is how many hashes the processor computes with one instruction: all [`LANES`] or half of them.
    #[inline(always)]
    fn draw_in_vectors_of<const WIDTH: usize>(&self, x: u32, r: u32) -> usize {
        let mut best = Best { weights: &self.weights, position: 0, draw: i64::MAX, limit: i32::MAX };
        if let [chunk] = self.chunks.as_slice() {
            let drawn = Drawn::of::<WIDTH>(chunk, x, r);
            if drawn.is_lowest_alone() {
                return drawn.first();
            }
            best.improve(&drawn, 0);
            return best.position;
        }
        for (number, chunk) in self.chunks.iter().enumerate() {
            best.improve(&Drawn::of::<WIDTH>(chunk, x, r), number * LANES);
        }
        best.position
    }
}

impl Chunk {
    fn new(weights: &[u32], ids: &[i32]) -> Chunk {
        let mut chunk = Chunk { ids: [0; LANES], scales: [f32::MAX; LANES] };
        for (lane, (weight, id)) in weights.iter().zip(ids).enumerate() {
            chunk.ids[lane] = *id as u32;
            if *weight > 0 {
                chunk.scales[lane] = (SLOPE / f64::from(*weight) * SCALE_DOWN) as f32;
            }
        }
        chunk
    }
}

/// What the lanes of a chunk drew.
struct Drawn {
    /// Lower bounds as bits of a float, which order like integers, with the number of the lane in the lowest bits.
    /// A negative one is below every limit.
    keys: [i32; LANES],
    randoms: [u32; LANES],
    lowest: i32,
}

impl Drawn {
    /// The compiler makes vector code of the loops, but only if they are written like this: vectors of half
    /// the lanes take two hashes per turn, which keep the processor busy while each waits for itself.
    #[inline(always)]
    fn of<const WIDTH: usize>(chunk: &Chunk, x: u32, r: u32) -> Drawn {
        let (mut keys, mut randoms) = ([0; LANES], [0; LANES]);
        let mut set = |lane: usize, hash: u32| {
            randoms[lane] = hash & 0xffff;
            keys[lane] = key(hash & 0xffff, chunk.scales[lane], lane);
        };
        if WIDTH == LANES {
            for lane in 0..LANES {
                set(lane, hash3(x, chunk.ids[lane], r));
            }
        } else {
            for lane in 0..LANES / 2 {
                let other = lane + LANES / 2;
                let (first, second) = (hash3(x, chunk.ids[lane], r), hash3(x, chunk.ids[other], r));
                set(lane, first);
                set(other, second);
            }
        }
        let lowest = keys.iter().fold(i32::MAX, |lowest, key| lowest.min(*key));
        Drawn { keys, randoms, lowest }
    }

    /// The lane of the lowest bound.
    #[inline(always)]
    fn first(&self) -> usize {
        (self.lowest as u32 & LANE_BITS) as usize
    }

    /// Whether even an upper bound of that lane's draw, rounded down as the definition does, is below all others.
    #[inline(always)]
    fn is_lowest_alone(&self) -> bool {
        let distance = START.wrapping_sub(self.randoms[self.first()]);
        if !CURVE_RANGE.contains(&distance) {
            return false;
        }
        let bound = f32::from_bits(self.lowest as u32);
        let upper = bound * (1.0 + CURVE * distance as i32 as f32) * CURVE_UP + 1.0;
        self.count_up_to(upper.to_bits() as i32 | LANE_BITS as i32) == 1
    }

    #[inline(always)]
    fn count_up_to(&self, limit: i32) -> u32 {
        self.keys.iter().map(|key| u32::from(*key <= limit)).sum()
    }
}

/// The winner so far: of the smallest draw (as a positive number), the first.
struct Best<'a> {
    weights: &'a [u32],
    position: usize,
    draw: i64,
    /// No lane with a key above this can win.
    limit: i32,
}

impl Best<'_> {
    #[inline(always)]
    fn improve(&mut self, drawn: &Drawn, base: usize) {
        if drawn.lowest > self.limit {
            return;
        }
        // The most promising first: its draw rejects most of the others.
        let first = drawn.first();
        self.draw_exactly(base + first, drawn.randoms[first]);
        if drawn.count_up_to(self.limit) <= 1 {
            return;
        }
        for (lane, key) in drawn.keys.iter().enumerate() {
            if *key <= self.limit && lane != first {
                self.draw_exactly(base + lane, drawn.randoms[lane]);
            }
        }
    }

    #[inline(always)]
    fn draw_exactly(&mut self, position: usize, random: u32) {
        let weight = self.weights.get(position).copied().unwrap_or(0);
        if weight == 0 {
            return;
        }
        let logarithm = (LN_ONE - crush_ln(random as u16)) as i64;
        // The quotient rounded down. Both are exact as f64 (below 2^53), and a quotient that is not whole is at
        // least 2^-31 below the next whole number of at most 2^48, too far to be rounded up to it.
        let draw = (logarithm as f64 / f64::from(weight as i32)) as i64;
        if draw < self.draw || (draw == self.draw && position < self.position) {
            self.draw = draw;
            self.position = position;
            self.limit = ((draw + 1) as f32 * LIMIT_UP).to_bits() as i32 | LANE_BITS as i32;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn has_avx512() -> bool {
    std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512dq")
        && std::is_x86_feature_detected!("avx512vl")
}

/// The lower bound of a draw, with the number of its lane in the lowest bits.
#[inline(always)]
fn key(random: u32, scale: f32, lane: usize) -> i32 {
    let bound = START.wrapping_sub(random) as i32 as f32 * scale;
    (bound.to_bits() & !LANE_BITS | lane as u32) as i32
}

/// The definition, item by item.
pub(crate) fn draw_one_by_one(hash: u8, weights: &[u32], ids: &[i32], x: u32, r: u32) -> usize {
    let (mut winner, mut best) = (0, i64::MIN);
    for (position, (&weight, &id)) in weights.iter().zip(ids).enumerate() {
        // The weight is signed here: 32768.0 and more is negative, which makes the item always win.
        let draw = match weight as i32 {
            0 => i64::MIN,
            weight => {
                let random = if hash == 0 { hash3(x, id as u32, r) as u16 } else { 0 };
                (crush_ln(random) as i64 - LN_ONE as i64) / i64::from(weight)
            }
        };
        if draw > best {
            (winner, best) = (position, draw);
        }
    }
    winner
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_slope_is_a_lower_bound_for_every_random_number() {
        for u in 0..=u16::MAX {
            let logarithm = (LN_ONE - crush_ln(u)) as f64;
            assert!(logarithm >= SLOPE * (f64::from(START) - f64::from(u)), "-ln({u}) is {logarithm}");
        }
    }

    #[test]
    fn the_curve_is_an_upper_bound_in_its_range() {
        for distance in CURVE_RANGE {
            let logarithm = (LN_ONE - crush_ln((START - distance) as u16)) as f64;
            let upper = SLOPE * f64::from(distance) * (1.0 + f64::from(CURVE) * f64::from(distance));
            let upper = upper * (f64::from(CURVE_UP) - 0.001);
            assert!(logarithm < upper, "-ln({}) is {logarithm}", START - distance);
        }
    }

    fn weight() -> impl Strategy<Value = u32> {
        prop_oneof![
            4 => Just(0x1_0000u32),
            2 => Just(0u32),
            2 => 0..4u32,
            4 => 0..0x100_0000u32,
            2 => any::<u32>(),
            1 => 0x7fff_fff0..0x8000_0010u32,
            1 => 0x1000_0000..0x7fff_ffffu32,
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

        /// The fast path and the definition agree, whatever the weights, sizes and ids.
        #[test]
        fn the_winner_is_the_one_of_the_definition(
            items in prop::collection::vec((weight(), any::<i32>()), 1..100),
            equal in prop::option::of(weight()),
            x in any::<u32>(),
        ) {
            let ids: Vec<i32> = items.iter().map(|(_, id)| *id).collect();
            let weights: Vec<u32> = items.iter().map(|(weight, _)| equal.unwrap_or(*weight)).collect();
            let lanes = Lanes::new(0, &weights, &ids);
            for r in 0..40 {
                let winner = draw_one_by_one(0, &weights, &ids, x, r);
                prop_assert_eq!(lanes.draw(x, r), winner);
                // Other processors than this one.
                if lanes.exotic.is_none() {
                    prop_assert_eq!(lanes.draw_in_vectors_of::<{ LANES / 2 }>(x, r), winner);
                    prop_assert_eq!(lanes.draw_in_vectors_of::<LANES>(x, r), winner);
                }
            }
        }

        /// Many equal draws: the first of them wins.
        #[test]
        fn ties_go_to_the_first(weight in 0x1000_0000..0x7fff_ffffu32, size in 1..70usize, x in any::<u32>()) {
            let (ids, weights): (Vec<i32>, Vec<u32>) = (vec![7; size], vec![weight; size]);
            prop_assert_eq!(Lanes::new(0, &weights, &ids).draw(x, 0), 0);
        }
    }
}
