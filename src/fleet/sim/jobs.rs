//! Slots that servers move by themselves (Valkey 9): a job takes a while, and at its end keys and
//! ownership have moved, or nothing has.

use super::keys::Change;
use super::server::{Life, Server};
use super::table::Ms;
use super::verbs::Refusal;
use super::world::World;
use crate::domain::moving::talk::{Answer, JobState, SlotJob};
use crate::domain::node::{Address, ClusterNodeId, Flavor};
use crate::domain::observation::SlotJobView;
use crate::domain::slot::SlotSet;

/// What a job takes at least.
const JOB_MS: Ms = 200;
const BYTES_PER_MS: u64 = 100_000;

#[derive(Debug, Clone)]
pub(super) struct Job {
    name: String,
    slots: SlotSet,
    source: End,
    target: End,
    state: JobState,
    message: &'static str,
    done_at: Ms,
}

/// One process: jobs are kept in memory only.
#[derive(Debug, Clone, PartialEq, Eq)]
struct End {
    address: Address,
    start: u64,
    id: ClusterNodeId,
}

impl End {
    fn of(server: &Server) -> Self {
        let (address, id) = (server.address.clone(), server.table.my_id.clone());
        Self { address, start: server.start, id }
    }
}

impl Server {
    /// Whether it knows these commands; in its own words if not.
    fn has_jobs(&self, word: &str) -> Result<(), Refusal> {
        match self.flavor {
            Flavor::Valkey if self.version.major >= 9 => Ok(()),
            Flavor::Redis if self.version.major < 7 => Err(Refusal::err(format!(
                "Unknown subcommand or wrong number of arguments for '{word}'. Try CLUSTER HELP."
            ))),
            Flavor::Redis | Flavor::Valkey => {
                Err(Refusal::err(format!("unknown subcommand '{word}'. Try CLUSTER HELP.")))
            }
        }
    }
}

impl World {
    pub fn migrate_slots(
        &mut self,
        source: &Address,
        slots: &SlotSet,
        to: &ClusterNodeId,
    ) -> Result<(), Refusal> {
        let Some(server) = self.servers.get(source) else { return Ok(()) };
        server.has_jobs("MIGRATESLOTS")?;
        if server.is_replica() {
            return Err(Refusal::err("Slot migration can only be used on primary nodes."));
        }
        if !(server.table.migrating.is_empty() && server.table.importing.is_empty()) {
            return Err(Refusal::err("Slots are being manually migrated"));
        }
        if *to == server.table.my_id {
            return Err(Refusal::err("Target node can not be this node."));
        }
        let Some(peer) = server.table.get(to) else {
            return Err(Refusal::err(format!("Unknown node name: {to}")));
        };
        if !slots.difference(&server.table.me.slots).is_empty() {
            return Err(Refusal::err("Slots are not served by this node."));
        }
        let from = End::of(server);
        let given = self.jobs.iter().filter(|job| job.runs() && job.source == from);
        let given = given.fold(SlotSet::empty(), |all, job| all.union(&job.slots));
        if let Some(slot) = given.intersection(slots).iter().next() {
            return Err(Refusal::err(format!("I am already migrating slot {slot}.")));
        }
        let held = slots.iter().filter_map(|slot| server.keys.get(&slot));
        let bytes: u64 = held.flat_map(|keys| keys.values()).map(|value| value.bytes).sum();
        let target = peer.address.as_ref().and_then(|address| self.servers.get(address));
        let refuses = target.is_none_or(|t| t.is_replica() || !t.table.importing.is_empty());
        let target = target.map(End::of);
        let name = self.dice.hex();
        self.jobs.push(Job {
            name,
            slots: slots.clone(),
            target: target.unwrap_or_else(|| from.clone()),
            source: from,
            state: if refuses { JobState::Failed } else { JobState::Running },
            message: if refuses { "Received error during handshake to target" } else { "" },
            done_at: self.now + JOB_MS + bytes / BYTES_PER_MS,
        });
        Ok(())
    }

    pub fn slot_jobs(&self, at: &Address) -> Result<Answer, Refusal> {
        let Some(server) = self.servers.get(at) else { return Ok(Answer::Jobs(vec![])) };
        server.has_jobs("GETSLOTMIGRATIONS")?;
        let me = End::of(server);
        let mine = self.jobs.iter().filter(|job| job.source == me || job.target == me);
        Ok(Answer::Jobs(mine.map(|job| job.seen_from(&me)).collect()))
    }

    /// What a node gives away by itself, now.
    pub fn given_away(&self, at: &Address) -> Vec<SlotJobView> {
        let Some(me) = self.servers.get(at).map(End::of) else { return vec![] };
        let mine = self.jobs.iter().filter(|job| job.runs() && job.source == me);
        let view =
            |job: &Job| SlotJobView { slots: job.slots.clone(), to: Some(job.target.id.clone()) };
        mine.map(view).collect()
    }

    pub fn cancel_slot_jobs(&mut self, at: &Address) -> Result<(), Refusal> {
        let Some(server) = self.servers.get(at) else { return Ok(()) };
        server.has_jobs("CANCELSLOTMIGRATIONS")?;
        let me = End::of(server);
        let mut mine: Vec<_> =
            self.jobs.iter_mut().filter(|job| job.runs() && job.source == me).collect();
        if mine.is_empty() {
            return Err(Refusal::err("No migrations ongoing"));
        }
        mine.iter_mut().for_each(|job| job.state = JobState::Cancelled);
        Ok(())
    }

    /// Whether a job bars slots of a node from being moved by hand.
    pub fn job_bars(&self, at: &Address) -> Result<(), Refusal> {
        let running = || self.jobs.iter().filter(|job| job.runs());
        if running().any(|job| job.source.address == *at) {
            return Err(Refusal::err("Slot export in progress."));
        }
        if running().any(|job| job.target.address == *at) {
            return Err(Refusal::err("Slot import in progress."));
        }
        Ok(())
    }

    /// Brings every job one step further.
    pub fn run_jobs(&mut self) {
        for at in 0..self.jobs.len() {
            let job = self.jobs[at].clone();
            if !job.runs() {
                continue;
            }
            let lives = |end: &End| {
                let server = self.servers.get(&end.address).filter(|s| s.life != Life::Down);
                server.filter(|s| End::of(s) == *end && !s.is_replica()).map(Server::is_running)
            };
            match (lives(&job.source), lives(&job.target)) {
                (Some(true), Some(true)) if self.now >= job.done_at => {
                    self.finish(&job);
                    self.jobs[at].state = JobState::Succeeded;
                }
                (Some(_), Some(_)) => {}
                (None, _) | (_, None) => {
                    (self.jobs[at].state, self.jobs[at].message) =
                        (JobState::Failed, "Connection lost");
                }
            }
        }
    }

    fn finish(&mut self, job: &Job) {
        let now = self.now;
        let Some(source) = self.servers.get(&job.source.address) else { return };
        let moving: Vec<_> = job.slots.iter().filter_map(|slot| source.keys.get(&slot)).collect();
        let moving: Vec<_> = moving.into_iter().flatten().map(|(k, v)| (k.clone(), *v)).collect();
        let Some(target) = self.servers.get_mut(&job.target.address) else { return };
        moving.into_iter().for_each(|(key, value)| target.write(Change::Put(key, value)));
        job.slots.iter().for_each(|slot| target.table.assign(slot, &job.target.id));
        target.announce_slots(now);
        let (epoch, slots) = (target.table.me.epoch, target.table.me.slots.clone());
        self.settle(&job.target.address);
        // It waited for this with its clients' writes.
        if let Some(source) = self.servers.get_mut(&job.source.address) {
            source.believe(&job.target.id, epoch, &slots, now);
        }
        self.settle(&job.source.address);
    }
}

impl Job {
    fn runs(&self) -> bool {
        self.state == JobState::Running
    }

    fn seen_from(&self, end: &End) -> SlotJob {
        let giving = self.source == *end;
        let other = if giving { &self.target } else { &self.source };
        SlotJob {
            name: self.name.clone(),
            giving,
            slots: self.slots.clone(),
            other: Some(other.id.clone()),
            // Who takes them only sees the connection end.
            state: match self.state {
                JobState::Cancelled if !giving => JobState::Failed,
                state => state,
            },
            message: self.message.to_owned(),
        }
    }
}
