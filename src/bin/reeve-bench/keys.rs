//! Keys of which each is known to lie in one of some slots, evenly.

use std::collections::BTreeMap;
use std::sync::Arc;

use redis::Value;
use reeve::domain::slot::{SlotSet, key_slot};

use super::bench::Error;

/// What each of them holds.
pub const VALUE: [u8; 100] = [b'x'; 100];
/// How many go to a node at a time.
const BATCH: usize = 5000;

#[derive(Clone)]
pub struct Keys {
    /// For each slot a hash tag that leads there.
    tags: Arc<Vec<(u16, String)>>,
    pub count: usize,
}

impl Keys {
    pub fn new(slots: &SlotSet, count: usize) -> Self {
        let mut tags = BTreeMap::new();
        for tag in (0u32..).map(|n| n.to_string()) {
            let slot = key_slot(tag.as_bytes());
            if slots.contains(slot) {
                tags.entry(slot).or_insert(tag);
                if tags.len() == slots.count() {
                    break;
                }
            }
        }
        Self { tags: Arc::new(tags.into_iter().collect()), count }
    }

    /// One of them, with its slot; beyond the count others begin that nobody wrote.
    pub fn get(&self, n: usize) -> (u16, String) {
        let (slot, tag) = &self.tags[n % self.tags.len()];
        (*slot, format!("{{{tag}}}:{}", n / self.tags.len()))
    }

    /// Writes them all, each to the node that serves its slot.
    pub async fn write(&self, owners: &BTreeMap<String, SlotSet>) -> Result<(), Error> {
        let written = owners.iter().map(|(node, slots)| async move {
            let client = redis::Client::open(format!("redis://{node}/"))?;
            let mut connection = client.get_multiplexed_async_connection().await?;
            let mine = (0..self.count).map(|n| self.get(n)).filter(|(s, _)| slots.contains(*s));
            let mine: Vec<String> = mine.map(|(_, key)| key).collect();
            for some in mine.chunks(BATCH) {
                let mut pipe = redis::pipe();
                for key in some {
                    pipe.set(key, &VALUE).ignore();
                }
                pipe.query_async::<Value>(&mut connection).await?;
            }
            Ok::<_, Error>(())
        });
        futures::future::try_join_all(written).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_lie_evenly_where_they_should() {
        let keys = Keys::new(&"5-7,16383".parse().unwrap(), 8);
        let mut per_slot = BTreeMap::<u16, usize>::new();
        for n in 0..keys.count {
            let (slot, key) = keys.get(n);
            assert_eq!(key_slot(key.as_bytes()), slot);
            *per_slot.entry(slot).or_default() += 1;
        }
        assert_eq!(per_slot, [(5, 2), (6, 2), (7, 2), (16383, 2)].into());
    }
}
