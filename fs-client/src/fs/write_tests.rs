//! Bytes on their way to the data servers, with small ones that wait and fail.

use super::*;
use crate::data::tests::{Setup, run, setup};
use crate::fs::testing::chunk_view;
use crate::fs::{FileHandle, FsConfig, Handle};
use crate::fuse::Waiting;
use protocol::InodeId;
use protocol::data::DataError;
use tokio::task::spawn_local;

const INODE: u64 = 9;

fn file_system(setup: &Setup) -> Rc<ZabFs> {
    let config =
        FsConfig { root: InodeId(1), read_only: false, host: "h".to_owned(), mountpoint: "/mnt".to_owned() };
    ZabFs::new(setup.client.meta().clone(), setup.client.clone(), config, Waiting::default())
}

#[test]
fn a_write_waits_for_every_chunk() {
    run(async {
        let setup = setup().await;
        let fs = file_system(&setup);
        setup.world.borrow_mut().held_writes = Some(1);
        let writing = spawn_local(async move {
            let data = Bytes::from(vec![7; 12_288]);
            fs.write_chunks(&chunk_view(INODE, 0, 1), 0, data, 0).await
        });
        while setup.world.borrow().writes() < 2 {
            tokio::task::yield_now().await;
        }
        // Its answer comes after those to the writes.
        let object = protocol::ObjectId { pool: protocol::PoolId(1), inode: InodeId(INODE), chunk: 0 };
        let basis = Basis { generation: 0, truncations: vec![] };
        setup.client.read(&basis, Piece { object, offset: 0, length: 8, at: 0 }).await.expect("read");
        tokio::task::yield_now().await;
        assert!(!writing.is_finished(), "one chunk is not written");
        setup.world.borrow_mut().held_writes = None;
        setup.world.borrow().released.notify_waiters();
        assert_eq!(writing.await.expect("no panic"), (3 * 4096, Ok(())));
    });
}

#[test]
fn a_failed_fsync_leaves_the_file_dirty() {
    run(async {
        let setup = setup().await;
        let fs = file_system(&setup);
        let node = fs.nodes.get(InodeId(INODE));
        node.note_view(chunk_view(INODE, 4096, 1));
        node.hold.set(true);
        let number = fs.handles.number();
        let file = FileHandle::new(number, node, libc::O_RDWR as u32);
        fs.handles.insert(number, Handle::File(file.clone()));
        file.dirty.set(true);
        setup.world.borrow_mut().errors.push_back(DataError::Refused("x".to_owned()));
        assert!(fs.fsync(INODE, number, false).await.is_err());
        assert!(file.dirty.get(), "what is not durable can be lost with the session");
        assert!(fs.fsync(INODE, number, false).await.is_ok());
        assert!(!file.dirty.get());
        // Written and not synced, the session is lost: whoever writes on has to be told.
        file.dirty.set(true);
        file.lose_session();
        assert_eq!(file.check_change(), Err(Errno::EIO));
    });
}
