//! Which message met which phase of its receiver.

use std::collections::BTreeMap;

/// Times that each pair of message and phase was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage(BTreeMap<(&'static str, String), u64>);

impl Coverage {
    pub(crate) fn seen(&mut self, message: &'static str, phase: &str) {
        // Nearly always it is known: no new string for those.
        let known = self.0.range_mut((message, String::new())..).take_while(|((m, _), _)| *m == message);
        for ((_, other), count) in known {
            if other == phase {
                *count += 1;
                return;
            }
        }
        self.0.insert((message, phase.to_owned()), 1);
    }

    /// Adds what another world saw.
    pub fn add(&mut self, other: &Coverage) {
        for (pair, count) in &other.0 {
            *self.0.entry(pair.clone()).or_insert(0) += count;
        }
    }

    /// How many different pairs were seen.
    pub fn pairs(&self) -> usize {
        self.0.len()
    }

    /// A table for people: one line per message, its receivers' phases with counts.
    pub fn table(&self) -> String {
        let mut lines: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for ((message, phase), count) in &self.0 {
            lines.entry(message).or_default().push(format!("{phase} {count}"));
        }
        let lines: Vec<String> =
            lines.iter().map(|(message, phases)| format!("{message:<13} {}", phases.join(", "))).collect();
        lines.join("\n")
    }
}
