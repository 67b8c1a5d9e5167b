//! What surveys found a moment ago, so that the mover need not look at the same keys once more.
//!
//! Only for this process, and only for a while: who does not find it here looks again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::moving::survey::Small;
use crate::domain::node::ClusterNodeId;

/// In this time few keys become big that were not, and what is found then holds for no longer.
const FRESH: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(super) struct Surveyed(Mutex<HashMap<ClusterNodeId, (Instant, Arc<Small>)>>);

impl Surveyed {
    pub fn keep(&self, node: ClusterNodeId, small: Small) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, (at, _)| at.elapsed() < FRESH);
        all.insert(node, (Instant::now(), Arc::new(small)));
    }

    /// The slots of a node that were found to be without big keys.
    pub fn of(&self, node: &ClusterNodeId) -> Arc<Small> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = all.get(node).filter(|(at, _)| at.elapsed() < FRESH);
        fresh.map(|(_, small)| small.clone()).unwrap_or_default()
    }
}
