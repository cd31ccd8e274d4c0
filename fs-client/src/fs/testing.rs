//! Views for tests.

use protocol::{Attr, FileKind, FileView, InodeId, Layout, PoolId, Timestamp};

pub(crate) fn attr(inode: u64, size: u64) -> Attr {
    let time = Timestamp { seconds: 1, nanoseconds: 0 };
    Attr {
        inode: InodeId(inode),
        kind: FileKind::File,
        mode: 0o644,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
    }
}

pub(crate) fn inline_view(inode: u64, bytes: &[u8], data_revision: u64) -> FileView {
    let layout = Layout::Inline(bytes.to_vec());
    FileView { layout, ..chunk_view(inode, bytes.len() as u64, data_revision) }
}

pub(crate) fn chunk_view(inode: u64, size: u64, data_revision: u64) -> FileView {
    FileView {
        attr: attr(inode, size),
        data_revision,
        pool: PoolId(1),
        layout: Layout::Chunks,
        truncations: vec![],
    }
}
