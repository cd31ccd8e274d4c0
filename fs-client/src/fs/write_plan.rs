//! How a write goes. Pure.

use protocol::{FileView, Layout};

/// The way of a write under a given view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Into the znode.
    Inline,
    /// Over chunk bytes below the size: nobody is in the way of anybody.
    Overwrite,
    /// Beyond the size, at the end, or out of the znode: under the hold.
    Hold,
}

/// A write as asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// At the end, wherever that is.
    pub(crate) append: bool,
}

impl Range {
    /// Where it begins under this view.
    pub(crate) fn start(&self, view: &FileView) -> u64 {
        if self.append { view.attr.size } else { self.offset }
    }
}

/// Decides the way. `inline_limit` is the pool's.
pub(crate) fn way(view: &FileView, range: Range, inline_limit: u32) -> Way {
    let end = range.start(view).saturating_add(range.length);
    match view.layout {
        Layout::Inline(_) if end <= u64::from(inline_limit) => Way::Inline,
        Layout::Inline(_) => Way::Hold,
        Layout::Chunks if range.append || end > view.attr.size => Way::Hold,
        Layout::Chunks => Way::Overwrite,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::testing::{chunk_view, inline_view};

    const fn range(offset: u64, length: u64) -> Range {
        Range { offset, length, append: false }
    }

    #[test]
    fn small_files_stay_in_their_znode() {
        let view = inline_view(1, b"abc", 1);
        assert_eq!(way(&view, range(0, 16), 16), Way::Inline);
        assert_eq!(way(&view, range(0, 17), 16), Way::Hold);
        assert_eq!(way(&view, Range { append: true, ..range(99, 13) }, 16), Way::Inline);
        assert_eq!(way(&view, Range { append: true, ..range(0, 14) }, 16), Way::Hold);
        assert_eq!(way(&view, range(u64::MAX, 5), 16), Way::Hold);
    }

    #[test]
    fn only_what_changes_the_size_of_a_chunk_file_needs_the_hold() {
        let view = chunk_view(1, 100, 1);
        assert_eq!(way(&view, range(0, 100), 16), Way::Overwrite);
        assert_eq!(way(&view, range(0, 101), 16), Way::Hold);
        assert_eq!(way(&view, Range { append: true, ..range(0, 1) }, 16), Way::Hold);
        assert_eq!(way(&view, range(100, 1), 16), Way::Hold);
    }
}
