//! The connections for talking while slots move: one for each lane, apart from each other, from
//! looking and from sending. Batches of one lane go out one after the other.
//!
//! They are as those for sending: they belong to a lease and end those of earlier holders, and one that
//! lost an answer is killed before anything is believed of its node. What sending asks before each
//! batch is asked here only of a connection that is new or was idle, since a batch goes out each
//! millisecond.

use std::time::Duration;

use redis::{Pipeline, Value};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::Timeouts;
use super::connection::{Link, Node, ambiguous, unreachable};
use crate::domain::moving::talk::Lane;
use crate::domain::node::ClusterNodeId;
use crate::fleet::{FleetError, Talk};

/// A connection that was idle for longer may have died unnoticed, or its node become another one.
const FRESH: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Lanes {
    control: Mutex<Option<Open>>,
    bulk: Mutex<Option<Open>>,
    probe: Mutex<Option<Open>>,
}

/// A connection on which no answer is missing, and to whom.
struct Open {
    link: Link,
    identity: ClusterNodeId,
    used: Instant,
}

/// While answers are missing. If it ends like this, because they did not come or because nobody
/// waits for them any more, the connection is lost.
struct Asking<'a> {
    node: &'a Node,
    link: &'a Link,
    answered: bool,
}

impl Node {
    /// Sends a batch and reads all answers, if the node is the one that is meant.
    pub async fn talk(
        &self,
        talk: &Talk<'_>,
        batch: &Pipeline,
        times: &Timeouts,
    ) -> Result<Vec<Value>, FleetError> {
        let Ok(mut lane) = timeout(talk.within, self.lanes.of(talk.lane).lock()).await else {
            return Err(unreachable(talk.target, "an earlier batch still runs there"));
        };
        let open = match lane.take() {
            Some(open) if open.serves(talk, times).await => open,
            _ => self.open_lane(talk, times).await?,
        };
        let mut asking = Asking { node: self, link: &open.link, answered: false };
        let asked = open.link.ask(batch, talk.within).await;
        let replies = asked.map_err(|lost| ambiguous(talk.target, &lost))?;
        asking.answered = true;
        drop(asking);
        *lane = Some(Open { used: Instant::now(), ..open });
        Ok(replies)
    }

    async fn open_lane(&self, talk: &Talk<'_>, times: &Timeouts) -> Result<Open, FleetError> {
        let link = self.take_over(talk.target, times).await?;
        link.confirm(talk.target, &talk.identity.0, times.look).await?;
        Ok(Open { link, identity: talk.identity.clone(), used: Instant::now() })
    }
}

impl Lanes {
    fn of(&self, lane: Lane) -> &Mutex<Option<Open>> {
        match lane {
            Lane::Control => &self.control,
            Lane::Bulk => &self.bulk,
            Lane::Probe => &self.probe,
        }
    }
}

impl Open {
    async fn serves(&self, talk: &Talk<'_>, times: &Timeouts) -> bool {
        let fits = self.link.is_of(talk.target) && self.identity == *talk.identity;
        let identity = &self.identity.0;
        fits && (self.used.elapsed() < FRESH
            || self.link.confirm(talk.target, identity, times.look).await.is_ok())
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.node.abandon(self.link);
        }
    }
}
