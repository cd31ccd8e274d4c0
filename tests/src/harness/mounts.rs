//! What the kernel says is mounted.

use std::ffi::{CString, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

/// The type under which `zabfs mount` mounts.
const FILE_SYSTEM_TYPE: &str = "fuse.zabfs";

/// Whether a zabfs file system is mounted exactly there. Asks the kernel's table, never the mount itself,
/// which may be dead or slow.
pub fn is_mounted(mountpoint: &Path) -> bool {
    mounts().iter().any(|(path, kind)| path == mountpoint && kind == FILE_SYSTEM_TYPE)
}

/// Every mountpoint at or below `dir`, of whatever type, innermost last.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    mounts().into_iter().map(|(path, _)| path).filter(|path| path.starts_with(dir)).collect()
}

/// Takes a mount out of the tree at once, busy or dead. `false` if nothing was mounted there.
#[allow(unsafe_code, reason = "umount2(2) is not in std")]
pub fn detach(mountpoint: &Path) -> anyhow::Result<bool> {
    let path = CString::new(mountpoint.as_os_str().as_bytes()).context("a path holds no NUL")?;
    // SAFETY: `path` is a NUL-terminated string that outlives the call.
    if unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) } == 0 {
        return Ok(true);
    }
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::ENOENT) => Ok(false),
        _ => Err(error).with_context(|| format!("detach the mount at {}", mountpoint.display())),
    }
}

/// (mountpoint, file system type) in mount order.
fn mounts() -> Vec<(PathBuf, String)> {
    let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// Fields of `/proc/self/mountinfo` (proc(5)): the fifth is the mountpoint; the type follows a lone `-`.
fn parse_line(line: &[u8]) -> Option<(PathBuf, String)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mountpoint = fields.nth(4)?;
    let mut fields = fields.skip_while(|field| *field != b"-");
    let kind = fields.nth(1)?;
    Some((PathBuf::from(unescape(mountpoint)), String::from_utf8_lossy(kind).into_owned()))
}

/// Undoes the kernel's `\040` for blank, tab, newline and backslash.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mountinfo_line_gives_mountpoint_and_type() {
        let line = br"36 35 0:98 / /tmp/a\040b rw,noatime shared:1 - fuse.zabfs zabfs rw,user_id=0";
        let expected = (PathBuf::from("/tmp/a b"), "fuse.zabfs".to_owned());
        assert_eq!(parse_line(line), Some(expected));
        assert_eq!(parse_line(b""), None);
    }

    #[test]
    fn nothing_is_mounted_on_a_fresh_directory() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_mounted(dir.path()));
        assert!(mounts_below(dir.path()).is_empty());
        assert!(!detach(dir.path()).unwrap());
    }
}
