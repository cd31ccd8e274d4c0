//! Two mounts, each in a network namespace of its own as on two machines: what returned on one is seen by the
//! next call on the other.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, ensure};
use cluster_tests::harness::{MountCall, Namespace, Options};
use cluster_tests::workload::bytes;

use crate::Row;
use crate::scene::Scene;

pub(crate) const TESTS: &[Row] =
    &[("coherence::the_next_call_on_the_other_mount_sees_it", (180, 600), two_machines)];

fn two_machines(scene: &Scene) -> anyhow::Result<()> {
    let (first, second) = (Namespace::create(0)?, Namespace::create(1)?);
    let cluster = scene.cluster_with(&Options { address: first.host(), ..Options::default() })?;
    let (a, b) = (scene.scratch("a")?, scene.scratch("b")?);
    cluster.mount(&MountCall { namespace: Some(&first), ..MountCall::at(&a) })?;
    cluster.mount(&MountCall { namespace: Some(&second), ..MountCall::at(&b) })?;
    for round in 0..scene.size(40, 400) {
        let (here, there) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let context = || format!("round {round}, from {} to {}", here.display(), there.display());
        names(here, there, round).with_context(context)?;
        contents(here, there, round).with_context(context)?;
        open_handles(here, there, round).with_context(context)?;
    }
    for round in 0..scene.size(3, 20) {
        large_file(&a, &b, round)?;
        large_file(&b, &a, round)?;
    }
    Ok(())
}

fn is_missing(path: &Path) -> anyhow::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => anyhow::bail!("{} should be missing: {other:?}", path.display()),
    }
}

fn names(here: &Path, there: &Path, round: u64) -> anyhow::Result<()> {
    let (name, moved) = (format!("name-{round}"), format!("moved-{round}"));
    // Looked up in vain on the other mount first: absence must not be remembered.
    is_missing(&there.join(&name))?;
    fs::write(here.join(&name), "one")?;
    ensure!(fs::read(there.join(&name))? == b"one", "written there");
    is_missing(&there.join(&moved))?;
    fs::rename(here.join(&name), here.join(&moved))?;
    is_missing(&there.join(&name))?;
    ensure!(fs::read(there.join(&moved))? == b"one", "renamed there");
    fs::hard_link(here.join(&moved), here.join(&name))?;
    ensure!(fs::metadata(there.join(&moved))?.nlink() == 2, "linked there");
    for mode in [0o600, 0o751] {
        fs::set_permissions(here.join(&moved), fs::Permissions::from_mode(mode))?;
        ensure!(fs::metadata(there.join(&name))?.mode() & 0o7777 == mode, "chmod there");
    }
    fs::remove_file(here.join(&moved))?;
    is_missing(&there.join(&moved))?;
    ensure!(fs::metadata(there.join(&name))?.nlink() == 1, "unlinked there");
    fs::remove_file(here.join(&name))?;
    is_missing(&there.join(&name))?;

    let directory = format!("dir-{round}");
    fs::create_dir(here.join(&directory))?;
    ensure!(fs::read_dir(there.join(&directory))?.count() == 0, "an empty directory there");
    fs::write(here.join(&directory).join("x"), "")?;
    ensure!(fs::read_dir(there.join(&directory))?.count() == 1, "one entry there");
    let refused = fs::remove_dir(there.join(&directory))
        .err()
        .context("a directory with an entry was removed there")?;
    ensure!(refused.kind() == ErrorKind::DirectoryNotEmpty, "rmdir there: {refused}");
    fs::remove_file(there.join(&directory).join("x"))?;
    fs::remove_dir(here.join(&directory))?;
    is_missing(&there.join(&directory))
}

fn contents(here: &Path, there: &Path, round: u64) -> anyhow::Result<()> {
    let name = format!("contents-{round}");
    let (mine, theirs) = (here.join(&name), there.join(&name));
    for len in [10, 5000, 16_384, 16_385, 70_000] {
        let wanted = bytes(round + len as u64, len);
        fs::write(&mine, &wanted)?;
        ensure!(fs::read(&theirs)? == wanted, "{len} bytes there");
        let cut = len / 3;
        OpenOptions::new().write(true).open(&theirs)?.set_len(cut as u64)?;
        ensure!(fs::metadata(&mine)?.len() == cut as u64, "the cut length here");
        ensure!(fs::read(&mine)? == wanted[..cut], "the cut contents here");
        OpenOptions::new().append(true).open(&mine)?.write_all(b"tail")?;
        ensure!(fs::read(&theirs)? == [&wanted[..cut], b"tail"].concat(), "the tail there");
        // Longer again: what was cut off must not come back.
        OpenOptions::new().write(true).open(&mine)?.set_len(len as u64 + 100)?;
        let found = fs::read(&theirs)?;
        ensure!(found.len() == len + 100 && found[cut + 4..].iter().all(|byte| *byte == 0), "zeros there");
    }
    fs::remove_file(&theirs)?;
    is_missing(&mine)
}

/// Handles that are open already see it as well, and a file that is unlinked there stays readable here.
fn open_handles(here: &Path, there: &Path, round: u64) -> anyhow::Result<()> {
    let name = format!("handles-{round}");
    for len in [100, 50_000] {
        fs::write(here.join(&name), bytes(round, len))?;
        let mine = OpenOptions::new().read(true).write(true).open(here.join(&name))?;
        let theirs = OpenOptions::new().read(true).write(true).open(there.join(&name))?;
        let mut buffer = [0; 8];
        theirs.read_exact_at(&mut buffer, 50)?;
        for step in 0..3_u8 {
            mine.write_all_at(&[step; 8], 50)?;
            theirs.read_exact_at(&mut buffer, 50)?;
            ensure!(buffer == [step; 8], "an open handle there reads {buffer:?}, not {step}");
            theirs.write_all_at(&[step + 100; 8], 50)?;
            mine.read_exact_at(&mut buffer, 50)?;
            ensure!(buffer == [step + 100; 8], "an open handle here reads {buffer:?}, not {}", step + 100);
        }
        mine.set_len(20)?;
        ensure!(theirs.metadata()?.len() == 20, "fstat there");
        fs::remove_file(there.join(&name))?;
        mine.read_exact_at(&mut buffer, 4).context("read an unlinked file that is open here")?;
        ensure!(mine.metadata()?.nlink() == 0, "the open file has no name left");
    }
    Ok(())
}

fn large_file(here: &Path, there: &Path, round: u64) -> anyhow::Result<()> {
    let name = format!("large-{round}");
    let mut wanted = bytes(round, 9_500_000);
    fs::write(here.join(&name), &wanted)?;
    ensure!(fs::read(there.join(&name))? == wanted, "9.5 MB there");
    let mine = File::open(here.join(&name))?;
    let theirs = OpenOptions::new().write(true).open(there.join(&name))?;
    // Across the border of two chunks.
    let piece = bytes(round + 1, 300_000);
    let at = 4 * 1024 * 1024 - 100_000;
    theirs.write_all_at(&piece, at)?;
    wanted[at as usize..at as usize + piece.len()].copy_from_slice(&piece);
    let mut found = vec![0; wanted.len()];
    mine.read_exact_at(&mut found, 0)?;
    ensure!(found == wanted, "a piece written there is read here");
    fs::remove_file(there.join(&name))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is asked of two mounts holds for one local directory, or the questions are wrong.
    #[test]
    fn a_local_disk_is_coherent_with_itself() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..2 {
            names(dir.path(), dir.path(), round).unwrap();
            contents(dir.path(), dir.path(), round).unwrap();
            open_handles(dir.path(), dir.path(), round).unwrap();
            large_file(dir.path(), dir.path(), round).unwrap();
        }
    }
}
