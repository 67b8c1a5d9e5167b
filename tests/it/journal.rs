//! The journal's order holds for whoever follows it, and what is filtered in memory is what the
//! database would have given.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::StreamExt;
use futures::future::join_all;
use reeve::domain::event::{EventType, NewEvent};
use reeve::domain::id::{PlanId, TokenId};
use reeve::store::Store;
use reeve::store::journal::{self, EventFilter};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::support::world::World;
use crate::support::{Dice, repeats, until};

fn some_id(dice: &mut Dice) -> Uuid {
    Uuid::from_u128(u128::from(dice.below(3)))
}

#[tokio::test]
async fn writers_at_once_are_never_seen_out_of_order_or_skipped() {
    let world = World::new().await;
    let store = Store::new(&world.postgres.url(), Duration::from_secs(30)).unwrap();
    let writers = 8;
    let writer = async |seed: u64| {
        let mut dice = Dice::new(seed);
        for n in 0..20 {
            let mut tx = store.pool().begin().await.unwrap();
            let count = 1 + dice.below(3);
            let event = || NewEvent::new(EventType::NodeUp, json!({ "writer": seed, "n": n }));
            let events: Vec<NewEvent> = (0..count).map(|_| event()).collect();
            journal::append(&mut tx, None, &events).await.unwrap();
            // Between the ids and the commit is where a reader could be led astray.
            tokio::time::sleep(Duration::from_millis(dice.below(4))).await;
            if dice.below(5) == 0 {
                tx.rollback().await.unwrap();
            } else {
                tx.commit().await.unwrap();
            }
        }
    };
    for round in 0..repeats() {
        let before = store.last_event_id().await.unwrap();
        let streams: Vec<_> = (0..5)
            .map(|_| world.client.events("/v1/events/stream", Some(before.to_string())))
            .collect();
        let writing = async {
            join_all((0..writers).map(|w| writer(round * writers + w))).await;
            store.tell(None, &[NewEvent::new(EventType::NodeDown, json!({}))]).await.unwrap();
        };
        let reading = join_all(streams.into_iter().map(|mut stream| async move {
            let mut ids = Vec::new();
            while let Some(event) = stream.next().await {
                let event = event.unwrap();
                ids.extend(event.id.as_ref().map(|id| id.parse::<i64>().unwrap()));
                if event.event == "node.down" {
                    break;
                }
            }
            ids
        }));
        let both = async { tokio::join!(reading, writing) };
        let (seen, ()) = tokio::time::timeout(Duration::from_secs(60), both).await.unwrap();
        let filter = EventFilter { after: before, ..EventFilter::default() };
        let all = store.events(&filter, 10_000).await.unwrap();
        let all: Vec<i64> = all.iter().map(|e| e.id).collect();
        assert!(all.len() > 100, "{}", all.len());
        for ids in seen {
            assert_eq!(ids, all);
        }
    }
}

#[tokio::test]
async fn a_filter_says_in_memory_what_it_says_in_the_database() {
    let world = World::new().await;
    let store = Store::new(&world.postgres.url(), Duration::from_secs(30)).unwrap();
    let mut db = PgConnection::connect(&world.postgres.url()).await.unwrap();
    let mut dice = Dice::new(5);
    let names = ["orders", "carts", "Orders", "x"];
    let types = ["plan.failed", "plan.step_done", "node.up", "node.upset", "plan"];
    let began: DateTime<Utc> = "2026-01-02T03:04:05.000001Z".parse().unwrap();
    let newest = store.last_event_id().await.unwrap();
    for n in 1..=120 {
        let topology = names.get(dice.below(5) as usize);
        let plan = (dice.below(2) == 0).then(|| some_id(&mut dice));
        sqlx::query(
            "INSERT INTO events (id, topology, type, at, data, plan_id)
             VALUES ($1, $2, $3, $4, '{}', $5)",
        )
        .bind(newest + n)
        .bind(topology)
        .bind(types[dice.below(5) as usize])
        .bind(began + TimeDelta::microseconds(dice.below(20) as i64))
        .bind(plan)
        .execute(&mut db)
        .await
        .unwrap();
    }
    let all = store.events(&EventFilter::default(), 1000).await.unwrap();
    let patterns =
        ["plan.*", "*", "node.up", "node.up*", "plan.step_done", "plan", "p*n.*", "none", ""];
    let mut matched = 0;
    for _ in 0..400 {
        let name = |dice: &mut Dice| names[dice.below(4) as usize].to_owned();
        let some = |dice: &mut Dice, one_in: u64| dice.below(one_in) == 0;
        let filter = EventFilter {
            after: if some(&mut dice, 2) { newest + dice.below(130) as i64 } else { 0 },
            topology: some(&mut dice, 3).then(|| name(&mut dice)),
            plan: some(&mut dice, 3).then(|| PlanId(some_id(&mut dice))),
            types: (0..dice.below(3))
                .map(|_| patterns[dice.below(9) as usize].to_owned())
                .collect(),
            since: some(&mut dice, 2)
                .then(|| began + TimeDelta::nanoseconds(dice.below(22_000) as i64)),
            visible: some(&mut dice, 3)
                .then(|| (0..dice.below(3)).map(|_| name(&mut dice)).collect()),
        };
        let there: Vec<i64> =
            store.events(&filter, 1000).await.unwrap().iter().map(|e| e.id).collect();
        let here: Vec<i64> = all.iter().filter(|e| filter.matches(e)).map(|e| e.id).collect();
        assert_eq!(there, here, "{filter:?}");
        matched += here.len();
    }
    assert!(matched > 500, "{matched}");
}

/// The next event of a stream, or that it ended or was refused.
async fn next(
    stream: &mut (
             impl StreamExt<Item = Result<reeve::client::SseEvent, reeve::client::ClientError>> + Unpin
         ),
) -> Result<String, String> {
    let next = tokio::time::timeout(Duration::from_secs(20), stream.next()).await.unwrap();
    match next {
        Some(Ok(event)) => Ok(event.event),
        Some(Err(error)) => Err(error.code().unwrap_or("?").to_owned()),
        None => Err("end".to_owned()),
    }
}

#[tokio::test]
async fn a_stream_ends_with_its_token() {
    let world = World::new().await;
    let make = async |body: Value| world.client.post("/v1/tokens", &body).await.unwrap();
    let soon = (chrono_now(&world).await + TimeDelta::seconds(3)).to_rfc3339();
    let revoked = make(json!({ "name": "a", "role": "viewer" })).await;
    let expires = make(json!({ "name": "b", "role": "viewer", "expires_at": soon })).await;
    let stays = make(json!({ "name": "c", "role": "viewer" })).await;
    let open = |token: &Value| {
        let secret = token["secret"].as_str().unwrap();
        let client = reeve::client::Client::new(&world.server.url(), secret).unwrap();
        client.events("/v1/events/stream", Some("0".to_owned()))
    };
    let store = Store::new(&world.postgres.url(), Duration::from_secs(30)).unwrap();
    store.tell(None, &[NewEvent::new(EventType::NodeUp, json!({}))]).await.unwrap();
    let (mut revoked_stream, mut expiring, mut staying) =
        (open(&revoked), open(&expires), open(&stays));
    for stream in [&mut revoked_stream, &mut expiring, &mut staying] {
        assert_eq!(next(stream).await, Ok("node.up".to_owned()));
    }
    let path = format!("/v1/tokens/{}", revoked["id"].as_str().unwrap());
    world.client.delete(&path, None).await.unwrap();
    // The client connects again by itself, and is told why it cannot.
    assert_eq!(next(&mut revoked_stream).await, Err("unauthorized".to_owned()));
    assert_eq!(next(&mut expiring).await, Err("unauthorized".to_owned()));
    store.tell(None, &[NewEvent::new(EventType::NodeDown, json!({}))]).await.unwrap();
    assert_eq!(next(&mut staying).await, Ok("node.down".to_owned()));
    let id = TokenId(stays["id"].as_str().unwrap().parse().unwrap());
    assert_eq!(store.living_tokens(&[id.0]).await.unwrap(), [id.0]);
}

#[tokio::test]
async fn a_limited_stream_goes_on_with_what_its_token_sees_now() {
    let world = World::with_nodes(3).await;
    let body = json!({ "name": "a", "role": "viewer", "topologies": { "names": ["later"] } });
    let token = world.client.post("/v1/tokens", &body).await.unwrap();
    let client =
        reeve::client::Client::new(&world.server.url(), token["secret"].as_str().unwrap()).unwrap();
    let reading = tokio::spawn(async move {
        let mut stream = client.events("/v1/events/stream", None);
        let mut kinds = Vec::new();
        while kinds.last().is_none_or(|kind| kind != "plan.succeeded") {
            kinds.push(next(&mut stream).await.unwrap());
        }
        kinds
    });
    until("the stream is open", Duration::from_secs(10), async || {
        let metrics = reqwest::get(format!("{}/metrics", world.server.url())).await.unwrap();
        let text = metrics.text().await.unwrap();
        if text.contains("reeve_streams 1") { Ok(()) } else { Err(text) }
    })
    .await;
    // It is made after the stream began, so the stream has to begin anew, and misses nothing.
    world.create(&world.cluster("later", 3, 0)).await;
    let kinds = reading.await.unwrap();
    assert_eq!(kinds[..3], ["topology.created", "plan.proposed", "plan.queued"], "{kinds:?}");
}

/// The database's clock.
async fn chrono_now(world: &World) -> DateTime<Utc> {
    let mut db = PgConnection::connect(&world.postgres.url()).await.unwrap();
    sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&mut db).await.unwrap()
}

#[tokio::test]
async fn a_database_from_a_backup_is_noticed_by_whoever_knew_more() {
    let world = World::new().await;
    let store = Store::new(&world.postgres.url(), Duration::from_secs(30)).unwrap();
    let up = || NewEvent::new(EventType::NodeUp, json!({}));
    store.tell(None, &[up(), up(), up()]).await.unwrap();
    let newest = store.last_event_id().await.unwrap();
    let mut follower = world.client.events("/v1/events/stream", Some("0".to_owned()));
    for _ in 0..3 {
        assert_eq!(next(&mut follower).await, Ok("node.up".to_owned()));
    }
    // As a restore does it: the newest two are gone, and their ids are given anew.
    let mut db = PgConnection::connect(&world.postgres.url()).await.unwrap();
    sqlx::query("DELETE FROM events WHERE id > $1")
        .bind(newest - 2)
        .execute(&mut db)
        .await
        .unwrap();
    sqlx::query("SELECT setval('event_ids', $1)").bind(newest - 2).execute(&mut db).await.unwrap();
    assert_eq!(next(&mut follower).await, Err("gone".to_owned()), "an open stream is cut");
    let mut late = world.client.events("/v1/events/stream", Some(newest.to_string()));
    assert_eq!(next(&mut late).await, Err("gone".to_owned()));
    // Who knows no more than the database goes on, with the new events.
    let known = Some((newest - 2).to_string());
    let mut fresh = world.client.events("/v1/events/stream", known);
    store.tell(None, &[NewEvent::new(EventType::NodeDown, json!({}))]).await.unwrap();
    assert_eq!(next(&mut fresh).await, Ok("node.down".to_owned()));
}

#[tokio::test]
async fn a_stream_that_begins_while_the_database_is_away_is_told_and_one_that_is_open_stays() {
    let mut world = World::new().await;
    let url = world.postgres.url();
    let tell = async |kind: EventType| {
        let store = Store::new(&url, Duration::from_secs(30)).unwrap();
        store.tell(None, &[NewEvent::new(kind, json!({}))]).await.unwrap();
    };
    tell(EventType::NodeUp).await;
    let url = format!("{}/v1/events/stream?since=2020-01-01T00:00:00Z", world.server.url());
    let get = || reqwest::Client::new().get(&url).bearer_auth(world.server.token()).send();
    let open = get().await.unwrap();
    let mut body = open.bytes_stream();
    let mut parser = reeve::client::sse::Parser::default();
    let mut event = async || loop {
        let chunk = tokio::time::timeout(Duration::from_secs(20), body.next()).await.unwrap();
        if let Some(event) = parser.push(&chunk.unwrap().unwrap()).pop() {
            return event.event;
        }
    };
    assert_eq!(event().await, "node.up");
    world.postgres.kill();
    let refused = get().await.unwrap();
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "5");
    let ready = reqwest::get(format!("{}/readyz", world.server.url())).await.unwrap();
    assert_eq!(ready.status(), 503);
    world.postgres.restart().await.unwrap();
    until("it is ready", Duration::from_secs(20), async || {
        let ready = reqwest::get(format!("{}/readyz", world.server.url())).await.unwrap();
        if ready.status() == 200 { Ok(()) } else { Err(ready.status().to_string()) }
    })
    .await;
    tell(EventType::NodeDown).await;
    assert_eq!(event().await, "node.down");
}
