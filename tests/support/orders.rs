//! The topology `orders`, as tests ask about it and plan on it.

use std::cell::Cell;
use std::time::Duration;

use reeve::client::{ClientError, Problem};
use serde_json::Value;

use super::plans::{ends, id, plan, terminal_events};
use super::until;
use super::world::World;

pub const TOPOLOGY: &str = "/v1/topologies/orders";
pub const PLANS: &str = "/v1/topologies/orders/plans";

/// Each shard's primary and replicas, as numbers of nodes.
pub async fn shards(world: &World) -> Vec<(usize, Vec<usize>)> {
    let topology = world.client.get(TOPOLOGY).await.unwrap();
    let shards = topology["status"]["shards"].as_array().unwrap().clone();
    // While a shard has no primary, that is no node's number.
    let number =
        |a: &Value| world.nodes.iter().position(|n| *a == n.address()).unwrap_or(usize::MAX);
    let replicas = |s: &Value| {
        s["replicas"].as_array().unwrap().iter().map(|r| number(&r["address"])).collect()
    };
    shards.iter().map(|s| (number(&s["primary"]), replicas(s))).collect()
}

/// Sentinels take two failover timeouts to mend a chain of replicas.
pub async fn phase(world: &World, wanted: &str) {
    until("the phase", Duration::from_secs(90), async || {
        let status = world.client.get(TOPOLOGY).await.unwrap()["status"].clone();
        if status["phase"] == wanted { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
}

fn is_met(error: &ClientError) -> bool {
    matches!(error, ClientError::Problem(problem) if problem.code.as_deref() == Some("plan_active"))
}

/// Submits a plan and sees it succeed.
pub async fn carry_out(world: &World, body: &Value) -> Value {
    // A busy machine has the database late (503): as the answer says, clients look whether it is there,
    // and try again.
    let late = Cell::new(false);
    let plan = until("it is taken", Duration::from_secs(70), async || {
        match world.client.submit(PLANS, body, Some(50)).await {
            // One that was late may be there all the same, and be met by the next try.
            Err(e) if e.to_string().contains("503") || (late.get() && is_met(&e)) => {
                println!("late: {e}");
                late.set(true);
                let topology = world.client.get(TOPOLOGY).await.map_err(|e| e.to_string())?;
                let active = topology["status"]["active_plan"].as_str().ok_or(e.to_string())?;
                plan(world, active).await
            }
            answered => Ok(answered.unwrap()),
        }
    })
    .await;
    // Sentinels take their time: one after the other forgets, and asks around for ten seconds.
    let plan = ends(world, &id(&plan), "succeeded", Duration::from_secs(120)).await;
    assert_eq!(terminal_events(world, &id(&plan)).await, 1);
    plan
}

pub async fn refused(world: &World, body: &Value) -> Problem {
    match world.client.post(PLANS, body).await {
        Err(ClientError::Problem(problem)) => *problem,
        other => panic!("{body}: {other:#?}"),
    }
}

pub fn is_blank(world: &World, node: usize) -> bool {
    let info = world.ask(node, &["CLUSTER", "INFO"]);
    info.contains("cluster_known_nodes:1\r") && world.ask(node, &["DBSIZE"]) == "0"
}
