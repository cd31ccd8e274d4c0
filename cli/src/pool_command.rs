//! `zabfs pool`: pools of a cluster, as an administrator sees and changes them.

use crate::admin::Admin;
use crate::client_arguments::ClientArguments;
use crate::runtime;
use anyhow::{Context as _, anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use fs_client::status_text::{bytes, pool_text};
use protocol::map::FailureDomain;
use protocol::meta::{MetaReply, MetaRequest, PoolChange, PoolSettings, PoolStatus};
use std::io::Read as _;
use std::process::ExitCode;

/// Pools: list, show, create, change, remove
#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Show every pool
    List(ListCommand),
    /// Show one pool
    Show(ShowCommand),
    /// Make a pool; directories choose it with 'setfattr -n zabfs.pool -v POOL DIR'
    Create(CreateCommand),
    /// Change settings of a pool while it is in use: size, min_size, inline_limit, failure_domain, class
    Set(SetCommand),
    /// Remove a pool that no file and no directory names
    Remove(RemoveCommand),
}

/// Show every pool
#[derive(Debug, Args)]
pub(crate) struct ListCommand {
    #[command(flatten)]
    client: ClientArguments,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Show one pool
#[derive(Debug, Args)]
pub(crate) struct ShowCommand {
    #[command(flatten)]
    client: ClientArguments,
    /// Its name
    name: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What two replicas must not share.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Domain {
    /// A host
    Host,
    /// A data server
    #[value(alias = "osd")]
    Server,
}

/// Make a pool
#[derive(Debug, Args)]
pub(crate) struct CreateCommand {
    #[command(flatten)]
    client: ClientArguments,
    /// Its name: letters, digits, '-', '_' and '.'
    name: String,
    /// Replicas [default: as the default pool]
    #[arg(long)]
    size: Option<u32>,
    /// Replicas that must be up to date for writing [default: one less than size]
    #[arg(long)]
    min_size: Option<u32>,
    /// Placement groups; a power of two. The number can be raised later [default: 32]
    #[arg(long)]
    pg_num: Option<u32>,
    /// What two replicas must not share [default: host]
    #[arg(long)]
    failure_domain: Option<Domain>,
    /// Take only devices of this class, see 'zabfs data class' [default: all devices]
    #[arg(long)]
    class: Option<String>,
    /// Bytes per chunk, for good; a power of two, K and M may follow [default: 4M]
    #[arg(long, value_parser = parse_bytes)]
    chunk_size: Option<u32>,
    /// Largest file that stays in the namespace, in bytes, K and M may follow [default: 16K]
    #[arg(long, value_parser = parse_bytes)]
    inline_limit: Option<u32>,
}

/// Change settings of a pool
#[derive(Debug, Args)]
pub(crate) struct SetCommand {
    #[command(flatten)]
    client: ClientArguments,
    /// Its name
    name: String,
    /// What changes: 'size 3', or several at once as 'size=2 min_size=1'. class 'none' means all devices
    #[arg(required = true, value_name = "SETTING VALUE")]
    settings: Vec<String>,
}

/// Remove a pool
#[derive(Debug, Args)]
pub(crate) struct RemoveCommand {
    #[command(flatten)]
    client: ClientArguments,
    /// Its name
    name: String,
}

impl PoolCommand {
    /// Runs it.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        runtime::block_on_local(async {
            match self {
                Self::List(list) => list.run().await?,
                Self::Show(show) => show.run().await?,
                Self::Create(create) => create.run().await?,
                Self::Set(set) => {
                    let settings = parse_settings(&set.settings)?;
                    let change = PoolChange::Set { name: set.name.clone(), settings };
                    order(&set.client, change).await?;
                    println!("pool {} is changed; groups move one safe step at a time", set.name);
                }
                Self::Remove(remove) => {
                    order(&remove.client, PoolChange::Remove { name: remove.name.clone() }).await?;
                    println!("pool {} is removed", remove.name);
                }
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

async fn pools(client: &ClientArguments) -> anyhow::Result<Vec<PoolStatus>> {
    Ok(Admin::new(client)?.status().await?.pools)
}

/// Has the leader change a pool, and shows what it has to say.
async fn order(client: &ClientArguments, change: PoolChange) -> anyhow::Result<()> {
    let request = MetaRequest::ChangePool { nonce: nonce()?, change };
    let MetaReply::PoolChanged(warnings) = Admin::new(client)?.ask(&request).await? else {
        bail!("the leader gave an answer of the wrong kind; compare the versions of both sides");
    };
    warnings.iter().for_each(|warning| eprintln!("zabfs: note: {warning}"));
    Ok(())
}

/// Names the order, so that its repetition after a lost answer is recognised.
fn nonce() -> anyhow::Result<u128> {
    let mut bytes = [0; 16];
    let drawn = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    drawn.context("cannot draw a random number from /dev/urandom")?;
    Ok(u128::from_le_bytes(bytes))
}

impl ListCommand {
    async fn run(self) -> anyhow::Result<()> {
        let pools = pools(&self.client).await?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&pools)?);
            return Ok(());
        }
        println!("{:>4}  pool", "id");
        for pool in &pools {
            println!("{:>4}  {}", pool.id.0, pool_text(pool));
        }
        Ok(())
    }
}

impl ShowCommand {
    async fn run(self) -> anyhow::Result<()> {
        let pools = pools(&self.client).await?;
        let Some(pool) = pools.iter().find(|pool| pool.name == self.name) else {
            let names: Vec<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
            bail!("there is no pool '{}'; there are {}", self.name, names.join(", "));
        };
        if self.json {
            println!("{}", serde_json::to_string_pretty(pool)?);
            return Ok(());
        }
        println!("name            {}", pool.name);
        println!("id              {}", pool.id);
        println!("size            {}", pool.size);
        println!("min_size        {}", pool.min_size);
        match pool.groups_to_come() {
            0 => println!("pg_num          {}", pool.pg_num),
            more => println!("pg_num          {} ({more} of them are still to be split off)", pool.pg_num),
        }
        println!("failure_domain  {}", pool.failure_domain);
        println!("class           {}", pool.class.as_deref().unwrap_or("none"));
        println!("chunk_size      {}", bytes(pool.chunk_size.into()));
        println!("inline_limit    {}", bytes(pool.inline_limit.into()));
        println!("objects         {} ({})", pool.objects, bytes(pool.bytes));
        if let Some(inodes) = pool.inodes {
            println!("inodes          {inodes}");
        }
        for (state, count) in &pool.groups {
            println!("groups          {count} {state}");
        }
        Ok(())
    }
}

impl CreateCommand {
    async fn run(self) -> anyhow::Result<()> {
        let settings = PoolSettings {
            size: self.size,
            min_size: self.min_size,
            pg_num: self.pg_num,
            failure_domain: self.failure_domain.map(FailureDomain::from),
            class: self.class.map(Some),
            chunk_size: self.chunk_size,
            inline_limit: self.inline_limit,
        };
        order(&self.client, PoolChange::Create { name: self.name.clone(), settings }).await?;
        println!(
            "pool {name} is made; 'setfattr -n zabfs.pool -v {name} DIR' gives it to what is made in DIR from then on",
            name = self.name
        );
        Ok(())
    }
}

impl From<Domain> for FailureDomain {
    fn from(domain: Domain) -> Self {
        match domain {
            Domain::Host => Self::Host,
            Domain::Server => Self::Server,
        }
    }
}

/// Reads 'NAME VALUE' pairs or 'NAME=VALUE's.
fn parse_settings(words: &[String]) -> anyhow::Result<PoolSettings> {
    let pairs: Vec<(&str, &str)> = if words.iter().all(|word| word.contains('=')) {
        words.iter().filter_map(|word| word.split_once('=')).collect()
    } else if words.len().is_multiple_of(2) {
        words.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect()
    } else {
        bail!("write a setting and its value, for instance 'size 3', or several as 'size=2 min_size=1'");
    };
    let mut settings = PoolSettings::default();
    for (name, value) in pairs {
        let number = || value.parse::<u32>().with_context(|| format!("{name} is a number, not '{value}'"));
        let size = || parse_bytes(value).map_err(|why| anyhow!("{name}: {why}"));
        match name {
            "size" => settings.size = Some(number()?),
            "min_size" => settings.min_size = Some(number()?),
            "pg_num" => settings.pg_num = Some(number()?),
            "chunk_size" => settings.chunk_size = Some(size()?),
            "inline_limit" => settings.inline_limit = Some(size()?),
            "class" => settings.class = Some((value != "none").then(|| value.to_owned())),
            "failure_domain" => {
                let domain = Domain::from_str(value, true);
                settings.failure_domain = Some(
                    domain.map_err(|_| anyhow!("failure_domain is host or server, not '{value}'"))?.into(),
                );
            }
            _ => bail!(
                "there is no setting '{name}'; there are size, min_size, pg_num, inline_limit, failure_domain, class"
            ),
        }
    }
    Ok(settings)
}

/// A number of bytes that K or M may follow.
fn parse_bytes(text: &str) -> Result<u32, String> {
    let (digits, unit) = match text.strip_suffix(['K', 'k']) {
        Some(digits) => (digits, 1 << 10),
        None => match text.strip_suffix(['M', 'm']) {
            Some(digits) => (digits, 1 << 20),
            None => (text, 1),
        },
    };
    let parsed = digits.parse::<u32>().ok().and_then(|number| number.checked_mul(unit));
    parsed.ok_or_else(|| format!("'{text}' is no number of bytes: write for instance 65536, 64K or 4M"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn settings_come_as_pairs_or_with_equals_signs() {
        let expected = PoolSettings { size: Some(2), min_size: Some(1), ..PoolSettings::default() };
        assert_eq!(parse_settings(&words("size 2 min_size 1")).expect("pairs"), expected);
        assert_eq!(parse_settings(&words("size=2 min_size=1")).expect("equals signs"), expected);
        let other = parse_settings(&words("failure_domain osd class none inline_limit 8K")).expect("others");
        assert_eq!(other.failure_domain, Some(FailureDomain::Server));
        assert_eq!((other.class, other.inline_limit), (Some(None), Some(8192)));
        for wrong in ["size", "size x", "colour red", "failure_domain rack", "inline_limit 5G"] {
            assert!(parse_settings(&words(wrong)).is_err(), "{wrong}");
        }
    }
}
