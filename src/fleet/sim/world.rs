//! Virtual time: what happens next, to whom. Everything that happens is an event in one queue, so a
//! run depends on nothing but the seed and the calls.

use std::collections::BTreeMap;

use super::bus::{Around, Envelope, Outgoing};
use super::calls::Calls;
use super::dice::Dice;
use super::jobs::Job;
use super::server::{Life, Server};
use super::table::Ms;
use super::{Keep, SimOptions, sync, watching};
use crate::domain::node::Address;

/// Virtual time begins here, so that nothing happened "at 0".
pub(super) const START: Ms = 1_000_000;
const TICK_MS: Ms = 100;
const REPLICATE_MS: Ms = 20;
const LATENCY_MS: Ms = 1;

#[derive(Debug)]
enum Event {
    Tick(Address),
    Deliver(Box<Envelope>),
    Replicate,
}

#[derive(Debug)]
pub(super) struct World {
    pub now: Ms,
    pub servers: BTreeMap<Address, Server>,
    pub calls: Calls,
    pub jobs: Vec<Job>,
    /// Counts what clients wrote.
    pub written: u64,
    pub dice: Dice,
    queue: BTreeMap<(Ms, u64), Event>,
    sequence: u64,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut world = Self {
            now: START,
            servers: BTreeMap::new(),
            calls: Calls::default(),
            jobs: vec![],
            written: 0,
            dice: Dice::new(seed),
            queue: BTreeMap::new(),
            sequence: 0,
        };
        world.at(START + REPLICATE_MS, Event::Replicate);
        world
    }

    pub fn add(&mut self, address: Address, options: &SimOptions) {
        let dice = Dice::new(self.dice.next());
        let since = self.now.saturating_sub(options.uptime_ms);
        let server = Server::new(address.clone(), options, since, dice);
        self.servers.insert(address.clone(), server);
        let phase = self.dice.below(TICK_MS);
        self.at(self.now + 1 + phase, Event::Tick(address));
    }

    pub fn advance(&mut self, ms: Ms) {
        let until = self.now + ms;
        loop {
            let late = self.calls.next_due().filter(|due| *due <= until);
            let next = self.queue.keys().next().map(|(at, _)| *at).filter(|at| *at <= until);
            match (late, next) {
                (Some(due), next) if next.is_none_or(|next| due <= next) => {
                    self.now = self.now.max(due);
                    self.run_due();
                }
                (_, Some(_)) => {
                    let Some(((at, _), event)) = self.queue.pop_first() else { break };
                    self.now = self.now.max(at);
                    self.happen(event);
                }
                _ => break,
            }
        }
        // What happened may have taken longer.
        self.now = self.now.max(until);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick(address) => {
                self.tick(&address);
                self.at(self.now + TICK_MS, Event::Tick(address));
            }
            Event::Deliver(envelope) => self.deliver(*envelope),
            Event::Replicate => {
                sync::replicate(&mut self.servers, self.now);
                self.run_jobs();
                self.at(self.now + REPLICATE_MS, Event::Replicate);
            }
        }
    }

    fn tick(&mut self, address: &Address) {
        let Some(mut server) = self.servers.remove(address) else { return };
        if server.is_running() && !server.clustered {
            server.ticks += 1;
            sync::ping_replicas(&mut server);
        }
        if server.is_running() && server.clustered {
            server.tick(self.now, &Around(&self.servers));
            sync::ping_replicas(&mut server);
            server.take_arrivals(self.now);
        }
        let watches = server.sentinel.is_some();
        self.servers.insert(address.clone(), server);
        if watches {
            watching::tick(&mut self.servers, address, self.now);
        }
        self.settle(address);
    }

    fn deliver(&mut self, envelope: Envelope) {
        let to = envelope.out.to.clone();
        let Some(server) = self.servers.get_mut(&to) else { return };
        if server.start != envelope.to_start || !server.clustered {
            return;
        }
        match server.life {
            Life::Down => {}
            Life::Frozen => server.inbox.push(envelope),
            Life::Running => {
                server.receive(envelope, self.now);
                self.settle(&to);
            }
        }
    }

    /// Sends on what a server has to say and to replicate after something happened to it.
    pub fn settle(&mut self, address: &Address) {
        sync::spread(&mut self.servers, address);
        let Some(server) = self.servers.get_mut(address) else { return };
        for out in std::mem::take(&mut server.outbox) {
            self.post(out);
        }
    }

    fn post(&mut self, out: Outgoing) {
        let to = self.servers.get(&out.to).filter(|s| s.life != Life::Down);
        if let Some(to_start) = to.map(|server| server.start) {
            let envelope = Envelope { to_start, out };
            self.at(self.now + LATENCY_MS, Event::Deliver(Box::new(envelope)));
        }
    }

    fn at(&mut self, when: Ms, event: Event) {
        self.sequence += 1;
        self.queue.insert((when, self.sequence), event);
    }

    pub fn freeze(&mut self, address: &Address) {
        if let Some(server) = self.servers.get_mut(address)
            && server.life == Life::Running
        {
            server.life = Life::Frozen;
        }
    }

    /// First runs what was sent to it before it froze, then reads what the others said.
    pub fn thaw(&mut self, address: &Address) {
        let Some(server) = self.servers.get_mut(address) else { return };
        if server.life != Life::Frozen {
            return;
        }
        server.life = Life::Running;
        for change in std::mem::take(&mut server.stream) {
            server.write(change);
        }
        self.run_thawed(address);
        let Some(server) = self.servers.get_mut(address) else { return };
        server.take_arrivals(self.now);
        for envelope in std::mem::take(&mut server.inbox) {
            server.receive(envelope, self.now);
        }
        self.settle(address);
    }

    pub fn kill(&mut self, address: &Address) {
        if let Some(server) = self.servers.get_mut(address) {
            server.die();
        }
        self.calls.node_ended(address);
        self.cut_links_to(address);
    }

    pub fn restart(&mut self, address: &Address, keep: Keep) {
        self.kill(address);
        if let Some(server) = self.servers.get_mut(address) {
            server.start_again(keep, self.now);
        }
        self.settle(address);
    }

    fn cut_links_to(&mut self, address: &Address) {
        for server in self.servers.values_mut() {
            for peer in server.table.others.values_mut() {
                if peer.address.as_ref() == Some(address) {
                    peer.link = None;
                }
            }
        }
    }
}
