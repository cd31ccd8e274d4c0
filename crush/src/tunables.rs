//! The knobs that changed between Ceph releases; they travel with the map because they change mappings.

use serde::{Deserialize, Serialize};

/// Settings of the retry behaviour. Field names are those of the text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunables {
    /// Retries in the same bucket after a collision before starting over from the top.
    pub choose_local_tries: u32,
    /// Retries in the same bucket by permutation instead of draw; 0 turns the permutation off.
    pub choose_local_fallback_tries: u32,
    /// Retries per replica; one more attempt than this is made.
    pub choose_total_tries: u32,
    /// Whether a leaf that fails sends the search back to the top at once instead of retrying below.
    pub chooseleaf_descend_once: u32,
    /// How the attempt number enters the leaf search: not at all (0) or shifted right by one less than this.
    pub chooseleaf_vary_r: u32,
    /// Whether the leaf search is independent of the replica's position, so that a loss moves fewer replicas.
    pub chooseleaf_stable: u32,
    /// Which of the two ways to compute legacy straw lengths.
    pub straw_calc_version: u32,
    /// Bit set of bucket algorithms an editor may create; has no effect on mappings.
    pub allowed_bucket_algs: u32,
}

impl Tunables {
    /// The oldest profile, and what a text map without `tunable` lines means.
    pub const ARGONAUT: Tunables = Tunables {
        choose_local_tries: 2,
        choose_local_fallback_tries: 5,
        choose_total_tries: 19,
        chooseleaf_descend_once: 0,
        chooseleaf_vary_r: 0,
        chooseleaf_stable: 0,
        straw_calc_version: 0,
        allowed_bucket_algs: 22,
    };

    /// No local retries, more total retries.
    pub const BOBTAIL: Tunables = Tunables {
        choose_local_tries: 0,
        choose_local_fallback_tries: 0,
        choose_total_tries: 50,
        chooseleaf_descend_once: 1,
        ..Tunables::ARGONAUT
    };

    /// The leaf search varies with the attempt.
    pub const FIREFLY: Tunables = Tunables { chooseleaf_vary_r: 1, ..Tunables::BOBTAIL };

    /// Allows straw2 buckets and corrects legacy straw lengths.
    pub const HAMMER: Tunables =
        Tunables { straw_calc_version: 1, allowed_bucket_algs: 54, ..Tunables::FIREFLY };

    /// The current profile: the leaf search is stable. New maps use it.
    pub const JEWEL: Tunables = Tunables { chooseleaf_stable: 1, ..Tunables::HAMMER };

    /// The profile with that name: a release from `argonaut` to `jewel`, `legacy`, or `optimal`.
    pub fn profile(name: &str) -> Option<Tunables> {
        match name {
            "argonaut" | "legacy" => Some(Tunables::ARGONAUT),
            "bobtail" => Some(Tunables::BOBTAIL),
            "firefly" => Some(Tunables::FIREFLY),
            "hammer" => Some(Tunables::HAMMER),
            "jewel" | "optimal" => Some(Tunables::JEWEL),
            _ => None,
        }
    }

    /// Names and values in the order of the text format.
    pub fn entries(&self) -> [(&'static str, u32); 8] {
        [
            ("choose_local_tries", self.choose_local_tries),
            ("choose_local_fallback_tries", self.choose_local_fallback_tries),
            ("choose_total_tries", self.choose_total_tries),
            ("chooseleaf_descend_once", self.chooseleaf_descend_once),
            ("chooseleaf_vary_r", self.chooseleaf_vary_r),
            ("chooseleaf_stable", self.chooseleaf_stable),
            ("straw_calc_version", self.straw_calc_version),
            ("allowed_bucket_algs", self.allowed_bucket_algs),
        ]
    }

    /// The field with that name of the text format.
    pub(crate) fn field_mut(&mut self, name: &str) -> Option<&mut u32> {
        match name {
            "choose_local_tries" => Some(&mut self.choose_local_tries),
            "choose_local_fallback_tries" => Some(&mut self.choose_local_fallback_tries),
            "choose_total_tries" => Some(&mut self.choose_total_tries),
            "chooseleaf_descend_once" => Some(&mut self.chooseleaf_descend_once),
            "chooseleaf_vary_r" => Some(&mut self.chooseleaf_vary_r),
            "chooseleaf_stable" => Some(&mut self.chooseleaf_stable),
            "straw_calc_version" => Some(&mut self.straw_calc_version),
            "allowed_bucket_algs" => Some(&mut self.allowed_bucket_algs),
            _ => None,
        }
    }
}

impl Default for Tunables {
    /// [`Tunables::JEWEL`].
    fn default() -> Tunables {
        Tunables::JEWEL
    }
}
