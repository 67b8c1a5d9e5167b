//! Slots that servers move by themselves: a job takes a while, and at its end keys and ownership have
//! moved, or nothing has. With Valkey 9 the source is told, and with Redis 8.4 the target, which does one
//! job at a time, tries again what failed until it is told to cancel it, and has dropped the keys a while
//! after the job is over.

use std::collections::BTreeSet;

use super::keys::Change;
use super::server::{Life, Server};
use super::table::Ms;
use super::verbs::Refusal;
use super::world::World;
use crate::domain::moving::talk::{Answer, JobState, SlotJob};
use crate::domain::node::{Address, Capabilities, ClusterNodeId, Flavor, MovedBy};
use crate::domain::observation::SlotJobView;
use crate::domain::slot::SlotSet;

/// What a job takes at least.
const JOB_MS: Ms = 200;
const BYTES_PER_MS: u64 = 100_000;
/// For how long keys are dropped afterwards, and after how long a target tries again.
const TRIM_MS: Ms = 300;
const RETRY_MS: Ms = 1000;

#[derive(Debug, Clone)]
pub(super) struct Job {
    name: String,
    by: MovedBy,
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
    /// Which end of a move it has move slots as a whole, if it can.
    pub fn moved_by(&self) -> Option<MovedBy> {
        Capabilities::of(self.flavor, self.version).atomic_slots
    }

    /// Whether it knows these commands; in its own words if not.
    fn has_jobs(&self, by: MovedBy, word: &str) -> Result<(), Refusal> {
        match self.flavor {
            _ if self.moved_by() == Some(by) => Ok(()),
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
        server.has_jobs(MovedBy::Source, "MIGRATESLOTS")?;
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
            by: MovedBy::Source,
            slots: slots.clone(),
            target: target.unwrap_or_else(|| from.clone()),
            source: from,
            state: if refuses { JobState::Failed } else { JobState::Running },
            message: if refuses { "Received error during handshake to target" } else { "" },
            done_at: self.now + JOB_MS + bytes / BYTES_PER_MS,
        });
        Ok(())
    }

    pub fn import_slots(&mut self, target: &Address, slots: &SlotSet) -> Result<(), Refusal> {
        let Some(server) = self.servers.get(target) else { return Ok(()) };
        server.has_jobs(MovedBy::Target, "MIGRATION")?;
        if server.is_replica() {
            return Err(Refusal::err("slot migration not allowed on replica."));
        }
        if !(server.table.migrating.is_empty() && server.table.importing.is_empty()) {
            let why = "all slot states must be STABLE to start a slot migration task.";
            return Err(Refusal::err(why));
        }
        let owners: BTreeSet<_> = slots.iter().map(|slot| server.table.owner(slot)).collect();
        let mut owners = owners.into_iter();
        let (Some(Some(owner)), None) = (owners.next(), owners.next()) else {
            return Err(Refusal::err("slots are served by different nodes or by none"));
        };
        if *owner == server.table.my_id {
            return Err(Refusal::err("this node is already the owner of the slot range"));
        }
        let me = End::of(server);
        let source = server.table.get(owner).and_then(|peer| peer.address.as_ref());
        let source = source.and_then(|address| self.servers.get(address)).map(End::of);
        for job in self.jobs.iter_mut().filter(|job| job.goes_on()) {
            if job.target == me && job.state == JobState::Failed {
                job.state = JobState::Cancelled;
            } else if job.target == me || job.source == me {
                return Err(Refusal::err("another ASM task is already in progress"));
            }
        }
        let name = self.dice.hex();
        self.jobs.push(Job {
            name,
            by: MovedBy::Target,
            slots: slots.clone(),
            source: source.unwrap_or_else(|| me.clone()),
            target: me,
            state: JobState::Running,
            message: "",
            done_at: self.now + JOB_MS,
        });
        Ok(())
    }

    pub fn slot_jobs(&self, at: &Address, by: MovedBy) -> Result<Answer, Refusal> {
        let Some(server) = self.servers.get(at) else { return Ok(Answer::Jobs(vec![])) };
        server.has_jobs(
            by,
            match by {
                MovedBy::Source => "GETSLOTMIGRATIONS",
                MovedBy::Target => "MIGRATION",
            },
        )?;
        let me = End::of(server);
        let mine = self.jobs.iter().filter(|job| job.source == me || job.target == me);
        Ok(Answer::Jobs(mine.map(|job| job.seen_from(&me)).collect()))
    }

    /// What a node moves by itself, now.
    pub fn under_way(&self, at: &Address) -> Vec<SlotJobView> {
        let Some(me) = self.servers.get(at).map(End::of) else { return vec![] };
        let mine = self.jobs.iter().filter(|job| job.goes_on() && *job.carrier() == me);
        let view = |job: &Job| SlotJobView {
            slots: job.slots.clone(),
            from: Some(job.source.id.clone()),
            to: Some(job.target.id.clone()),
        };
        mine.map(view).collect()
    }

    /// Cancels what a node takes: the job of that name, or all; says how many that were.
    pub fn cancel_imports(&mut self, at: &Address, name: Option<&str>) -> Result<u64, Refusal> {
        let Some(server) = self.servers.get_mut(at) else { return Ok(0) };
        server.has_jobs(MovedBy::Target, "MIGRATION")?;
        let me = End::of(server);
        let meant = |job: &&mut Job| {
            job.goes_on() && job.target == me && name.is_none_or(|name| job.name == name)
        };
        let mut cancelled = 0;
        for job in self.jobs.iter_mut().filter(meant) {
            job.state = JobState::Cancelled;
            cancelled += 1;
            server.trims_until = self.now + TRIM_MS;
        }
        Ok(cancelled)
    }

    pub fn cancel_slot_jobs(&mut self, at: &Address) -> Result<(), Refusal> {
        let Some(server) = self.servers.get(at) else { return Ok(()) };
        server.has_jobs(MovedBy::Source, "CANCELSLOTMIGRATIONS")?;
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
        let running = || self.jobs.iter().filter(|job| job.goes_on());
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
            if !job.goes_on() {
                continue;
            }
            let lives = |end: &End| {
                let server = self.servers.get(&end.address).filter(|s| s.life != Life::Down);
                server.filter(|s| End::of(s) == *end && !s.is_replica()).map(Server::is_running)
            };
            let (source, target) = (lives(&job.source), lives(&job.target));
            match (job.state, job.by) {
                // With whoever carries it out it is forgotten.
                (_, MovedBy::Target) if target.is_none() => {
                    self.jobs[at].state = JobState::Cancelled;
                }
                (JobState::Failed, _) => self.try_again(at),
                _ if source.is_none() || target.is_none() => {
                    (self.jobs[at].state, self.jobs[at].message) =
                        (JobState::Failed, "Connection lost");
                    self.jobs[at].done_at = self.now + RETRY_MS;
                }
                _ if source == Some(true) && target == Some(true) && self.now >= job.done_at => {
                    self.finish(&job);
                    self.jobs[at].state = JobState::Succeeded;
                }
                _ => {}
            }
        }
    }

    /// A target that failed connects to its source again, if that is there and has the slots.
    fn try_again(&mut self, at: usize) {
        let job = &mut self.jobs[at];
        if self.now < job.done_at {
            return;
        }
        job.done_at = self.now + RETRY_MS;
        let source = self.servers.get(&job.source.address).filter(|s| s.is_running());
        let serves = |s: &&Server| job.slots.difference(&s.table.me.slots).is_empty();
        if let Some(server) = source.filter(|s| !s.is_replica()).filter(serves) {
            (job.source, job.state) = (End::of(server), JobState::Running);
            job.done_at = self.now + JOB_MS;
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
            if job.by == MovedBy::Target {
                source.trims_until = now + TRIM_MS;
            }
        }
        self.settle(&job.source.address);
    }
}

impl Job {
    fn runs(&self) -> bool {
        self.state == JobState::Running
    }

    /// Whether it is not over: what failed is tried again where the target carries it out.
    fn goes_on(&self) -> bool {
        self.runs() || (self.by == MovedBy::Target && self.state == JobState::Failed)
    }

    fn carrier(&self) -> &End {
        match self.by {
            MovedBy::Source => &self.source,
            MovedBy::Target => &self.target,
        }
    }

    fn seen_from(&self, end: &End) -> SlotJob {
        let giving = self.source == *end;
        let other = if giving { &self.target } else { &self.source };
        SlotJob {
            name: self.name.clone(),
            giving,
            slots: self.slots.clone(),
            other: Some(other.id.clone()),
            // Only whoever carries it out knows that; the other sees the connection end.
            state: match self.state {
                JobState::Cancelled if self.carrier() != end => JobState::Failed,
                state => state,
            },
            message: self.message.to_owned(),
        }
    }
}
