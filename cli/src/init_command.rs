//! `zabfs init` and `zabfs cert`: a cluster's certificate authority and the certificates of its processes.
//!
//! ```text
//! DIR/ca/{ca.pem,ca.key}       the authority; its key makes anyone anything, so guard this directory
//! DIR/ca/issued                one line "ROLE ID NAME" per certificate ever issued
//! DIR/metadata-1/tls/          ca.pem, cert.pem and key.pem (0600) of one process
//! DIR/data-1/tls/  DIR/admin/tls/  DIR/client/tls/
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::cluster_file::{ClusterFile, ServerEntry};
use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use protocol::identity::{Authority, ClusterId, Limits, Role};

/// Where the authority lives below the cluster's directory.
const CA_DIRECTORY: &str = "ca";

/// Where a process's certificate lives below its own directory.
const TLS_DIRECTORY: &str = "tls";

/// Name of the cluster file.
const CLUSTER_FILE: &str = "cluster.json";

/// The list of issued certificates, in the authority's directory.
const ISSUED_FILE: &str = "issued";

/// Arguments of `zabfs init`.
#[derive(Debug, Args)]
pub(crate) struct InitCommand {
    /// The directory to create the authority and the certificates in
    #[arg(long)]
    dir: PathBuf,
    /// How many metadata servers get a certificate
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    metadata: u32,
    /// How many data servers get a certificate
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=9999))]
    data: u32,
    /// For how many days the certificates are valid
    #[arg(long, default_value_t = DAYS, value_parser = clap::value_parser!(u32).range(1..=DAYS_MAX))]
    days: u32,
    /// The address that all servers listen on (edit DIR/cluster.json for one per machine)
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    /// Metadata server N listens on this port + N, data server N on this port + 100 + N
    #[arg(long, default_value_t = 7100, value_parser = clap::value_parser!(u16).range(1..=55_000))]
    base_port: u16,
    /// Replicas of every chunk; without it as many as data servers, at most 3
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=7))]
    replicas: Option<u32>,
}

/// `zabfs cert …`
#[derive(Debug, Subcommand)]
pub(crate) enum CertCommand {
    /// Issue a certificate, or renew one under the same role, number and name
    Issue(IssueCommand),
}

/// Arguments of `zabfs cert issue`.
#[derive(Debug, Args)]
pub(crate) struct IssueCommand {
    /// The cluster's directory, which holds ca/
    #[arg(long)]
    dir: PathBuf,
    /// metadata, data, client or admin
    #[arg(long)]
    role: Role,
    /// The holder's number; without it that of NAME's last certificate, else the next free one
    #[arg(long)]
    id: Option<u32>,
    /// The holder's name; without it ROLE-ID
    #[arg(long)]
    name: Option<String>,
    /// A client that may only read
    #[arg(long)]
    read_only: bool,
    /// The directory that a client sees as its root
    #[arg(long, value_name = "PATH")]
    subtree: Option<String>,
    /// A client whose root counts as nobody
    #[arg(long)]
    root_squash: bool,
    /// For how many days the certificate is valid
    #[arg(long, default_value_t = DAYS, value_parser = clap::value_parser!(u32).range(1..=DAYS_MAX))]
    days: u32,
    /// Where to write ca.pem, cert.pem and key.pem; without it DIR/NAME/tls
    #[arg(long, value_name = "DIR2")]
    out: Option<PathBuf>,
}

/// Ten years: nothing renews certificates by itself, and a cluster that stops on a forgotten day helps nobody.
const DAYS: u32 = 3650;

/// The authority's own validity.
const DAYS_MAX: i64 = 7300;

impl InitCommand {
    /// Creates the authority and the certificates of a whole cluster.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let cluster = self.create()?;
        println!(
            "Made cluster {cluster} in {}: certificates of {} metadata and {} data servers, an admin and a client.",
            self.dir.display(),
            self.metadata,
            self.data,
        );
        println!(
            "Keep {} to yourself: whoever has it can be anyone in this cluster.",
            self.dir.join(CA_DIRECTORY).join("ca.key").display()
        );
        Ok(ExitCode::SUCCESS)
    }

    /// Three metadata and three data servers on the loopback address.
    pub(crate) fn for_one_machine(dir: PathBuf, base_port: u16) -> Self {
        let address = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
        InitCommand { dir, metadata: 3, data: 3, days: DAYS, address, base_port, replicas: None }
    }

    /// Creates everything and returns the cluster's id.
    pub(crate) fn create(&self) -> anyhow::Result<ClusterId> {
        let cluster = ClusterId::random()?;
        let ca = self.dir.join(CA_DIRECTORY);
        let authority = Authority::create(&ca, cluster)?;
        let mut issuer = Issuer::open(&ca, authority, self.days)?;
        let servers = (1..=self.metadata).map(|id| (Role::Metadata, id));
        let servers = servers.chain((1..=self.data).map(|id| (Role::Data, id)));
        for (role, id) in servers {
            let name = format!("{role}-{id}");
            issuer.issue(role, id, &name, &Limits::NONE, &self.dir.join(&name).join(TLS_DIRECTORY))?;
        }
        for role in [Role::Admin, Role::Client] {
            let name = role.as_str();
            issuer.issue(role, 1, name, &Limits::NONE, &self.dir.join(name).join(TLS_DIRECTORY))?;
        }
        self.cluster_file(cluster.to_string()).save(&self.dir.join(CLUSTER_FILE))?;
        Ok(cluster)
    }
}

impl InitCommand {
    /// Where everything listens: metadata server N at the base port + N, data server N at the base port + 100 + N.
    fn cluster_file(&self, cluster: String) -> ClusterFile {
        let entry = |id: u32, offset: u32| ServerEntry {
            id,
            address: SocketAddr::new(self.address, self.base_port.saturating_add((offset + id) as u16)),
        };
        ClusterFile {
            cluster,
            pool_size: self.replicas.unwrap_or_else(|| self.data.clamp(1, 3)),
            metadata: (1..=self.metadata).map(|id| entry(id, 0)).collect(),
            data: (1..=self.data).map(|id| entry(id, 100)).collect(),
        }
    }
}

impl CertCommand {
    /// Runs the subcommand.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            CertCommand::Issue(issue) => issue.run(),
        }
    }
}

impl IssueCommand {
    fn run(self) -> anyhow::Result<ExitCode> {
        let ca = self.dir.join(CA_DIRECTORY);
        let authority = Authority::open(&ca).with_context(|| {
            format!("{} holds no certificate authority; make one with `zabfs init`", self.dir.display())
        })?;
        let mut issuer = Issuer::open(&ca, authority, self.days)?;
        let id = match (self.id, &self.name) {
            (Some(id), _) => id,
            (None, Some(name)) => {
                issuer.known_id(self.role, name).unwrap_or_else(|| issuer.next_id(self.role))
            }
            (None, None) => issuer.next_id(self.role),
        };
        let name = self.name.unwrap_or_else(|| format!("{}-{id}", self.role));
        let out = self.out.unwrap_or_else(|| self.dir.join(&name).join(TLS_DIRECTORY));
        let limits =
            Limits { read_only: self.read_only, subtree: self.subtree, root_squash: self.root_squash };
        issuer.issue(self.role, id, &name, &limits, &out)?;
        println!("Issued the certificate of {name} ({} {id}) into {}.", self.role, out.display());
        Ok(ExitCode::SUCCESS)
    }
}

/// An authority with the list of what it issued, locked against other issuers.
struct Issuer {
    authority: Authority,
    validity: Duration,
    list: File,
    issued: Vec<(Role, u32, String)>,
}

impl Issuer {
    fn open(ca: &Path, authority: Authority, days: u32) -> anyhow::Result<Issuer> {
        let path = ca.join(ISSUED_FILE);
        let mut list = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        list.lock().with_context(|| format!("lock {}", path.display()))?;
        let mut text = String::new();
        list.read_to_string(&mut text).with_context(|| format!("read {}", path.display()))?;
        let issued = text
            .lines()
            .map(|line| {
                parse_issued(line).with_context(|| {
                    format!(
                        "{} holds the line '{line}', which is not ROLE ID NAME; remove it",
                        path.display()
                    )
                })
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Issuer { authority, validity: Duration::from_secs(u64::from(days) * 86_400), list, issued })
    }

    /// The number under which `name` has a certificate of this role.
    fn known_id(&self, role: Role, name: &str) -> Option<u32> {
        self.issued
            .iter()
            .rev()
            .find(|(known, _, known_name)| *known == role && known_name == name)
            .map(|known| known.1)
    }

    fn next_id(&self, role: Role) -> u32 {
        let highest = self.issued.iter().filter(|known| known.0 == role).map(|known| known.1).max();
        highest.map_or(1, |id| id.saturating_add(1))
    }

    fn issue(&mut self, role: Role, id: u32, name: &str, limits: &Limits, out: &Path) -> anyhow::Result<()> {
        // Two processes under one number would take each other's place.
        if let Some((_, _, holder)) = self
            .issued
            .iter()
            .find(|(known, known_id, known_name)| *known == role && *known_id == id && known_name != name)
        {
            bail!("{role} {id} is {holder} already; choose another --id, or renew it with --name {holder}");
        }
        let issued = self.authority.issue(role, name, id, limits, self.validity)?;
        if self.known_id(role, name) != Some(id) {
            writeln!(self.list, "{role} {id} {name}").context("write the list of issued certificates")?;
            self.list.sync_data().context("sync the list of issued certificates")?;
            self.issued.push((role, id, name.to_owned()));
        }
        if let Some(parent) = out.parent() {
            fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        }
        issued.write_to(out)?;
        Ok(())
    }
}

fn parse_issued(line: &str) -> Option<(Role, u32, String)> {
    let mut words = line.split(' ');
    let (role, id, name) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?);
    words.next().is_none().then(|| (role, id, name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use protocol::identity::Identity;

    #[derive(Parser)]
    enum Cli {
        Init(InitCommand),
        #[command(subcommand)]
        Cert(CertCommand),
    }

    fn run(dir: &Path, line: &str) -> anyhow::Result<()> {
        let line = format!("zabfs {line} --dir {}", dir.display());
        match Cli::try_parse_from(line.split(' '))? {
            Cli::Init(init) => init.run()?,
            Cli::Cert(cert) => cert.run()?,
        };
        Ok(())
    }

    fn load(dir: &Path, name: &str) -> protocol::identity::PeerIdentity {
        Identity::load(&dir.join(name).join("tls")).unwrap().me().clone()
    }

    #[test]
    fn init_lays_out_a_cluster_whose_certificates_load() {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), "init --metadata 3 --data 2").unwrap();
        let cluster = load(dir.path(), "metadata-1").cluster;
        for (name, role, id) in [
            ("metadata-3", Role::Metadata, 3),
            ("data-2", Role::Data, 2),
            ("admin", Role::Admin, 1),
            ("client", Role::Client, 1),
        ] {
            let me = load(dir.path(), name);
            assert_eq!((me.cluster, me.role, me.id, me.name.as_str()), (cluster, role, id, name));
        }
        let again = run(dir.path(), "init").unwrap_err().to_string();
        assert!(again.contains("exists already"), "{again}");
        assert_eq!(load(dir.path(), "metadata-1").cluster, cluster);
    }

    #[test]
    fn issue_numbers_names_limits_and_renews() {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), "init --metadata 1 --data 1").unwrap();
        run(dir.path(), "cert issue --role client --name laptop --read-only --subtree /home --root-squash")
            .unwrap();
        let laptop = load(dir.path(), "laptop");
        assert_eq!(laptop.id, 2);
        let limits = Limits { read_only: true, subtree: Some("/home".to_owned()), root_squash: true };
        assert_eq!(laptop.limits, limits);

        run(dir.path(), "cert issue --role data").unwrap();
        assert_eq!(load(dir.path(), "data-2").id, 2);
        run(dir.path(), "cert issue --role client --name laptop").unwrap();
        let renewed = load(dir.path(), "laptop");
        assert_eq!((renewed.id, renewed.limits), (2, Limits::NONE));

        let taken = run(dir.path(), "cert issue --role data --id 1 --name other").unwrap_err().to_string();
        assert!(taken.contains("data 1 is data-1 already"), "{taken}");
        assert!(run(dir.path(), "cert issue --role data --read-only").is_err());
        assert!(run(dir.path(), "cert issue --role client --subtree home").is_err());
        let nowhere = run(&dir.path().join("none"), "cert issue --role client").unwrap_err().to_string();
        assert!(nowhere.contains("holds no certificate authority"), "{nowhere}");
    }
}
