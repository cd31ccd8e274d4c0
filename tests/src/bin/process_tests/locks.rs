//! Locks between mounts: flock, fcntl and the files in `.zabfs/locks`.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cluster_tests::harness::{Cluster, Server, Signal, Target, wait_until};
use cluster_tests::programs::{self, Running, bash, bash_command, spawn};
use cluster_tests::workload::bytes;

use crate::Row;
use crate::programs::SHORT;
use crate::scene::Scene;

pub(crate) const TESTS: &[Row] = &[
    ("locks::shells_on_two_mounts_count_exactly_while_leaders_die", (240, 900), counter),
    ("locks::waiters_are_granted_in_order", (90, 90), in_order),
    ("locks::a_lock_file_behaves_as_documented", (90, 90), lock_file),
    ("locks::flock_and_fcntl_hold_between_mounts_and_do_not_mix", (90, 90), flock_and_fcntl),
    ("locks::a_killed_holder_frees_its_lock_while_data_servers_hang", (120, 120), killed_holder),
    ("locks::a_dead_mount_frees_its_locks_after_the_session_timeout", (120, 120), dead_mount),
];

fn counter(scene: &Scene) -> anyhow::Result<()> {
    let cluster = scene.cluster()?;
    let (a, b) = (scene.mount(&cluster, "a")?, scene.mount(&cluster, "b")?);
    let per_shell = scene.size(600, 2000);
    let total = per_shell * 8;
    let file = a.join("count");
    fs::write(&file, "0\n")?;
    let script = format!(
        "for i in $(seq {per_shell}); do
             exec 9>.zabfs/locks/counter; read -r n < count; echo $((n + 1)) > count; exec 9>&-; done"
    );
    let start = Instant::now();
    let mut shells = Vec::new();
    for mnt in [&a, &b] {
        for _ in 0..4 {
            shells.push(spawn(&mut bash_command(mnt, &script))?);
        }
    }
    for percent in [25, 50] {
        reach(&mut shells, &file, total * percent / 100)?;
        let leader = cluster.leader(Duration::from_secs(10))?;
        cluster.kill(&Target::Server(leader), Signal::KILL)?;
        // Shells that the kill caught between truncation and write leave the file empty until the next leader.
        let at = wait_until("the counter to be a number", SHORT, || count(&file).ok_or("it is empty"))?;
        ensure!(at * 100 >= total * 20 && at * 100 <= total * 80, "the leader was killed at {at} of {total}");
        println!("leader {leader} killed at {at} of {total}");
        cluster.start(leader)?;
        cluster.wait_ready(Duration::from_secs(30))?;
    }
    for shell in shells {
        shell.wait(Duration::from_secs(scene.size(200, 800)))?.success()?;
    }
    let end = count(&file).context("the counter is a number")?;
    ensure!(end == total, "the counter is {end}, not {total}");
    ensure!(fs::read_to_string(b.join("count"))?.trim() == total.to_string(), "the other mount agrees");
    println!("{total} increments in {:?}", start.elapsed());
    Ok(())
}

/// Waits until the counter is at `wanted`; a shell that ended by then has failed.
fn reach(shells: &mut [Running], file: &Path, wanted: u64) -> anyhow::Result<()> {
    wait_until(&format!("{wanted} increments"), Duration::from_secs(300), || {
        let running =
            shells.iter_mut().filter_map(|shell| shell.is_running().ok()).filter(|runs| *runs).count();
        match count(file) {
            Some(at) if at >= wanted => Ok(()),
            at => Err(format!("{at:?}, {running} shells run")),
        }
    })?;
    Ok(())
}

/// The counter, unless it is read between a shell's truncation and its write.
fn count(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn in_order(scene: &Scene) -> anyhow::Result<()> {
    let cluster = scene.cluster()?;
    let (a, b) = (scene.mount(&cluster, "a")?, scene.mount(&cluster, "b")?);
    let order = scene.dir().join("order");
    // The holder waits on a pipe until told.
    scene.bash(5, "mkfifo go")?;
    let holder =
        spawn(&mut bash_command(&a, "exec 9>.zabfs/locks/queue; echo held > ../order; read -r _ < ../go"))?;
    wait_until("the lock to be held", SHORT, || if order.exists() { Ok(()) } else { Err("not yet") })?;
    let mut waiters = Vec::new();
    for number in 0..10 {
        let mnt = if number % 2 == 0 { &a } else { &b };
        let script = format!("exec 9>.zabfs/locks/queue; echo {number} >> ../order; exec 9>&-");
        waiters.push(spawn(&mut bash_command(mnt, &script))?);
        thread::sleep(Duration::from_millis(50));
    }
    thread::sleep(Duration::from_millis(300));
    ensure!(fs::read_to_string(&order)? == "held\n", "nobody passes a held lock");
    scene.bash(5, "echo > go")?;
    holder.wait(SHORT)?.success()?;
    for waiter in waiters {
        waiter.wait(SHORT)?.success()?;
    }
    let found = fs::read_to_string(&order)?;
    ensure!(found == "held\n0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n", "granted in the order {found:?}");
    Ok(())
}

fn lock_file(scene: &Scene) -> anyhow::Result<()> {
    let cluster = scene.cluster()?;
    let (a, b) = (scene.mount(&cluster, "a")?, scene.mount(&cluster, "b")?);
    let name = ".zabfs/locks/document";
    let held = OpenOptions::new().write(true).open(a.join(name))?;
    for mnt in [&a, &b] {
        let error = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(mnt.join(name));
        let error = error.err().context("a held lock was granted again")?;
        ensure!(error.raw_os_error() == Some(libc::EAGAIN), "O_NONBLOCK gives {error}");
    }
    let shown = fs::read_to_string(b.join(name))?;
    let pid = std::process::id().to_string();
    ensure!(shown.contains(&pid), "the lock's file names no pid {pid}:\n{shown}");
    ensure!(shown.to_lowercase().contains("token"), "the lock's file shows no token:\n{shown}");
    let listed: Vec<_> =
        fs::read_dir(b.join(".zabfs/locks"))?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(listed.iter().any(|entry| entry == "document"), "held locks are listed: {listed:?}");
    // A signal ends the wait: the default action ends the program, a handler sees EINTR.
    let waiter = spawn(&mut bash_command(&b, &format!("exec 9>{name}")))?;
    wait_until("the waiter to be in the queue", SHORT, || {
        let shown = fs::read_to_string(a.join(name)).map_err(|error| error.to_string())?;
        if shown.contains(&waiter.pid().to_string()) { Ok(()) } else { Err(shown) }
    })?;
    let start = Instant::now();
    programs::run(Command::new("kill").arg(waiter.pid().to_string()), SHORT)?.success()?;
    ensure!(!waiter.wait(Duration::from_secs(5))?.status.success(), "a terminated waiter succeeded");
    ensure!(start.elapsed() < Duration::from_secs(2), "a signal took {:?}", start.elapsed());
    bash(&b, SHORT, &format!("python3 -c '{EINTR}' {name}"))?;
    drop(held);
    // Released by close; a script's `9<>` reads the token.
    let token = bash(&b, SHORT, &format!("exec 9<>{name}; read -r line <&9; echo \"$line\""))?;
    ensure!(token.trim().chars().any(|c| c.is_ascii_digit()), "the descriptor reads {token:?}, no token");
    // A child that inherited the descriptor keeps the lock; the tests of the shell's own end are above.
    let keeper = spawn(&mut bash_command(&a, &format!("exec 9>{name}; sleep 3 & exec 9>&-; wait")))?;
    wait_until("the child to hold the lock", SHORT, || {
        let open = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(b.join(name));
        if open.is_err() { Ok(()) } else { Err("it is free") }
    })?;
    keeper.wait(SHORT)?.success()?;
    let free = || OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(b.join(name));
    wait_until("the lock to be free", Duration::from_secs(2), || free().map_err(|error| error.to_string()))?;
    ensure!(bash(&a, SHORT, "ls -a")?.lines().all(|line| line != ".zabfs"), ".zabfs is listed");
    ensure!(fs::create_dir(a.join(".zabfs")).is_err(), "a user's own .zabfs was created");
    let status = fs::read_to_string(a.join(".zabfs/status"))?;
    ensure!(status.contains("active+clean"), ".zabfs/status shows no placement groups:\n{status}");
    Ok(())
}

/// Opens the lock with an alarm set; its handler raises, so that the wait is not taken up again.
const EINTR: &str = r#"
import os, signal, sys
class Alarm(Exception): pass
def ring(number, frame): raise Alarm()
signal.signal(signal.SIGALRM, ring)
signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    os.open(sys.argv[1], os.O_WRONLY)
except Alarm:
    sys.exit(0)
sys.exit("the lock was granted")
"#;

fn flock_and_fcntl(scene: &Scene) -> anyhow::Result<()> {
    let cluster = scene.cluster()?;
    let (a, b) = (scene.mount(&cluster, "a")?, scene.mount(&cluster, "b")?);
    fs::write(a.join("f"), bytes(1, 1000))?;
    exclusion(scene, &a, &b)
}

/// The questions about flock and fcntl, asked from two mounts of one file `f`.
fn exclusion(scene: &Scene, a: &Path, b: &Path) -> anyhow::Result<()> {
    let (a, b) = (a.display(), b.display());
    scene.bash(
        60,
        &format!(
            r#"hold() {{ # hold PROGRAM...: runs it in the background until it says 'held'
                 rm -f said; mkfifo said; "$@" > said & holder=$!; read -r word < said; test "$word" = held; }}
             free() {{ kill $holder; wait $holder 2>/dev/null || true; rm -f said; }}
             try() {{ python3 -c "$lockf" "$@"; }}
             lockf='
import fcntl, os, sys, time
path, kind, start, length, how = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
f = open(path, "r+")
what = fcntl.LOCK_SH if kind == "sh" else fcntl.LOCK_EX
try:
    fcntl.lockf(f, what | fcntl.LOCK_NB, length, start)
except OSError:
    sys.exit(1)
print("held", flush=True)
if how == "hold": time.sleep(60)
'
             holdflock='exec 8<>"$0"; flock $1 8; echo held; exec sleep 60'
             no() {{ if "$@" > /dev/null; then echo "granted: $*" >&2; exit 1; fi; }}
             # flock: exclusive excludes, shared shares, on both mounts alike.
             hold bash -c "$holdflock" '{a}/f' -x
             no flock -n '{b}/f' true; no flock -n '{a}/f' true; no flock -sn '{b}/f' true
             try '{b}/f' ex 0 0 now > /dev/null   # fcntl does not see flock
             free; flock -w 5 '{b}/f' true
             hold bash -c "$holdflock" '{a}/f' -s
             flock -sn '{b}/f' true; no flock -n '{b}/f' true; free
             # fcntl: ranges
             hold python3 -c "$lockf" '{a}/f' ex 100 100 hold
             no try '{b}/f' ex 150 10 now; no try '{b}/f' sh 0 0 now
             try '{b}/f' ex 0 100 now > /dev/null; try '{b}/f' ex 200 0 now > /dev/null
             flock -n '{b}/f' true                # flock does not see fcntl
             free; try '{b}/f' ex 0 0 now > /dev/null
             # open-file-description locks end with the last descriptor, of which the kernel says nothing
             ofd='
import fcntl, struct, sys, time
f = open(sys.argv[1], "r+")
fcntl.fcntl(f, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 100, 100, 0))
print("held", flush=True)
time.sleep(60)
'
             hold python3 -c "$ofd" '{a}/f'
             no try '{b}/f' ex 150 10 now; no try '{a}/f' sh 0 0 now; free
             until try '{b}/f' ex 0 0 now > /dev/null; do sleep 0.05; done
             # a waiter on the other mount is woken by the release
             hold bash -c "$holdflock" '{a}/f' -x
             flock '{b}/f' true & waiter=$!; sleep 0.3; kill -0 $waiter; free; wait $waiter"#
        ),
    )?;
    Ok(())
}

/// A program that holds `.zabfs/locks/NAME` on `mnt` and has said so.
fn hold(mnt: &Path, name: &str, said: &Path) -> anyhow::Result<Running> {
    let script = format!("exec 9>.zabfs/locks/{name}; echo held > '{}'; exec sleep 600", said.display());
    let holder = spawn(&mut bash_command(mnt, &script))?;
    wait_until("the lock to be held", SHORT, || if said.exists() { Ok(()) } else { Err("not yet") })?;
    Ok(holder)
}

fn killed_holder(scene: &Scene) -> anyhow::Result<()> {
    let cluster = scene.cluster()?;
    let (a, b) = (scene.mount(&cluster, "a")?, scene.mount(&cluster, "b")?);
    let wanted = bytes(scene.seed(), 8 << 20);
    fs::write(a.join("large"), &wanted)?;
    let holder = hold(&a, "hung", &scene.dir().join("said"))?;
    let data = |cluster: &Cluster, signal| -> anyhow::Result<()> {
        (1..=3).try_for_each(|id| cluster.kill(&Target::Server(Server::data(id)), signal).map(drop))
    };
    data(&cluster, Signal::STOP)?;
    let mut readers = Vec::new();
    for number in 0..100 {
        let script =
            format!("exec dd if=large of=/dev/null bs=64k skip={number} count=1 iflag=direct status=none");
        readers.push(spawn(&mut bash_command(&a, &script))?);
    }
    let waiter = spawn(&mut bash_command(&b, "exec 9>.zabfs/locks/hung; echo granted"))?;
    thread::sleep(Duration::from_secs(1));
    let hanging =
        readers.iter_mut().filter_map(|reader| reader.is_running().ok()).filter(|runs| *runs).count();
    ensure!(hanging == 100, "{hanging} of 100 reads hang");
    let start = Instant::now();
    programs::kill_group(holder.pid());
    let granted = waiter.wait(Duration::from_secs(10));
    let took = start.elapsed();
    data(&cluster, Signal::CONT)?;
    granted?.success()?;
    println!("the lock was granted {took:?} after its holder was killed");
    ensure!(took <= Duration::from_secs(1), "it took {took:?}");
    for reader in readers {
        reader.wait(Duration::from_secs(60))?.success().context("a read that hung")?;
    }
    ensure!(fs::read(a.join("large"))? == wanted, "the file is as it was");
    Ok(())
}

fn dead_mount(scene: &Scene) -> anyhow::Result<()> {
    let cluster = scene.cluster()?;
    let (a, b) = (scene.mount(&cluster, "a")?, scene.mount(&cluster, "b")?);
    let _holder = hold(&a, "orphan", &scene.dir().join("said"))?;
    fs::write(b.join("f"), "x")?;
    let _flock = spawn(&mut bash_command(&a, "exec flock f sleep 600"))?;
    wait_until("the flock to be held", SHORT, || {
        let free = bash(&b, SHORT, "flock -n f true").is_ok();
        if free { Err("it is free") } else { Ok(()) }
    })?;
    cluster.kill(&Target::Mount(a), Signal::KILL)?;
    let start = Instant::now();
    bash(&b, Duration::from_secs(40), "exec 9>.zabfs/locks/orphan; flock f true")?;
    println!("granted {:?} after the mount process was killed", start.elapsed());
    ensure!(start.elapsed() < Duration::from_secs(20), "it took {:?}", start.elapsed());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_disk_answers_the_questions_about_exclusion() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), bytes(1, 1000)).unwrap();
        exclusion(&Scene::new(dir.path(), false, 1), dir.path(), dir.path()).unwrap();
    }
}
