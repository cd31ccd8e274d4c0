//! The house rules that a compiler does not check: which crate may use which, what the pure cores must not
//! touch, and what no file may hold.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Which workspace crates a crate may depend on. The order is the order of the arrows.
const MAY_DEPEND: &[(&str, &[&str])] = &[
    ("crush", &[]),
    ("zab", &[]),
    ("protocol", &["crush"]),
    ("metadata-server", &["zab", "protocol", "crush"]),
    ("data-server", &["protocol", "crush"]),
    ("fs-client", &["protocol", "crush"]),
    ("cli", &["crush", "zab", "protocol", "metadata-server", "data-server", "fs-client"]),
    ("tests", &["crush", "zab", "protocol", "metadata-server", "data-server", "fs-client"]),
];

/// Directories of pure cores: state machines without I/O, clock, randomness or tasks.
const CORES: &[&str] =
    &["crush/src", "zab/src", "metadata-server/src/core", "metadata-server/src/state", "data-server/src/pg"];

/// What a pure core never names, and why.
const IMPURE: &[(&str, &str)] = &[
    ("tokio", "a core has no tasks"),
    ("std::fs", "a core does no I/O"),
    ("std::net", "a core does no I/O"),
    ("std::thread", "a core has no threads"),
    ("std::process", "a core starts nothing"),
    ("std::time::Instant", "time is an argument"),
    ("Instant::now", "time is an argument"),
    ("SystemTime", "time is an argument"),
    ("rand::", "randomness is an argument"),
    ("thread_rng", "randomness is an argument"),
    ("getrandom", "randomness is an argument"),
    ("HashMap", "its order differs from run to run; use BTreeMap"),
    ("HashSet", "its order differs from run to run; use BTreeSet"),
];

/// `std::net` has types for addresses, which are data, not I/O.
const PURE_THOUGH: &[&str] = &["std::net::SocketAddr", "std::net::IpAddr", "std::net::{IpAddr, SocketAddr}"];

/// No file is longer.
const LINES_MAX: usize = 900;

#[test]
fn dependencies_point_downwards_only() {
    let members: BTreeSet<&str> = MAY_DEPEND.iter().map(|row| row.0).collect();
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let listed = manifest.lines().find(|line| line.starts_with("members")).expect("a list of members");
    assert_eq!(listed.matches('"').count() / 2, members.len(), "a member is missing in this table: {listed}");
    for (member, allowed) in MAY_DEPEND {
        for dependency in dependencies(member) {
            if members.contains(dependency.as_str()) {
                assert!(allowed.contains(&dependency.as_str()), "{member} must not depend on {dependency}");
            }
        }
    }
}

#[test]
fn pure_crates_depend_on_nothing_impure() {
    for member in ["crush", "zab"] {
        for dependency in dependencies(member) {
            let is_impure = ["tokio", "quinn", "rand", "redb", "libc", "fuser", "socket2", "rustls"];
            assert!(!is_impure.contains(&dependency.as_str()), "{member} must not depend on {dependency}");
        }
    }
}

#[test]
fn cores_have_no_io_clock_randomness_or_tasks() {
    let mut faults = Vec::new();
    for core in CORES {
        let files = files_below(&root().join(core), &["rs"]);
        assert!(!files.is_empty(), "{core} is gone; change this test with it");
        for path in files {
            let text = fs::read_to_string(&path).unwrap();
            for (number, line) in production_lines(&path, &text) {
                let mut code = line.split("//").next().unwrap_or_default().to_owned();
                PURE_THOUGH.iter().for_each(|pure| code = code.replace(pure, ""));
                let named = IMPURE.iter().filter(|(word, _)| code.contains(word));
                faults.extend(named.map(|(word, why)| format!("{}:{number}: {word}: {why}", shown(&path))));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn no_file_is_too_long() {
    let mut faults = Vec::new();
    for path in sources() {
        let count = fs::read_to_string(&path).unwrap().lines().count();
        if count >= LINES_MAX {
            faults.push(format!("{} has {count} lines; split it by role", shown(&path)));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn nothing_is_left_for_later_and_no_test_is_switched_off() {
    let words = [["TO", "DO"], ["FIX", "ME"], ["XX", "X:"], ["HA", "CK:"], ["todo", "!("], ["#[ign", "ore"]];
    let words = words.map(|parts| parts.concat());
    let mut faults = Vec::new();
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            let found = words.iter().filter(|word| line.contains(word.as_str()));
            faults.extend(found.map(|word| format!("{}:{}: {word}", shown(&path), number + 1)));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn no_file_names_a_place_of_one_machine() {
    let words = [["/ro", "ot/"], ["/wo", "rk/"]].map(|parts| parts.concat());
    let mut faults = Vec::new();
    for path in files_below(&root(), &["rs", "toml", "md", "json", "txt", ""]) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (number, line) in text.lines().enumerate() {
            // A path inside zabfs or in a URL does not begin a word here.
            let found = words.iter().filter(|word| begins_a_word(line, word));
            faults.extend(found.map(|word| format!("{}:{}: {word}", shown(&path), number + 1)));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// Whether `line` has `word` where a path of this machine would stand.
fn begins_a_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "/.$}_-".contains(c))
    })
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_owned()
}

/// Names under `[dependencies]` and `[build-dependencies]` of a member; tests may use what they like.
fn dependencies(member: &str) -> Vec<String> {
    let path = root().join(member).join("Cargo.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    let mut section = String::new();
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']).to_owned();
        } else if section.ends_with("dependencies") && section != "dev-dependencies" {
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            if !name.is_empty() && !name.starts_with('#') {
                found.push(name.to_owned());
            }
        }
    }
    found
}

/// Numbered lines of a file before its test module; a file that is a test module has none.
fn production_lines<'a>(path: &Path, text: &'a str) -> Vec<(usize, &'a str)> {
    let is_test = path.components().any(|part| {
        let part = part.as_os_str().to_string_lossy();
        let part = part.strip_suffix(".rs").unwrap_or(&part);
        ["tests", "test", "simulation", "testing"].contains(&part) || part.ends_with("_tests")
    });
    if is_test {
        return Vec::new();
    }
    let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line));
    lines.take_while(|(_, line)| !line.trim_start().starts_with("#[cfg(test)]")).collect()
}

/// Every Rust file and script of the tree.
fn sources() -> Vec<PathBuf> {
    let mut found = files_below(&root(), &["rs"]);
    found.extend(files_below(&root().join("scripts"), &["", "sh"]));
    found.extend(files_below(&root().join(".ci"), &[""]));
    found
}

/// Files below `dir` with one of these extensions, in order; build results and hidden directories left out.
fn files_below(dir: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    pending.push(path);
                }
            } else if name == ".git" {
                // In a linked work tree this is a file that says where the repository is.
            } else if path.extension().map_or(extensions.contains(&""), |extension| {
                extensions.iter().any(|known| extension == *known)
            }) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}
