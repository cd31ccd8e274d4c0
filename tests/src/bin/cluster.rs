//! `scripts/cluster`: a cluster of real processes on this machine.

use std::path::{Path, PathBuf, absolute};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use cluster_tests::harness::{
    Cluster, Layout, MountCall, Options, Server, ServerRole, Settings, Signal, Target,
};

/// Starts, breaks and ends a zabfs cluster of real processes on this machine.
#[derive(Debug, Parser)]
#[command(name = "scripts/cluster")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a cluster in DIR, or take up the one that is there; returns when it is ready
    Up {
        /// Where certificates, state, logs and pid files go
        dir: PathBuf,
        /// Number of metadata servers of a new cluster
        #[arg(long, default_value_t = 3)]
        metadata: u32,
        /// Number of data servers of a new cluster
        #[arg(long, default_value_t = 3)]
        data: u32,
        /// Bytes that each data server may use; without it, what the disk has
        #[arg(long)]
        capacity: Option<u64>,
        /// Seconds after which a data server that stays away is given up
        #[arg(long)]
        down_out: Option<u64>,
    },
    /// Mount the cluster in DIR at MNT; returns when the mount answers
    Mount {
        /// The cluster's directory
        dir: PathBuf,
        /// An existing directory
        mountpoint: PathBuf,
        /// Options for `zabfs mount -o`
        #[arg(short)]
        options: Option<String>,
        /// Whose certificate to use: a directory DIR/NAME/tls
        #[arg(long, default_value = "client")]
        identity: String,
    },
    /// Unmount MNT, waiting until all its work is committed
    Umount {
        /// The cluster's directory
        dir: PathBuf,
        /// Where it is mounted
        mountpoint: PathBuf,
    },
    /// Print lines "ROLE ID PID [leader]" with ROLE metadata, data or mount
    Pids {
        /// The cluster's directory
        dir: PathBuf,
    },
    /// Send a signal to: leader | metadata ID | data ID | mount MNT
    Kill {
        /// The cluster's directory
        dir: PathBuf,
        /// leader, metadata, data or mount
        role: String,
        /// ID or MNT, and then the signal: KILL (default), STOP, CONT, TERM, ...
        #[arg(num_args = 0..=2)]
        rest: Vec<String>,
    },
    /// Start a killed server again, or add data server N+1
    Start {
        /// The cluster's directory
        dir: PathBuf,
        /// metadata or data
        role: ServerRole,
        /// Its number
        id: u32,
    },
    /// Unmount everything and stop every process
    Down {
        /// The cluster's directory
        dir: PathBuf,
        /// Then remove DIR with all data in it
        #[arg(long)]
        wipe: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scripts/cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Up { dir, metadata, data, capacity, down_out } => {
            let settings = Settings { capacity, down_out };
            up(&full(&dir)?, Options { metadata, data, settings, ..Options::default() })
        }
        Command::Mount { dir, mountpoint, options, identity } => {
            let call = MountCall { options, identity, ..MountCall::at(&full(&mountpoint)?) };
            Cluster::open(&full(&dir)?)?.mount(&call)?;
            Ok(())
        }
        Command::Umount { dir, mountpoint } => Cluster::open(&full(&dir)?)?.umount(&full(&mountpoint)?),
        Command::Pids { dir } => pids(&full(&dir)?),
        Command::Kill { dir, role, rest } => {
            let (target, signal) = target(&role, &rest)?;
            let name = Cluster::open(&full(&dir)?)?.kill(&target, signal)?;
            println!("{name}");
            Ok(())
        }
        Command::Start { dir, role, id } => Cluster::open(&full(&dir)?)?.start(Server { role, id }),
        Command::Down { dir, wipe } => down(&full(&dir)?, wipe),
    }
}

/// Servers and mounts keep their paths when the caller's directory changes.
fn full(path: &Path) -> anyhow::Result<PathBuf> {
    absolute(path).with_context(|| format!("make {} absolute", path.display()))
}

fn up(dir: &Path, options: Options) -> anyhow::Result<()> {
    let cluster = if Layout::new(dir).cluster_file().exists() {
        Cluster::open(dir)?
    } else {
        Cluster::create(dir, &options)?
    };
    cluster.start_all()
}

fn pids(dir: &Path) -> anyhow::Result<()> {
    for (role, id, process, leads) in Cluster::open(dir)?.processes()? {
        let mark = if leads { " leader" } else { "" };
        println!("{role} {id} {}{mark}", process.pid());
    }
    Ok(())
}

fn down(dir: &Path, wipe: bool) -> anyhow::Result<()> {
    // Nothing there is nothing to end: `down` may be repeated.
    if !dir.exists() {
        return Ok(());
    }
    let cluster = Cluster::open(dir)?;
    cluster.down()?;
    if wipe { cluster.wipe() } else { Ok(()) }
}

fn target(role: &str, rest: &[String]) -> anyhow::Result<(Target, Signal)> {
    let (target, signal) = match (role, rest) {
        ("leader", signal) if signal.len() < 2 => (Target::Leader, signal.first()),
        ("mount", [mountpoint, signal @ ..]) => (Target::Mount(full(Path::new(mountpoint))?), signal.first()),
        ("metadata" | "data", [id, signal @ ..]) => {
            let id = id.parse().with_context(|| format!("'{id}' is no server's number"))?;
            (Target::Server(Server { role: role.parse()?, id }), signal.first())
        }
        _ => bail!("whom to signal is written: leader | metadata ID | data ID | mount MNT, then [SIGNAL]"),
    };
    Ok((target, signal.map_or(Ok(Signal::KILL), |signal| signal.parse())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> (String, Vec<String>) {
        let mut words = line.split(' ').map(str::to_owned);
        (words.next().unwrap(), words.collect())
    }

    #[test]
    fn targets_read_as_documented() {
        let parse = |line: &str| {
            let (role, rest) = words(line);
            target(&role, &rest)
        };
        assert_eq!(parse("leader").unwrap(), (Target::Leader, Signal::KILL));
        assert_eq!(parse("leader STOP").unwrap(), (Target::Leader, Signal::STOP));
        let data = Target::Server(Server::data(2));
        assert_eq!(parse("data 2 CONT").unwrap(), (data, Signal::CONT));
        assert_eq!(parse("mount /m").unwrap(), (Target::Mount("/m".into()), Signal::KILL));
        assert!(parse("data").is_err() && parse("data x").is_err() && parse("someone 1").is_err());
    }
}
