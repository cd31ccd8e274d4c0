//! Trees and files whose every byte is known, and comparisons with copies outside the file system.

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// What a tree is to hold besides ordinary files.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extras {
    /// A second name for some files.
    pub hard_links: bool,
    /// Symbolic links.
    pub symlinks: bool,
    /// Files with holes, one of 64 MiB.
    pub sparse: bool,
    /// No ordinary file above 20 KiB, as in most source trees.
    pub only_small: bool,
}

/// `len` bytes that depend on the seed only and do not compress.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut out);
    out
}

/// A number in `0..limit` (`limit` > 0); the small bias does not matter to a workload.
pub fn below(rng: &mut ChaCha8Rng, limit: u64) -> u64 {
    rng.next_u64() % limit
}

/// Fills the new directory `root` with `files` files in nested directories: most of a few KiB, some empty,
/// some around the inline limit, some of several chunks' worth of odd sizes.
pub fn make_tree(root: &Path, seed: u64, files: usize, extras: Extras) -> anyhow::Result<()> {
    fs::create_dir_all(root).with_context(|| format!("create {}", root.display()))?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut directories = vec![root.to_owned()];
    for number in 0..files {
        if number % 13 == 0 {
            let parent = &directories[below(&mut rng, directories.len() as u64) as usize];
            let directory = parent.join(format!("dir {number}"));
            fs::create_dir(&directory).with_context(|| format!("create {}", directory.display()))?;
            directories.push(directory);
        }
        let parent = &directories[below(&mut rng, directories.len() as u64) as usize];
        let path = parent.join(format!("file-{number}.bin"));
        let contents = bytes(rng.next_u64(), size(&mut rng, extras.only_small));
        write_file(&path, &contents, &mut rng)?;
        if extras.hard_links && number % 17 == 0 {
            fs::hard_link(&path, root.join(format!("hard-{number}")))
                .with_context(|| format!("link {}", path.display()))?;
        }
        if extras.symlinks && number % 19 == 0 {
            symlink(&path, root.join(format!("soft-{number}"))).context("make a symbolic link")?;
        }
    }
    if extras.sparse {
        sparse_file(&root.join("sparse.img"), 64 << 20, &mut rng)?;
        sparse_file(&root.join("sparse-small.img"), 300_000, &mut rng)?;
    }
    // Bottom up, so that no later creation changes a directory's time again.
    for directory in directories.iter().rev() {
        set_mtime(directory, &mut rng)?;
    }
    Ok(())
}

fn size(rng: &mut ChaCha8Rng, only_small: bool) -> usize {
    let kind = below(rng, if only_small { 85 } else { 100 });
    let range = match kind {
        0..=4 => 1,
        5..=69 => 8 << 10,
        70..=84 => 20 << 10,
        85..=97 => 200 << 10,
        _ => 3 << 20,
    };
    below(rng, range) as usize
}

fn write_file(path: &Path, contents: &[u8], rng: &mut ChaCha8Rng) -> anyhow::Result<()> {
    fs::write(path, contents).with_context(|| format!("write {}", path.display()))?;
    let mode = [0o644, 0o600, 0o755, 0o444][below(rng, 4) as usize];
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("set the mode of {}", path.display()))?;
    set_mtime(path, rng)
}

fn set_mtime(path: &Path, rng: &mut ChaCha8Rng) -> anyhow::Result<()> {
    let nanos = below(rng, 1_000_000_000);
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_500_000_000 + below(rng, 100_000_000), nanos as u32);
    // Read-only access suffices to set times as the owner.
    File::open(path)
        .and_then(|file| file.set_times(FileTimes::new().set_modified(time)))
        .with_context(|| format!("set the time of {}", path.display()))
}

fn sparse_file(path: &Path, len: u64, rng: &mut ChaCha8Rng) -> anyhow::Result<()> {
    let mut file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    file.set_len(len).context("set a sparse file's length")?;
    for _ in 0..5 {
        let offset = below(rng, len - 5000);
        file.seek(SeekFrom::Start(offset)).context("seek in a sparse file")?;
        file.write_all(&bytes(rng.next_u64(), 5000)).context("write into a sparse file")?;
    }
    set_mtime(path, rng)
}

/// What [`compare_trees`] looks at besides names, kinds, sizes, modes, targets and every byte.
#[derive(Clone, Copy, Debug)]
pub struct Aspects {
    /// Modification times, to the nanosecond.
    pub times: bool,
    /// Which names share an inode.
    pub hard_links: bool,
}

impl Aspects {
    /// All of them.
    pub const ALL: Aspects = Aspects { times: true, hard_links: true };
    /// Contents only.
    pub const CONTENTS: Aspects = Aspects { times: false, hard_links: false };
}

/// Fails with a sentence on the first difference between two trees.
pub fn compare_trees(expected: &Path, actual: &Path, aspects: Aspects) -> anyhow::Result<usize> {
    let (left, right) = (list(expected)?, list(actual)?);
    for name in left.keys() {
        ensure!(right.contains_key(name), "{} is missing in {}", name.display(), actual.display());
    }
    for name in right.keys() {
        ensure!(left.contains_key(name), "{} is in {} only", name.display(), actual.display());
    }
    let mut partner: BTreeMap<u64, u64> = BTreeMap::new();
    for (name, wanted) in &left {
        let found = &right[name];
        compare_entry(name, wanted, found, aspects)
            .with_context(|| format!("{} differs in {}", name.display(), actual.display()))?;
        if wanted.is_file() {
            compare_contents(&expected.join(name), &actual.join(name))?;
        }
        if wanted.file_type().is_symlink() {
            let (wanted, found) = (fs::read_link(expected.join(name))?, fs::read_link(actual.join(name))?);
            ensure!(wanted == found, "{}: the link leads to {found:?}, not {wanted:?}", name.display());
        }
        if aspects.hard_links && wanted.is_file() {
            let known = *partner.entry(wanted.ino()).or_insert(found.ino());
            ensure!(known == found.ino(), "{}: the hard link is a file of its own", name.display());
        }
    }
    Ok(left.len())
}

fn compare_entry(
    name: &Path,
    wanted: &fs::Metadata,
    found: &fs::Metadata,
    aspects: Aspects,
) -> anyhow::Result<()> {
    let kind = |metadata: &fs::Metadata| {
        let kind = metadata.file_type();
        (kind.is_dir(), kind.is_file(), kind.is_symlink(), kind.is_fifo())
    };
    ensure!(kind(wanted) == kind(found), "another kind of file");
    if wanted.file_type().is_symlink() {
        return Ok(());
    }
    ensure!(wanted.mode() == found.mode(), "mode {:o}, not {:o}", found.mode(), wanted.mode());
    if wanted.is_file() {
        ensure!(wanted.len() == found.len(), "{} bytes, not {}", found.len(), wanted.len());
        if aspects.hard_links {
            ensure!(wanted.nlink() == found.nlink(), "{} links, not {}", found.nlink(), wanted.nlink());
        }
    }
    // The root's own time changes with what a test puts beside the tree.
    if aspects.times && name != Path::new("") {
        let time = |metadata: &fs::Metadata| (metadata.mtime(), metadata.mtime_nsec());
        ensure!(time(wanted) == time(found), "modified {:?}, not {:?}", time(found), time(wanted));
    }
    Ok(())
}

/// Fails with the offset of the first different byte.
pub fn compare_contents(expected: &Path, actual: &Path) -> anyhow::Result<()> {
    let open = |path: &Path| File::open(path).with_context(|| format!("open {}", path.display()));
    let (mut left, mut right) = (open(expected)?, open(actual)?);
    let (mut wanted, mut found) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0;
    loop {
        let count = fill(&mut left, &mut wanted).with_context(|| format!("read {}", expected.display()))?;
        let other = fill(&mut right, &mut found).with_context(|| format!("read {}", actual.display()))?;
        if let Some(at) = (0..count.min(other)).find(|at| wanted[*at] != found[*at]) {
            let (a, b) = (wanted[at], found[at]);
            bail!("{}: byte {} is {b:#04x}, not {a:#04x}", actual.display(), offset + at);
        }
        ensure!(count == other, "{}: ends at {}, not {}", actual.display(), offset + other, offset + count);
        if count == 0 {
            return Ok(());
        }
        offset += count;
    }
}

fn fill(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

/// Every entry below `root` by relative path; the root itself is `""`.
fn list(root: &Path) -> anyhow::Result<BTreeMap<PathBuf, fs::Metadata>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(name) = pending.pop() {
        let path = root.join(&name);
        let metadata = fs::symlink_metadata(&path).with_context(|| format!("look at {}", path.display()))?;
        if metadata.is_dir() {
            for entry in fs::read_dir(&path).with_context(|| format!("list {}", path.display()))? {
                let entry = entry.with_context(|| format!("list {}", path.display()))?;
                pending.push(name.join(entry.file_name()));
            }
        }
        found.insert(name, metadata);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_the_same_for_the_same_seed_and_differences_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let extras = Extras { hard_links: true, symlinks: false, sparse: true, only_small: false };
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        make_tree(&a, 7, 60, extras).unwrap();
        make_tree(&b, 7, 60, extras).unwrap();
        assert!(compare_trees(&a, &b, Aspects::ALL).unwrap() > 60);

        let victim = b.join("sparse.img");
        let mut file = fs::OpenOptions::new().write(true).open(&victim).unwrap();
        file.seek(SeekFrom::Start(9_999_999)).unwrap();
        file.write_all(b"\xff\xff").unwrap();
        let error = format!("{:#}", compare_trees(&a, &b, Aspects::CONTENTS).unwrap_err());
        assert!(error.contains("byte 9999999") || error.contains("byte 10000000"), "{error}");
        fs::remove_file(&victim).unwrap();
        let error = format!("{:#}", compare_trees(&a, &b, Aspects::CONTENTS).unwrap_err());
        assert!(error.contains("sparse.img is missing"), "{error}");
    }
}
