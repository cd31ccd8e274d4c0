//! `zabfs status`.

use crate::client_arguments::ClientArguments;
use crate::runtime;
use anyhow::{Context as _, anyhow};
use clap::Args;
use fs_client::meta::status::ask_cluster;
use fs_client::{mount, status_text};
use protocol::identity::Identity;
use std::process::ExitCode;
use std::time::Duration;

/// Show servers, roles, revision, placement groups and space
#[derive(Debug, Args)]
pub(crate) struct StatusCommand {
    #[command(flatten)]
    client: ClientArguments,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Seconds to wait for an answer
    #[arg(long, default_value_t = 5, value_name = "SECONDS")]
    wait: u64,
}

impl StatusCommand {
    /// Runs it.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.client.resolve(&["admin", "client"])?;
        let identity = Identity::load(&client.identity)
            .with_context(|| format!("cannot use the certificate in {}", client.identity.display()))?;
        let status = runtime::block_on_local(async {
            let endpoint = mount::bind(&client.metadata, identity)?;
            let asked = ask_cluster(&endpoint, &client.metadata, Duration::from_secs(self.wait)).await;
            endpoint.close("the answer is there");
            asked.map_err(|why| anyhow!(why))
        })?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&status)?);
        } else {
            print!("{}", status_text::render(&status));
        }
        Ok(ExitCode::SUCCESS)
    }
}
