//! The `zabfs` command.

mod admin;
mod bench_command;
mod client_arguments;
mod cluster_file;
mod crush_command;
mod daemon;
mod data_command;
mod data_server_command;
mod dev_command;
mod fsck_command;
mod init_command;
mod logging;
mod metadata_backup_command;
mod metadata_command;
mod metadata_server_command;
mod metadata_stat_command;
mod mount_command;
mod pool_command;
mod progress;
mod recovery_command;
mod runtime;
mod scrub_command;
mod status_command;
mod umount_command;

use bench_command::BenchCommand;
use clap::{Parser, Subcommand};
use crush_command::CrushCommand;
use data_command::DataCommand;
use data_server_command::DataServerCommand;
use dev_command::DevCommand;
use fsck_command::FsckCommand;
use init_command::{CertCommand, InitCommand};
use metadata_command::MetadataCommand;
use metadata_server_command::MetadataServerCommand;
use mount_command::MountCommand;
use pool_command::PoolCommand;
use recovery_command::RecoveryCommand;
use scrub_command::ScrubCommand;
use status_command::StatusCommand;
use std::process::ExitCode;
use umount_command::UmountCommand;

/// Every request makes and frees dozens of small pieces of memory that live differently long: the C library's
/// allocator spends a third of a metadata server's time on them. (Without huge pages: with them a server takes 200 MiB
/// instead of 70, and the kernel spends its time clearing them.)
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A distributed filesystem.
#[derive(Debug, Parser)]
#[command(name = "zabfs", version)]
struct Cli {
    #[command(flatten)]
    logging: logging::Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Placement maps and mappings, offline
    #[command(subcommand)]
    Crush(CrushCommand),
    /// Make a new cluster's certificate authority and certificates
    Init(InitCommand),
    /// Issue certificates
    #[command(subcommand)]
    Cert(CertCommand),
    /// Run a metadata server
    MetadataServer(MetadataServerCommand),
    /// Run a data server
    DataServer(DataServerCommand),
    /// Run a whole cluster and a mount of it in one process
    Dev(DevCommand),
    /// Mount a cluster; returns when the mount is ready and goes on in the background
    Mount(MountCommand),
    /// Take a mount away, after everything written through it is on stable storage
    Umount(UmountCommand),
    /// Show servers, roles, revision, placement groups and space
    Status(StatusCommand),
    /// Check the filesystem, and repair it, while it is used
    Fsck(FsckCommand),
    /// Metadata servers: list, add, promote, remove, replace; backup and restore
    #[command(subcommand)]
    Metadata(MetadataCommand),
    /// Measure parts of a running cluster
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Data servers: list, take out, empty, remove
    #[command(subcommand)]
    Data(DataCommand),
    /// Pools: list, show, create, change, remove
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Recovery after servers came or went
    #[command(subcommand)]
    Recovery(RecoveryCommand),
    /// Comparing and reading all copies of the data
    #[command(subcommand)]
    Scrub(ScrubCommand),
}

impl Command {
    /// Whether it goes on when its output is closed.
    fn serves(&self) -> bool {
        matches!(
            self,
            Command::MetadataServer(_) | Command::DataServer(_) | Command::Dev(_) | Command::Mount(_)
        )
    }
}

/// `zabfs … | head` ends as other tools do, by SIGPIPE, instead of with a message about a broken pipe.
fn end_quietly_when_nobody_reads() {
    #[allow(unsafe_code, reason = "signal(2) has no safe wrapper in our dependencies")]
    // SAFETY: sets the default action, before any thread is started; no handler of ours is involved.
    let _ = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if !cli.command.serves() {
        end_quietly_when_nobody_reads();
    }
    cli.logging.install();
    let result = match cli.command {
        Command::Crush(command) => command.run(),
        Command::Init(command) => command.run(),
        Command::Cert(command) => command.run(),
        Command::MetadataServer(command) => command.run(),
        Command::DataServer(command) => command.run(),
        Command::Dev(command) => command.run(),
        Command::Mount(command) => command.run(),
        Command::Umount(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::Fsck(command) => command.run(),
        Command::Metadata(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Data(command) => command.run(),
        Command::Pool(command) => command.run(),
        Command::Recovery(command) => command.run(),
        Command::Scrub(command) => command.run(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("zabfs: {error:#}");
        ExitCode::FAILURE
    })
}
