//! Replicas that go by themselves to a primary which lost its own: from the primary that has the
//! most, the one with the smallest id, after a while.

use super::server::Server;
use super::table::{Ms, Peer, Table};
use crate::domain::node::ClusterNodeId;

/// For how long a primary has to be without replicas.
const ORPHANED_FOR_MS: Ms = 5000;

impl Server {
    pub fn migrate_to_an_orphan(&mut self, now: Ms) {
        let barrier = self.settings.number("cluster-migration-barrier");
        let may = self.settings.is_on("cluster-allow-replica-migration");
        let Some(mine) = self.table.me.primary.clone().filter(|_| self.is_replica()) else {
            return;
        };
        let living: Vec<(ClusterNodeId, usize, bool)> = self
            .table
            .all()
            .filter(|(_, p)| !p.replica && !p.failed && !p.handshake)
            .map(|(id, p)| (id.clone(), self.table.healthy_replicas(id).count(), p.had_replicas))
            .collect();
        let most = living.iter().map(|(_, count, _)| *count).max().unwrap_or(0);
        let own = living.iter().find(|(id, ..)| *id == mine).map_or(0, |(_, count, _)| *count);
        let mut target = None;
        for (id, count, had_replicas) in &living {
            let Some(peer) = self.table.get_mut(id) else { continue };
            if *count > 0 || !had_replicas {
                peer.orphaned_at = 0;
                continue;
            }
            if peer.orphaned_at == 0 {
                peer.orphaned_at = now;
            }
            if target.is_none() && !peer.slots.is_empty() {
                target = Some((id.clone(), peer.orphaned_at));
            }
        }
        let (true, true, Some((target, since))) = (may, self.table.state_ok, target) else {
            return;
        };
        let first = living
            .iter()
            .filter(|(_, count, _)| *count == most)
            .flat_map(|(id, ..)| self.table.healthy_replicas(id))
            .min();
        let chosen = first == Some(&self.table.my_id) && own == most && most >= 2;
        if chosen && own as u64 > barrier && now - since > ORPHANED_FOR_MS {
            self.become_replica_of(&target);
        }
    }
}

impl Table {
    fn healthy_replicas<'a>(
        &'a self,
        primary: &'a ClusterNodeId,
    ) -> impl Iterator<Item = &'a ClusterNodeId> {
        let healthy = move |p: &Peer| p.primary.as_ref() == Some(primary) && !p.failed;
        self.all().filter(move |(_, p)| healthy(p)).map(|(id, _)| id)
    }

    /// Lets a node follow another, or nobody. Whoever loses the last replica that it knew of by its
    /// leaving, and not by its death, is no orphan.
    pub fn set_primary(&mut self, id: &ClusterNodeId, primary: Option<ClusterNodeId>) {
        let Some(peer) = self.get_mut(id) else { return };
        let before = std::mem::replace(&mut peer.primary, primary.clone());
        if before == primary {
            return;
        }
        if let Some(before) = before
            && !self.all().any(|(_, p)| p.primary.as_ref() == Some(&before))
            && let Some(left) = self.get_mut(&before)
        {
            left.had_replicas = false;
        }
        if let Some(followed) = primary.and_then(|id| self.get_mut(&id)) {
            followed.had_replicas = true;
        }
    }
}
