//! `MIGRATE`: one server hands keys to another, and hears nobody until that has answered.

use super::calls::HELD_MS;
use super::keys::{Change, Value};
use super::server::{Life, Server};
use super::table::Ms;
use super::verbs::Refusal;
use super::world::World;
use crate::domain::moving::talk::{Answer, Key};
use crate::domain::node::Address;
use crate::domain::slot::key_slot;

/// How much a server packs, sends and unpacks in a millisecond.
const BYTES_PER_MS: u64 = 33_000;

impl World {
    pub fn migrate(
        &mut self,
        from: &Address,
        to: &Address,
        keys: &[Key],
        within: Ms,
    ) -> Result<Answer, Refusal> {
        let Some(source) = self.servers.get(from) else { return Ok(Answer::Nothing) };
        let mut slots = keys.iter().map(|key| key_slot(&key.0));
        let Some(slot) = slots.next() else { return Err(Refusal::err("syntax error")) };
        if slots.any(|other| other != slot) {
            let why = "Keys in request don't hash to the same slot";
            return Err(Refusal::new("CROSSSLOT", why));
        }
        source.hands_out(slot)?;
        let held = |key: String| source.value(&key).map(|value| (key, value));
        let parcel: Vec<_> = keys.iter().map(name_of).filter_map(held).collect();
        if parcel.is_empty() {
            return Ok(Answer::Nothing);
        }
        self.freeze(from);
        let done = self.hand_over(from, to, parcel, within);
        self.thaw(from);
        done
    }

    fn hand_over(
        &mut self,
        from: &Address,
        to: &Address,
        parcel: Vec<(String, Value)>,
        within: Ms,
    ) -> Result<Answer, Refusal> {
        let until = self.now + within;
        loop {
            let target = self.servers.get_mut(to).filter(|target| target.life != Life::Down);
            let Some(target) = target else {
                return Err(Refusal::new("IOERR", "error or timeout writing to target instance"));
            };
            if target.is_running() && !target.is_paused(self.now) {
                break;
            }
            if self.now >= until {
                // They lie there, and nobody takes them back.
                target.arriving.extend(parcel);
                return Err(Refusal::new("IOERR", "error or timeout reading to target instance"));
            }
            self.advance(HELD_MS.min(until - self.now));
        }
        let bytes: u64 = parcel.iter().map(|(_, value)| value.bytes).sum();
        let (mut taken, mut refusal) = (Vec::new(), None);
        if let Some(target) = self.servers.get_mut(to) {
            for (key, value) in parcel {
                match target.restore(&key, value) {
                    Ok(()) => taken.push(key),
                    Err(why) => refusal = refusal.or(Some(why)),
                }
            }
        }
        self.settle(to);
        if let Some(source) = self.servers.get_mut(from)
            && !taken.is_empty()
        {
            source.write(Change::Del(taken));
        }
        self.settle(from);
        self.advance(bytes / BYTES_PER_MS);
        match refusal {
            Some(Refusal { code, message }) => {
                Err(Refusal::err(format!("Target instance replied with error: {code} {message}")))
            }
            None => Ok(Answer::Done),
        }
    }
}

impl Server {
    /// `RESTORE-ASKING … REPLACE`.
    fn restore(&mut self, key: &str, value: Value) -> Result<(), Refusal> {
        self.serves(key_slot(key.as_bytes()), key, true)?;
        if self.is_full() {
            let why = "command not allowed when used memory > 'maxmemory'.";
            return Err(Refusal::new("OOM", why));
        }
        self.write(Change::Put(key.to_owned(), value));
        Ok(())
    }

    /// Takes what was sent to it while it could not.
    pub fn take_arrivals(&mut self, now: Ms) {
        if self.is_paused(now) {
            return;
        }
        for (key, value) in std::mem::take(&mut self.arriving) {
            // Nobody waits for the answer.
            let _ = self.restore(&key, value);
        }
    }
}

pub(super) fn name_of(key: &Key) -> String {
    String::from_utf8_lossy(&key.0).into_owned()
}
