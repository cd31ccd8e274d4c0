//! Bad input: whatever peers, disks and administrators hand over is decoded, or refused; it never panics and never
//! takes more memory than the bound below.
//!
//! Valid encodings are mutated from a seed. `cargo test` takes a few seconds for it; for a long run
//!
//! ```text
//! ZABFS_FUZZ_SECONDS=3600 ZABFS_FUZZ_SEED=7 cargo test --release -p cluster-tests --test input -- --nocapture
//! ```
//!
//! A failure names the target and prints the input in hex.

#[path = "input/allocation.rs"]
mod allocation;
#[path = "input/files.rs"]
mod files;
#[path = "input/mutator.rs"]
mod mutator;
#[path = "input/targets.rs"]
mod targets;

use mutator::Mutator;
use std::time::{Duration, Instant};
use targets::Target;

/// Live bytes that decoding may take beyond this many per byte of input.
const BYTES_PER_BYTE: usize = 128;
/// What decoding may take whatever the input is: a frame may claim 8 MiB, and serde reserves a MiB for a list, once
/// per level of lists in lists, that claims to be long.
const BYTES_ALWAYS: usize = 10 << 20;
/// Mutations per target in `cargo test`.
const ROUNDS: u64 = 40_000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn attack(target: &Target, mutator: &mut Mutator) {
    let input = mutator.next(&target.seeds);
    let outcome = std::panic::catch_unwind(|| allocation::peak(|| (target.decode)(&input)));
    match outcome {
        Ok(peak) => {
            let bound = BYTES_ALWAYS + BYTES_PER_BYTE * input.len();
            assert!(
                peak <= bound,
                "{}: {peak} bytes for an input of {}: {}",
                target.name,
                input.len(),
                hex(&input)
            );
        }
        Err(_) => panic!("{}: the panic above came from {}", target.name, hex(&input)),
    }
}

fn hex(bytes: &[u8]) -> String {
    let shown: String = bytes.iter().take(4096).map(|byte| format!("{byte:02x}")).collect();
    if bytes.len() > 4096 { format!("{shown}… ({} bytes)", bytes.len()) } else { shown }
}

#[test]
fn mutated_messages_and_files_are_decoded_or_refused() {
    let seed = number("ZABFS_FUZZ_SEED").unwrap_or(1);
    let mut mutator = Mutator::new(seed);
    let targets = targets::all(&mut mutator);
    let Some(seconds) = number("ZABFS_FUZZ_SECONDS") else {
        for target in &targets {
            (0..ROUNDS / target.cost).for_each(|_| attack(target, &mut mutator));
        }
        return;
    };
    let (begun, mut rounds) = (Instant::now(), 0u64);
    while begun.elapsed() < Duration::from_secs(seconds) {
        for target in &targets {
            (0..1000 / target.cost.min(1000)).for_each(|_| attack(target, &mut mutator));
            rounds += 1000 / target.cost.min(1000);
        }
    }
    println!("seed {seed}: {rounds} inputs to {} targets in {seconds} s", targets.len());
}

/// A mutator of valid inputs that reaches nothing but the first check would prove nothing.
#[test]
fn mutations_reach_beyond_the_first_check() {
    let mut mutator = Mutator::new(5);
    for target in targets::all(&mut mutator) {
        assert!(target.seeds.len() >= 2, "{} has {} valid inputs", target.name, target.seeds.len());
        for seed in &target.seeds {
            assert!((target.decode)(seed), "{} refuses its own {}", target.name, hex(seed));
        }
        let rounds = (1000 / target.cost).max(40);
        let mut is_decoded = || (target.decode)(&mutator.next(&target.seeds));
        let decoded = (0..rounds).filter(|_| is_decoded()).count() as u64;
        assert!(decoded < rounds, "{} refuses nothing", target.name);
        // Few mutations of a long text leave it valid.
        let any = decoded > 0 || target.is_checksummed || (0..50 * rounds).any(|_| is_decoded());
        assert!(any, "{}: no mutation decodes", target.name);
    }
}
