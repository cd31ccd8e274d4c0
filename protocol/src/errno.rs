//! The one errno table: what a caller of a system call sees.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A Linux error number, as it goes to the kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Errno(pub i32);

macro_rules! table {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Self = Self(libc::$name);)*

            /// The symbolic name, or `E?` for a number that zabfs never produces.
            pub fn name(self) -> &'static str {
                match self.0 { $(libc::$name => stringify!($name),)* _ => "E?" }
            }
        }
    };
}

table! {
    /// Not the owner, or the operation is not for this kind of file.
    EPERM,
    /// No such file, or it was removed meanwhile.
    ENOENT,
    /// A signal ended a wait.
    EINTR,
    /// Lost replicas, a fenced session, or a disk that failed everywhere.
    EIO,
    /// No such device or address.
    ENXIO,
    /// Argument too long.
    E2BIG,
    /// Not open for that.
    EBADF,
    /// Would block.
    EAGAIN,
    /// Out of memory, or a bounded table is full.
    ENOMEM,
    /// Permission denied.
    EACCES,
    /// Busy: a mountpoint, or `.zabfs` itself.
    EBUSY,
    /// The name exists.
    EEXIST,
    /// Across file systems, or out of a fenced view.
    EXDEV,
    /// No such device.
    ENODEV,
    /// Not a directory.
    ENOTDIR,
    /// Is a directory.
    EISDIR,
    /// Invalid argument.
    EINVAL,
    /// No such ioctl here.
    ENOTTY,
    /// File too large.
    EFBIG,
    /// The data servers are full.
    ENOSPC,
    /// Illegal seek.
    ESPIPE,
    /// The certificate or the mount is read-only.
    EROFS,
    /// Too many links.
    EMLINK,
    /// A wait for a POSIX lock that would never end.
    EDEADLK,
    /// Name too long.
    ENAMETOOLONG,
    /// The lock table is full.
    ENOLCK,
    /// Not implemented; the kernel then never asks again.
    ENOSYS,
    /// Directory not empty.
    ENOTEMPTY,
    /// Too many symbolic links.
    ELOOP,
    /// No such extended attribute.
    ENODATA,
    /// Value out of range (an xattr buffer too small).
    ERANGE,
    /// Value too large for its type.
    EOVERFLOW,
    /// Not supported.
    EOPNOTSUPP,
    /// `-o timeout=` passed.
    ETIMEDOUT,
    /// Over quota.
    EDQUOT,
    /// The file or lock under this descriptor is gone.
    ESTALE,
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", std::io::Error::from_raw_os_error(self.0))
    }
}

impl std::error::Error for Errno {}

impl From<crate::name::NameError> for Errno {
    fn from(error: crate::name::NameError) -> Self {
        match error {
            crate::name::NameError::TooLong => Self::ENAMETOOLONG,
            crate::name::NameError::Illegal => Self::EINVAL,
        }
    }
}

impl From<&std::io::Error> for Errno {
    /// The kernel's own number where there is one; EIO says "the store failed" otherwise.
    fn from(error: &std::io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EIO))
    }
}
