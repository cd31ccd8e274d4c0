//! What a check says, as text or JSON, and how it ends.

use metadata_server::fsck::Counts;
use protocol::InodeId;
use protocol::meta::FsckProblem;
use serde::Serialize;
use std::collections::BTreeSet;

/// Everything is as it should be.
const CLEAN: u8 = 0;
/// Something was wrong and is repaired.
const REPAIRED: u8 = 1;
/// Something is still wrong.
const ERRORS_LEFT: u8 = 4;

/// What became of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// Nobody asked for a repair, or there is none.
    Left,
    /// It is gone.
    Repaired,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    /// `None` for what concerns the cluster as a whole.
    pub(crate) inode: Option<u64>,
    pub(crate) path: Option<String>,
    /// `error`, or `note` for what fails no check.
    severity: &'static str,
    problem: FsckProblem,
    message: String,
    pub(crate) outcome: Outcome,
}

/// What was looked at and found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) revision: u64,
    pub(crate) inodes: u64,
    pub(crate) directories: u64,
    pub(crate) entries: u64,
    pub(crate) objects: u64,
    pub(crate) object_bytes: u64,
    pub(crate) passes: u64,
    pub(crate) seconds: f64,
    /// Files whose objects could not be compared because they were in use all the time.
    pub(crate) in_use: u64,
    /// More was suspicious than one run looks at.
    pub(crate) incomplete: bool,
    pub(crate) findings: Vec<Finding>,
    pub(crate) exit_code: u8,
    #[serde(skip)]
    said: BTreeSet<(Option<InodeId>, FsckProblem)>,
}

impl Report {
    pub(crate) fn counted(&mut self, counts: &Counts) {
        (self.inodes, self.directories, self.entries) = (counts.inodes, counts.directories, counts.entries);
        (self.objects, self.object_bytes) = (counts.objects, counts.object_bytes);
    }

    /// Takes a problem down, once.
    pub(crate) fn add(
        &mut self,
        inode: Option<InodeId>,
        path: Option<&[u8]>,
        problem: FsckProblem,
        outcome: Outcome,
    ) {
        if !self.said.insert((inode, problem.clone())) {
            return;
        }
        self.findings.push(Finding {
            inode: inode.map(|inode| inode.0),
            path: path.map(|path| String::from_utf8_lossy(path).into_owned()),
            severity: if problem.is_note() { "note" } else { "error" },
            message: problem.to_string(),
            problem,
            outcome,
        });
    }

    fn count(&self, severity: &str, outcome: Outcome) -> usize {
        self.findings.iter().filter(|f| f.severity == severity && f.outcome == outcome).count()
    }

    /// The exit code, as of fsck(8): the sum of what was corrected and what is left.
    pub(crate) fn finish(&mut self) -> u8 {
        let repaired = self.findings.iter().any(|finding| finding.outcome == Outcome::Repaired);
        let left = self.incomplete || self.count("error", Outcome::Left) > 0;
        self.exit_code = CLEAN + if repaired { REPAIRED } else { 0 } + if left { ERRORS_LEFT } else { 0 };
        self.exit_code
    }

    pub(crate) fn print(&self) {
        for finding in &self.findings {
            let outcome = match finding.outcome {
                Outcome::Repaired => ": repaired",
                Outcome::Left => "",
            };
            let note = if finding.severity == "note" { "note: " } else { "" };
            println!("{note}{}: {}{outcome}", finding.subject(), finding.message);
        }
        println!(
            "revision {}: {} inodes, {} directories, {} entries, {} objects with {} bytes, in {:.1} s",
            self.revision,
            self.inodes,
            self.directories,
            self.entries,
            self.objects,
            self.object_bytes,
            self.seconds
        );
        if self.in_use > 0 {
            println!("{} files were in use all the time; their objects were not compared", self.in_use);
        }
        if self.incomplete {
            println!("more is wrong than one check looks at: run it again after a repair");
        }
        let (left, notes) = (self.count("error", Outcome::Left), self.count("note", Outcome::Left));
        let repaired = self.count("error", Outcome::Repaired) + self.count("note", Outcome::Repaired);
        match (left, repaired) {
            (0, 0) if !self.incomplete => println!("clean, {notes} notes"),
            _ => println!("{repaired} repaired, {left} errors left, {notes} notes"),
        }
        if left > 0 && repaired == 0 {
            println!("'zabfs fsck --repair' repairs what can be repaired");
        }
    }
}

impl Finding {
    fn subject(&self) -> String {
        match (&self.path, self.inode) {
            (Some(path), Some(inode)) => format!("{path} (inode {inode})"),
            (None, Some(inode)) => format!("inode {inode}"),
            (_, None) => "filesystem".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_says_what_was_repaired_and_what_is_left() {
        let error = || FsckProblem::LinkCount { found: 3, counted: 1 };
        let note = || FsckProblem::Allocated { recorded: 1, found: 2 };
        let code = |findings: &[(FsckProblem, Outcome)]| {
            let mut report = Report::default();
            for (number, (problem, outcome)) in findings.iter().enumerate() {
                report.add(Some(InodeId(number as u64)), None, problem.clone(), *outcome);
            }
            report.finish()
        };
        assert_eq!(code(&[]), 0);
        assert_eq!(code(&[(note(), Outcome::Left)]), 0);
        assert_eq!(code(&[(error(), Outcome::Repaired)]), 1);
        assert_eq!(code(&[(error(), Outcome::Left)]), 4);
        assert_eq!(code(&[(error(), Outcome::Left), (note(), Outcome::Repaired)]), 5);
    }

    #[test]
    fn a_problem_is_told_once() {
        let mut report = Report::default();
        for _ in 0..2 {
            report.add(Some(InodeId(7)), Some(b"/a"), FsckProblem::Unreferenced, Outcome::Left);
        }
        assert_eq!(report.findings.len(), 1);
        assert_eq!(report.findings[0].subject(), "/a (inode 7)");
    }
}
