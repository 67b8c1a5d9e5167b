//! Events reach whoever follows: each once, in order, however often the line breaks.

use std::time::Duration;

use futures::StreamExt;
use reeve::client::ClientError;
use reeve::client::sse::{Parser, SseEvent};
use serde_json::Value;

use crate::support::Dice;
use crate::support::world::World;

/// Reads a plan's stream until `cut` events came or the stream ended; an answer of 204 is no
/// stream.
async fn read(world: &World, plan: &str, after: Option<i64>, cut: usize) -> Option<Vec<SseEvent>> {
    let mut request = reqwest::Client::new()
        .get(format!("{}/v1/plans/{plan}/stream", world.server.url()))
        .bearer_auth(world.server.token());
    if let Some(id) = after {
        request = request.header("last-event-id", id);
    }
    let response = request.send().await.unwrap();
    if response.status() == 204 {
        return None;
    }
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let (mut body, mut parser, mut events) = (response.bytes_stream(), Parser::default(), vec![]);
    while let Some(chunk) = body.next().await {
        events.extend(parser.push(&chunk.unwrap()).into_iter().filter(|e| e.id.is_some()));
        if events.len() >= cut {
            break;
        }
    }
    Some(events)
}

#[tokio::test]
async fn a_client_that_is_cut_off_ten_times_sees_each_event_once_and_in_order() {
    let world = World::with_nodes(6).await;
    let plan = world.client.create_topology(&world.cluster("cut", 3, 1), None).await.unwrap();
    let id = plan["id"].as_str().unwrap();
    let mut dice = Dice::new(7);
    let (mut seen, mut cuts, mut cut_before_the_end) = (Vec::<(i64, Value)>::new(), 0, 0);
    let ended = async {
        loop {
            let after = seen.last().map(|(id, _)| *id);
            // Cut off after a few events ten times, then read to the end.
            let cut = if cuts < 10 { 1 + dice.below(5) as usize } else { usize::MAX };
            let Some(events) = read(&world, id, after, cut).await else { return };
            cuts += 1;
            let now = world.client.get(&format!("/v1/plans/{id}")).await.unwrap();
            cut_before_the_end += usize::from(now["state"] != "succeeded");
            for event in events.into_iter().take(cut) {
                let data = event.json();
                assert_eq!(data["id"].to_string(), event.id.clone().unwrap());
                assert_eq!(data["type"], event.event);
                seen.push((data["id"].as_i64().unwrap(), data));
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap();
    assert!(cuts > 10, "{cuts}");
    assert!(cut_before_the_end > 0, "some cuts fell into the plan's life");
    assert!(seen.windows(2).all(|w| w[0].0 < w[1].0), "in order, none twice");

    // The journal holds the same, and nothing more.
    let page = world.client.get(&format!("/v1/events?plan={id}&limit=200")).await.unwrap();
    let journal: Vec<i64> =
        page["items"].as_array().unwrap().iter().map(|e| e["id"].as_i64().unwrap()).collect();
    assert_eq!(journal, seen.iter().map(|(id, _)| *id).collect::<Vec<_>>());
    let kinds: Vec<&str> = seen.iter().map(|(_, e)| e["type"].as_str().unwrap()).collect();
    assert_eq!(kinds.first(), Some(&"plan.proposed"));
    assert_eq!(kinds.last(), Some(&"plan.succeeded"));
    let ends =
        kinds.iter().filter(|k| matches!(**k, "plan.succeeded" | "plan.failed" | "plan.cancelled"));
    assert_eq!(ends.count(), 1, "one terminal event");

    // All events of the topology are numbered without a gap.
    let page = world.client.get("/v1/events?topology=cut&limit=200").await.unwrap();
    let seqs: Vec<i64> =
        page["items"].as_array().unwrap().iter().map(|e| e["seq"].as_i64().unwrap()).collect();
    assert_eq!(seqs, (1..=seqs.len() as i64).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_journals_stream_follows_filters_and_outlives_the_server() {
    let mut world = World::with_nodes(3).await;
    let follow =
        world.client.events("/v1/events/stream?types=plan.*,topology.created", Some("0".into()));
    world.create(&world.cluster("follow", 3, 0)).await;
    let take = |e: Result<SseEvent, ClientError>| e.unwrap().event;
    let mut follow =
        follow.filter(|e| std::future::ready(e.as_ref().is_ok_and(|e| e.id.is_some())));
    assert_eq!(take(follow.next().await.unwrap()), "topology.created");
    loop {
        let kind = take(follow.next().await.unwrap());
        assert!(kind.starts_with("plan."), "{kind}");
        if kind == "plan.succeeded" {
            break;
        }
    }
    world.server.restart().await.unwrap();
    let plan = serde_json::json!({ "intent": { "kind": "repair" } });
    world.client.post("/v1/topologies/follow/plans", &plan).await.unwrap();
    let next = tokio::time::timeout(Duration::from_secs(30), follow.next()).await.unwrap();
    assert_eq!(take(next.unwrap()), "plan.proposed");
}
