//! While the database is away every request is told so, and when to come back.

use std::time::{Duration, Instant};

use futures::future::join_all;
use reqwest::Method;
use serde_json::Value;

use crate::openapi::repository;
use crate::support::until;
use crate::support::world::World;

/// Every operation below `/v1` of the committed document, with something in place of each parameter.
fn operations() -> Vec<(Method, String)> {
    let text = std::fs::read_to_string(repository().join("openapi/reeve.json")).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        if !path.starts_with("/v1/") {
            continue;
        }
        let id = "01a203a3-faa5-7044-844c-286351a91d99";
        let path = path.replace("{id}", id).replace("{name}", "orders").replace("{version}", "1");
        let path = path.replace("{n}", "1");
        assert!(!path.contains('{'), "{path}");
        for method in item.as_object().unwrap().keys() {
            all.push((method.to_uppercase().parse().unwrap(), path.clone()));
        }
    }
    all
}

#[tokio::test]
async fn every_route_answers_503_and_works_again_afterwards() {
    let mut world = World::new().await;
    world.postgres.kill();
    let operations = operations();
    assert!(operations.len() > 30);
    let ask = async |(method, path): &(Method, String)| {
        let request = reqwest::Client::new()
            .request(method.clone(), format!("{}{path}", world.server.url()))
            .bearer_auth(world.server.token())
            .header("idempotency-key", "outage")
            .header("last-event-id", "5")
            .header("content-type", "application/json")
            .header("if-match", "\"1-1\"")
            .body("{}");
        let response = request.send().await.unwrap();
        let what = format!("{method} {path}");
        assert_eq!(response.status(), 503, "{what}");
        assert_eq!(response.headers()["retry-after"], "5", "{what}");
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{what}");
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem["code"], "database_unavailable", "{what}");
    };
    let began = Instant::now();
    join_all(operations.iter().map(ask)).await;
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());

    // It lives, and it is not ready.
    let get = async |path: &str| {
        let response = reqwest::get(format!("{}{path}", world.server.url())).await.unwrap();
        (response.status().as_u16(), response.headers().get("retry-after").is_some())
    };
    assert_eq!(get("/healthz").await, (200, false));
    assert_eq!(get("/readyz").await, (503, true));
    world.postgres.restart().await.unwrap();
    until("it is ready", Duration::from_secs(20), async || {
        let ready = get("/readyz").await;
        if ready.0 == 200 { Ok(()) } else { Err(format!("{ready:?}")) }
    })
    .await;
    world.client.get("/v1/topologies").await.unwrap();
}
