//! The replicated namespace against an independent model of what POSIX and the protocol promise.
//!
//! [`namespace::world`] drives two replicas as the quorum would: proposals wait, commit in order, get lost with
//! the leader's role; checkpoints freeze and thaw; a replica restarts from its last one. After every step the
//! tables must be consistent ([`namespace::invariants`]) and equal to the model ([`namespace::model`]), and the
//! bytes behind every view must be those that were written ([`namespace::objects`] plays the data servers).

mod namespace;

use namespace::driver::{DATA_STEPS, Step, play};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn the_namespace_behaves_like_its_model(steps in prop::collection::vec(any_step(), 1..90)) {
        play(&steps);
    }

    /// Few files and many changes of each.
    #[test]
    fn no_byte_that_was_cut_comes_back(steps in prop::collection::vec(data_step(), 1..90)) {
        let files = [[0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 0, 0]].map(|with| Step { what: 0, with });
        play(&[&files[..], &steps].concat());
    }
}

fn any_step() -> impl Strategy<Value = Step> {
    (0u8..=255, any::<[u8; 6]>()).prop_map(|(what, with)| Step { what, with })
}

fn data_step() -> impl Strategy<Value = Step> {
    (prop::sample::select(&DATA_STEPS[..]), any::<[u8; 6]>()).prop_map(|(what, with)| Step { what, with })
}
