//! What several contracts begin with.

use reeve::domain::step::command::Verb;

use super::bench::{Bench, World};

/// Nodes that all know each other; each that has `slots` owns them, with an epoch of its own.
pub async fn joined(world: World, slots: &[&str]) -> Bench {
    let bench = world.start(slots.len()).await;
    for (node, slots) in slots.iter().enumerate() {
        let mut verbs = vec![Verb::SetConfigEpoch(node as u64 + 1)];
        if !slots.is_empty() {
            verbs.push(Verb::AddSlots(slots.parse().unwrap()));
        }
        bench.send(node, &verbs).await;
    }
    meet_all(&bench, slots.len()).await;
    bench
}

pub async fn meet_all(bench: &Bench, count: usize) {
    for node in 0..count {
        let others = node + 1..count;
        let meets: Vec<Verb> = others.map(|other| Verb::Meet(bench.address(other))).collect();
        bench.send(node, &meets).await;
    }
    for node in 0..count {
        bench
            .until_view(node, "knows all and is linked to all", |v| {
                v.known().len() == count && !v.shaking_hands() && v.peers.values().all(|p| p.linked)
            })
            .await;
    }
}

/// Makes one node the replica of another and waits for its link.
pub async fn follow(bench: &Bench, node: usize, primary: usize) {
    let id = bench.id(primary).await;
    bench.send(node, &[Verb::Replicate(id)]).await;
    bench.until(node, "has a link to its primary", |r| r.replication.link_up).await;
}
