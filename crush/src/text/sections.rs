//! One function per construct of the text format.

use super::ParseError;
use super::lexer::Token;
use super::parser::{Parser, fail, refused, unexpected};
use super::weight::weight_from_text;
use crate::WEIGHT_ONE;
use crate::edit::DEVICE_WEIGHT_MAX;
use crate::map::{ChooseArg, NewBucket};
use crate::rule::{Mode, Rule, RuleKind, Step};
use std::collections::{BTreeMap, BTreeSet};

/// Largest weight of a bucket as an item, 65535.0.
const BUCKET_WEIGHT_MAX: u32 = 65535 * WEIGHT_ONE;

/// What a rule that does not state sizes gets.
const RULE_SIZES: (u32, u32) = (1, 10);

/// The contents of a bucket's braces.
#[derive(Default)]
struct BucketBody<'a> {
    id: Option<i32>,
    class_ids: Vec<(i32, Token<'a>, Token<'a>)>,
    algorithm: Option<Token<'a>>,
    hash: Option<u8>,
    items: Vec<Item<'a>>,
}

/// An item line.
struct Item<'a> {
    id: i32,
    weight: u32,
    position: Option<usize>,
    token: Token<'a>,
}

impl<'a> Parser<'a> {
    pub(super) fn tunable(&mut self) -> Result<(), ParseError> {
        self.expect("tunable")?;
        let name = self.next("the name of a tunable")?;
        let value = self.number("a whole number")?;
        let mut tunables = *self.map.tunables();
        match tunables.field_mut(name.text) {
            Some(field) => *field = value,
            None => return Err(fail(name, format!("`{}` is not a tunable", name.text))),
        }
        self.map.set_tunables(tunables).map_err(refused(name))
    }

    pub(super) fn device(&mut self) -> Result<(), ParseError> {
        self.expect("device")?;
        let id = self.number("a device id")?;
        let name = self.next("a device name")?;
        let class = if self.take_if("class") { Some(self.next("a device class")?.text) } else { None };
        self.map.add_device(id, name.text, class).map_err(refused(name))
    }

    pub(super) fn item_type(&mut self) -> Result<(), ParseError> {
        self.expect("type")?;
        let id = self.number("a type number")?;
        let name = self.next("a type name")?;
        self.map.add_type(id, name.text).map_err(refused(name))
    }

    pub(super) fn bucket(&mut self) -> Result<(), ParseError> {
        if let Some(token) = self.peek().filter(|token| matches!(token.text, "tunable" | "device" | "type")) {
            return Err(fail(token, format!("`{}` lines come before the first bucket", token.text)));
        }
        let bucket_type = self.type_name()?;
        let name = self.next("a bucket name")?;
        self.expect("{")?;
        let body = self.bucket_body()?;
        let Some(algorithm) = body.algorithm else {
            return Err(fail(name, format!("bucket `{}` has no `alg` line", name.text)));
        };
        for (id, class, token) in &body.class_ids {
            // The order in which classes are mentioned decides the ids of copies.
            self.map.class_number(class.text).map_err(refused(*token))?;
            if *id >= 0 {
                return Err(unexpected(*token, "a negative id"));
            }
        }
        let id = match body.id {
            Some(id) => id,
            None => self.free_id(),
        };
        let items = in_position(body.items)?;
        let hash = body.hash.unwrap_or(0);
        let new = NewBucket { id, name: name.text, bucket_type, algorithm: algorithm.text, hash, items };
        self.map.add_bucket(new).map_err(refused(name))?;
        for (shadow_id, class, token) in body.class_ids {
            self.map.reserve_shadow_id(id, class.text, shadow_id).map_err(refused(token))?;
        }
        Ok(())
    }

    fn bucket_body(&mut self) -> Result<BucketBody<'a>, ParseError> {
        let mut body = BucketBody::default();
        loop {
            let token = self.next("`}`")?;
            let repeated = match token.text {
                "}" => return Ok(body),
                "id" => self.bucket_id(&mut body)?,
                "alg" => body.algorithm.replace(self.next("a bucket algorithm")?).is_some(),
                "hash" => {
                    let hash = if self.take_if("rjenkins1") { 0 } else { self.number("`0` or `rjenkins1`")? };
                    body.hash.replace(hash).is_some()
                }
                "item" => {
                    let item = self.item()?;
                    body.items.push(item);
                    false
                }
                _ => return Err(unexpected(token, "`id`, `alg`, `hash`, `item` or `}`")),
            };
            if repeated {
                return Err(fail(token, format!("the bucket has a second `{}` line", token.text)));
            }
        }
    }

    /// The rest of an id line; whether it repeats an earlier one.
    fn bucket_id(&mut self, body: &mut BucketBody<'a>) -> Result<bool, ParseError> {
        let token = self.next("a negative id")?;
        let id = token.text.parse().map_err(|_| unexpected(token, "a negative id"))?;
        if self.take_if("class") {
            let class = self.next("a device class")?;
            body.class_ids.push((id, class, token));
            return Ok(false);
        }
        Ok(body.id.replace(id).is_some())
    }

    fn item(&mut self) -> Result<Item<'a>, ParseError> {
        let (id, token) = self.item_name()?;
        let default = self.map.bucket(id).map_or(WEIGHT_ONE, |bucket| bucket.weight());
        let mut item = Item { id, weight: default, position: None, token };
        loop {
            if self.take_if("weight") {
                let weight = self.next("a weight")?;
                item.weight = parse_weight(weight)?;
                let (limit, name) =
                    if id < 0 { (BUCKET_WEIGHT_MAX, "65535") } else { (DEVICE_WEIGHT_MAX, "100") };
                if item.weight > limit {
                    return Err(fail(weight, format!("the weight of `{}` is more than {name}", token.text)));
                }
            } else if self.take_if("pos") {
                item.position = Some(self.number("a position")?);
            } else {
                return Ok(item);
            }
        }
    }

    /// The greatest id that no bucket has and no line mentions.
    fn free_id(&mut self) -> i32 {
        while self.written_ids.contains(&self.next_free_id) || self.map.bucket(self.next_free_id).is_some() {
            self.next_free_id -= 1;
        }
        self.next_free_id
    }

    pub(super) fn rule(&mut self) -> Result<(), ParseError> {
        let start = self.expect("rule")?;
        self.map.make_shadows().map_err(refused(start))?;
        let name = if self.peek_is("{") { None } else { Some(self.next("a rule name")?) };
        self.expect("{")?;
        if !self.take_if("ruleset") {
            self.expect("id")?;
        }
        let id = self.number("a rule number")?;
        self.expect("type")?;
        let kind = self.next("`replicated` or `erasure`")?;
        let kind = match kind.text {
            "replicated" => RuleKind::Replicated,
            "erasure" => RuleKind::Erasure,
            _ => return Err(unexpected(kind, "`replicated` or `erasure`")),
        };
        let min_size = if self.take_if("min_size") { self.number("a size")? } else { RULE_SIZES.0 };
        let max_size = if self.take_if("max_size") { self.number("a size")? } else { RULE_SIZES.1 };
        let mut steps = Vec::new();
        while self.take_if("step") {
            steps.push(self.step()?);
        }
        self.expect("}")?;
        let token = name.unwrap_or(start);
        let name = name.map(|name| name.text.to_owned());
        self.map.add_rule(Rule { id, name, kind, min_size, max_size, steps }).map_err(refused(token))
    }

    fn step(&mut self) -> Result<Step, ParseError> {
        let token = self.next("a step")?;
        let step = match token.text {
            "take" => self.take()?,
            "emit" => Step::Emit,
            "choose" => self.choose(false)?,
            "chooseleaf" => self.choose(true)?,
            "set_choose_tries" => Step::SetChooseTries(self.number("a whole number")?),
            "set_chooseleaf_tries" => Step::SetChooseleafTries(self.number("a whole number")?),
            "set_choose_local_tries" => Step::SetChooseLocalTries(self.number("a whole number")?),
            "set_choose_local_fallback_tries" => {
                Step::SetChooseLocalFallbackTries(self.number("a whole number")?)
            }
            "set_chooseleaf_vary_r" => Step::SetChooseleafVaryR(self.number("a whole number")?),
            "set_chooseleaf_stable" => Step::SetChooseleafStable(self.number("a whole number")?),
            _ => return Err(unexpected(token, "`take`, `choose`, `chooseleaf`, `emit` or a `set_` step")),
        };
        Ok(step)
    }

    fn take(&mut self) -> Result<Step, ParseError> {
        let (item, name) = self.item_name()?;
        if !self.take_if("class") {
            return Ok(Step::Take { item });
        }
        let class = self.next("a device class")?;
        match self.map.shadow(item, class.text) {
            Some(item) => Ok(Step::Take { item }),
            None => Err(fail(class, format!("`{}` has no devices of a class `{}`", name.text, class.text))),
        }
    }

    fn choose(&mut self, leaf: bool) -> Result<Step, ParseError> {
        let mode = self.next("`firstn` or `indep`")?;
        let mode = match mode.text {
            "firstn" => Mode::Firstn,
            "indep" => Mode::Indep,
            _ => return Err(unexpected(mode, "`firstn` or `indep`")),
        };
        let num = self.number("a count")?;
        self.expect("type")?;
        let item_type = self.type_name()?;
        Ok(Step::Choose { mode, leaf, num, item_type })
    }

    pub(super) fn choose_args(&mut self) -> Result<(), ParseError> {
        self.expect("choose_args")?;
        let token = self.next("a pool number")?;
        // The index of pools without weight sets of their own, -1, is written as an unsigned 64-bit number.
        let unsigned = token.text.parse::<u64>().map(|index| index as i64);
        let index =
            unsigned.or_else(|_| token.text.parse()).map_err(|_| unexpected(token, "a pool number"))?;
        self.expect("{")?;
        while self.take_if("{") {
            self.expect("bucket_id")?;
            let token = self.next("a bucket id")?;
            let bucket = token.text.parse().map_err(|_| unexpected(token, "a bucket id"))?;
            let weight_set = if self.take_if("weight_set") { self.weight_set()? } else { Vec::new() };
            let ids = if self.take_if("ids") { Some(self.ids()?) } else { None };
            self.expect("}")?;
            let arg = ChooseArg { weight_set, ids };
            self.map.add_choose_arg(index, bucket, arg).map_err(refused(token))?;
        }
        self.expect("}")?;
        Ok(())
    }

    fn weight_set(&mut self) -> Result<Vec<Vec<u32>>, ParseError> {
        let mut rows = Vec::new();
        self.expect("[")?;
        while self.take_if("[") {
            let mut row = Vec::new();
            while !self.take_if("]") {
                row.push(parse_weight(self.next("a weight or `]`")?)?);
            }
            rows.push(row);
        }
        self.expect("]")?;
        Ok(rows)
    }

    fn ids(&mut self) -> Result<Vec<i32>, ParseError> {
        let mut ids = Vec::new();
        self.expect("[")?;
        while !self.take_if("]") {
            ids.push(self.number("an id or `]`")?);
        }
        Ok(ids)
    }
}

fn parse_weight(token: Token<'_>) -> Result<u32, ParseError> {
    weight_from_text(token.text).ok_or_else(|| unexpected(token, "a weight from 0 to below 65536"))
}

/// Items in the order of their positions; those without one fill the gaps in the order of the lines.
fn in_position(items: Vec<Item<'_>>) -> Result<Vec<(i32, u32)>, ParseError> {
    let size = items.len();
    let (placed, unplaced): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| item.position.is_some());
    let mut by_position = BTreeMap::new();
    for item in placed {
        let position = item.position.unwrap_or_default();
        if position >= size {
            return Err(fail(item.token, format!("position {position} is beyond the bucket's {size} items")));
        }
        if by_position.insert(position, (item.id, item.weight)).is_some() {
            return Err(fail(item.token, format!("position {position} is taken by an earlier item")));
        }
    }
    let taken: BTreeSet<usize> = by_position.keys().copied().collect();
    let gaps = (0..size).filter(|position| !taken.contains(position));
    by_position.extend(gaps.zip(unplaced.iter().map(|item| (item.id, item.weight))));
    Ok(by_position.into_values().collect())
}
