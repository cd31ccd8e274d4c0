//! Extended attributes.

use super::{Answer, ZabFs};
use crate::fuse::Reply;
use crate::meta::MetaFailure;
use bytes::Bytes;
use protocol::Errno;
use protocol::meta::{MetaReply, ReadOp, WriteOp, XATTR_VALUE_MAX, XattrMode};
use protocol::name::NAME_MAX;
use std::rc::Rc;

impl ZabFs {
    pub(super) async fn setxattr(
        self: &Rc<Self>,
        node: u64,
        name: Vec<u8>,
        value: &[u8],
        flags: u32,
    ) -> Answer {
        self.check_writable()?;
        check_name(&name)?;
        if value.len() > XATTR_VALUE_MAX {
            return Err(Errno::E2BIG);
        }
        let mode = match flags as i32 {
            0 => XattrMode::Either,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return Err(Errno::EINVAL),
        };
        let op = WriteOp::Setxattr { inode: self.inode(node), name, value: value.to_vec(), mode };
        self.meta.write(op).await?;
        Ok(Reply::Done)
    }

    pub(super) async fn getxattr(&self, node: u64, name: Vec<u8>, size: u32) -> Answer {
        check_name(&name)?;
        match self.meta.read(ReadOp::Getxattr { inode: self.inode(node), name }).await? {
            MetaReply::Bytes(value) => sized(value, size),
            _ => Err(MetaFailure::Unexpected("a getxattr").into()),
        }
    }

    pub(super) async fn listxattr(&self, node: u64, size: u32) -> Answer {
        match self.meta.read(ReadOp::Listxattr(self.inode(node))).await? {
            MetaReply::Names(names) => {
                let mut list = Vec::new();
                for name in names {
                    list.extend_from_slice(&name);
                    list.push(0);
                }
                sized(list, size)
            }
            _ => Err(MetaFailure::Unexpected("a listxattr").into()),
        }
    }

    pub(super) async fn removexattr(self: &Rc<Self>, node: u64, name: Vec<u8>) -> Answer {
        self.check_writable()?;
        check_name(&name)?;
        self.meta.write(WriteOp::Removexattr { inode: self.inode(node), name }).await?;
        Ok(Reply::Done)
    }
}

/// Access control lists and SELinux labels are not enforced, so they are not stored either. Saying so lets `ls -l` ask
/// once per file system instead of once per file.
fn check_name(name: &[u8]) -> Result<(), Errno> {
    if name.len() > NAME_MAX {
        return Err(Errno::ERANGE);
    }
    if name.starts_with(b"system.posix_acl_") || name == b"security.selinux" {
        return Err(Errno::EOPNOTSUPP);
    }
    Ok(())
}

fn sized(value: Vec<u8>, size: u32) -> Answer {
    if size == 0 {
        Ok(Reply::XattrSize(value.len() as u32))
    } else if value.len() > size as usize {
        Err(Errno::ERANGE)
    } else {
        Ok(Reply::Data(Bytes::from(value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_fits_its_buffer_or_its_length_is_told() {
        assert_eq!(sized(b"abc".to_vec(), 0), Ok(Reply::XattrSize(3)));
        assert_eq!(sized(b"abc".to_vec(), 2), Err(Errno::ERANGE));
        assert_eq!(sized(b"abc".to_vec(), 3), Ok(Reply::Data(Bytes::from_static(b"abc"))));
        assert_eq!(check_name(b"system.posix_acl_access"), Err(Errno::EOPNOTSUPP));
        assert_eq!(check_name(b"security.selinux"), Err(Errno::EOPNOTSUPP));
        assert_eq!(check_name(b"security.capability"), Ok(()));
        assert_eq!(check_name(&[b'x'; 256]), Err(Errno::ERANGE));
    }
}
