//! A repeated POST gets the first answer, and does nothing.

use std::time::Duration;

use futures::future::join_all;
use reeve::demo::servers::{Server, ServerOptions};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::support::until;
use crate::support::world::World;

/// An answer: its status, whether it is a replay, and its body.
#[derive(Debug, Clone, PartialEq)]
struct Answer {
    status: u16,
    replayed: bool,
    retry_after: Option<String>,
    body: Value,
}

impl Answer {
    fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }
}

/// Posts with a key and, perhaps, more headers.
async fn post(
    world: &World,
    login: &str,
    path: &str,
    key: &str,
    more: &[(&str, &str)],
    body: &Value,
) -> Answer {
    let mut request = reqwest::Client::new()
        .post(format!("{}{path}", world.server.url()))
        .header("idempotency-key", key)
        .bearer_auth(login)
        .json(body);
    for (name, value) in more {
        request = request.header(*name, *value);
    }
    read(request.send().await.unwrap()).await
}

async fn read(response: reqwest::Response) -> Answer {
    let header = |name: &str| response.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
    let replayed = header("idempotency-replayed").is_some_and(|v| v == "true");
    let (status, retry_after) = (response.status().as_u16(), header("retry-after"));
    if (200..300).contains(&status) && response.url().path().ends_with("/topologies") {
        assert!(header("location").unwrap().starts_with("/v1/plans/"));
    }
    Answer { status, replayed, retry_after, body: response.json().await.unwrap() }
}

/// A connection that keeps others from topologies for as long as its transaction lasts.
async fn hold_topologies(world: &World) -> PgConnection {
    let mut db = PgConnection::connect(&world.postgres.url()).await.unwrap();
    for statement in ["BEGIN", "LOCK TABLE topologies IN ACCESS EXCLUSIVE MODE"] {
        sqlx::query(statement).execute(&mut db).await.unwrap();
    }
    db
}

async fn count(world: &World, path: &str) -> usize {
    world.client.get(path).await.unwrap()["items"].as_array().unwrap().len()
}

#[tokio::test]
async fn a_repeat_gets_the_first_answer_and_does_nothing() {
    let world = World::with_nodes(3).await;
    let (login, path) = (world.server.token(), "/v1/topologies");
    let body = world.cluster("once", 3, 0);
    let first = post(&world, login, path, "k1", &[], &body).await;
    assert_eq!((first.status, first.replayed), (202, false), "{first:?}");
    let again = post(&world, login, path, "k1", &[], &body).await;
    assert_eq!(again, Answer { replayed: true, ..first.clone() });

    // Who waits, waits with a repeat, too, and sees the plan as it is then.
    let waited = post(&world, login, path, "k1", &[("prefer", "wait=60")], &body).await;
    assert_eq!((waited.status, waited.replayed), (202, true));
    assert_eq!(
        (&waited.body["id"], &waited.body["state"]),
        (&first.body["id"], &json!("succeeded"))
    );
    assert_eq!(count(&world, "/v1/plans").await, 1);
    assert_eq!(count(&world, "/v1/topologies").await, 1);

    // The key stands for that one request.
    let mut other = body.clone();
    other["labels"] = json!({ "team": "shop" });
    for (path, body) in [(path, &other), ("/v1/topologies/preview", &body)] {
        let refused = post(&world, login, path, "k1", &[], body).await;
        assert_eq!((refused.status, refused.code()), (422, "idempotency_key_reused"));
        assert!(!refused.replayed);
    }

    // A refusal is an answer like any other: it is still given when it would be another one now.
    let taken = post(&world, login, path, "k2", &[], &body).await;
    assert_eq!((taken.status, taken.code()), (409, "name_taken"));
    let etag = world.client.etag("/v1/topologies/once").await.unwrap();
    world.client.delete("/v1/topologies/once", etag.as_deref()).await.unwrap();
    let mut again = post(&world, login, path, "k2", &[], &body).await;
    assert_eq!((again.status, again.code(), again.replayed), (409, "name_taken", true));
    // The id of a request is that request's own.
    assert_ne!(again.body["request_id"], taken.body["request_id"]);
    again.body["request_id"] = taken.body["request_id"].clone();
    assert_eq!(again.body, taken.body);
    let anew = post(&world, login, path, "k3", &[], &body).await;
    assert_eq!(anew.code(), "nodes_unfit", "they are a cluster now");
}

#[tokio::test]
async fn keys_belong_to_a_token_and_nothing_secret_rests_in_clear() {
    let world = World::new().await;
    let make = json!({ "name": "second", "role": "admin" });
    let path = "/v1/tokens";
    let first = post(&world, world.server.token(), path, "same", &[], &make).await;
    let again = post(&world, world.server.token(), path, "same", &[], &make).await;
    assert_eq!((first.status, again.replayed), (201, true));
    assert_eq!(first.body, again.body, "a lost answer is not lost");
    let second = first.body["secret"].as_str().unwrap();
    let theirs = post(&world, second, path, "same", &[], &make).await;
    assert_eq!((theirs.status, theirs.replayed), (201, false), "another token, another key");

    let login = json!({ "name": "orders", "password": "hunter2" });
    let stored = post(&world, second, "/v1/credentials", "c", &[], &login).await;
    assert_eq!(stored.status, 201);
    assert!(post(&world, second, "/v1/credentials", "c", &[], &login).await.replayed);
    let mut db = PgConnection::connect(&world.postgres.url()).await.unwrap();
    let rows: Vec<(Vec<u8>, Vec<u8>)> =
        sqlx::query_as("SELECT request, answer FROM idempotency_keys")
            .fetch_all(&mut db)
            .await
            .unwrap();
    assert_eq!(rows.len(), 3);
    for (request, answer) in rows {
        assert_eq!(request.len(), 32);
        assert!(!String::from_utf8_lossy(&answer).contains("reeve_"));
        assert!(!String::from_utf8_lossy(&answer).contains("name"));
    }

    // What is not authenticated is not stored, nor is a key that makes no sense.
    let wrong = post(&world, "reeve_0_nonsense", path, "x", &[], &make).await;
    assert_eq!((wrong.status, wrong.code()), (401, "unauthorized"));
    let long = "x".repeat(256);
    for key in [long.as_str(), "tab\tbed"] {
        let wrong = post(&world, second, path, key, &[], &make).await;
        assert_eq!((wrong.status, wrong.code()), (400, "invalid_parameter"));
        assert!(wrong.body["detail"].as_str().unwrap().contains("Idempotency-Key"));
    }
    // A day later a key is free again, and the old answers are gone.
    sqlx::query("UPDATE idempotency_keys SET created_at = now() - interval '25 hours'")
        .execute(&mut db)
        .await
        .unwrap();
    let other = json!({ "name": "x", "role": "viewer" });
    let tomorrow = post(&world, second, path, "same", &[], &other).await;
    assert_eq!(tomorrow.status, 201);
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM idempotency_keys")
        .fetch_one(&mut db)
        .await
        .unwrap();
    assert_eq!(rows, 1);
}

#[tokio::test]
async fn of_many_at_once_on_two_instances_one_runs() {
    let world = World::new().await;
    let binary = std::path::PathBuf::from(env!("CARGO_BIN_EXE_reeve"));
    let dir = world.folder.join("reeve-2");
    let mut options = ServerOptions::new(binary, dir, world.postgres.url()).unwrap();
    options.token = world.server.token().to_owned();
    let second = Server::start(options).await.unwrap();
    for round in 0..5 {
        let body = json!({ "name": format!("round-{round}"), "role": "viewer" });
        let key = format!("round-{round}");
        let send = async |i: usize| {
            let url = if i.is_multiple_of(2) { world.server.url() } else { second.url() };
            let request = reqwest::Client::new()
                .post(format!("{url}/v1/tokens"))
                .header("idempotency-key", &key)
                .bearer_auth(world.server.token())
                .json(&body);
            read(request.send().await.unwrap()).await
        };
        let answers = join_all((0..10).map(send)).await;
        let ran = answers.iter().filter(|a| a.status == 201 && !a.replayed).count();
        assert_eq!(ran, 1, "{answers:?}");
        for answer in &answers {
            match answer.status {
                201 => assert_eq!(answer.body["name"], body["name"]),
                409 => {
                    assert_eq!(answer.code(), "idempotency_in_flight");
                    assert_eq!(answer.retry_after.as_deref(), Some("1"));
                }
                _ => panic!("{answer:?}"),
            }
        }
        assert_eq!(send(1).await.status, 201);
        assert_eq!(count(&world, "/v1/tokens").await, 2 + round, "and the admin's");
    }
}

#[tokio::test]
async fn what_passes_by_itself_is_not_kept() {
    let mut world = World::with_nodes(3).await;
    let (login, path) = (world.server.token().to_owned(), "/v1/topologies");
    let body = world.cluster("later", 3, 0);
    let lock = hold_topologies(&world).await;
    let (busy, meanwhile) = tokio::join!(post(&world, &login, path, "k", &[], &body), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        post(&world, &login, path, "k", &[], &body).await
    });
    assert_eq!((busy.status, busy.code()), (503, "busy"), "{busy:?}");
    assert_eq!(busy.retry_after.as_deref(), Some("1"));
    assert_eq!((meanwhile.status, meanwhile.code()), (409, "idempotency_in_flight"));
    drop(lock);

    world.postgres.kill();
    let away = post(&world, &login, path, "k", &[], &body).await;
    assert_eq!((away.status, away.code()), (503, "database_unavailable"));
    assert_eq!(away.retry_after.as_deref(), Some("5"));
    world.postgres.restart().await.unwrap();
    let made = until("the database is back", Duration::from_secs(20), async || {
        let answer = post(&world, &login, path, "k", &[], &body).await;
        if answer.status == 202 { Ok(answer) } else { Err(format!("{answer:?}")) }
    })
    .await;
    assert!(!made.replayed, "it ran now");
    assert_eq!(count(&world, "/v1/topologies").await, 1);
}

#[tokio::test]
async fn a_client_that_hangs_up_finds_its_answer_and_a_killed_server_holds_no_key_for_ever() {
    let mut world = World::with_nodes(3).await;
    let (login, path) = (world.server.token().to_owned(), "/v1/topologies");
    let body = world.cluster("gone", 3, 0);
    let lock = hold_topologies(&world).await;
    let hurried = tokio::time::timeout(
        Duration::from_millis(500),
        post(&world, &login, path, "hurried", &[], &body),
    );
    assert!(hurried.await.is_err(), "the client hangs up");
    drop(lock);
    let answer = until("its answer", Duration::from_secs(20), async || {
        let answer = post(&world, &login, path, "hurried", &[], &body).await;
        if answer.status == 202 { Ok(answer) } else { Err(format!("{answer:?}")) }
    })
    .await;
    assert!(answer.replayed, "it was carried out although nobody listened");
    let id = answer.body["id"].as_str().unwrap().to_owned();
    until("the plan's end", Duration::from_secs(30), async || {
        let plan = world.client.get(&format!("/v1/plans/{id}")).await.map_err(|e| e.to_string())?;
        if plan["state"] == "succeeded" { Ok(()) } else { Err(plan["state"].to_string()) }
    })
    .await;

    let repair = json!({ "intent": { "kind": "repair" } });
    let path = "/v1/topologies/gone/plans";
    let lock = hold_topologies(&world).await;
    let killed = tokio::time::timeout(
        Duration::from_millis(500),
        post(&world, &login, path, "killed", &[], &repair),
    );
    assert!(killed.await.is_err());
    world.server.kill9();
    drop(lock);
    world.server.restart().await.unwrap();
    let waits = post(&world, &login, path, "killed", &[], &repair).await;
    assert_eq!((waits.status, waits.code()), (409, "idempotency_in_flight"));
    let freed = until("the key is free", Duration::from_secs(25), async || {
        let answer = post(&world, &login, path, "killed", &[], &repair).await;
        if answer.status == 202 { Ok(answer) } else { Err(format!("{answer:?}")) }
    })
    .await;
    assert!(!freed.replayed, "it ran now");
    assert_eq!(count(&world, "/v1/plans?kind=repair").await, 1);
}
