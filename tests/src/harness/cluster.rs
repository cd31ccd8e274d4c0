//! The cluster: starting, killing and ending its processes, each by its pid file.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::layout::{Layout, log_tails};
use super::mounts::{detach, is_mounted, mounts_below};
use super::netns::Namespace;
use super::ports::{free_ports, is_free};
use super::process::{ProcessRef, Signal, spawn_logged};
use super::status::Status;
use super::wait::wait_until;
use crate::programs::{self, Output};

/// How long a whole cluster may take from its start to `active+clean`.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How long a mount may take to be there.
const MOUNT_LIMIT: Duration = Duration::from_secs(45);
/// How long a server may take to stop cleanly before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// How long `zabfs umount` may take before the mount is detached.
const UMOUNT_LIMIT: Duration = Duration::from_secs(15);
/// How long `zabfs status` may take.
const STATUS_LIMIT: Duration = Duration::from_secs(10);
/// Lines of each log in an error.
const TAIL_LINES: usize = 15;

/// How a new cluster is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of metadata servers.
    pub metadata: u32,
    /// Number of data servers.
    pub data: u32,
    /// Address that the servers listen on.
    pub address: IpAddr,
    /// How its servers are started, every time.
    pub settings: Settings,
}

/// What servers are told at every start; kept beside the pid files.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Settings {
    /// `--capacity` of each data server, in bytes.
    pub capacity: Option<u64>,
    /// `--down-out` of each metadata server: seconds until a data server that stays away is given up.
    pub down_out: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Options { metadata: 3, data: 3, address: Ipv4Addr::LOCALHOST.into(), settings: Settings::default() }
    }
}

/// What a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServerRole {
    /// Keeps the namespace.
    Metadata,
    /// Keeps contents.
    Data,
}

impl ServerRole {
    fn as_str(self) -> &'static str {
        match self {
            ServerRole::Metadata => "metadata",
            ServerRole::Data => "data",
        }
    }
}

/// One server: `metadata 1`, `data 3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    /// What it is.
    pub role: ServerRole,
    /// Its number, from 1.
    pub id: u32,
}

impl Server {
    /// Metadata server `id`.
    pub fn metadata(id: u32) -> Server {
        Server { role: ServerRole::Metadata, id }
    }

    /// Data server `id`.
    pub fn data(id: u32) -> Server {
        Server { role: ServerRole::Data, id }
    }

    /// Name of its directory and files: `metadata-1`.
    pub fn name(self) -> String {
        format!("{}-{}", self.role.as_str(), self.id)
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role.as_str(), self.id)
    }
}

impl FromStr for ServerRole {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<ServerRole> {
        match text {
            "metadata" => Ok(ServerRole::Metadata),
            "data" => Ok(ServerRole::Data),
            _ => bail!("'{text}' is no kind of server; it is metadata or data"),
        }
    }
}

/// Whom a signal is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Whoever leads the metadata servers now.
    Leader,
    /// One server.
    Server(Server),
    /// The process behind a mountpoint.
    Mount(PathBuf),
}

/// How a mount is made.
#[derive(Clone, Debug)]
pub struct MountCall<'a> {
    /// Where.
    pub mountpoint: PathBuf,
    /// `-o` options.
    pub options: Option<String>,
    /// Whose certificate: the directory's name, `client` ordinarily.
    pub identity: String,
    /// The network namespace to live in.
    pub namespace: Option<&'a Namespace>,
}

impl MountCall<'_> {
    /// An ordinary mount there.
    pub fn at(mountpoint: &Path) -> MountCall<'static> {
        MountCall {
            mountpoint: mountpoint.to_owned(),
            options: None,
            identity: "client".to_owned(),
            namespace: None,
        }
    }
}

/// A cluster below one directory. The value is only a handle: dropping it ends nothing.
#[derive(Clone, Debug)]
pub struct Cluster {
    layout: Layout,
    zabfs: PathBuf,
}

impl Cluster {
    /// Makes the certificates and the list of servers of a new cluster, on free ports. Starts nothing.
    pub fn create(dir: &Path, options: &Options) -> anyhow::Result<Cluster> {
        let cluster = Cluster { layout: Layout::new(dir), zabfs: programs::zabfs_binary()? };
        let mut init = Command::new(&cluster.zabfs);
        init.arg("init").arg("--dir").arg(dir);
        init.args(["--metadata", &options.metadata.to_string(), "--data", &options.data.to_string()]);
        programs::run(&mut init, Duration::from_secs(30))?.success()?;
        for path in [cluster.layout.logs(), cluster.layout.run()] {
            fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        }
        let path = cluster.layout.settings_file();
        let text = serde_json::to_string(&options.settings).context("write the settings as JSON")?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        cluster.place(options)?;
        Ok(cluster)
    }

    /// The cluster that was made in `dir` earlier.
    pub fn open(dir: &Path) -> anyhow::Result<Cluster> {
        let layout = Layout::new(dir);
        if !layout.cluster_file().exists() {
            bail!("{} holds no cluster; make one with `scripts/cluster up {0}`", dir.display());
        }
        Ok(Cluster { layout, zabfs: programs::zabfs_binary()? })
    }

    /// Where everything is.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Every server of the list, metadata servers first.
    pub fn servers(&self) -> anyhow::Result<Vec<Server>> {
        let list = self.list()?;
        let ids = |role: ServerRole| -> Vec<Server> {
            let entries = list[role.as_str()].as_array().cloned().unwrap_or_default();
            let ids = entries.iter().filter_map(|entry| entry["id"].as_u64());
            ids.filter_map(|id| Some(Server { role, id: u32::try_from(id).ok()? })).collect()
        };
        Ok([ids(ServerRole::Metadata), ids(ServerRole::Data)].concat())
    }

    /// The address of a server.
    pub fn address(&self, server: Server) -> anyhow::Result<std::net::SocketAddr> {
        let list = self.list()?;
        let entries = list[server.role.as_str()].as_array().cloned().unwrap_or_default();
        let entry = entries.iter().find(|entry| entry["id"] == server.id);
        let address = entry.and_then(|entry| entry["address"].as_str());
        let address = address.with_context(|| format!("{server} is not in the list of servers"))?;
        address.parse().with_context(|| format!("understand the address {address:?}"))
    }

    /// Starts every server that does not run, and returns when the whole cluster is well.
    pub fn start_all(&self) -> anyhow::Result<()> {
        for server in self.servers()? {
            if self.server_process(server)?.is_none() {
                self.spawn(server)?;
            }
        }
        self.wait_ready(READY_LIMIT)
    }

    /// Starts one server: one that was killed, or number N+1 of its kind, which is added to the list with a
    /// certificate of its own. Returns as soon as the process runs.
    pub fn start(&self, server: Server) -> anyhow::Result<()> {
        if let Some(process) = self.server_process(server)? {
            bail!("{server} runs already, as process {}", process.pid());
        }
        if !self.servers()?.contains(&server) {
            self.add(server)?;
        }
        self.spawn(server)
    }

    /// Whether a server's process runs.
    pub fn is_running(&self, server: Server) -> anyhow::Result<bool> {
        Ok(self.server_process(server)?.is_some())
    }

    /// Waits until there is a leader, every server is up and every placement group is active and clean.
    pub fn wait_ready(&self, limit: Duration) -> anyhow::Result<()> {
        let servers = self.servers()?;
        let metadata = servers.iter().filter(|server| server.role == ServerRole::Metadata).count();
        let data = servers.len() - metadata;
        let ready =
            self.wait_status("the cluster to be ready", limit, |status| status.missing(metadata, data));
        ready.map(drop)
    }

    /// Waits until the status is as wanted; `missing` says what is not. The error holds the logs' tails.
    pub fn wait_status(
        &self,
        what: &str,
        limit: Duration,
        mut missing: impl FnMut(&Status) -> Result<(), String>,
    ) -> anyhow::Result<Status> {
        let waited = wait_until(what, limit, || {
            let status = self.status().map_err(|error| format!("{error:#}"))?;
            missing(&status).map(|()| status)
        });
        waited.map_err(|timeout| self.with_logs(timeout.into()))
    }

    /// Adds the tails of all logs to an error.
    pub fn with_logs(&self, error: anyhow::Error) -> anyhow::Error {
        error.context(format!("the logs end so:\n{}", log_tails(&self.layout.logs(), TAIL_LINES)))
    }

    /// What `zabfs status` says.
    pub fn status(&self) -> anyhow::Result<Status> {
        let mut command = self.command("status", "admin");
        command.arg("--json");
        Status::parse(&programs::run(&mut command, STATUS_LIMIT)?.success()?)
    }

    /// A `zabfs` command that talks to this cluster under the certificate of `identity`.
    pub fn command(&self, subcommand: &str, identity: &str) -> Command {
        let mut command = Command::new(&self.zabfs);
        command.args(self.arguments(subcommand, identity));
        command
    }

    /// Issues the certificate of another client: `DIR/NAME/tls`.
    pub fn issue_client(&self, name: &str, read_only: bool) -> anyhow::Result<()> {
        let mut command = Command::new(&self.zabfs);
        command.args(["cert", "issue", "--role", "client", "--name", name, "--dir"]).arg(self.layout.dir());
        if read_only {
            command.arg("--read-only");
        }
        programs::run(&mut command, Duration::from_secs(30))?.success()?;
        Ok(())
    }

    /// Mounts, and returns when the mount answers.
    pub fn mount(&self, call: &MountCall<'_>) -> anyhow::Result<ProcessRef> {
        let mountpoint = &call.mountpoint;
        let name = self.free_mount_name()?;
        let log = self.layout.log(&name);
        let mut command = match call.namespace {
            Some(namespace) => namespace.command(&self.zabfs),
            None => Command::new(&self.zabfs),
        };
        command.args(self.arguments("mount", &call.identity)).arg(mountpoint).arg("--foreground");
        if let Some(options) = &call.options {
            command.args(["-o", options]);
        }
        let process = spawn_logged(&mut command, &log)?;
        let mut record = format!("{process} ").into_bytes();
        record.extend_from_slice(std::os::unix::ffi::OsStrExt::as_bytes(mountpoint.as_os_str()));
        let pid_file = self.layout.pid_file(&name);
        fs::write(&pid_file, record).with_context(|| format!("write {}", pid_file.display()))?;
        let ready = wait_until(&format!("{} to be mounted", mountpoint.display()), MOUNT_LIMIT, || {
            if !process.is_alive() {
                return Ok(false);
            }
            if !is_mounted(mountpoint) {
                return Err("the kernel does not list it".to_owned());
            }
            answers(mountpoint).map(|()| true)
        });
        match ready {
            Ok(true) => Ok(process),
            Ok(false) => {
                let _ = fs::remove_file(&pid_file);
                let said = fs::read_to_string(&log).unwrap_or_default();
                bail!(
                    "{} was not mounted; the mount process said:\n{}",
                    mountpoint.display(),
                    said.trim_end()
                )
            }
            Err(timeout) => {
                process.end()?;
                detach(mountpoint)?;
                Err(self.with_logs(timeout.into()))
            }
        }
    }

    /// `zabfs umount`: returns when everything is committed and the process has ended.
    pub fn umount(&self, mountpoint: &Path) -> anyhow::Result<()> {
        let mut command = Command::new(&self.zabfs);
        command.arg("umount").arg(mountpoint);
        programs::run(&mut command, UMOUNT_LIMIT)?.success()?;
        for (_, process, _) in self.mounts()?.into_iter().filter(|mount| mount.2 == mountpoint) {
            process.wait_gone(UMOUNT_LIMIT)?;
        }
        Ok(())
    }

    /// The running processes: role, number or mountpoint, process, whether it leads.
    pub fn processes(&self) -> anyhow::Result<Vec<(String, String, ProcessRef, bool)>> {
        let leader = self.status().ok().and_then(|status| status.leader);
        let mut all = Vec::new();
        for server in self.servers()? {
            if let Some(process) = self.server_process(server)? {
                let leads = server.role == ServerRole::Metadata && leader == Some(server.id);
                all.push((server.role.as_str().to_owned(), server.id.to_string(), process, leads));
            }
        }
        for (_, process, mountpoint) in self.mounts()? {
            all.push(("mount".to_owned(), mountpoint.display().to_string(), process, false));
        }
        Ok(all)
    }

    /// Sends a signal, and for `KILL` waits until the process is gone. Returns who it was.
    pub fn kill(&self, target: &Target, signal: Signal) -> anyhow::Result<String> {
        let (name, process) = self.find(target)?;
        if !process.signal(signal)? {
            bail!("{name} ended by itself just now");
        }
        if signal == Signal::KILL {
            process.wait_gone(Duration::from_secs(10))?;
        }
        Ok(name)
    }

    /// Kills all servers at once.
    pub fn kill_all_servers(&self) -> anyhow::Result<()> {
        let mut killed = Vec::new();
        for server in self.servers()? {
            if let Some(process) = self.server_process(server)? {
                process.signal(Signal::KILL)?;
                killed.push(process);
            }
        }
        killed.into_iter().try_for_each(|process| process.wait_gone(Duration::from_secs(10)))
    }

    /// The number of the leader, waiting for one.
    pub fn leader(&self, limit: Duration) -> anyhow::Result<Server> {
        let status = self.wait_status("a leader", limit, |status| match status.leader {
            Some(_) => Ok(()),
            None => Err("there is none".to_owned()),
        })?;
        Ok(Server::metadata(status.leader.context("the status was waited for until it had a leader")?))
    }

    /// Unmounts every mount and ends every process. Does what can be done and reports the first failure.
    pub fn down(&self) -> anyhow::Result<()> {
        let mut first_error = Ok(());
        let mut note = |result: anyhow::Result<()>| {
            if first_error.is_ok() {
                first_error = result;
            }
        };
        for (_, process, mountpoint) in self.mounts().unwrap_or_default() {
            if self.umount(&mountpoint).is_err() {
                note(detach(&mountpoint).map(drop));
                note(process.end());
            }
        }
        let servers = self.servers().unwrap_or_default();
        let running: Vec<ProcessRef> =
            servers.iter().filter_map(|server| self.server_process(*server).ok().flatten()).collect();
        for process in &running {
            // Together, so that no server waits for one that has gone before it.
            note(process.signal(Signal::CONT).map(drop).map_err(Into::into));
            note(process.signal(Signal::TERM).map(drop).map_err(Into::into));
        }
        for process in running {
            note(process.stop(STOP_GRACE));
        }
        first_error
    }

    /// Ends every process without grace and takes every mount out of the tree. For tests that are over.
    pub fn abandon(&self) -> anyhow::Result<()> {
        for (_, process, mountpoint) in self.mounts()? {
            process.end()?;
            detach(&mountpoint)?;
        }
        self.kill_all_servers()
    }

    /// Removes the directory of a cluster that is down.
    pub fn wipe(&self) -> anyhow::Result<()> {
        let dir = self.layout.dir();
        for mountpoint in mounts_below(dir).into_iter().rev() {
            detach(&mountpoint)?;
        }
        if let Some(left) = mounts_below(dir).first() {
            bail!("{} is still mounted; nothing was removed", left.display());
        }
        fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))
    }

    /// The process behind a target.
    pub fn find(&self, target: &Target) -> anyhow::Result<(String, ProcessRef)> {
        let server = match target {
            Target::Leader => self.leader(STATUS_LIMIT)?,
            Target::Server(server) => *server,
            Target::Mount(mountpoint) => {
                let mut mounts = self.mounts()?.into_iter();
                let mount = mounts.find(|mount| mount.2 == *mountpoint);
                let (_, process, _) =
                    mount.with_context(|| format!("no mount process serves {}", mountpoint.display()))?;
                return Ok((format!("mount {}", mountpoint.display()), process));
            }
        };
        let process = self.server_process(server)?.with_context(|| format!("{server} does not run"))?;
        Ok((server.to_string(), process))
    }

    /// The running mounts: name, process, mountpoint.
    pub fn mounts(&self) -> anyhow::Result<Vec<(String, ProcessRef, PathBuf)>> {
        let run = self.layout.run();
        if !run.exists() {
            // Made by `zabfs dev` or `zabfs init`: nothing was started by us.
            return Ok(Vec::new());
        }
        let entries = fs::read_dir(&run).with_context(|| format!("read {}", run.display()))?;
        let mut mounts = Vec::new();
        for entry in entries.flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            let Some(name) = file.strip_suffix(".pid").filter(|name| name.starts_with("mount-")) else {
                continue;
            };
            let record = fs::read(entry.path()).with_context(|| format!("read {file}"))?;
            let mut fields = record.splitn(3, |byte| *byte == b' ');
            let (Some(pid), Some(started), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
                bail!("{} is not a line PID STARTED MOUNTPOINT; remove it", entry.path().display());
            };
            let text = [pid, b" ", started].concat();
            let process: ProcessRef = String::from_utf8_lossy(&text).parse()?;
            let path: OsString = std::os::unix::ffi::OsStringExt::from_vec(path.to_vec());
            if process.is_alive() {
                mounts.push((name.to_owned(), process, PathBuf::from(path)));
            }
        }
        mounts.sort_by(|a, b| a.2.cmp(&b.2));
        Ok(mounts)
    }

    /// Runs one server's process, with its output in its log.
    fn spawn(&self, server: Server) -> anyhow::Result<()> {
        let address = self.address(server)?;
        if !is_free(address.ip(), address.port()) {
            bail!(
                "UDP port {address} of {server} is taken by another process; end that or make a new cluster"
            );
        }
        let mut command = Command::new(&self.zabfs);
        command.arg(format!("{}-server", server.role.as_str()));
        command.arg("--dir").arg(self.layout.server(&server.name()));
        command.arg("--cluster").arg(self.layout.cluster_file());
        command.args(["--id", &server.id.to_string()]);
        let settings = self.settings()?;
        let (option, value) = match server.role {
            ServerRole::Metadata => ("--down-out", settings.down_out),
            ServerRole::Data => ("--capacity", settings.capacity),
        };
        if let Some(value) = value {
            command.args([option, &value.to_string()]);
        }
        let process = spawn_logged(&mut command, &self.layout.log(&server.name()))?;
        let pid_file = self.layout.pid_file(&server.name());
        fs::write(&pid_file, process.to_string()).with_context(|| format!("write {}", pid_file.display()))
    }

    /// The process of a server, if it runs.
    fn server_process(&self, server: Server) -> anyhow::Result<Option<ProcessRef>> {
        let pid_file = self.layout.pid_file(&server.name());
        match fs::read_to_string(&pid_file) {
            Ok(text) => Ok(Some(text.parse::<ProcessRef>()?).filter(|process| process.is_alive())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", pid_file.display())),
        }
    }

    fn arguments(&self, subcommand: &str, identity: &str) -> Vec<OsString> {
        vec![
            subcommand.into(),
            "--dir".into(),
            self.layout.dir().into(),
            "--identity".into(),
            self.layout.identity(identity).into(),
        ]
    }

    fn settings(&self) -> anyhow::Result<Settings> {
        let path = self.layout.settings_file();
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("understand {}", path.display()))
    }

    fn list(&self) -> anyhow::Result<Value> {
        let path = self.layout.cluster_file();
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("understand {}", path.display()))
    }

    fn write_list(&self, list: &Value) -> anyhow::Result<()> {
        let path = self.layout.cluster_file();
        let new = path.with_extension("json.new");
        let text = serde_json::to_string_pretty(list).context("write the list of servers as JSON")?;
        fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
        fs::rename(&new, &path).with_context(|| format!("put {} in place", path.display()))
    }

    /// Gives every server of a new list a free port on the wanted address.
    fn place(&self, options: &Options) -> anyhow::Result<()> {
        let mut list = self.list()?;
        let count = self.servers()?.len();
        let mut ports = free_ports(options.address, count)?.into_iter();
        for role in [ServerRole::Metadata, ServerRole::Data] {
            for entry in list[role.as_str()].as_array_mut().into_iter().flatten() {
                let port = ports.next().context("as many ports were found as there are servers")?;
                entry["address"] = Value::String(format!("{}:{port}", options.address));
            }
        }
        self.write_list(&list)
    }

    /// Adds the next server of its kind to the list, with a certificate. A metadata server takes part when
    /// `zabfs metadata add` names it to the others.
    fn add(&self, server: Server) -> anyhow::Result<()> {
        let servers = self.servers()?;
        let role = server.role;
        let next = servers.iter().filter(|known| known.role == role).map(|known| known.id).max();
        let next = Server { role, id: next.map_or(1, |id| id + 1) };
        if server != next {
            bail!("{server} is not in the list of servers; what can be added next is {next}");
        }
        let mut command = Command::new(&self.zabfs);
        command.args(["cert", "issue", "--role", role.as_str(), "--id", &next.id.to_string(), "--dir"]);
        command.arg(self.layout.dir());
        programs::run(&mut command, Duration::from_secs(30))?.success()?;
        let first = servers.first().context("the list of servers is empty")?;
        let address = self.address(*first)?.ip();
        let port = free_ports(address, 1)?.remove(0);
        let mut list = self.list()?;
        let known = list[role.as_str()].as_array_mut().context("the list of servers has both kinds")?;
        known.push(serde_json::json!({ "id": next.id, "address": format!("{address}:{port}") }));
        self.write_list(&list)
    }

    fn free_mount_name(&self) -> anyhow::Result<String> {
        // A name whose process has ended is free again; its log is kept and continued.
        let taken: Vec<String> = self.mounts()?.into_iter().map(|mount| mount.0).collect();
        let mut names = (1..=1000).map(|number| format!("mount-{number}"));
        names.find(|name| !taken.contains(name)).context("this cluster has 1000 mounts already")
    }
}

/// Whether a mount serves its root. Asked by another process: a mount that does not answer must not hang us.
fn answers(mountpoint: &Path) -> Result<(), String> {
    let mut stat = Command::new("stat");
    stat.args(["--format=%i", "--"]).arg(mountpoint.join("."));
    let output = programs::run(&mut stat, Duration::from_secs(5)).and_then(Output::success);
    output.map(drop).map_err(|error| format!("its root does not answer: {error:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_have_names_and_roles_parse() {
        assert_eq!(Server::metadata(2).name(), "metadata-2");
        assert_eq!(Server::data(3).to_string(), "data 3");
        assert!("leader".parse::<ServerRole>().is_err());
    }
}
