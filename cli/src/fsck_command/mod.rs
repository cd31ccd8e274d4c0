//! `zabfs fsck`: compares the namespace with itself and with the objects on data servers, and repairs it.
//!
//! The rows of one revision (a backup's) and every group's list of objects are kept on local disk and compared there.
//! What is suspicious is looked at again, live: only what is wrong then too is told, and only that is repaired.

mod ask;
mod report;
mod spool;

use crate::admin::Admin;
use crate::client_arguments::ClientArguments;
use crate::runtime;
use anyhow::anyhow;
use ask::{Ask, PATIENCE};
use clap::Args;
use fs_client::meta::leader::Leader;
use metadata_server::fsck::check::cycles;
use metadata_server::fsck::objects::compare;
use metadata_server::fsck::{BYTES_PER_INODE, Checker, Counts, Part, Suspect, Suspicion};
use metadata_server::state::key;
use metadata_server::state::record::Dentry;
use protocol::data::LIST_MAX;
use protocol::meta::{FSCK_NAMES_MAX, FsckMend, FsckProblem, FsckRequest};
use protocol::{EntryName, InodeId, PgId, Revision};
use report::{Outcome, Report};
use spool::Spool;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Exit code when the check could not be made.
const OPERATIONAL_ERROR: u8 = 8;
/// What one run looks at; the rest waits for the next.
const SUSPECTS_MAX: usize = 100_000;
/// How often a file that is in use is looked at again, and how long after.
const TRIES: usize = 5;
const TRY_AGAIN: Duration = Duration::from_millis(500);
/// What is compared by listing objects.
const OBJECTS: [Suspicion; 3] = [Suspicion::Orphans, Suspicion::Objects, Suspicion::Allocated];
/// Lines of progress come this often.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

/// Check the filesystem while it is used: namespace, objects, space; exit code 0 clean, 1 repaired, 4 errors left, 8 not
/// checked
#[derive(Debug, Args)]
pub(crate) struct FsckCommand {
    #[command(flatten)]
    client: ClientArguments,
    /// Repair what is wrong; what no directory names goes to /lost+found
    #[arg(long)]
    repair: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Compare the namespace with itself only
    #[arg(long)]
    no_objects: bool,
    /// Memory for comparing, in MiB; what does not fit is gone through in more passes
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    memory: u64,
    /// Directory on a local disk for what is compared [default: $TMPDIR or /tmp]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

impl FsckCommand {
    /// Runs it.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let json = self.json;
        match runtime::block_on_local(self.check()) {
            Ok(mut report) => {
                let code = report.finish();
                if json {
                    println!("{}", serde_json::to_string_pretty(&report)?);
                } else {
                    report.print();
                }
                Ok(ExitCode::from(code))
            }
            Err(error) => {
                eprintln!("zabfs: the filesystem was not checked: {error:#}");
                Ok(ExitCode::from(OPERATIONAL_ERROR))
            }
        }
    }

    async fn check(self) -> anyhow::Result<Report> {
        let started = Instant::now();
        let admin = Admin::new(&self.client)?;
        let leader = Leader::new(admin.endpoint.clone(), admin.metadata_addresses().to_vec());
        let mut run = Run {
            ask: Ask::new(admin.endpoint.clone(), leader).await?,
            spool: Spool::new(&self.scratch.clone().unwrap_or_else(std::env::temp_dir))?,
            report: Report::default(),
            repair: self.repair,
            said: Instant::now(),
        };
        run.fetch_rows(&admin).await?;
        if !self.no_objects {
            run.fetch_objects().await?;
        }
        let suspects = run.compare(self.memory, self.no_objects).await?;
        let names = run.names_of(&suspects)?;
        run.look_at_all(suspects, &names).await?;
        run.report.seconds = started.elapsed().as_secs_f64();
        Ok(run.report)
    }
}

type Names = BTreeMap<InodeId, Vec<(InodeId, EntryName)>>;

struct Run {
    ask: Ask,
    spool: Spool,
    report: Report,
    repair: bool,
    /// When progress was told last.
    said: Instant,
}

impl Run {
    fn progress(&mut self, message: impl FnOnce() -> String) {
        if self.said.elapsed() >= PROGRESS_EVERY {
            eprintln!("{}", message());
            self.said = Instant::now();
        }
    }

    /// Takes all rows of one revision.
    async fn fetch_rows(&mut self, admin: &Admin) -> anyhow::Result<()> {
        let mut rows = admin.backup().await?;
        self.report.revision = rows.head.revision.0;
        let mut count = 0;
        while let Some(chunk) = rows.next().await.map_err(|why| anyhow!(why))? {
            count += self.spool.keep_rows(chunk)?;
            self.progress(|| format!("{count} records of the namespace"));
        }
        Ok(())
    }

    async fn fetch_objects(&mut self) -> anyhow::Result<()> {
        let groups: Vec<PgId> = self.ask.map.pgs.keys().copied().collect();
        let mut count = 0u64;
        for (number, pg) in groups.iter().enumerate() {
            let mut after = None;
            loop {
                let (objects, end) = self.ask.list(*pg, after, LIST_MAX).await?;
                for object in &objects {
                    self.spool.keep_object(*pg, object)?;
                }
                count += objects.len() as u64;
                after = objects.last().map(|object| (object.inode, object.chunk)).or(after);
                self.progress(|| {
                    format!("{count} objects, placement group {} of {}", number + 1, groups.len())
                });
                if end {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Goes through everything, in as many passes as memory makes necessary.
    async fn compare(&mut self, memory_mib: u64, no_objects: bool) -> anyhow::Result<Vec<Suspect>> {
        let mut inodes = 0u64;
        self.spool.each_row(|row, _, _| inodes += u64::from(row.first() == Some(&key::INODE)))?;
        let parts = (inodes * BYTES_PER_INODE).div_ceil((memory_mib << 20).max(1 << 20)).max(1);
        self.report.passes = parts;
        let (mut counts, mut suspects, mut directories) = (Counts::default(), Vec::new(), Vec::new());
        let mut last = None;
        for number in 0..parts {
            self.progress(|| format!("pass {} of {parts}", number + 1));
            let mut checker = Checker::new(Part { number, of: parts });
            self.spool.each_row(|row, value, length| checker.row(row, value, length))?;
            self.spool.each_object(|pg, object| checker.object(pg, &object))?;
            let check = checker.finish();
            counts.add(&check.counts);
            directories.extend(check.directories);
            suspects.extend(check.suspects);
            last = Some(check.system);
        }
        if no_objects {
            for suspect in &mut suspects {
                suspect.why.retain(|why| !OBJECTS.contains(why));
            }
            suspects.retain(|suspect| !suspect.why.is_empty());
        }
        for inode in cycles(directories) {
            suspects.push(Suspect { inode, why: [Suspicion::Unreachable].into(), pools: BTreeSet::new() });
        }
        self.report.counted(&counts);
        let wrong = last.map_or_else(Vec::new, |system| system.compare(&counts));
        self.counts(&wrong).await?;
        if suspects.len() > SUSPECTS_MAX {
            self.report.incomplete = true;
            suspects.truncate(SUSPECTS_MAX);
        }
        Ok(suspects)
    }

    /// Wrong counts: of one revision, so that nothing in flight can be the reason.
    async fn counts(&mut self, wrong: &[FsckProblem]) -> anyhow::Result<()> {
        if wrong.is_empty() {
            return Ok(());
        }
        let (mut inodes, mut pools, mut next_inode) = (0, Vec::new(), 0);
        for problem in wrong {
            match problem {
                FsckProblem::InodeCount { found, counted } => inodes = *counted as i64 - *found as i64,
                FsckProblem::PoolCount { pool, found, counted } => {
                    pools.push((*pool, *counted as i64 - *found as i64));
                }
                FsckProblem::NextInode { highest, .. } => next_inode = highest + 1,
                _ => {}
            }
        }
        let mut outcome = Outcome::Left;
        if self.repair {
            let revision = Revision(self.report.revision);
            let request = FsckRequest::Counts { revision, inodes, pools, next_inode };
            if self.ask.fsck(request).await?.is_some() {
                outcome = Outcome::Repaired;
            }
        }
        for problem in wrong {
            self.report.add(None, None, problem.clone(), outcome);
        }
        Ok(())
    }

    /// Where suspects are named, whatever their links say.
    fn names_of(&mut self, suspects: &[Suspect]) -> anyhow::Result<Names> {
        let wanted: BTreeSet<InodeId> = suspects.iter().map(|suspect| suspect.inode).collect();
        let mut names = Names::new();
        if wanted.is_empty() {
            return Ok(names);
        }
        self.spool.each_row(|row, value, _| {
            let (Some(&key::DENTRY), Some(parent)) = (row.first(), key::number_at(row, 1)) else { return };
            let (Ok(name), Ok(entry)) = (EntryName::new(&row[9..]), postcard::from_bytes::<Dentry>(value))
            else {
                return;
            };
            if wanted.contains(&entry.inode) {
                let known = names.entry(entry.inode).or_default();
                if known.len() < FSCK_NAMES_MAX {
                    known.push((InodeId(parent), name));
                }
            }
        })?;
        Ok(names)
    }

    async fn look_at_all(&mut self, suspects: Vec<Suspect>, names: &Names) -> anyhow::Result<()> {
        let total = suspects.len();
        let mut seen: BTreeSet<InodeId> = BTreeSet::new();
        let is_about_objects = |suspect: &&Suspect| OBJECTS.iter().any(|why| suspect.why.contains(why));
        let with_objects: Vec<Suspect> = suspects.iter().filter(is_about_objects).cloned().collect();
        let mut queue: VecDeque<Suspect> = suspects.into();
        let mut done = 0;
        while let Some(suspect) = queue.pop_front() {
            done += 1;
            self.progress(|| format!("looked at {done} of {total} suspects"));
            let also =
                self.look_at(&suspect, names.get(&suspect.inode).map_or(&[][..], Vec::as_slice)).await?;
            // A repair concerns others, each of which is looked at once more at most.
            for inode in also.into_iter().filter(|inode| seen.insert(*inode)) {
                queue.push_back(Suspect { inode, why: BTreeSet::new(), pools: BTreeSet::new() });
            }
        }
        self.look_at_objects(with_objects).await
    }

    async fn look_at(
        &mut self,
        suspect: &Suspect,
        names: &[(InodeId, EntryName)],
    ) -> anyhow::Result<Vec<InodeId>> {
        let inode = suspect.inode;
        let before = self.ask.look(inode, names, false).await?;
        let mut also = Vec::new();
        if !before.found.is_empty() {
            let mut left = before.found.clone();
            if self.repair {
                let mended = self.ask.look(inode, names, true).await?;
                // What it was called before, too: a repair may take its name.
                let path = before.path.as_deref().or(mended.path.as_deref());
                let (found, still) = (mended.found, mended.left);
                for problem in &found {
                    let outcome = if still.contains(problem) { Outcome::Left } else { Outcome::Repaired };
                    self.report.add(Some(inode), path, problem.clone(), outcome);
                }
                left = still.into_iter().filter(|problem| !found.contains(problem)).collect();
                also = mended.also;
            }
            for problem in left {
                self.report.add(Some(inode), before.path.as_deref(), problem, Outcome::Left);
            }
        }
        Ok(also)
    }

    /// Compares objects of files, those that were in use again and again, each time a little later.
    async fn look_at_objects(&mut self, mut suspects: Vec<Suspect>) -> anyhow::Result<()> {
        for attempt in 0..TRIES {
            if attempt > 0 && !suspects.is_empty() {
                tokio::time::sleep(TRY_AGAIN).await;
            }
            let mut in_use = Vec::new();
            for suspect in suspects {
                if !self.settle_objects(&suspect).await? {
                    in_use.push(suspect);
                }
                self.progress(|| "comparing objects with their files".to_owned());
            }
            suspects = in_use;
        }
        self.report.in_use = suspects.len() as u64;
        Ok(())
    }

    /// Lists the inode's objects between two looks at it that say the same, so that nothing is in flight. `false` if it
    /// is in use.
    async fn settle_objects(&mut self, suspect: &Suspect) -> anyhow::Result<bool> {
        let Some((path, wrong)) = self.compare_objects(suspect).await? else { return Ok(false) };
        let mut settled = true;
        for (problem, mend) in wrong {
            let mended = match mend {
                Some(mend) if self.repair => self.mend_objects(suspect, mend).await?,
                _ => Some(false),
            };
            let Some(mended) = mended else {
                settled = false;
                continue;
            };
            let outcome = if mended { Outcome::Repaired } else { Outcome::Left };
            self.report.add(Some(suspect.inode), path.as_deref(), problem, outcome);
        }
        Ok(settled)
    }

    /// `None` if it is in use.
    #[allow(clippy::type_complexity, reason = "a path, and each problem with what mends it")]
    async fn compare_objects(
        &mut self,
        suspect: &Suspect,
    ) -> anyhow::Result<Option<(Option<Vec<u8>>, Vec<(FsckProblem, Option<FsckMend>)>)>> {
        let inode = suspect.inode;
        let before = self.ask.look(inode, &[], false).await?;
        if before.in_use {
            return Ok(None);
        }
        let mut pools = suspect.pools.clone();
        pools.extend(before.file.map(|file| file.pool));
        let objects = self.ask.objects_of(inode, pools).await?;
        let after = self.ask.look(inode, &[], false).await?;
        if after.in_use || (after.exists, after.file) != (before.exists, before.file) {
            return Ok(None);
        }
        // Something else than a file has no objects; if it has, that is for a person to look at.
        if after.exists && after.file.is_none() {
            return Ok(Some((after.path, Vec::new())));
        }
        let wrong = compare(inode, after.file.as_ref(), &objects, &self.ask.map.pools);
        Ok(Some((after.path, wrong)))
    }

    /// Repairs, and waits until objects that have to go are gone. `None` if the file is in use.
    async fn mend_objects(&mut self, suspect: &Suspect, mend: FsckMend) -> anyhow::Result<Option<bool>> {
        let inode = suspect.inode;
        let file = self.ask.look(inode, &[], false).await?.file;
        if self.ask.fsck(FsckRequest::Objects { inode, file, mend: mend.clone() }).await?.is_none() {
            return Ok(None);
        }
        if let FsckMend::Allocated(_) = mend {
            return Ok(Some(true));
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some((_, wrong)) = self.compare_objects(suspect).await? {
                return Ok(Some(!wrong.iter().any(|(_, other)| other.as_ref() == Some(&mend))));
            }
            tokio::time::sleep(TRY_AGAIN / 5).await;
        }
        Ok(Some(false))
    }
}
