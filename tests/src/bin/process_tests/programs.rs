//! Other people's programs on a mount, each compared with a copy outside.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use cluster_tests::programs::target_directory;
use cluster_tests::workload::{Aspects, Extras, compare_trees, make_tree};

use crate::Row;
use crate::scene::Scene;

pub(crate) const TESTS: &[Row] = &[
    ("programs::git_keeps_a_tree_of_3000_files", (600, 600), git),
    ("programs::tar_and_rsync_round_trips_are_exact", (500, 500), tar_and_rsync),
    ("programs::sqlite_in_both_journal_modes", (300, 300), sqlite),
    ("programs::gcc_and_cargo_build_and_run", (300, 300), compilers),
    ("programs::postgres_initdb_and_pgbench", (500, 600), postgres),
    ("programs::dbench", (300, 300), dbench),
];

fn git(scene: &Scene) -> anyhow::Result<()> {
    let (_cluster, mnt) = scene.mounted()?;
    let outside = scene.scratch("outside")?.join("tree");
    make_tree(
        &outside,
        scene.seed(),
        3000,
        Extras { symlinks: true, only_small: true, ..Extras::default() },
    )?;
    let (outside, mnt) = (outside.display(), mnt.display());
    scene.bash(
        570,
        &format!(
            "export HOME=$PWD GIT_CONFIG_NOSYSTEM=1
             git config --global user.name test; git config --global user.email test@example.org
             git config --global gc.auto 0
             chmod -R u=rwX,go=rX '{outside}' # all that git keeps of modes
             cp -a '{outside}' '{mnt}/tree'; cd '{mnt}/tree'
             git init -q .; git add .; git commit -qm first
             test -z \"$(git status --porcelain)\"
             find . -name 'file-1*' -not -path './.git/*' | sort | sed -n 1,200p | while read -r f; do
                 chmod u+w \"$f\"; echo changed >> \"$f\"; done
             git commit -qam second; git fsck --full --strict
             git gc -q --prune=now; git fsck --full --strict; git checkout -q HEAD~1
             test -z \"$(git status --porcelain)\"
             git clone -q . ../clone; cd ../clone; git fsck --full --strict; cd ..
             rm -rf clone; mv tree/.git dotgit"
        ),
    )?;
    compare_trees(Path::new(&outside.to_string()), Path::new(&format!("{mnt}/tree")), CHECKED_OUT)?;
    Ok(())
}

/// git keeps no times, but everything else.
const CHECKED_OUT: Aspects = Aspects { times: false, hard_links: false };

fn tar_and_rsync(scene: &Scene) -> anyhow::Result<()> {
    let (_cluster, mnt) = scene.mounted()?;
    let outside = scene.scratch("outside")?.join("tree");
    let extras = Extras { hard_links: true, symlinks: true, sparse: true, only_small: false };
    make_tree(&outside, scene.seed(), 800, extras)?;
    let (out, m) = (outside.display(), mnt.display());
    scene.bash(
        470,
        &format!(
            "cd '{out}'
             find . -name 'file-2*' -type f | while read -r f; do
                 setfattr -n user.colour -v \"blue $f\" \"$f\"; setfattr -n user.empty \"$f\"; done
             setfattr -n trusted.ours -v 1 hard-0; mkfifo a-pipe; touch -d @1500000001.5 a-pipe
             chown 1234:4321 hard-0; cd ..
             tar --xattrs --xattrs-include='*' --sparse -cf packed.tar tree
             tar --xattrs --xattrs-include='*' -C '{m}' -xf packed.tar; mv '{m}/tree' '{m}/untarred'
             rsync -aHXS tree/ '{m}/synced/'
             # There and back again: rsync compares every byte, link, owner, time and attribute.
             for copy in untarred synced; do
                 diff=$(rsync -aHXn --checksum --delete --itemize-changes tree/ '{m}'/$copy/)
                 if [ -n \"$diff\" ]; then echo \"$copy differs: $diff\" >&2; exit 1; fi
                 diff=$(rsync -aHXn --checksum --delete --itemize-changes '{m}'/$copy/ tree/)
                 if [ -n \"$diff\" ]; then echo \"read back, $copy differs: $diff\" >&2; exit 1; fi
             done
             tar --xattrs --xattrs-include='*' --sparse -C '{m}/untarred' -cf '{m}/again.tar' .
             mkdir back; tar --xattrs --xattrs-include='*' -C back -xf '{m}/again.tar'
             diff=$(rsync -aHXn --checksum --delete --itemize-changes tree/ back/)
             if [ -n \"$diff\" ]; then echo \"the second archive differs: $diff\" >&2; exit 1; fi
             # Holes stay holes: the file is 64 MiB long and holds 25 kB.
             used=$(du -k '{m}/synced/sparse.img' | cut -f1)
             if [ \"$used\" -gt 30000 ]; then echo \"the sparse file uses $used KiB\" >&2; exit 1; fi"
        ),
    )?;
    for copy in ["untarred", "synced"] {
        compare_trees(&outside, &mnt.join(copy), Aspects::ALL).context(copy)?;
    }
    Ok(())
}

fn sqlite(scene: &Scene) -> anyhow::Result<()> {
    let (_cluster, mnt) = scene.mounted()?;
    for mode in ["delete", "wal"] {
        let rows = scene.size(300, 3000);
        let script = format!(
            "(
                echo 'PRAGMA journal_mode={mode}; PRAGMA synchronous=FULL;'
                echo 'CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); CREATE INDEX i ON t(v);'
                for n in $(seq 1 {rows}); do echo \"INSERT INTO t VALUES($n, hex($n * 7919));\"; done
                echo 'DELETE FROM t WHERE id % 3 = 0; UPDATE t SET v = v || id WHERE id % 5 = 0;'
                echo 'VACUUM;'
             ) > script-{mode}.sql
             for place in '{}' \"$PWD\"; do sqlite3 -bail \"$place/{mode}.db\" < script-{mode}.sql > /dev/null
                 test \"$(sqlite3 \"$place/{mode}.db\" 'PRAGMA integrity_check')\" = ok; done
             diff <(sqlite3 '{0}/{mode}.db' .dump) <(sqlite3 {mode}.db .dump)",
            mnt.display()
        );
        scene.bash(100, &script).with_context(|| format!("journal_mode={mode}"))?;
    }
    // Two processes on one database: the locks that keep them apart are ours.
    scene.bash(
        60,
        &format!(
            "cd '{}'; sqlite3 two.db 'CREATE TABLE t(n); INSERT INTO t VALUES(0)'
             add() {{ for _ in $(seq 50); do
                 sqlite3 -cmd '.timeout 30000' two.db 'BEGIN IMMEDIATE; UPDATE t SET n=n+1; COMMIT'; done; }}
             add & one=$!; add & two=$!; wait $one; wait $two
             test \"$(sqlite3 two.db 'SELECT n FROM t')\" = 100",
            mnt.display()
        ),
    )?;
    Ok(())
}

fn compilers(scene: &Scene) -> anyhow::Result<()> {
    let (_cluster, mnt) = scene.mounted()?;
    scene.bash(
        280,
        &format!(
            "cd '{}'
             for n in $(seq 1 40); do echo \"int f$n(int x) {{ return x * $n; }}\" > f$n.c; done
             (for n in $(seq 1 40); do echo \"int f$n(int);\"; done; echo '#include <stdio.h>'
              echo 'int main(void) {{ int s = 0;'; for n in $(seq 1 40); do echo \"s += f$n(2);\"; done
              echo 'printf(\"%d\\n\", s); return 0; }}') > main.c
             for f in *.c; do gcc -O1 -g -c $f; done
             ar rcs libf.a f*.o; gcc -o prog main.o libf.a; test \"$(./prog)\" = 1640
             mkdir -p hello/src; cd hello
             printf '[package]\\nname = \"hello\"\\nversion = \"0.1.0\"\\nedition = \"2021\"\\n[workspace]\\n' > Cargo.toml
             echo 'fn main() {{ println!(\"built on zabfs\"); }}' > src/main.rs
             unset CARGO_TARGET_DIR
             cargo build -q --offline; test \"$(./target/debug/hello)\" = 'built on zabfs'
             echo '// touched' >> src/main.rs; cargo build -q --offline
             test \"$(./target/debug/hello)\" = 'built on zabfs'",
            mnt.display()
        ),
    )?;
    Ok(())
}

fn postgres(scene: &Scene) -> anyhow::Result<()> {
    let (_cluster, mnt) = scene.mounted()?;
    let seconds = scene.size(10, 120);
    // Every directory above the mountpoint must let the postgres user through, hence the bind mount.
    scene.bash(
        280 + 2 * seconds,
        &format!(
            "bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
             base=$(mktemp -d /tmp/zabfs-pg.XXXXXX); chmod 755 $base; mkdir $base/m; mount --bind '{}' $base/m
             as() {{ setpriv --reuid=postgres --regid=postgres --init-groups env HOME=/tmp LC_ALL=C \"$@\"; }}
             finish() {{ as $bin/pg_ctl -D $base/m/pg -m immediate stop >/dev/null 2>&1 || true
                 umount -l $base/m; rmdir $base/m $base; }}
             trap finish EXIT
             mkdir $base/m/pg $base/m/sock; chown postgres:postgres $base/m/pg; chmod 700 $base/m/pg
             mkdir sock; chown postgres sock
             cd /tmp
             as $bin/initdb -D $base/m/pg -A trust --locale=C -E UTF8 > $OLDPWD/initdb.log
             as $bin/pg_ctl -D $base/m/pg -w -t 60 -l $base/m/pg/log \\
                 -o \"-c listen_addresses= -c unix_socket_directories=$base\" start > /dev/null 2>&1 || {{
                 # The socket directory must be writable for the server.
                 chown postgres $base
                 as $bin/pg_ctl -D $base/m/pg -w -t 60 -l $base/m/pg/log \\
                     -o \"-c listen_addresses= -c unix_socket_directories=$base\" start > /dev/null; }}
             as $bin/createdb -h $base bench
             as $bin/pgbench -h $base -q -i -s 2 bench
             as $bin/pgbench -h $base -c 4 -T {seconds} bench
             sums() {{ as psql -h $base -Atc \"SELECT (SELECT sum(abalance) FROM pgbench_accounts),
                 (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(bbalance) FROM pgbench_branches),
                 (SELECT sum(delta) FROM pgbench_history)\" bench; }}
             before=$(sums)
             # All four sums are one number, or a transaction was torn.
             test $(echo \"$before\" | tr '|' '\\n' | sort -u | wc -l) = 1
             as $bin/pg_ctl -D $base/m/pg -m immediate stop > /dev/null
             as $bin/pg_ctl -D $base/m/pg -w -t 60 -l $base/m/pg/log \\
                 -o \"-c listen_addresses= -c unix_socket_directories=$base\" start > /dev/null
             test \"$(sums)\" = \"$before\"
             as $bin/pg_ctl -D $base/m/pg -m fast stop > /dev/null
             rm -f $base/.s.* || true",
            mnt.display()
        ),
    )?;
    Ok(())
}

fn dbench(scene: &Scene) -> anyhow::Result<()> {
    let (_cluster, mnt) = scene.mounted()?;
    let seconds = scene.size(20, 120);
    let output = scene.bash(seconds + 120, &format!("dbench -D '{}' -t {seconds} 4", mnt.display()))?;
    ensure!(output.contains("Throughput"), "dbench printed no throughput:\n{output}");
    let left: Vec<_> = fs::read_dir(&mnt)?.collect();
    ensure!(left.iter().all(Result::is_ok), "the root cannot be listed after dbench");
    Ok(())
}

/// Where the tools that tests install live.
pub(crate) fn tool(name: &str) -> anyhow::Result<std::path::PathBuf> {
    let path = target_directory().join("tools/bin").join(name);
    ensure!(path.exists(), "{} is missing; `scripts/install-tools` installs it", path.display());
    Ok(path)
}

/// How long a program may take that ordinarily answers at once.
pub(crate) const SHORT: Duration = Duration::from_secs(20);
