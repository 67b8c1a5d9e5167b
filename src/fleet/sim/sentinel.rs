//! One simulated Sentinel: what it knows, what it takes, and what it says of itself.
//!
//! What it does by itself stands in `watching.rs` and `switching.rs`. Source: `sentinel.c` of Redis
//! 7.0 and Valkey 9; the contract holds it to real ones.

use std::collections::{BTreeMap, BTreeSet};

use super::server::Server;
use super::table::Ms;
use super::verbs::Refusal;
use crate::domain::node::Address;
use crate::domain::sentinel::{SentinelView, Watch, WatchedReplica, WatchedSentinel};
use crate::domain::step::command::Verb;
use crate::fleet::Target;

/// How old what it knows of a replica may be if that is to be promoted.
const FRESH_MS: Ms = 30_000;
const FRESH_WHEN_DOWN_MS: Ms = 5_000;

#[derive(Debug, Clone)]
pub(super) struct Sentinel {
    pub id: String,
    pub epoch: u64,
    pub watches: BTreeMap<String, Watched>,
}

/// One deployment that it watches.
#[derive(Debug, Clone)]
pub(super) struct Watched {
    pub at: Address,
    pub primary: Instance,
    pub replicas: BTreeMap<Address, Instance>,
    pub sentinels: BTreeMap<String, Other>,
    pub quorum: u16,
    pub down_after: Ms,
    pub failover_timeout: Ms,
    pub parallel_syncs: u64,
    pub config_epoch: u64,
    pub agreed_down: bool,
    /// Whom it voted for, and in which epoch.
    pub vote: Option<(String, u64)>,
    pub failover: Option<Failover>,
    /// When it last began a failover, or voted for somebody's.
    pub tried_at: Ms,
    pub hello_at: Ms,
}

/// What it knows of one data node.
#[derive(Debug, Clone)]
pub(super) struct Instance {
    /// Since when it is known, or was last known otherwise.
    pub since: Ms,
    /// When it last answered.
    pub heard_at: Ms,
    pub linked: bool,
    pub down: bool,
    pub info_at: Option<Ms>,
    pub run_id: String,
    pub replica: bool,
    pub role_at: Ms,
    pub upstream: Option<Address>,
    pub upstream_at: Ms,
    pub link_up: bool,
    pub priority: u64,
    pub offset: u64,
    /// Whether it was told to follow whoever was promoted.
    pub told: bool,
}

/// What it knows of another Sentinel.
#[derive(Debug, Clone)]
pub(super) struct Other {
    pub at: Address,
    pub heard_at: Ms,
    pub down: bool,
    /// When it last said that the primary is down.
    pub says_down_at: Option<Ms>,
    pub vote: Option<(String, u64)>,
}

#[derive(Debug, Clone)]
pub(super) struct Failover {
    pub state: Stage,
    pub since: Ms,
    pub begins_at: Ms,
    pub epoch: u64,
    pub forced: bool,
    pub promoted: Option<Address>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    WaitStart,
    SelectReplica,
    SendNoOne,
    WaitPromotion,
    Reconfigure,
    Update,
}

impl Stage {
    fn word(self) -> &'static str {
        match self {
            Self::WaitStart => "wait_start",
            Self::SelectReplica => "select_slave",
            Self::SendNoOne => "send_slaveof_noone",
            Self::WaitPromotion => "wait_promotion",
            Self::Reconfigure => "reconf_slaves",
            Self::Update => "update_config",
        }
    }
}

impl Sentinel {
    pub fn new(id: String) -> Self {
        Self { id, epoch: 0, watches: BTreeMap::new() }
    }

    /// What is left of its knowledge in its file.
    pub fn restarted(&mut self, now: Ms) {
        for watched in self.watches.values_mut() {
            watched.primary = Instance::new(false, now);
            for replica in watched.replicas.values_mut() {
                *replica = Instance::new(true, now);
            }
            for other in watched.sentinels.values_mut() {
                (other.heard_at, other.down, other.says_down_at) = (now, false, None);
            }
            (watched.failover, watched.agreed_down, watched.tried_at) = (None, false, 0);
        }
    }

    fn named(&mut self, name: &str) -> Result<&mut Watched, Refusal> {
        self.watches.get_mut(name).ok_or_else(|| Refusal::err("No such master with that name"))
    }
}

impl Instance {
    pub fn new(replica: bool, now: Ms) -> Self {
        Self {
            since: now,
            heard_at: now,
            linked: true,
            down: false,
            info_at: None,
            run_id: String::new(),
            replica,
            role_at: now,
            upstream: None,
            upstream_at: now,
            link_up: false,
            priority: 100,
            offset: 0,
            told: false,
        }
    }
}

impl Watched {
    fn new(at: Address, quorum: u16, now: Ms) -> Self {
        Self {
            at,
            primary: Instance::new(false, now),
            replicas: BTreeMap::new(),
            sentinels: BTreeMap::new(),
            quorum,
            down_after: 30_000,
            failover_timeout: 180_000,
            parallel_syncs: 1,
            config_epoch: 0,
            agreed_down: false,
            vote: None,
            failover: None,
            tried_at: 0,
            hello_at: 0,
        }
    }

    /// Forgets all but where the primary is, and perhaps the other Sentinels.
    pub fn reset(&mut self, keep_sentinels: bool, now: Ms) {
        self.primary = Instance::new(false, now);
        self.replicas.clear();
        if !keep_sentinels {
            self.sentinels.clear();
            self.vote = None;
        }
        (self.failover, self.agreed_down, self.tried_at) = (None, false, 0);
    }

    /// Whom it would promote.
    pub fn best(&self, now: Ms) -> Option<Address> {
        let fresh = if self.primary.down { FRESH_WHEN_DOWN_MS } else { FRESH_MS };
        let fit = |(_, r): &(&Address, &Instance)| {
            let known = r.info_at.is_some_and(|at| now.saturating_sub(at) <= fresh);
            let heard = now.saturating_sub(r.heard_at) <= FRESH_WHEN_DOWN_MS;
            !r.down && r.linked && heard && known && r.priority > 0
        };
        let rank = |(_, r): &(&Address, &Instance)| {
            (r.priority, std::cmp::Reverse(r.offset), r.run_id.clone())
        };
        self.replicas.iter().filter(fit).min_by_key(rank).map(|(at, _)| at.clone())
    }

    fn no_quorum(&self) -> Option<String> {
        let usable = 1 + self.sentinels.values().filter(|o| !o.down).count();
        let voters = 1 + self.sentinels.len();
        let mut why = String::new();
        if usable < usize::from(self.quorum) {
            why += " Not enough available Sentinels to reach the specified quorum for this master.";
        }
        if usable < voters / 2 + 1 {
            why +=
                " Not enough available Sentinels to reach the majority and authorize a failover.";
        }
        (!why.is_empty()).then(|| format!("NOQUORUM {usable} usable Sentinels.{why}"))
    }

    fn view(&self, now: Ms) -> Watch {
        let flags = |kind: &str, instance: &Instance| -> BTreeSet<String> {
            let all = [
                (kind, true),
                ("s_down", instance.down),
                ("o_down", kind == "master" && self.agreed_down),
                ("failover_in_progress", kind == "master" && self.failover.is_some()),
                ("disconnected", !instance.linked),
            ];
            all.iter().filter(|(_, is)| *is).map(|(flag, _)| (*flag).to_owned()).collect()
        };
        let replica = |(at, r): (&Address, &Instance)| WatchedReplica {
            address: at.clone(),
            run_id: r.run_id.clone(),
            flags: flags("slave", r),
            link_up: r.link_up,
            priority: r.priority,
            offset: r.offset,
            age_ms: now.saturating_sub(r.info_at.unwrap_or(r.since)),
        };
        let other = |(id, o): (&String, &Other)| {
            (
                id.clone(),
                WatchedSentinel { address: Some(o.at.clone()), down: o.down, quiet: false },
            )
        };
        Watch {
            primary: Some(self.at.clone()),
            run_id: self.primary.run_id.clone(),
            flags: flags("master", &self.primary),
            epoch: self.config_epoch,
            quorum: self.quorum,
            down_after_ms: self.down_after,
            failover_timeout_ms: self.failover_timeout,
            parallel_syncs: self.parallel_syncs,
            failover: self.failover.as_ref().map(|f| f.state.word().to_owned()),
            replicas: self.replicas.iter().map(replica).collect(),
            sentinels: self.sentinels.iter().map(other).collect(),
            no_quorum: self.no_quorum(),
        }
    }
}

impl Server {
    /// What it shows of those that it watches, if it is a Sentinel.
    pub fn watching(&self, only: Option<&str>, now: Ms) -> Option<SentinelView> {
        let sentinel = self.sentinel.as_ref()?;
        let asked = |(name, _): &(&String, &Watched)| only.is_none_or(|only| *name == only);
        let watches = sentinel.watches.iter().filter(asked);
        Some(SentinelView {
            my_id: sentinel.id.clone(),
            tilt: false,
            watches: watches.map(|(name, w)| (name.clone(), w.view(now))).collect(),
        })
    }

    /// Does what only Sentinels do. Whatever it changes stands in its file at once.
    pub fn watch_over(&mut self, verb: &Verb, target: &Target, now: Ms) -> Result<(), Refusal> {
        let Some(sentinel) = &mut self.sentinel else {
            return Err(Refusal::err("unknown command 'SENTINEL'"));
        };
        match verb {
            Verb::Watch { quorum: 0, .. } => Err(Refusal::err("Quorum must be 1 or greater.")),
            Verb::Watch { name, .. } if sentinel.watches.contains_key(name) => {
                Err(Refusal::err("Duplicate master name."))
            }
            Verb::Watch { name, primary, quorum } => {
                let watched = Watched::new(primary.clone(), *quorum, now);
                sentinel.watches.insert(name.clone(), watched);
                Ok(())
            }
            Verb::SetWatch { name, option, value } => sentinel.named(name)?.set(option, value),
            Verb::SetWatchLogin(name) => {
                sentinel.named(name)?;
                let none = || Refusal::new("no_login", "the topology names no credential for this");
                target.replication.as_ref().map(|_| ()).ok_or_else(none)
            }
            Verb::Unwatch(name) => {
                sentinel.named(name)?;
                sentinel.watches.remove(name);
                Ok(())
            }
            Verb::ResetWatch(name) => {
                if let Some(watched) = sentinel.watches.get_mut(name) {
                    watched.reset(false, now);
                }
                Ok(())
            }
            Verb::FailOverWatch(name) => {
                let epoch = sentinel.epoch + 1;
                let watched = sentinel.named(name)?;
                if watched.failover.is_some() {
                    return Err(Refusal::new("INPROG", "Failover already in progress"));
                }
                if watched.best(now).is_none() {
                    return Err(Refusal::new("NOGOODSLAVE", "No suitable replica to promote"));
                }
                watched.begin(epoch, now, true);
                sentinel.epoch = epoch;
                Ok(())
            }
            Verb::FlushSentinelConfig => Ok(()),
            _ => Err(Refusal::err("unknown command")),
        }
    }
}

impl Watched {
    fn set(&mut self, option: &str, value: &str) -> Result<(), Refusal> {
        let bad =
            || Refusal::err(format!("Invalid argument '{value}' for SENTINEL SET '{option}'"));
        let number: u64 = value.parse().ok().filter(|n| *n > 0).ok_or_else(bad)?;
        match option {
            "quorum" => self.quorum = u16::try_from(number).map_err(|_| bad())?,
            "down-after-milliseconds" => self.down_after = number,
            "failover-timeout" => self.failover_timeout = number,
            "parallel-syncs" => self.parallel_syncs = number,
            _ => {
                return Err(Refusal::err(format!(
                    "Unknown option or number of arguments for SENTINEL SET '{option}'"
                )));
            }
        }
        Ok(())
    }

    pub fn begin(&mut self, epoch: u64, now: Ms, forced: bool) {
        self.failover = Some(Failover {
            state: Stage::WaitStart,
            since: now,
            begins_at: now,
            epoch,
            forced,
            promoted: None,
        });
        self.tried_at = now;
    }
}
