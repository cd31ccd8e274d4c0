//! Is a history of one register linearizable? Every value is written at most once, so that the polynomial
//! test of Gibbons and Korach applies: the operations of one value form a cluster, and clusters must fit into
//! an order.

/// Time of an operation that never returned.
pub(super) const NEVER: u64 = u64::MAX;

#[derive(Clone, Debug)]
pub(super) struct Operation {
    /// The value written or read; 0 is what nobody wrote.
    pub(super) value: u64,
    pub(super) is_write: bool,
    pub(super) start: u64,
    /// Latest time of its effect.
    pub(super) end: u64,
    /// It may have had no effect at all.
    pub(super) uncertain: bool,
}

/// Explains what is wrong with the history, if something is.
pub(super) fn violation(history: &[Operation]) -> Option<String> {
    let mut values: Vec<u64> = history.iter().map(|op| op.value).collect();
    values.push(0);
    values.sort_unstable();
    values.dedup();
    let mut zones = Vec::new();
    for value in values {
        let mut write = (value == 0).then_some((0, 0, false));
        let mut reads = Vec::new();
        for op in history.iter().filter(|op| op.value == value) {
            if op.is_write {
                write = Some((op.start, op.end, op.uncertain));
            } else {
                reads.push((op.start, op.end));
            }
        }
        let Some(write) = write else { return Some(format!("value {value} was read and never written")) };
        if write.2 && reads.is_empty() {
            continue;
        }
        if let Some(read) = reads.iter().find(|read| read.1 < write.0) {
            return Some(format!("value {value} was read until {} but written from {} on", read.1, write.0));
        }
        let write = (write.0, write.1);
        let all = || reads.iter().chain(std::iter::once(&write));
        let first_end = all().map(|op| op.1).min().unwrap_or(0);
        let last_start = all().map(|op| op.0).max().unwrap_or(0);
        zones.push((value, first_end, last_start));
    }
    for (a, a_end, a_start) in &zones {
        for (b, b_end, b_start) in zones.iter().filter(|(b, _, _)| b != a) {
            let forward = a_end < a_start;
            if forward && b_end < b_start && a_end < b_start && b_end < a_start {
                return Some(format!(
                    "values {a} ({a_end}..{a_start}) and {b} ({b_end}..{b_start}) interleave"
                ));
            }
            if forward && b_end >= b_start && a_end < b_start && b_end < a_start {
                return Some(format!("value {b} ({b_start}..{b_end}) lies within {a} ({a_end}..{a_start})"));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(value: u64, start: u64, end: u64) -> Operation {
        Operation { value, is_write: true, start, end, uncertain: end == NEVER }
    }

    fn read(value: u64, start: u64, end: u64) -> Operation {
        Operation { value, is_write: false, start, end, uncertain: false }
    }

    #[test]
    fn the_checker_tells_right_from_wrong() {
        assert_eq!(violation(&[write(1, 1, 4), read(0, 2, 3), read(1, 3, 5)]), None);
        assert_eq!(violation(&[write(1, 1, NEVER), read(0, 5, 6)]), None);
        assert!(violation(&[write(1, 1, 2), read(0, 3, 4)]).is_some(), "a lost write");
        assert!(violation(&[write(1, 1, 9), read(1, 2, 3), read(0, 4, 5)]).is_some(), "back in time");
        assert!(violation(&[read(7, 1, 2)]).is_some(), "out of thin air");
        let twice = [write(1, 1, 2), write(2, 3, 4), read(2, 5, 6), read(1, 7, 8)];
        assert!(violation(&twice).is_some(), "executed twice");
    }
}
