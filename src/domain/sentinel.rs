//! What one Sentinel says: whom it watches, and how it finds them.
//!
//! A Sentinel's word is an opinion. Several are compared before anything is believed, and who is
//! primary is confirmed by the node itself.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::node::Address;
use super::observation::Observation;

/// One Sentinel, as it shows itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
pub struct SentinelView {
    /// The id by which the others know it.
    pub my_id: String,
    /// Whether it mistrusts its clock, and so does nothing for a while.
    pub tilt: bool,
    /// The deployments that it watches, by the names that clients ask for; only the one that was asked
    /// about, if one was.
    pub watches: BTreeMap<String, Watch>,
}

/// What a Sentinel knows of one deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
pub struct Watch {
    /// Whom it takes for the primary; null where it names nobody that could be reached.
    pub primary: Option<Address>,
    /// The primary's process, once the Sentinel has spoken to it.
    pub run_id: String,
    pub flags: BTreeSet<String>,
    /// The number of the failover that made this primary one; the greatest is the newest.
    pub epoch: u64,
    pub quorum: u16,
    pub down_after_ms: u64,
    pub failover_timeout_ms: u64,
    pub parallel_syncs: u64,
    /// What a failover that is under way has come to.
    pub failover: Option<String>,
    pub replicas: Vec<WatchedReplica>,
    /// The other Sentinels, by their ids.
    pub sentinels: BTreeMap<String, WatchedSentinel>,
    /// Why a failover could not be agreed on now (`CKQUORUM`); null where it could.
    pub no_quorum: Option<String>,
}

/// A replica as a Sentinel sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WatchedReplica {
    pub address: Address,
    /// Its process, once the Sentinel has spoken to it.
    pub run_id: String,
    pub flags: BTreeSet<String>,
    pub link_up: bool,
    pub priority: u64,
    pub offset: u64,
    /// How old what it knows of the replica is.
    pub age_ms: u64,
}

/// Another Sentinel as a Sentinel sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WatchedSentinel {
    pub address: Option<Address>,
    pub down: bool,
}

impl Watch {
    /// Whether the Sentinel holds the primary for down, by itself or together with others.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.has("s_down") || self.has("o_down")
    }

    /// Whether the Sentinel leads a failover.
    #[must_use]
    pub fn fails_over(&self) -> bool {
        self.failover.is_some() || self.has("failover_in_progress")
    }

    #[must_use]
    pub fn has(&self, flag: &str) -> bool {
        self.flags.contains(flag)
    }

    /// The primary as the node is called here: a Sentinel knows IP addresses, and a node may have been
    /// named by its host; its process tells.
    #[must_use]
    pub fn primary_in<'a>(&'a self, seen: &'a Observation) -> Option<&'a Address> {
        called(self.primary.as_ref(), &self.run_id, seen)
    }
}

impl WatchedReplica {
    #[must_use]
    pub fn is_down(&self) -> bool {
        ["s_down", "o_down", "disconnected"].iter().any(|flag| self.flags.contains(*flag))
    }

    /// The same as [`Watch::primary_in`].
    #[must_use]
    pub fn address_in<'a>(&'a self, seen: &'a Observation) -> &'a Address {
        called(Some(&self.address), &self.run_id, seen).unwrap_or(&self.address)
    }
}

fn called<'a>(
    told: Option<&'a Address>,
    run_id: &str,
    seen: &'a Observation,
) -> Option<&'a Address> {
    let same = |a: &&Address| seen.report(a).is_some_and(|r| r.run_id == run_id);
    let known = told.filter(|a| seen.nodes.contains_key(*a));
    known.or_else(|| seen.nodes.keys().find(same)).or(told)
}
