//! `zabfs bench`: measures parts of a running cluster.

use crate::client_arguments::ClientArguments;
use crate::runtime;
use anyhow::Context as _;
use clap::{Args, Subcommand};
use fs_client::data::bench::{self, Plan, Row};
use fs_client::meta::bench as metadata;
use protocol::identity::Identity;
use std::process::ExitCode;

/// Measure parts of a running cluster
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Measure reading and writing of chunks, without a mount
    Data(DataBenchCommand),
    /// Measure creating, setting and getting znodes, without a mount
    Metadata(MetadataBenchCommand),
}

/// Measure reading and writing of chunks, without a mount
///
/// Speaks to the data servers as a mount does (same certificates, encryption, checksums and replication), but without
/// the kernel, so that what FUSE costs is the difference to the same figures through a mount. Works in one nameless
/// file, which is gone when the command ends, however it ends (after a kill: when its session expires).
///
/// Rows: seq_write and seq_read move the file in pieces of 1 MiB, with as many under way as --pieces says. rand_read
/// and rand_write touch 4 KiB at random places of it, one at a time and with 64 under way. fsync_write is one write of
/// 4 KiB, then a sync: when it returns, the bytes are on stable storage of every in-sync replica. A write that
/// overwrites bytes commits nothing to the metadata here; a mount also commits the file's times.
#[derive(Debug, Args)]
pub(crate) struct DataBenchCommand {
    #[command(flatten)]
    client: ClientArguments,
    /// Size of the file in MiB
    #[arg(long, default_value_t = 256, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    size: u32,
    /// Seconds for each row of small reads or writes
    #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Pieces of 1 MiB under way at once in seq_write and seq_read
    #[arg(long, default_value_t = 1, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=64))]
    pieces: u32,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Measure creating, setting and getting znodes, without a mount
///
/// Speaks to the metadata servers as a mount does (same certificates, encryption, sessions and retries), but without
/// the kernel. Each znode holds 100 bytes. A create or set has returned when a majority of the servers has it on stable
/// storage and the leader has applied it; a get is linearizable: it sees every set that returned before it began.
///
/// Rows: fill makes the znodes that the others touch. create, set, get and mixed (two gets for each set) run with one
/// session that does one operation at a time, with one session that has 100 under way, and with ten that have 100 each.
/// paced_set does as many sets per second as --rate says and times each from when it was due. gap is the longest time
/// between two answers, so that a pause of the leader shows.
///
/// Works in a directory zabfs-bench-... at the root of the tree, which is removed at the end and by SIGINT and SIGTERM;
/// only a kill -9 of this command leaves it behind.
#[derive(Debug, Args)]
pub(crate) struct MetadataBenchCommand {
    #[command(flatten)]
    client: ClientArguments,
    /// Seconds for each row
    #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Znodes that sets and gets touch
    #[arg(long, default_value_t = 1000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    znodes: u32,
    /// Sets per second in paced_set
    #[arg(long, default_value_t = 10_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Rows to measure, separated by commas [default: all]
    #[arg(long, value_name = "ROWS", value_delimiter = ',', value_parser = metadata::ROWS)]
    rows: Vec<String>,
    /// Then overload the cluster for so long: 40 sessions with 500 sets under way each
    #[arg(long, default_value_t = 0, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=86_400))]
    overload: u32,
    /// Leave the znodes where they are
    #[arg(long)]
    keep: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl BenchCommand {
    /// Runs it.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            BenchCommand::Data(command) => command.run(),
            BenchCommand::Metadata(command) => command.run(),
        }
    }
}

impl DataBenchCommand {
    fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.client.resolve(&["client", "admin"])?;
        let identity = Identity::load(&client.identity)
            .with_context(|| format!("cannot use the certificate in {}", client.identity.display()))?;
        let plan = Plan { size_mib: self.size, seconds: self.seconds, pieces: self.pieces };
        let rows = runtime::block_on_local(async {
            tokio::select! {
                rows = bench::run(client.metadata, identity, plan) => Ok(rows?),
                () = runtime::termination() => anyhow::bail!("ended by a signal; the file is gone when its session expires"),
            }
        })?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&rows)?);
        } else {
            print!("{}", table(&rows));
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl MetadataBenchCommand {
    fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.client.resolve(&["client", "admin"])?;
        let identity = Identity::load(&client.identity)
            .with_context(|| format!("cannot use the certificate in {}", client.identity.display()))?;
        let plan = metadata::Plan {
            seconds: self.seconds,
            znodes: self.znodes,
            rate: self.rate,
            rows: self.rows,
            overload: self.overload,
            keep: self.keep,
        };
        let rows = runtime::block_on_local(async {
            Ok(metadata::run(client.metadata, identity, plan, runtime::termination()).await?)
        })?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&rows)?);
        } else {
            print!("{}", metadata_table(&rows));
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn metadata_table(rows: &[metadata::Row]) -> String {
    let mut text = format!(
        "{:<12}{:>9}{:>7}{:>10}{:>10}{:>10}{:>10}{:>10}{:>6}\n",
        "row", "sessions", "depth", "ops/s", "p50 us", "p99 us", "max us", "gap us", "lost"
    );
    for row in rows {
        let depth = if row.depth == 0 { "paced".to_owned() } else { row.depth.to_string() };
        text += &format!(
            "{:<12}{:>9}{:>7}{:>10.0}{:>10}{:>10}{:>10}{:>10}{:>6}\n",
            row.name,
            row.sessions,
            depth,
            row.ops_per_second,
            row.p50_us,
            row.p99_us,
            row.max_us,
            row.gap_us,
            row.lost_sessions
        );
    }
    text
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<14}{:>6}{:>11}{:>11}{:>10}{:>10}{:>10}\n",
        "row", "depth", "ops/s", "MB/s", "p50 us", "p99 us", "max us"
    );
    for row in rows {
        text += &format!(
            "{:<14}{:>6}{:>11.0}{:>11.1}{:>10}{:>10}{:>10}\n",
            row.name, row.depth, row.ops_per_second, row.mb_per_second, row.p50_us, row.p99_us, row.max_us
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metadata_table_has_a_line_per_row_under_its_heads() {
        let row = metadata::Row {
            name: "set".to_owned(),
            sessions: 10,
            depth: 0,
            operations: 1000,
            seconds: 0.5,
            ops_per_second: 2000.0,
            p50_us: 71,
            p99_us: 900,
            max_us: 1200,
            gap_us: 800,
            lost_sessions: 0,
        };
        let text = metadata_table(&[row]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].len(), lines[1].len());
        assert!(lines[1].starts_with("set ") && lines[1].contains(" paced "), "{text}");
    }

    #[test]
    fn the_table_has_a_line_per_row_under_its_heads() {
        let row = Row {
            name: "rand_read".to_owned(),
            depth: 64,
            operations: 1000,
            seconds: 0.5,
            ops_per_second: 2000.0,
            mb_per_second: 8.2,
            p50_us: 71,
            p99_us: 900,
            max_us: 1200,
        };
        let text = table(&[row]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].len(), lines[1].len());
        assert!(lines[1].starts_with("rand_read") && lines[1].contains(" 2000 "), "{text}");
    }
}
