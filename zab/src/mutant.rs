//! Known bugs that a test build can bring back, one at a time.
//!
//! [`mutant!`](crate::mutant) stands where such a bug would be. It is the constant `false` unless the feature `mutants`
//! is on, which only `scripts/mutants` does; then it is true for the name in the environment variable [`VARIABLE`].
//! `tests/src/mutants.rs` says of each what it breaks and which suite has to notice.

/// The environment variable that names the bug to bring back.
pub const VARIABLE: &str = "ZABFS_MUTANT";

/// Whether the bug `name` is wanted.
#[cfg(feature = "mutants")]
pub fn is_on(name: &str) -> bool {
    static WANTED: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    WANTED.get_or_init(|| std::env::var(VARIABLE).ok()).as_deref() == Some(name)
}

/// Never: this build has no bugs on purpose.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn is_on(_: &str) -> bool {
    false
}

/// Whether the known bug of this name is brought back, in builds that can.
#[macro_export]
macro_rules! mutant {
    ($name:literal) => {
        $crate::mutant::is_on($name)
    };
}
