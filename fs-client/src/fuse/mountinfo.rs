//! What `/proc/self/mountinfo` says of a mountpoint, without touching the mount: a dead or hanging one would
//! answer an error or never.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// Device number, major.
    pub major: u32,
    /// Device number, minor; of a FUSE mount also the name of its connection in fusectl.
    pub minor: u32,
    /// Where.
    pub mountpoint: PathBuf,
    /// File system type, with its subtype.
    pub kind: String,
    /// Source text.
    pub source: OsString,
}

/// The topmost mount at exactly `mountpoint` (an absolute path without symbolic links), if any.
pub fn top_at(mountpoint: &Path) -> io::Result<Option<MountInfo>> {
    // The last line of those with the same mountpoint is the newest, which is on top.
    Ok(all()?.into_iter().rfind(|mount| mount.mountpoint == mountpoint))
}

/// All mounts that this process sees.
pub fn all() -> io::Result<Vec<MountInfo>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse_line).collect())
}

/// Format: proc(5). `36 35 98:0 /root /mountpoint options optional-fields - type source super-options`.
fn parse_line(line: &[u8]) -> Option<MountInfo> {
    let mut fields = line.split(|b| *b == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let mountpoint = unescape(fields.nth(1)?);
    fields.find(|field| *field == b"-")?;
    let kind = String::from_utf8_lossy(fields.next()?).into_owned();
    let source = unescape(fields.next()?);
    Some(MountInfo {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        mountpoint: PathBuf::from(mountpoint),
        kind,
        source,
    })
}

/// Resolves the `\ooo` that the kernel writes for blank, tab, newline and backslash.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).filter(|_| *first == b'\\').and_then(octal);
        bytes.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(bytes)
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(OsStr::from_bytes(digits).to_str()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_optional_fields_and_escapes() {
        let line =
            br"36 35 0:57 / /mnt/a\040b\134c rw,nosuid shared:1 master:2 - fuse.zabfs h1,h2:/x rw,fd=3";
        let mount = parse_line(line).expect("a legal line");
        assert_eq!((mount.major, mount.minor), (0, 57));
        assert_eq!(mount.mountpoint, Path::new(r"/mnt/a b\c"));
        assert_eq!((mount.kind.as_str(), mount.source.as_os_str()), ("fuse.zabfs", OsStr::new("h1,h2:/x")));
    }

    #[test]
    fn nonsense_lines_are_skipped() {
        for line in [&b""[..], b"1 2 3", b"1 2 x:y / / rw - a b", b"1 2 0:1 / /a rw a b", br"\0"] {
            assert_eq!(parse_line(line), None, "{line:?}");
        }
        assert_eq!(unescape(br"a\04"), OsStr::new(r"a\04"));
        assert_eq!(unescape(br"a\999"), OsStr::new(r"a\999"));
    }

    #[test]
    fn proc_is_mounted_here() {
        let proc = top_at(Path::new("/proc")).expect("mountinfo is readable").expect("/proc is mounted");
        assert_eq!(proc.kind, "proc");
    }
}
