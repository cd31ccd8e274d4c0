//! A mapping allocates nothing once its scratch memory has grown.

use crush::{CrushMap, Scratch, WEIGHT_ONE};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[allow(unsafe_code, reason = "an allocator is an unsafe trait; this one counts and passes on")]
// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are those that the system's allocator needs.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; the pointer came from `alloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Every bucket algorithm, weight sets, firstn and indep.
#[test]
fn mappings_allocate_nothing() {
    for name in ["mixed-algs-1", "choose-args-1", "set-steps", "rule-odd", "prof-jewel-uniform"] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/vectors/{name}.txt"));
        let text = std::fs::read_to_string(path).expect("the vectors are in the repository");
        let map = CrushMap::parse_text(&text).expect("the map is correct");
        let weights = vec![WEIGHT_ONE; map.max_devices() as usize];
        let rules: Vec<u32> = map.rules().map(|rule| rule.id).collect();
        let (mut scratch, mut out) = (Scratch::default(), Vec::new());
        let mut run = |inputs: std::ops::Range<u32>| {
            for x in inputs {
                for rule in &rules {
                    map.do_rule_in_pool(0, *rule, x, 6, &weights, &mut scratch, &mut out);
                }
            }
        };
        run(0..200);
        let before = ALLOCATIONS.get();
        run(0..2000);
        assert_eq!(ALLOCATIONS.get() - before, 0, "allocations on {name}");
    }
}
