//! Logs: to standard error, for people or as JSON lines.

use clap::{Args, ValueEnum};
use std::io::IsTerminal as _;
use tracing_subscriber::EnvFilter;

/// How to log.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What to log: a level, or directives such as 'info,data_server=debug'
    #[arg(long, global = true, env = "ZABFS_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
    /// How to write logs
    #[arg(long, global = true, value_enum, default_value_t = Format::Human)]
    log_format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// A line for people
    Human,
    /// A JSON object per line
    Json,
}

impl Options {
    /// Installs the process's log writer.
    pub(crate) fn install(&self) {
        let filter = EnvFilter::try_new(&self.log).unwrap_or_else(|error| {
            eprintln!("zabfs: --log {}: {error}; logging at level info", self.log);
            EnvFilter::new("info")
        });
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self.log_format {
            Format::Human => builder.with_ansi(std::io::stderr().is_terminal()).init(),
            Format::Json => builder.json().init(),
        }
    }
}
