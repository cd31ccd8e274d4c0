//! Rules: made from a few words, and removed.

use super::{Draft, EditError};
use crate::map::check_name;
use crate::rule::{Mode, Rule, RuleKind, Step};

/// Retries of an indep rule, as `crushtool` sets them: holes are worse than a longer search.
const INDEP_LEAF_TRIES: u32 = 5;
const INDEP_TRIES: u32 = 100;

/// A rule that puts each replica or shard into another bucket of one type.
#[derive(Clone, Copy, Debug)]
pub struct NewRule<'a> {
    pub name: &'a str,
    /// The bucket to start from.
    pub root: &'a str,
    /// The type of bucket that holds at most one replica; the device type for none.
    pub failure_domain: &'a str,
    pub mode: Mode,
    pub kind: RuleKind,
    /// Only devices of this class.
    pub class: Option<&'a str>,
}

impl Draft {
    /// Makes a rule; gives its number, the smallest that is free.
    pub fn create_rule(&mut self, new: NewRule<'_>) -> Result<u32, EditError> {
        check_name(new.name)?;
        if self.rules.values().any(|rule| rule.name.as_deref() == Some(new.name)) {
            return Err(EditError::RuleTaken(new.name.to_owned()));
        }
        let item = self.known_item(new.root)?;
        if item >= 0 {
            return Err(EditError::RootIsDevice(new.root.to_owned()));
        }
        let item_type = self.type_id(new.failure_domain)?;
        let id = (0..).find(|id| !self.rules.contains_key(id)).expect("a map has fewer than 2^32 rules");
        if let Some(class) = new.class {
            self.check_class(item, new.root, class)?;
            self.class_takes.insert(id, (item, class.to_owned()));
        }
        let mut steps = Vec::new();
        if new.mode == Mode::Indep {
            steps.extend([Step::SetChooseleafTries(INDEP_LEAF_TRIES), Step::SetChooseTries(INDEP_TRIES)]);
        }
        let choose = Step::Choose { mode: new.mode, leaf: item_type != 0, num: 0, item_type };
        steps.extend([Step::Take { item }, choose, Step::Emit]);
        let (min_size, max_size) = if new.mode == Mode::Firstn { (1, 10) } else { (3, 20) };
        let name = Some(new.name.to_owned());
        self.rules.insert(id, Rule { id, name, kind: new.kind, min_size, max_size, steps });
        Ok(id)
    }

    /// Removes a rule, by name or number.
    pub fn remove_rule(&mut self, name: &str) -> Result<(), EditError> {
        let by_name = self.rules.values().find(|rule| rule.name.as_deref() == Some(name)).map(|rule| rule.id);
        let by_number = || name.parse().ok().filter(|id| self.rules.contains_key(id));
        let Some(id) = by_name.or_else(by_number) else {
            let known = self.rules.values().map(rule_name).collect::<Vec<_>>().join(", ");
            return Err(EditError::NoSuchRule { name: name.to_owned(), known });
        };
        self.rules.remove(&id);
        self.class_takes.remove(&id);
        Ok(())
    }

    /// A rule that takes from an item or from a copy of it.
    pub(super) fn rule_taking(&self, item: i32) -> Option<String> {
        let copies = self.shadow_ids.get(&item);
        let is_it = |taken: i32| {
            taken == item || copies.is_some_and(|copies| copies.values().any(|copy| *copy == taken))
        };
        let takes =
            |rule: &&Rule| rule.steps.iter().any(|step| matches!(step, Step::Take { item } if is_it(*item)));
        self.rules.values().find(takes).map(rule_name)
    }

    fn check_class(&self, root: i32, root_name: &str, class: &str) -> Result<(), EditError> {
        let number = self.classes.iter().position(|other| other == class).map(|number| number as u32);
        let has_class = |(id, device): (&i32, &crate::map::Device)| {
            number.is_some() && device.class == number && self.is_below(*id, root)
        };
        match self.devices.iter().any(has_class) {
            true => Ok(()),
            false => Err(EditError::NoSuchClass { root: root_name.to_owned(), class: class.to_owned() }),
        }
    }
}

fn rule_name(rule: &Rule) -> String {
    rule.name.clone().unwrap_or_else(|| rule.id.to_string())
}
