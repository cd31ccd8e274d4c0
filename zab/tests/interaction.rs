//! Golden scripts: each file of `tests/interaction/` is a play. Commands stand above `----`, what happened below.
//!
//! `UPDATE_GOLDEN=1 cargo test -p zab --test interaction` writes what happened; review the diff.
//!
//! | command | meaning |
//! |---|---|
//! | `cluster N [small-log]` | N voters, not yet running; with `small-log` nothing is kept behind a checkpoint |
//! | `start ID…` / `crash ID [keep OPS]` | a crash keeps only that many of the operations not yet synced (default 0) |
//! | `run MS` | lets time pass |
//! | `settle` | runs until somebody leads and nothing but heartbeats happens |
//! | `partition A… \| B…` / `heal` | nothing arrives between the sides |
//! | `stall ID` / `unstall ID` | its disk completes nothing |
//! | `propose ID [COUNT]`, `checkpoint ID`, `wipe ID`, `step-down ID` | |
//! | `status` | one line per peer |
//! | `quiet` / `verbose` | whether messages are shown (they are not at first) |

#[path = "simulation/mod.rs"]
mod simulation;

use std::path::PathBuf;

use simulation::network::Weather;
use simulation::world::{Happening, Shape, Trace, World};
use zab::{Config, PeerId};

/// A quorum that does not settle in this time never does.
const SETTLE_MS: u64 = 10_000;

struct Play {
    world: Option<World>,
    verbose: bool,
}

impl Play {
    fn world(&mut self) -> &mut World {
        self.world.as_mut().expect("a play begins with `cluster`")
    }

    fn perform(&mut self, command: &str) -> Result<(), String> {
        let words: Vec<&str> = command.split_whitespace().collect();
        let ids = |words: &[&str]| -> Vec<PeerId> { words.iter().map(|word| peer(word)).collect() };
        match words.as_slice() {
            ["cluster", voters, options @ ..] => {
                let small_log = options.contains(&"small-log");
                self.world = Some(World::cold(1, shape(number(voters) as u32, small_log), Trace::Keep));
            }
            ["start", rest @ ..] => ids(rest).into_iter().try_for_each(|id| self.world().boot(id))?,
            ["crash", id, "keep", ops] => self.world().crash_keeping(peer(id), number(ops) as usize),
            ["crash", id] => self.world().crash_keeping(peer(id), 0),
            ["run", ms] => {
                let until = self.world().time + number(ms);
                self.world().run_until(until)?;
            }
            ["settle"] => self.settle()?,
            ["partition", rest @ ..] => {
                let sides: Vec<Vec<PeerId>> = rest.split(|word| *word == "|").map(ids).collect();
                self.partition(&sides);
            }
            ["heal"] => self.world().network.heal(),
            ["stall", id] => self.world().node(peer(id)).disk_stalled_until = u64::MAX,
            ["unstall", id] => {
                let node = peer(id);
                self.world().node(node).disk_stalled_until = 0;
                self.world().schedule_in(0, Happening::Unstall { node });
            }
            ["propose", id] => drop(self.world().propose(peer(id))?),
            ["propose", id, count] => {
                for _ in 0..number(count) {
                    self.world().propose(peer(id))?;
                }
            }
            ["checkpoint", id] => {
                self.world().schedule_in(0, Happening::Checkpoint { node: peer(id) });
                let now = self.world().time;
                self.world().run_until(now)?;
            }
            ["wipe", id] => self.world().wipe(peer(id)),
            ["step-down", id] => self.world().step(peer(id), |peer, now| peer.step_down(now))?,
            ["status"] => self.status(),
            ["quiet"] => self.verbose = false,
            ["verbose"] => self.verbose = true,
            _ => return Err(format!("unknown command: {command}")),
        }
        Ok(())
    }

    fn partition(&mut self, sides: &[Vec<PeerId>]) {
        for (index, side) in sides.iter().enumerate() {
            for other in sides.iter().skip(index + 1).flatten() {
                for id in side {
                    self.world().network.block(*id, *other);
                    self.world().network.block(*other, *id);
                }
            }
        }
    }

    fn settle(&mut self) -> Result<(), String> {
        let end = self.world().time + SETTLE_MS;
        let mut quiet_since = self.world().time;
        while self.world().time < end {
            // Messages alone are no news: somebody who is cut off asks for ever.
            let news = |world: &World| world.lines.iter().filter(|line| !line.contains(" -> ")).count();
            let before = news(self.world());
            let until = self.world().time + 10;
            self.world().run_until(until)?;
            if news(self.world()) != before || self.world().leader().is_none() {
                quiet_since = until;
            }
            if until - quiet_since >= 200 {
                return Ok(());
            }
        }
        Err("the quorum did not settle".to_owned())
    }

    fn status(&mut self) {
        let world = self.world();
        for node in world.nodes.values() {
            let line = node.peer.as_ref().map_or(format!("{} down", node.id), |peer| peer.to_string());
            world.lines.push(line);
        }
    }

    fn take_lines(&mut self) -> Vec<String> {
        let verbose = self.verbose;
        let Some(world) = &mut self.world else { return Vec::new() };
        world.lines.drain(..).filter(|line| verbose || !line.contains(" -> ")).collect()
    }
}

fn shape(voters: u32, small_log: bool) -> Shape {
    let config = Config::new(PeerId(0));
    let log_window_bytes = if small_log { 0 } else { config.log_window_bytes };
    Shape {
        voters,
        observer: false,
        unbound: false,
        changing: false,
        config: Config { log_window_bytes, ..config },
        weather: Weather { delay_max_ms: 1, loss: 0, repeat: 0 },
        sync_max_ms: 0,
        drift: false,
        chaos_ms: 0,
        fault_every_ms: 1,
        workload_every_ms: 1,
    }
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("`{word}` must be a number"))
}

fn peer(word: &str) -> PeerId {
    PeerId(number(word) as u32)
}

/// Performs a script and returns it with what happened.
fn perform(script: &str) -> String {
    let mut play = Play { world: None, verbose: false };
    let mut text = String::new();
    for scene in script.split("\n\n").map(str::trim_end).filter(|scene| !scene.is_empty()) {
        let commands: Vec<&str> = scene.lines().take_while(|line| *line != "----").collect();
        for command in &commands {
            text.push_str(command);
            text.push('\n');
            let command = command.split('#').next().unwrap_or("").trim();
            if !command.is_empty()
                && let Err(what) = play.perform(command)
            {
                panic!("`{command}`: {what}\n{}", play.take_lines().join("\n"));
            }
        }
        let lines = play.take_lines();
        if commands.iter().any(|line| !line.starts_with('#')) {
            text.push_str("----\n");
        }
        for line in lines {
            text.push_str(&line);
            text.push('\n');
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn check(name: &str) {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/interaction").join(name).with_extension("txt");
    let expected = std::fs::read_to_string(&path).expect("the script is there");
    let actual = perform(&expected);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, actual).expect("the script can be written");
    } else {
        let difference =
            expected.lines().zip(actual.lines()).position(|(expected, actual)| expected != actual);
        assert!(
            expected == actual,
            "{name}.txt differs from line {} on; rerun with UPDATE_GOLDEN=1 and review the diff. It now reads:\n{actual}",
            difference.unwrap_or(0) + 1
        );
    }
}

#[test]
fn every_script_is_performed() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/interaction");
    let files = std::fs::read_dir(folder).expect("the folder is there");
    let mut names: Vec<String> = files
        .map(|file| file.expect("a file").path().file_stem().expect("a name").to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert!(names.len() >= 6, "{names:?}");
    names.iter().for_each(|name| check(name));
}
