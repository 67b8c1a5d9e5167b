//! Plans as a client sees them.

use std::time::Duration;

use serde_json::Value;

use super::until;
use super::world::World;

pub fn id(plan: &Value) -> String {
    plan["id"].as_str().unwrap().to_owned()
}

pub async fn plan(world: &World, id: &str) -> Result<Value, String> {
    world.client.get(&format!("/v1/plans/{id}")).await.map_err(|e| e.to_string())
}

/// Waits until a plan is in a state.
pub async fn ends(world: &World, id: &str, state: &str, within: Duration) -> Value {
    until("the plan's end", within, async || {
        let plan = plan(world, id).await?;
        if plan["state"] == state { Ok(plan) } else { Err(plan.to_string()) }
    })
    .await
}

/// Waits until a plan says that it waits for this.
pub async fn waits_for(world: &World, id: &str, what: &str) -> Value {
    until("what it waits for", Duration::from_secs(15), async || {
        let plan = plan(world, id).await?;
        if plan["waiting_for"] == what { Ok(plan) } else { Err(plan.to_string()) }
    })
    .await
}

pub async fn terminal_events(world: &World, id: &str) -> usize {
    let types = "plan.succeeded,plan.failed,plan.cancelled,plan.superseded";
    let path = format!("/v1/events?plan={id}&types={types}");
    world.client.get(&path).await.unwrap()["items"].as_array().unwrap().len()
}
