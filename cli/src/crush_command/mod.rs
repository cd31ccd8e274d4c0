//! `zabfs crush`: maps and mappings offline, for comparing with `crushtool`, for changing and trying out a map.

mod balance;
mod bench;
mod compare;
mod edit;
mod map_file;
mod tree;

use anyhow::{Context, bail};
use balance::BalanceArgs;
use bench::BenchArgs;
use clap::Subcommand;
use compare::CompareArgs;
use crush::{CrushMap, ITEM_NONE, Scratch, WEIGHT_ONE};
use edit::{AddArgs, MoveArgs, RemoveArgs, ReweightArgs, RuleCommand};
use map_file::{MapSource, Target, read_map};
use std::collections::BTreeMap;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use tree::TreeArgs;

/// Bound on device ids here, since the reweights are a list by device id.
const DEVICES_MAX: u32 = 1 << 20;

/// The index of weight sets that `crushtool --test` asks for.
const TEST_CHOOSE_ARGS: i64 = 0;

/// What to do with a map or a hash.
#[derive(Debug, Subcommand)]
pub(crate) enum CrushCommand {
    /// Map a range of inputs by a rule; prints one line "x device,device,..." per input
    #[command(name = "test")]
    Test(TestArgs),
    /// Propose overrides per placement group that bring the fullest devices down to their share
    Balance(BalanceArgs),
    /// Measure mappings per second
    Bench(BenchArgs),
    /// Compare straw2 with a ring, rendezvous and jump hashing: movement and balance when devices change
    Compare(CompareArgs),
    /// Compile a text map into Ceph's binary form, which crushtool reads; comments are not kept
    Compile {
        /// A map; every command reads text and binary form alike
        file: PathBuf,
        #[command(flatten)]
        target: Target,
    },
    /// Print a map in crushtool's text format
    Decompile {
        /// A map; every command reads text and binary form alike
        file: PathBuf,
        #[command(flatten)]
        target: Target,
    },
    /// Print the hierarchy with weights
    Tree(TreeArgs),
    /// Add a device or a bucket at a location: `add osd.7 1.5 host=a`, `add r2 rack root=default`
    #[command(alias = "add-bucket")]
    Add(AddArgs),
    /// Move a device or a bucket to a location: `move a rack=r2`
    Move(MoveArgs),
    /// Remove a device, or a bucket that holds nothing
    #[command(alias = "rm")]
    Remove(RemoveArgs),
    /// Change the weight of a device; its ancestors follow
    Reweight(ReweightArgs),
    /// Make, remove and list rules
    #[command(subcommand)]
    Rule(RuleCommand),
    /// Print every bucket, device classes' copies included, with 16.16 weights
    Dump {
        #[command(flatten)]
        source: MapSource,
    },
    /// Read a map, check it and print it in crushtool's text format with exact weights
    Export {
        #[command(flatten)]
        source: MapSource,
    },
    /// Hash one to five 32-bit numbers
    Hash {
        #[arg(required = true, num_args = 1..=5, allow_negative_numbers = true, value_parser = word)]
        words: Vec<u32>,
    },
    /// Hash the bytes given in hexadecimal, as object names are hashed
    Strhash {
        #[arg(default_value = "")]
        hex: String,
    },
    /// The fixed-point logarithm of a 16-bit number
    Ln { u: u16 },
    /// From object name to placement group; prints "hash group input"
    Pg {
        #[arg(long)]
        name: String,
        #[arg(long)]
        pool: u32,
        /// How many groups the pool has
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        pg_num: u32,
        #[arg(long, default_value = "")]
        namespace: String,
    },
}

/// Arguments of `zabfs crush test`.
#[derive(Debug, clap::Args)]
pub(crate) struct TestArgs {
    #[command(flatten)]
    source: MapSource,
    /// Number of the rule
    #[arg(long)]
    rule: u32,
    /// How many devices to ask for
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(crush::CHOOSE_NUM_MAX)))]
    num_rep: u32,
    /// First input
    #[arg(long, allow_negative_numbers = true)]
    min_x: i32,
    /// Last input
    #[arg(long, allow_negative_numbers = true)]
    max_x: i32,
    /// Hash each input with this pool number first
    #[arg(long)]
    pool_id: Option<u32>,
    /// Reweight a device, from 0 (out) to 1 (fully in); may be repeated
    #[arg(long, value_name = "ID:W", value_parser = reweight)]
    weight: Vec<(i32, u32)>,
}

impl CrushCommand {
    /// Runs the command; everything it has to say goes to standard output.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let mut out = BufWriter::new(io::stdout().lock());
        let written = self.write(&mut out).and_then(|()| Ok(out.flush()?));
        match written {
            // Whoever reads the output has seen enough.
            Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
            written => written.map(|()| ExitCode::SUCCESS),
        }
    }

    fn write(self, out: &mut impl Write) -> anyhow::Result<()> {
        match self {
            CrushCommand::Test(args) => test(&args, out)?,
            CrushCommand::Dump { source } => dump(&source.read()?, out)?,
            CrushCommand::Export { source } => write!(out, "{}", source.read()?.to_text())?,
            CrushCommand::Balance(args) => args.write(out)?,
            CrushCommand::Bench(args) => args.write(out)?,
            CrushCommand::Compare(args) => args.write(out)?,
            CrushCommand::Compile { file, target } => target.write(&read_map(&file)?.to_binary()?)?,
            CrushCommand::Decompile { file, target } => {
                target.write(read_map(&file)?.to_text().as_bytes())?
            }
            CrushCommand::Tree(args) => args.write(out)?,
            CrushCommand::Add(args) => args.run()?,
            CrushCommand::Move(args) => args.run()?,
            CrushCommand::Remove(args) => args.run()?,
            CrushCommand::Reweight(args) => args.run()?,
            CrushCommand::Rule(command) => command.run()?,
            CrushCommand::Hash { words } => writeln!(out, "{}", hash(&words))?,
            CrushCommand::Strhash { hex } => writeln!(out, "{}", crush::hash::string_hash(&bytes_of(&hex)?))?,
            CrushCommand::Ln { u } => writeln!(out, "{}", crush::crush_ln(u))?,
            CrushCommand::Pg { name, pool, pg_num, namespace } => {
                let hash = crush::object_hash_in_namespace(namespace.as_bytes(), name.as_bytes());
                let pg = crush::pg_of(hash, pg_num);
                writeln!(out, "{hash} {pg} {}", crush::pps(pool, pg, pg_num))?;
            }
        }
        Ok(())
    }
}

fn test(args: &TestArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let map = args.source.read()?;
    if map.rule(args.rule).is_none() {
        let known: Vec<String> = map.rules().map(|rule| rule.id.to_string()).collect();
        bail!("the map has no rule {}; it has: {}", args.rule, known.join(", "));
    }
    let weights = reweights(&map, &args.weight)?;
    if weights.iter().all(|weight| *weight == 0) {
        // crushtool prints nothing either; say why where it does not disturb a comparison.
        eprintln!(
            "every device has reweight 0, so nothing can be mapped; give some device a --weight above 0"
        );
        return Ok(());
    }
    let mut scratch = Scratch::default();
    let mut devices = Vec::new();
    for x in args.min_x..=args.max_x {
        let input = match args.pool_id {
            Some(pool) => crush::hash::hash2(x as u32, pool),
            None => x as u32,
        };
        let (rule, num_rep) = (args.rule, args.num_rep as usize);
        map.do_rule_in_pool(TEST_CHOOSE_ARGS, rule, input, num_rep, &weights, &mut scratch, &mut devices);
        write_mapping(x, &devices, out)?;
    }
    Ok(())
}

fn write_mapping(x: i32, devices: &[i32], out: &mut impl Write) -> io::Result<()> {
    write!(out, "{x} ")?;
    for (position, device) in devices.iter().enumerate() {
        let comma = if position == 0 { "" } else { "," };
        match *device {
            ITEM_NONE => write!(out, "{comma}NONE")?,
            device => write!(out, "{comma}{device}")?,
        }
    }
    writeln!(out, "{}", if devices.is_empty() { "-" } else { "" })
}

/// One reweight per device id: 1.0 for devices in the hierarchy unless overridden, 0 for others.
fn reweights(map: &CrushMap, overrides: &[(i32, u32)]) -> anyhow::Result<Vec<u32>> {
    let count = map.max_devices();
    if count > DEVICES_MAX {
        bail!("the map has a device id of {}; this command handles ids below {DEVICES_MAX}", count - 1);
    }
    let mut weights = vec![0; count as usize];
    let overrides: BTreeMap<i32, u32> = overrides.iter().copied().collect();
    let placed = map.placed_devices();
    for (id, weight) in (0..).zip(&mut weights) {
        let default = if placed.contains(&id) { WEIGHT_ONE } else { 0 };
        *weight = overrides.get(&id).copied().unwrap_or(default);
    }
    Ok(weights)
}

fn dump(map: &CrushMap, out: &mut impl Write) -> io::Result<()> {
    for bucket in map.buckets().rev() {
        let bucket_type = map.type_name(bucket.bucket_type()).unwrap_or("-");
        let (id, name, algorithm) = (bucket.id(), bucket.name(), bucket.algorithm().name());
        write!(out, "bucket {id} {name} {bucket_type} {algorithm} {}", bucket.weight())?;
        for (item, weight) in bucket.items() {
            write!(out, " {item}={weight}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn hash(words: &[u32]) -> u32 {
    match *words {
        [a, b] => crush::hash::hash2(a, b),
        [a, b, c] => crush::hash::hash3(a, b, c),
        [a, b, c, d] => crush::hash::hash4(a, b, c, d),
        [a, b, c, d, e] => crush::hash::hash5(a, b, c, d, e),
        [a, ..] => crush::hash::hash1(a),
        [] => unreachable!("the argument parser requires at least one number"),
    }
}

/// A 32-bit number; a negative one stands for its two's complement, as item ids do.
fn word(text: &str) -> Result<u32, String> {
    let negative = || text.parse::<i32>().map(|word| word as u32);
    text.parse().or_else(|_| negative()).map_err(|_| "a number of 32 bits is needed".to_owned())
}

/// `ID:W`, with the weight read as `crushtool` reads it and clamped to 0..=1.
fn reweight(text: &str) -> Result<(i32, u32), String> {
    let parse = || {
        let (id, weight) = text.split_once(':')?;
        let weight = weight.parse::<f32>().ok().filter(|weight| weight.is_finite())?;
        Some((id.parse().ok()?, (weight.clamp(0.0, 1.0) * WEIGHT_ONE as f32) as u32))
    };
    parse().ok_or_else(|| "a device id and a weight from 0 to 1 are needed, like 3:0.5".to_owned())
}

fn bytes_of(hex: &str) -> anyhow::Result<Vec<u8>> {
    let digits = hex.as_bytes();
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        bail!("`{hex}` is not hexadecimal; give two digits per byte");
    }
    let pairs = digits.chunks(2).map(|pair| String::from_utf8_lossy(pair));
    pairs.map(|pair| u8::from_str_radix(&pair, 16).context("parse two hexadecimal digits")).collect()
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}
