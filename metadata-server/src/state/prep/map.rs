//! The cluster map: data servers come and go, placement groups change configuration.

use super::pool::PG_NUM_MAX;
use super::{Prep, Result};
use crate::state::key;
use crate::state::layers::View;
use crate::state::record::encode;
use protocol::map::{DataServerInfo, Member, PgChange, PgConfig, Pool, WEIGHT_ONE};
use protocol::meta::{DataServerRegistration, FAILURE_BYTES_MAX, FullRatios, MetaError};
use protocol::{DataServerId, PgId, SessionId};
use std::collections::BTreeMap;
use zab::mutant;

/// A decision of the planner: valid only if the group is still at this version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgUpdate {
    /// The group.
    pub pg: PgId,
    /// Version that the decision is based on; 0 for a group without a configuration.
    pub based_on: u64,
    /// The new configuration; its version is set by the transaction.
    pub config: PgConfig,
}

/// A data server's start, with its new session.
pub struct Registration<'a> {
    /// The server.
    pub server: DataServerId,
    /// Its session.
    pub session: SessionId,
    /// What it said.
    pub said: &'a DataServerRegistration,
}

impl Prep<'_> {
    /// When data servers count as full.
    pub fn set_full_ratios(&mut self, ratios: FullRatios) -> Result<()> {
        if !(1..=ratios.full).contains(&ratios.nearfull) || ratios.full > FullRatios::ONE {
            let why = "0 < nearfull_ratio <= full_ratio <= 1 must hold".to_owned();
            return Err(MetaError::Refused(why).into());
        }
        self.draft.put(key::system("full_ratios"), encode(&ratios));
        Ok(())
    }

    /// A data server is up. Its places in groups are kept if its store is the same; after an unclean stop it is
    /// uncertain in all of them. Its previous session ends.
    pub fn register(&mut self, registration: &Registration<'_>) -> Result<()> {
        let Registration { server, session, said } = *registration;
        if self.draft.get(&key::map_removed(server, said.store))?.is_some() {
            return Err(MetaError::Refused(format!(
                "data server {server} with the store {:x} was removed from the cluster and what it holds is out of \
                 date; to use the machine again, start it with an empty directory",
                said.store
            ))
            .into());
        }
        let old: Option<DataServerInfo> = self.load(&key::map_server(server))?;
        if let Some(old) = &old
            && old.session != session
            && self.load::<crate::state::record::Session>(&key::session(old.session))?.is_some()
        {
            self.end_session(old.session, true)?;
        }
        let auto_out = self.draft.get(&key::map_auto_out(server))?.is_some();
        self.draft.delete(key::map_auto_out(server));
        let reweight = match &old {
            Some(old) if !auto_out => old.reweight,
            _ => WEIGHT_ONE,
        };
        let info = DataServerInfo {
            address: said.address,
            host: said.host.clone(),
            up: true,
            session,
            store: said.store,
            incarnation: said.incarnation,
            crush_weight: crush_weight(said.capacity),
            reweight,
            failure: None,
        };
        let place = |i: &DataServerInfo| (i.host.clone(), i.crush_weight, i.reweight == 0);
        let placement_changed = old.as_ref().is_none_or(|old| place(old) != place(&info));
        self.draft.put(key::map_server(server), encode(&info));
        if placement_changed {
            self.rebuild_crush()?;
        }
        for (pg, mut config) in self.groups()? {
            if rejoin(&mut config, server, said) {
                self.put_group(pg, config);
            }
        }
        Ok(())
    }

    /// A data server's session ended.
    pub(super) fn mark_down(&mut self, server: DataServerId, session: SessionId) -> Result<()> {
        let Some(mut info) = self.load::<DataServerInfo>(&key::map_server(server))? else { return Ok(()) };
        if info.session == session {
            info.up = false;
            self.draft.put(key::map_server(server), encode(&info));
        }
        Ok(())
    }

    /// A data server ends its session because it cannot go on.
    pub fn leave(&mut self, server: DataServerId, session: SessionId, why: &str) -> Result<()> {
        self.end_session(session, false)?;
        if let Some(mut info) = self.load::<DataServerInfo>(&key::map_server(server))?
            && info.session == session
        {
            info.failure = Some(why[..why.floor_char_boundary(FAILURE_BYTES_MAX)].to_owned());
            self.draft.put(key::map_server(server), encode(&info));
        }
        Ok(())
    }

    /// Takes a server out of placement or back in. `automatic` decisions end when the server returns.
    pub fn set_in(&mut self, server: DataServerId, in_cluster: bool, automatic: bool) -> Result<()> {
        let Some(mut info) = self.load::<DataServerInfo>(&key::map_server(server))? else {
            return Err(MetaError::Refused(format!("there is no data server {server}")).into());
        };
        info.reweight = if in_cluster { WEIGHT_ONE } else { 0 };
        self.draft.put(key::map_server(server), encode(&info));
        match automatic && !in_cluster {
            true => self.draft.put(key::map_auto_out(server), bytes::Bytes::new()),
            false => self.draft.delete(key::map_auto_out(server)),
        }
        self.rebuild_crush()
    }

    /// Forgets a server that no group needs. Its store is remembered, so that it does not come back with what it
    /// held then.
    pub fn remove_server(&mut self, server: DataServerId) -> Result<()> {
        let Some(info) = self.load::<DataServerInfo>(&key::map_server(server))? else {
            return Err(MetaError::Refused(format!("there is no data server {server}")).into());
        };
        if info.up && info.reweight > 0 {
            let why =
                format!("data server {server} is up and in: 'zabfs data drain {server}' empties it first");
            return Err(MetaError::Refused(why).into());
        }
        let groups = self.groups()?;
        let member = |c: &&PgConfig| c.member(server).is_some();
        let only = |c: &&PgConfig| {
            c.in_sync_member(server).is_some() && !c.certain().any(|member| member.server != server)
        };
        let held = groups.iter().map(|(_, c)| c).filter(member).count();
        if held > 0 {
            let only = groups.iter().map(|(_, c)| c).filter(only).count();
            return Err(MetaError::Refused(format!(
                "data server {server} still belongs to {held} placement groups, and {only} of them have no other \
                 complete copy: 'zabfs data drain {server}' empties it, 'zabfs recovery wait' waits for the others"
            ))
            .into());
        }
        if info.up {
            self.end_session(info.session, true)?;
        }
        self.draft.delete(key::map_server(server));
        self.draft.delete(key::map_auto_out(server));
        self.draft.delete(key::map_class(server));
        self.draft.put(key::map_removed(server, info.store), bytes::Bytes::new());
        self.rebuild_crush()
    }

    /// Carries out the planner's decisions, except those that came too late. Says how many it carried out.
    pub fn update_groups(&mut self, updates: &[PgUpdate]) -> Result<usize> {
        let mut done = 0;
        for update in updates {
            let version = self.group(update.pg)?.map_or(0, |c| c.version);
            if version == update.based_on {
                self.put_group(update.pg, update.config.clone());
                done += 1;
            }
        }
        Ok(done)
    }

    /// Carries out a primary's wish, by compare-and-set.
    pub fn change_group(
        &mut self,
        from: DataServerId,
        pg: PgId,
        version: u64,
        change: &PgChange,
    ) -> Result<()> {
        let mut config = self.group(pg)?.unwrap_or_default();
        if config.version != version && !mutant!("change-of-an-older-configuration") {
            return Err(MetaError::PgChanged { version: config.version }.into());
        }
        if config.primary != Some(from) {
            return Err(MetaError::Refused(format!("server {from} is not the primary of group {pg}")).into());
        }
        let pool: Option<Pool> = self.load(&key::map_pool(pg.pool))?;
        let min_size = pool.map_or(1, |p| p.min_size) as usize;
        if *change == PgChange::Resign {
            self.resign(&mut config, from)?;
        } else if let PgChange::Split { pg_num, holders } = change {
            self.split(pg, &mut config, *pg_num, holders)?;
        } else {
            apply_change(&mut config, from, change, min_size)
                .map_err(|why| MetaError::Refused(format!("group {pg}: {why}")))?;
        }
        self.put_group(pg, config);
        Ok(())
    }

    /// The group's objects are shared out: the child comes into being with the same members. The pool has at least that
    /// many groups then, also one that a backup restored as it was before.
    fn split(
        &mut self,
        pg: PgId,
        config: &mut PgConfig,
        pg_num: u32,
        holders: &[DataServerId],
    ) -> Result<()> {
        let Some(mut pool) = self.load::<Pool>(&key::map_pool(pg.pool))? else {
            return Err(MetaError::Refused(format!("the pool of group {pg} does not exist")).into());
        };
        let from = config.pg_num;
        let Some(child) = config.divide(pg.seed, pg_num, holders).filter(|_| pg_num <= PG_NUM_MAX) else {
            let why = format!("group {pg} is at {from} groups and cannot be split for {pg_num}");
            return Err(MetaError::Refused(why).into());
        };
        if pg_num > pool.pg_num {
            pool.pg_num = pg_num;
            self.draft.put(key::map_pool(pg.pool), encode(&pool));
        }
        let Some((seed, child)) = child else { return Ok(()) };
        let child_pg = PgId { pool: pg.pool, seed };
        if self.group(child_pg)?.is_some() {
            let why = format!("group {child_pg} exists, group {pg} cannot be split into it");
            return Err(MetaError::Refused(why).into());
        }
        self.put_group(child_pg, child);
        Ok(())
    }

    /// Another certain member that is up becomes primary.
    fn resign(&self, config: &mut PgConfig, from: DataServerId) -> Result<()> {
        for member in config.certain().filter(|m| m.server != from).copied().collect::<Vec<_>>() {
            let info: Option<DataServerInfo> = self.load(&key::map_server(member.server))?;
            if info.is_some_and(|i| i.up && (i.store, i.incarnation) == (member.store, member.incarnation)) {
                config.primary = Some(member.server);
                config.activated = false;
                return Ok(());
            }
        }
        Err(MetaError::Refused(format!("no other member can replace server {from}")).into())
    }

    pub(super) fn groups(&self) -> Result<Vec<(PgId, PgConfig)>> {
        let prefix = [key::PG];
        let mut groups = Vec::new();
        for (key, _) in self.draft.scan(&prefix, &key::prefix_end(&prefix), usize::MAX)? {
            if let (Some(id), Some(config)) = (key::number_at(&key, 1), self.load(&key)?) {
                groups.push((PgId::from_u64(id), config));
            }
        }
        Ok(groups)
    }

    fn group(&self, pg: PgId) -> Result<Option<PgConfig>> {
        self.load(&key::pg(pg))
    }

    fn put_group(&mut self, pg: PgId, mut config: PgConfig) {
        config.version = self.revision;
        self.draft.put(key::pg(pg), encode(&config));
    }

    pub(super) fn rebuild_crush(&mut self) -> Result<()> {
        let prefix = [key::MAP, key::MAP_SERVER];
        let mut hosts: BTreeMap<String, Vec<(i32, u32)>> = BTreeMap::new();
        let names = super::pool::class_names(&self.draft)?;
        let mut classes: Vec<(String, Vec<i32>)> = names.into_iter().map(|name| (name, Vec::new())).collect();
        for (key, _) in self.draft.scan(&prefix, &key::prefix_end(&prefix), usize::MAX)? {
            let id = key::number_at(&key, 2).unwrap_or_default() as i32;
            if let Some(info) = self.load::<DataServerInfo>(&key)? {
                // Out is weightless, not only rejected: removing the server later moves nothing more.
                let weight = if info.reweight == 0 { 0 } else { info.crush_weight };
                hosts.entry(info.host).or_default().push((id, weight));
                let class: Option<String> = self.load(&key::map_class(DataServerId(id as u32)))?;
                let of_class = classes.iter_mut().find(|(name, _)| Some(name) == class.as_ref());
                of_class.into_iter().for_each(|(_, devices)| devices.push(id));
            }
        }
        let map = crush::flat_map(&hosts.into_iter().collect::<Vec<_>>(), &classes);
        self.draft.put(key::map_crush(), map.to_text().into_bytes().into());
        Ok(())
    }
}

/// 1.0 per TiB as in Ceph, between a thousandth (so that tiny test servers count) and 100.
fn crush_weight(capacity: u64) -> u32 {
    let weight = (u128::from(capacity) * u128::from(WEIGHT_ONE)) >> 40;
    (weight as u64).clamp(u64::from(WEIGHT_ONE) / 1000, u64::from(WEIGHT_ONE) * 100) as u32
}

/// Updates a server's place after its start. `true` if the configuration changed.
fn rejoin(config: &mut PgConfig, server: DataServerId, said: &DataServerRegistration) -> bool {
    let mut changed = false;
    let same = |m: &Member| {
        m.server == server
            && (m.store == said.store || mutant!("wiped-store-keeps-its-place"))
            && m.incarnation != said.incarnation
    };
    for member in config.in_sync.iter_mut().filter(|m| same(m)) {
        member.incarnation = said.incarnation;
        member.uncertain |= !said.clean && !mutant!("unclean-stop-leaves-no-doubt");
        changed = true;
    }
    for member in config.learners.iter_mut().filter(|m| same(m)) {
        member.incarnation = said.incarnation;
        changed = true;
    }
    // Whatever the earlier start of this server prepared as primary has to be completed first, and not by one that
    // may have lost some of it.
    if changed && config.primary == Some(server) {
        config.activated = false;
        if config.in_sync_member(server).is_none_or(|member| member.uncertain) {
            config.primary = None;
        }
    }
    changed
}

fn apply_change(
    config: &mut PgConfig,
    from: DataServerId,
    change: &PgChange,
    min_size: usize,
) -> std::result::Result<(), String> {
    match change {
        PgChange::Activate => {
            if !config.certain().any(|member| member.server == from) {
                return Err(format!("server {from} is no certain member and cannot serve"));
            }
            config.activated = true;
        }
        PgChange::Resign => return Err("who takes over is not decided here".into()),
        PgChange::Split { .. } => return Err("two groups are not decided here".into()),
        PgChange::Drop(server) => {
            if *server == from {
                return Err("a primary cannot drop itself".into());
            }
            let remaining = config.certain().filter(|m| m.server != *server).count();
            let counts = config.in_sync_member(*server).is_some();
            if counts && remaining < min_size && !mutant!("group-shrinks-below-min-size") {
                return Err(format!("without server {server} fewer than {min_size} members would remain"));
            }
            config.in_sync.retain(|m| m.server != *server);
            config.learners.retain(|m| m.server != *server);
        }
        PgChange::Promote(learner) => {
            let Some(at) = config.learners.iter().position(|m| m == learner) else {
                return Err(format!("server {} is not a learner with that start", learner.server));
            };
            let member = config.learners.remove(at);
            config.in_sync.push(Member { uncertain: false, ..member });
        }
        PgChange::MakeCertain(member) => {
            let found = config.in_sync.iter_mut().find(|m| m.server == member.server);
            match found {
                Some(own) if own.incarnation == member.incarnation && own.store == member.store => {
                    own.uncertain = false;
                }
                _ => return Err(format!("server {} is not a member with that start", member.server)),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::StoreUuid;

    fn member(server: u32, uncertain: bool) -> Member {
        Member {
            server: DataServerId(server),
            store: StoreUuid(u128::from(server)),
            incarnation: 1,
            uncertain,
        }
    }

    fn group() -> PgConfig {
        let in_sync = (1..=3).map(|server| member(server, false)).collect();
        let primary = Some(DataServerId(1));
        PgConfig { version: 1, primary, in_sync, learners: vec![], activated: true, pg_num: 4 }
    }

    fn start(server: u32, incarnation: u64, clean: bool) -> DataServerRegistration {
        DataServerRegistration {
            store: StoreUuid(u128::from(server)),
            incarnation,
            clean,
            address: "127.0.0.1:1".parse().expect("an address"),
            host: "h".into(),
            capacity: 0,
            timeout_ms: 1000,
            positions: vec![],
        }
    }

    #[test]
    fn a_primary_that_may_have_lost_something_is_none_any_more() {
        let mut config = group();
        assert!(!rejoin(&mut config, DataServerId(1), &start(1, 1, false)), "the same start again");
        assert!(rejoin(&mut config, DataServerId(1), &start(1, 2, false)));
        assert_eq!((config.primary, config.activated), (None, false));
        assert_eq!(config.certain().count(), 2, "it keeps its place");
        assert!(apply_change(&mut config, DataServerId(1), &PgChange::Activate, 2).is_err());

        let mut config = group();
        assert!(rejoin(&mut config, DataServerId(1), &start(1, 2, true)));
        assert_eq!((config.primary, config.activated), (Some(DataServerId(1)), false), "nothing was lost");
        assert_eq!(apply_change(&mut config, DataServerId(1), &PgChange::Activate, 2), Ok(()));
    }

    #[test]
    fn a_group_keeps_enough_members_that_know_everything() {
        let mut config = group();
        let drop = |server| PgChange::Drop(DataServerId(server));
        assert!(apply_change(&mut config, DataServerId(1), &drop(1), 2).is_err(), "not itself");
        assert_eq!(apply_change(&mut config, DataServerId(1), &drop(3), 2), Ok(()));
        assert!(apply_change(&mut config, DataServerId(1), &drop(2), 2).is_err());
        let learner = member(4, false);
        assert!(apply_change(&mut config, DataServerId(1), &PgChange::Promote(learner), 2).is_err());
        config.learners.push(learner);
        let other_start = Member { incarnation: 2, ..learner };
        assert!(apply_change(&mut config, DataServerId(1), &PgChange::Promote(other_start), 2).is_err());
        assert_eq!(apply_change(&mut config, DataServerId(1), &PgChange::Promote(learner), 2), Ok(()));
        assert_eq!(apply_change(&mut config, DataServerId(1), &drop(2), 2), Ok(()));
    }
}
