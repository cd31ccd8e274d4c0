//! Commands that change a map file: `add`, `move`, `remove`, `reweight`, `rule`.

use super::map_file::{MapSource, Target};
use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use crush::{CrushMap, Draft, EditError, Mode, NewRule, RuleKind, weight_from_text};
use std::io::{self, Write};

/// `add`: a device has a weight, a bucket has a type.
#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    #[command(flatten)]
    source: MapSource,
    #[command(flatten)]
    target: Target,
    /// The name of the new device (osd.N) or bucket
    name: String,
    /// A device's weight, like 1.5; or a bucket's type, like rack
    #[arg(value_name = "WEIGHT|TYPE")]
    what: String,
    /// Where: TYPE=NAME of one or more buckets that will hold it; missing ones are made
    #[arg(value_name = "TYPE=NAME")]
    location: Vec<String>,
    /// The id of a device whose name does not say it
    #[arg(long)]
    id: Option<i32>,
    /// The device class
    #[arg(long)]
    class: Option<String>,
}

/// `move`.
#[derive(Debug, Args)]
pub(crate) struct MoveArgs {
    #[command(flatten)]
    source: MapSource,
    #[command(flatten)]
    target: Target,
    /// A device or a bucket; what is below a bucket comes along
    name: String,
    /// Where to: TYPE=NAME of one or more buckets; missing ones are made
    #[arg(value_name = "TYPE=NAME", required = true)]
    location: Vec<String>,
}

/// `remove`.
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    #[command(flatten)]
    source: MapSource,
    #[command(flatten)]
    target: Target,
    /// A device, or a bucket that holds nothing
    name: String,
}

/// `reweight`.
#[derive(Debug, Args)]
pub(crate) struct ReweightArgs {
    #[command(flatten)]
    source: MapSource,
    #[command(flatten)]
    target: Target,
    /// A device; with --subtree, a bucket
    #[arg(required_unless_present = "all")]
    name: Option<String>,
    /// The new weight
    #[arg(required_unless_present = "all")]
    weight: Option<String>,
    /// Give the weight to every device below the bucket
    #[arg(long, conflicts_with = "all")]
    subtree: bool,
    /// Make every bucket weigh what its items weigh
    #[arg(long, conflicts_with_all = ["name", "weight"])]
    all: bool,
}

/// `rule`.
#[derive(Debug, Subcommand)]
pub(crate) enum RuleCommand {
    /// A rule for replicas, one per bucket of a type, or with indep for positions that matter
    CreateSimple {
        #[command(flatten)]
        args: NewRuleArgs,
        #[arg(value_enum, default_value = "firstn")]
        mode: ModeName,
    },
    /// A rule for replicas, one per bucket of a type
    CreateReplicated {
        #[command(flatten)]
        args: NewRuleArgs,
        /// Only devices of this class; the same as --class
        #[arg(value_name = "CLASS", conflicts_with = "class")]
        device_class: Option<String>,
    },
    /// A rule for erasure-coded shards (indep), one per bucket of a type
    CreateErasure {
        #[command(flatten)]
        args: NewRuleArgs,
    },
    /// Remove a rule by its name or number
    #[command(alias = "rm")]
    Remove {
        #[command(flatten)]
        source: MapSource,
        #[command(flatten)]
        target: Target,
        name: String,
    },
    /// Print number and name of every rule
    #[command(alias = "ls")]
    List {
        #[command(flatten)]
        source: MapSource,
    },
}

/// What all new rules need.
#[derive(Debug, Args)]
pub(crate) struct NewRuleArgs {
    #[command(flatten)]
    source: MapSource,
    #[command(flatten)]
    target: Target,
    /// The name of the rule
    name: String,
    /// The bucket to start from, like default
    root: String,
    /// The type of bucket that holds at most one replica, like host
    #[arg(value_name = "TYPE")]
    failure_domain: String,
    /// Only devices of this class
    #[arg(long, visible_alias = "device-class")]
    class: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ModeName {
    Firstn,
    Indep,
}

impl AddArgs {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let AddArgs { name, what, location, id, class, .. } = self;
        change(&self.source, &self.target, |map, draft| {
            if map.type_id(what).is_some() {
                if id.is_some() || class.is_some() {
                    bail!("`{name}` is to be a {what}, and only devices have --id and --class");
                }
                return Ok(draft.add_bucket(name, what, location)?);
            }
            let weight = weight_from_text(what).with_context(|| {
                let types: Vec<&str> = map.types().map(|(_, name)| name).collect();
                format!("`{what}` is neither a weight nor a type; types of this map: {}", types.join(", "))
            })?;
            Ok(draft.add_device(name, *id, weight, class.as_deref(), location)?)
        })
    }
}

impl MoveArgs {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        change(&self.source, &self.target, |_, draft| Ok(draft.move_item(&self.name, &self.location)?))
    }
}

impl RemoveArgs {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        change(&self.source, &self.target, |_, draft| Ok(draft.remove(&self.name)?))
    }
}

impl ReweightArgs {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        change(&self.source, &self.target, |_, draft| {
            let (Some(name), Some(weight)) = (&self.name, &self.weight) else {
                draft.reweight_all();
                return Ok(());
            };
            let parsed = weight_from_text(weight)
                .with_context(|| format!("`{weight}` is not a weight; give a number from 0 to 100"))?;
            Ok(draft.reweight(name, parsed, self.subtree)?)
        })
    }
}

impl RuleCommand {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        match self {
            RuleCommand::CreateSimple { args, mode } => {
                let mode = match mode {
                    ModeName::Firstn => Mode::Firstn,
                    ModeName::Indep => Mode::Indep,
                };
                args.create(mode, RuleKind::Replicated, None)
            }
            RuleCommand::CreateReplicated { args, device_class } => {
                args.create(Mode::Firstn, RuleKind::Replicated, device_class.as_deref())
            }
            RuleCommand::CreateErasure { args } => args.create(Mode::Indep, RuleKind::Erasure, None),
            RuleCommand::Remove { source, target, name } => {
                change(source, target, |_, draft| Ok(draft.remove_rule(name)?))
            }
            RuleCommand::List { source } => {
                let mut out = io::stdout().lock();
                for rule in source.read()?.rules() {
                    writeln!(out, "{} {}", rule.id, rule.name.as_deref().unwrap_or("-"))?;
                }
                Ok(())
            }
        }
    }
}

impl NewRuleArgs {
    fn create(&self, mode: Mode, kind: RuleKind, class: Option<&str>) -> anyhow::Result<()> {
        let NewRuleArgs { name, root, failure_domain, .. } = self;
        let class = self.class.as_deref().or(class);
        let new = NewRule { name, root, failure_domain, mode, kind, class };
        change(&self.source, &self.target, |_, draft| Ok(draft.create_rule(new).map(|_| ())?))
    }
}

/// Reads, changes, and writes the whole map or nothing.
fn change(
    source: &MapSource,
    target: &Target,
    edit: impl FnOnce(&CrushMap, &mut Draft) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let map = source.read()?;
    let mut draft = map.edit();
    edit(&map, &mut draft)?;
    let changed = draft.finish().map_err(|error: EditError| anyhow::Error::new(error))?;
    target.write_text(&changed)
}
