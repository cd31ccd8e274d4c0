# Sourced by the scripts beside it: where things are, and the release build.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
release=$target/release

say() { printf '%s\n' "$*" >&2; }
die() { say "$(basename "$0"): $*"; exit 1; }

# True if BINARY is missing or older than any source file.
is_stale() {
    [ ! -x "$1" ] || [ -n "$(find "$root" -path "$target" -prune -o -path "$root/.git" -prune -o \
        -type f \( -name '*.rs' -o -name Cargo.toml -o -name Cargo.lock \) -newer "$1" -print -quit)" ]
}

# Sets ZABFS_BIN to the release build of this tree, building it and the helpers of `tests/` if they are
# stale. A ZABFS_BIN that is set already is used as it is.
build_release() {
    command -v cargo > /dev/null || die "cargo is missing; install Rust from https://rustup.rs"
    if [ -n "${ZABFS_BIN:-}" ]; then
        [ -x "$release/cluster" ] || build_all
    elif is_stale "$release/zabfs" || is_stale "$release/cluster"; then
        build_all
    fi
    export ZABFS_BIN=${ZABFS_BIN:-$release/zabfs}
}

build_all() {
    say "building (the first time takes some minutes) ..."
    (cd "$root" && cargo build --release --locked --bins) >&2 || die "the build failed"
    # A build with nothing to do leaves the files as old as they are.
    touch "$release/zabfs" "$release/cluster"
}
