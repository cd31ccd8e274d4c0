//! Free space: one bit per block, in memory; the index holds the bitmap as of the last checkpoint.
//!
//! A freed block becomes allocatable only when the checkpoint that forgets it is durable: until then a power failure
//! would bring back the object that used it. [`Allocator::release`] is that moment.

use super::object::{Run, push_run};

/// Allocations below this many blocks search from their own cursor, so that small objects do not split the space
/// that large writes want in one piece.
const SMALL_BLOCKS: u32 = 16;

#[derive(Debug)]
struct FileSpace {
    free: u32,
    /// No run longer than this is free; an upper bound that searches tighten and releases reset.
    longest: u32,
}

/// Invariant: a set bit is a block that is in use, or freed and not yet released.
#[derive(Debug)]
pub(super) struct Allocator {
    bits: Vec<u64>,
    files: Vec<FileSpace>,
    blocks_per_file: u32,
    allocated: u64,
    small_cursor: usize,
    large_cursor: usize,
}

impl Allocator {
    pub(super) fn new(blocks_per_file: u32) -> Self {
        debug_assert!(blocks_per_file.is_multiple_of(64), "a file's bits fill whole words");
        Self {
            bits: Vec::new(),
            files: Vec::new(),
            blocks_per_file,
            allocated: 0,
            small_cursor: 0,
            large_cursor: 0,
        }
    }

    /// Adds the space of one more extent file.
    pub(super) fn add_file(&mut self) {
        self.bits.resize(self.bits.len() + self.blocks_per_file as usize / 64, 0);
        self.files.push(FileSpace { free: self.blocks_per_file, longest: self.blocks_per_file });
    }

    pub(super) fn blocks_per_file(&self) -> u32 {
        self.blocks_per_file
    }

    pub(super) fn total_blocks(&self) -> u64 {
        self.files.len() as u64 * u64::from(self.blocks_per_file)
    }

    pub(super) fn allocated_blocks(&self) -> u64 {
        self.allocated
    }

    /// Takes `count` blocks, at `hint` if that is free, else in as few runs as a quick search finds; `None` when fewer
    /// are free.
    pub(super) fn allocate(&mut self, count: u32, hint: Option<u64>) -> Option<Vec<Run>> {
        if u64::from(count) > self.total_blocks() - self.allocated {
            return None;
        }
        let mut runs = Vec::new();
        let mut wanted = count;
        if let Some(start) = hint {
            let len = self.free_run_at(start, wanted);
            if len == wanted || len >= SMALL_BLOCKS {
                self.take(&mut runs, Run { start, len });
                wanted -= len;
            }
        }
        if wanted > 0
            && let Some(run) = self.find_run(wanted)
        {
            self.take(&mut runs, run);
            wanted = 0;
        }
        for file in 0..self.files.len() {
            if wanted == 0 {
                break;
            }
            wanted -= self.take_fragments(file, wanted, &mut runs);
        }
        debug_assert_eq!(wanted, 0, "the free counts promised enough blocks");
        Some(runs)
    }

    /// Marks blocks that the index or a replayed record uses; marking twice is harmless.
    pub(super) fn mark(&mut self, run: Run) {
        for block in run.start..run.end() {
            if !self.is_set(block) {
                self.set(block);
            }
        }
    }

    /// Makes blocks allocatable again.
    pub(super) fn release(&mut self, run: Run) {
        for block in run.start..run.end() {
            if !self.is_set(block) {
                continue;
            }
            self.bits[(block / 64) as usize] &= !(1 << (block % 64));
            let file = &mut self.files[(block / u64::from(self.blocks_per_file)) as usize];
            file.free += 1;
            file.longest = self.blocks_per_file;
            self.allocated -= 1;
        }
    }

    fn is_set(&self, block: u64) -> bool {
        self.bits.get((block / 64) as usize).is_none_or(|word| word & (1 << (block % 64)) != 0)
    }

    fn set(&mut self, block: u64) {
        self.bits[(block / 64) as usize] |= 1 << (block % 64);
        self.files[(block / u64::from(self.blocks_per_file)) as usize].free -= 1;
        self.allocated += 1;
    }

    fn take(&mut self, runs: &mut Vec<Run>, run: Run) {
        for block in run.start..run.end() {
            self.set(block);
        }
        push_run(runs, run);
    }

    /// Free blocks from `start` on, at most `max` and within its file.
    fn free_run_at(&self, start: u64, max: u32) -> u32 {
        let file_end = (start / u64::from(self.blocks_per_file) + 1) * u64::from(self.blocks_per_file);
        let end = (start + u64::from(max)).min(file_end);
        (start..end).take_while(|block| !self.is_set(*block)).count() as u32
    }

    fn find_run(&mut self, count: u32) -> Option<Run> {
        let small = count < SMALL_BLOCKS;
        let cursor = if small { self.small_cursor } else { self.large_cursor };
        for step in 0..self.files.len() {
            let file = (cursor + step) % self.files.len();
            if self.files[file].free < count || self.files[file].longest < count {
                continue;
            }
            if let Some(run) = self.find_run_in(file, count) {
                *(if small { &mut self.small_cursor } else { &mut self.large_cursor }) = file;
                return Some(run);
            }
        }
        None
    }

    /// First run of `count` free blocks in a file; notes the longest run seen when there is none.
    fn find_run_in(&mut self, file: usize, count: u32) -> Option<Run> {
        let first = file as u64 * u64::from(self.blocks_per_file);
        let end = first + u64::from(self.blocks_per_file);
        let (mut block, mut len, mut longest) = (first, 0, 0);
        while block < end {
            let word = self.bits[(block / 64) as usize];
            if block.is_multiple_of(64) && (word == u64::MAX || word == 0) {
                len = if word == 0 { len + 64 } else { 0 };
                block += 64;
            } else {
                len = if word & (1 << (block % 64)) == 0 { len + 1 } else { 0 };
                block += 1;
            }
            if len >= count {
                return Some(Run { start: block - u64::from(len), len: count });
            }
            longest = longest.max(len);
        }
        self.files[file].longest = longest;
        None
    }

    /// Takes up to `wanted` free blocks of a file, wherever they are; returns how many.
    fn take_fragments(&mut self, file: usize, wanted: u32, runs: &mut Vec<Run>) -> u32 {
        let first = file as u64 * u64::from(self.blocks_per_file);
        let mut taken = 0;
        let mut block = first;
        while taken < wanted && self.files[file].free > 0 && block < first + u64::from(self.blocks_per_file) {
            if block.is_multiple_of(64) && self.bits[(block / 64) as usize] == u64::MAX {
                block += 64;
                continue;
            }
            if !self.is_set(block) {
                self.take(runs, Run { start: block, len: 1 });
                taken += 1;
            }
            block += 1;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(files: usize) -> Allocator {
        let mut allocator = Allocator::new(256);
        (0..files).for_each(|_| allocator.add_file());
        allocator
    }

    #[test]
    fn runs_never_overlap_and_the_last_block_is_found() {
        let mut allocator = filled(2);
        let mut seen = std::collections::BTreeSet::new();
        for count in [1, 100, 3, 150, 64, 190, 4] {
            for run in allocator.allocate(count, None).unwrap() {
                assert!((run.start..run.end()).all(|b| seen.insert(b)));
            }
        }
        assert_eq!(allocator.allocated_blocks(), 512);
        assert_eq!(allocator.allocate(1, None), None);
        allocator.release(Run { start: 300, len: 1 });
        assert_eq!(allocator.allocate(1, Some(5)), Some(vec![Run { start: 300, len: 1 }]));
    }

    #[test]
    fn an_append_continues_where_the_object_ends() {
        let mut allocator = filled(1);
        let first = allocator.allocate(20, None).unwrap();
        assert_eq!(allocator.allocate(1, Some(first[0].end())), Some(vec![Run { start: 20, len: 1 }]));
    }

    #[test]
    fn scattered_space_is_collected() {
        let mut allocator = filled(1);
        allocator.allocate(256, None).unwrap();
        for start in (0..256).step_by(2) {
            allocator.release(Run { start, len: 1 });
        }
        assert_eq!(allocator.allocate(64, None).unwrap().len(), 64);
        assert_eq!(allocator.allocate(65, None), None);
    }
}
