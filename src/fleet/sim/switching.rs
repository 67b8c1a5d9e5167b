//! A failover as a simulated Sentinel leads it, one stage in each of its turns.

use std::collections::BTreeMap;

use super::sentinel::{Stage, Watched};
use super::server::Server;
use super::table::Ms;
use super::watching::obey;
use crate::domain::node::Address;

/// How long one waits to be elected at most.
const ELECTION_MS: Ms = 10_000;

impl Watched {
    /// One stage further; whether there is news for the others.
    pub fn switch(&mut self, me: &str, servers: &mut BTreeMap<Address, Server>, now: Ms) -> bool {
        let Some(failover) = self.failover.clone() else { return false };
        let waited = now.saturating_sub(failover.since);
        match failover.state {
            Stage::WaitStart if now < failover.begins_at => {}
            Stage::WaitStart => {
                let elected = failover.forced || self.is_elected(me, failover.epoch);
                if elected {
                    self.enter(Stage::SelectReplica, now);
                } else if waited > ELECTION_MS.min(self.failover_timeout) {
                    self.failover = None;
                }
            }
            Stage::SelectReplica => match self.best(now) {
                None => self.failover = None,
                Some(best) => {
                    self.promote(best);
                    self.enter(Stage::SendNoOne, now);
                }
            },
            Stage::SendNoOne => {
                let promoted = failover.promoted.as_ref();
                let reached =
                    promoted.filter(|at| servers.get(*at).is_some_and(Server::is_running));
                if let Some(at) = reached {
                    obey(servers, at, None, now);
                    self.enter(Stage::WaitPromotion, now);
                } else if waited > self.failover_timeout {
                    self.failover = None;
                }
            }
            Stage::WaitPromotion => {
                let done = |at: &Address| {
                    let known = self.replicas.get(at);
                    known.is_some_and(|r| {
                        !r.replica && r.info_at.is_some_and(|i| i > failover.since)
                    })
                };
                if failover.promoted.as_ref().is_some_and(done) {
                    self.config_epoch = failover.epoch;
                    self.enter(Stage::Reconfigure, now);
                    return true;
                }
                if waited > self.failover_timeout {
                    self.failover = None;
                }
            }
            Stage::Reconfigure => {
                let Some(promoted) = failover.promoted else { return false };
                let all = self.reconfigure(&promoted, servers, now);
                if all || waited > self.failover_timeout {
                    self.enter(Stage::Update, now);
                }
            }
            Stage::Update => {
                if let Some(promoted) = failover.promoted {
                    self.move_to(&promoted, now);
                }
                self.failover = None;
                return true;
            }
        }
        false
    }

    /// Whether this replica is being promoted, so that its new role is no offence.
    pub fn promotes(&self, at: &Address) -> bool {
        self.failover.as_ref().is_some_and(|f| f.promoted.as_ref() == Some(at))
    }

    /// Whom it names when it is asked.
    pub fn told_primary(&self) -> Address {
        let promoted = self
            .failover
            .as_ref()
            .filter(|f| matches!(f.state, Stage::Reconfigure | Stage::Update));
        promoted.and_then(|f| f.promoted.clone()).unwrap_or_else(|| self.at.clone())
    }

    fn enter(&mut self, state: Stage, now: Ms) {
        if let Some(failover) = &mut self.failover {
            (failover.state, failover.since) = (state, now);
        }
    }

    fn promote(&mut self, best: Address) {
        if let Some(failover) = &mut self.failover {
            failover.promoted = Some(best);
        }
    }

    /// Whether the quorum and a majority of all that it knows voted for it.
    fn is_elected(&mut self, me: &str, epoch: u64) -> bool {
        if self.vote.as_ref().is_none_or(|(_, at)| *at < epoch) {
            self.vote = Some((me.to_owned(), epoch));
        }
        let own = self.vote.clone();
        let others = self.sentinels.values().filter_map(|o| o.vote.as_ref());
        let votes = others.chain(own.as_ref()).filter(|(who, at)| who == me && *at == epoch);
        let votes = votes.count();
        votes > self.sentinels.len().div_ceil(2) && votes >= usize::from(self.quorum)
    }

    /// Tells those that follow the old primary to follow the new one, a few at a time; whether all do.
    fn reconfigure(
        &mut self,
        promoted: &Address,
        servers: &mut BTreeMap<Address, Server>,
        now: Ms,
    ) -> bool {
        let mut busy = 0;
        let mut all = true;
        for (at, replica) in self.replicas.iter_mut().filter(|(at, r)| *at != promoted && !r.down) {
            let done = replica.upstream.as_ref() == Some(promoted) && replica.link_up;
            if done {
                continue;
            }
            all = false;
            if replica.told {
                busy += 1;
            } else if busy < self.parallel_syncs && replica.linked {
                obey(servers, at, Some(promoted), now);
                replica.told = true;
                busy += 1;
            }
        }
        all
    }
}
