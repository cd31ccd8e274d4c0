//! Network namespaces: mounts that reach the servers from other hosts' places.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use anyhow::{Context, bail};

/// A network namespace with one veth to this machine's own namespace; removed on drop.
///
/// The machine's end has the address [`Namespace::host`], the inner end `host + 1`. A namespace dropped
/// while a process still lives in it vanishes with that process.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    link: String,
    host: Ipv4Addr,
}

impl Namespace {
    /// Makes one. `number` (0 to 62) tells the namespaces of one process apart.
    pub fn create(number: u8) -> anyhow::Result<Namespace> {
        if number > 62 {
            bail!("a process may have at most 63 namespaces, not number {number}");
        }
        let pid = std::process::id();
        let [.., high, low] = pid.to_be_bytes();
        // 10.64.0.0/10 by pid and number: two test runs at once do not meet.
        let host = Ipv4Addr::new(10, 64 | (high & 0x3f), low, number * 4 + 1);
        let namespace =
            Namespace { name: format!("zabfs-{pid}-{number}"), link: format!("zf{pid}n{number}"), host };
        let inner = Ipv4Addr::from(u32::from(host) + 1);
        let (name, link) = (&namespace.name, &namespace.link);
        ip(&format!("netns add {name}"))?;
        ip(&format!("link add {link} type veth peer name veth0 netns {name}"))?;
        ip(&format!("addr add {host}/30 dev {link}"))?;
        ip(&format!("link set {link} up"))?;
        ip(&format!("-n {name} addr add {inner}/30 dev veth0"))?;
        ip(&format!("-n {name} link set veth0 up"))?;
        ip(&format!("-n {name} link set lo up"))?;
        ip(&format!("-n {name} route add default via {host}"))?;
        Ok(namespace)
    }

    /// This machine's address on the link; every address of the machine is reachable through it.
    pub fn host(&self) -> IpAddr {
        IpAddr::V4(self.host)
    }

    /// A command that runs `program` inside. It shares this machine's mounts.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg("--").arg(program);
        command
    }

    /// Cuts (`false`) or restores (`true`) the link.
    pub fn set_up(&self, up: bool) -> anyhow::Result<()> {
        ip(&format!("link set {} {}", self.link, if up { "up" } else { "down" }))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Nothing to tell on failure: what is left is a name and an idle link.
        let _ = ip(&format!("link del {}", self.link));
        let _ = ip(&format!("netns del {}", self.name));
    }
}

fn ip(line: &str) -> anyhow::Result<()> {
    let output = Command::new("ip").args(line.split(' ')).output().context("run ip (package iproute2)")?;
    if !output.status.success() {
        bail!("`ip {line}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
