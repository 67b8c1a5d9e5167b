//! Webhooks: whoever subscribed gets every event, signed, at least once, whatever happens to the
//! endpoint, to Reeve or to another endpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use reeve::client::ClientError;
use reeve::domain::event::EventType;
use reeve::domain::event_data;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::support::receiver::{Call, Manner, Receiver, journal, subscribe, takes, verify, world};
use crate::support::world::World;
use crate::support::{Dice, repeats, until};

const SOON: Duration = Duration::from_secs(10);

async fn sql(world: &World, statement: &'static str) {
    let mut db = PgConnection::connect(&world.postgres.url()).await.unwrap();
    sqlx::query(statement).execute(&mut db).await.unwrap();
}

/// Time passes for deliveries, as far as the next attempt is concerned.
async fn let_time_pass(world: &World) {
    sql(world, "UPDATE deliveries SET next_attempt_at = clock_timestamp() WHERE state = 'pending'")
        .await;
}

fn path(webhook: &Value) -> String {
    format!("/v1/webhooks/{}", webhook["id"].as_str().unwrap())
}

async fn log(world: &World, webhook: &Value) -> Vec<Value> {
    let page = world.client.get(&format!("{}/deliveries?limit=200", path(webhook))).await.unwrap();
    page["items"].as_array().unwrap().clone()
}

/// A topology whose labels can be changed, each time for one event.
async fn with_orders(world: &mut World) {
    world.add_nodes(3, &[]).await;
    world.create(&world.cluster("orders", 3, 0)).await;
}

async fn label(world: &World, number: usize) -> Result<Value, ClientError> {
    let path = "/v1/topologies/orders";
    let now = world.client.get(path).await?;
    label_after(world, &now, number).await
}

/// The same by one who knows it as it is now.
async fn label_after(world: &World, now: &Value, number: usize) -> Result<Value, ClientError> {
    let etag = format!("\"{}-{}\"", now["version"], now["revision"]);
    let body = json!({ "labels": { "n": number.to_string() } });
    world.client.patch("/v1/topologies/orders", &body, Some(&etag)).await
}

/// What arrived, as the journal would have it.
fn events(calls: &[Call]) -> Vec<Value> {
    let all = calls.iter().map(|call| call.json["data"].clone());
    let by_id: BTreeMap<i64, Value> = all.map(|e| (e["id"].as_i64().unwrap(), e)).collect();
    by_id.into_values().collect()
}

#[tokio::test]
async fn whoever_subscribed_gets_each_event_signed_and_as_the_journal_has_it() {
    let mut world = world().await;
    let (all, some) = (Receiver::start().await, Receiver::start().await);
    let webhook = subscribe(&world, &all, &["*"]).await;
    let secret = webhook["secret"].as_str().unwrap();
    let body = json!({ "url": some.url(), "events": ["plan.*", "node.registered"], "topologies": ["orders"] });
    world.client.post("/v1/webhooks", &body).await.unwrap();
    with_orders(&mut world).await;

    let told = journal(&world, "").await;
    let taken = takes(&all, told.len(), SOON).await;
    assert_eq!(events(&taken), told);
    assert_eq!(taken.len(), told.len(), "each once");
    verify(&taken, secret);
    for call in &taken {
        let (letter, event) = (&call.json, &call.json["data"]);
        assert_eq!(call.headers["content-type"], "application/cloudevents+json; charset=utf-8");
        assert_eq!(letter["id"].as_str().unwrap(), event["id"].to_string());
        assert_eq!((&letter["type"], &letter["time"]), (&event["type"], &event["at"]));
        let kind = EventType::parse(event["type"].as_str().unwrap()).unwrap();
        event_data::check(kind, &event["data"]).unwrap_or_else(|e| panic!("{e}: {event:#}"));
    }
    // The other one wanted less.
    let wanted =
        |e: &&Value| e["topology"] == "orders" && e["type"].as_str().unwrap().starts_with("plan.");
    let wanted: Vec<Value> = told.iter().filter(wanted).cloned().collect();
    assert_eq!(events(&takes(&some, wanted.len(), SOON).await), wanted);

    // The log has it, and the secret stands nowhere.
    let log = log(&world, &webhook).await;
    assert_eq!(log.len(), told.len());
    assert!(log.iter().all(|d| d["state"] == "delivered" && d["attempts"][0]["status"] == 204));
    let shown = world.client.get(&path(&webhook)).await.unwrap();
    assert!(shown.get("secret").is_none());
    assert!(!shown.to_string().contains("whsec_"));

    // The same event once more, by request; it can be told by its id.
    let again = format!("/v1/deliveries/{}/redeliver", log[0]["id"].as_str().unwrap());
    world.client.post(&again, &json!({})).await.unwrap();
    let calls = until("it comes again", SOON, async || {
        let calls = all.taken();
        if calls.len() > told.len() { Ok(calls) } else { Err(calls.len().to_string()) }
    })
    .await;
    assert_eq!(calls[told.len()].json, calls[told.len() - 1].json);
}

#[tokio::test]
async fn while_a_secret_rotates_both_are_valid() {
    let world = world().await;
    let receiver = Receiver::start().await;
    let webhook = subscribe(&world, &receiver, &["*"]).await;
    let test = format!("{}/test", path(&webhook));
    world.client.post(&test, &json!({})).await.unwrap();
    takes(&receiver, 1, SOON).await;
    let rotate = format!("{}/rotate-secret", path(&webhook));
    let rotated = world.client.post(&rotate, &json!({})).await.unwrap();
    assert!(rotated["previous_secret_until"].is_string(), "{rotated}");
    world.client.post(&test, &json!({})).await.unwrap();
    let calls = takes(&receiver, 2, SOON).await;
    let (old, new) = (webhook["secret"].as_str().unwrap(), rotated["secret"].as_str().unwrap());
    assert_ne!(old, new);
    verify(&calls, old);
    verify(&calls[1..], new);
    // A day later the old one is void.
    sql(&world, "UPDATE webhooks SET previous_until = previous_until - interval '1 day'").await;
    world.client.post(&test, &json!({})).await.unwrap();
    let calls = takes(&receiver, 3, SOON).await;
    assert_eq!(calls[2].headers["webhook-signature"].split(' ').count(), 1);
    verify(&calls[2..], new);
}

#[tokio::test]
async fn an_endpoint_that_was_down_misses_nothing() {
    let mut world = world().await;
    let mut receiver = Receiver::start().await;
    let webhook = subscribe(&world, &receiver, &["*"]).await;
    receiver.go_down().await;
    with_orders(&mut world).await;
    for number in 0..20 {
        label(&world, number).await.unwrap();
    }
    let told = journal(&world, "").await;
    // The schedule of an hour: attempts at once, after 5 s, 30 s, 5 min and 30 min.
    for attempt in 1..=4 {
        until("all were tried", Duration::from_secs(20), async || {
            let log = log(&world, &webhook).await;
            let tried = log.iter().filter(|d| d["attempts"].as_array().unwrap().len() >= attempt);
            let tried = tried.count();
            if tried == told.len() { Ok(()) } else { Err(format!("{tried} of {}", told.len())) }
        })
        .await;
        if attempt < 4 {
            let_time_pass(&world).await;
        }
    }
    let failing = world.client.get(&path(&webhook)).await.unwrap();
    assert!(failing["failing_since"].is_string() && failing["enabled"] == true, "{failing}");
    let attempt = &log(&world, &webhook).await[0]["attempts"][0];
    assert_eq!(attempt["status"], Value::Null);
    assert!(attempt["error"].as_str().unwrap().contains("refused"), "{attempt}");

    receiver.come_back().await;
    let_time_pass(&world).await;
    let calls = takes(&receiver, told.len(), Duration::from_secs(20)).await;
    let mut sorted: Vec<Value> = calls.iter().map(|c| c.json["data"].clone()).collect();
    sorted.retain(|event| event["topology"] == "orders");
    sorted.sort_by_key(|event| event["seq"].as_i64());
    assert_eq!(sorted, journal(&world, "topology=orders").await);
    assert_eq!(calls.len(), told.len(), "each once");
    let well = world.client.get(&path(&webhook)).await.unwrap();
    assert_eq!(well["failing_since"], Value::Null);
}

#[tokio::test]
async fn an_endpoint_that_fails_for_days_or_is_gone_is_disabled_and_that_is_told() {
    let mut world = world().await;
    let (failing, gone) = (
        Receiver::answering(Manner::Status(500)).await,
        Receiver::answering(Manner::Status(410)).await,
    );
    let watcher = Receiver::start().await;
    let failing_hook = subscribe(&world, &failing, &["topology.changed"]).await;
    let gone_hook = subscribe(&world, &gone, &["topology.created"]).await;
    subscribe(&world, &watcher, &["webhook.disabled"]).await;
    with_orders(&mut world).await;
    label(&world, 0).await.unwrap();
    until("it failed", SOON, async || {
        let hook = world.client.get(&path(&failing_hook)).await.unwrap();
        if hook["failing_since"].is_string() { Ok(()) } else { Err(hook.to_string()) }
    })
    .await;
    let hook = world.client.get(&path(&failing_hook)).await.unwrap();
    assert_eq!(hook["enabled"], true);
    sql(&world, "UPDATE webhooks SET failing_since = failing_since - interval '5 days'").await;
    let_time_pass(&world).await;
    let calls = takes(&watcher, 2, SOON).await;
    let told: BTreeSet<String> = calls
        .iter()
        .map(|c| c.json["data"]["data"]["because"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(told, ["failing", "gone"].map(str::to_owned).into());
    for call in &calls {
        event_data::check(EventType::WebhookDisabled, &call.json["data"]["data"]).unwrap();
        assert!(!call.body.contains("/reeve"), "what follows the host may be a secret");
    }
    for (hook, because) in [(&failing_hook, "failing"), (&gone_hook, "gone")] {
        let hook = world.client.get(&path(hook)).await.unwrap();
        assert_eq!((&hook["enabled"], &hook["disabled_because"]), (&json!(false), &json!(because)));
        let refused = world.client.post(&format!("{}/test", path(&hook)), &json!({})).await;
        let Err(ClientError::Problem(problem)) = refused else { panic!("{refused:?}") };
        assert_eq!(problem.code.as_deref(), Some("webhook_disabled"));
    }
    assert_eq!(journal(&world, "types=webhook.disabled").await.len(), 2);

    // Mended and enabled again, it gets what still waited.
    let calls = failing.calls().len();
    failing.answer(Manner::Status(200));
    let enable = json!({ "enabled": true });
    world.client.patch(&path(&failing_hook), &enable, None).await.unwrap();
    takes(&failing, 1, SOON).await;
    assert_eq!(failing.calls().len(), calls + 1);
}

#[tokio::test]
async fn a_killed_server_loses_no_event() {
    let mut world = world().await;
    let receiver = Receiver::start().await;
    subscribe(&world, &receiver, &["*"]).await;
    with_orders(&mut world).await;
    let mut dice = Dice::new(7);
    for round in 0..repeats() {
        let pause = Duration::from_millis(dice.below(250));
        let deadline = tokio::time::sleep(pause);
        tokio::pin!(deadline);
        let mut number = usize::try_from(round * 1000).unwrap();
        loop {
            tokio::select! {
                () = &mut deadline => break,
                changed = label(&world, number) => {
                    changed.unwrap();
                    number += 1;
                }
            }
        }
        world.server.kill9();
        world.server.restart().await.unwrap();
        world.client = crate::support::world::client_of(&world.server);
    }
    // What was claimed by one that was killed is due when its time is over.
    let_time_pass(&world).await;
    let told = journal(&world, "").await;
    let calls = takes(&receiver, told.len(), Duration::from_secs(60)).await;
    assert_eq!(events(&calls), told);
    let twice = calls.len() - told.len();
    println!("{} events, {twice} of them twice", told.len());
    // At a kill, no more than is in hand for one endpoint can have been sent and not noted.
    assert!(twice as u64 <= repeats() * 8 + 8, "{twice}");
}

#[tokio::test]
async fn two_instances_do_not_both_send() {
    let mut world = world().await;
    let receiver = Receiver::start().await;
    subscribe(&world, &receiver, &["*"]).await;
    let other = world.another_server().await;
    with_orders(&mut world).await;
    for number in 0..100 {
        label(&world, number).await.unwrap();
    }
    let told = journal(&world, "").await;
    let calls = takes(&receiver, told.len(), SOON).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!((calls.len(), receiver.calls().len()), (told.len(), told.len()), "each once");
    drop(other);
}

#[tokio::test]
async fn an_endpoint_that_never_answers_delays_no_other() {
    let mut world = world().await;
    let (hanging, well) = (Receiver::answering(Manner::Hang).await, Receiver::start().await);
    subscribe(&world, &hanging, &["*"]).await;
    let hanging_since = Instant::now();
    with_orders(&mut world).await;
    subscribe(&world, &well, &["topology.changed"]).await;
    until("it hangs", SOON, async || {
        let calls = hanging.calls().len();
        if calls >= 8 { Ok(()) } else { Err(calls.to_string()) }
    })
    .await;
    let began = Instant::now();
    let mut sent = BTreeMap::new();
    let mut now = world.client.get("/v1/topologies/orders").await.unwrap();
    for number in 0..200u32 {
        // A hundred a second, or as many as the machine gives.
        tokio::time::sleep_until((began + number * Duration::from_millis(10)).into()).await;
        sent.insert(number.to_string(), Instant::now());
        now = label_after(&world, &now, number as usize).await.unwrap();
    }
    let rate = 200.0 / began.elapsed().as_secs_f64();
    let calls = takes(&well, 200, SOON).await;
    let mut delays: Vec<Duration> = calls
        .iter()
        .map(|call| {
            let number = call.json["data"]["data"]["labels"]["n"].as_str().unwrap();
            call.at.saturating_duration_since(sent[number])
        })
        .collect();
    delays.sort();
    println!(
        "{rate:.0} events a second; delays: median {:?}, longest {:?}",
        delays[100], delays[199]
    );
    assert!(delays[199] < Duration::from_secs(1), "{:?}", delays[199]);
    // No more than its own places, each for 15 seconds.
    let calls = hanging.calls().len() as u64;
    assert!(calls <= 8 * (1 + hanging_since.elapsed().as_secs() / 15), "{calls}");
}

#[tokio::test]
async fn hostile_targets_are_refused_with_the_reason() {
    let closed = World::new().await;
    let post = async |world: &World, url: &str| {
        let body = json!({ "url": url, "events": ["*"] });
        world.client.post("/v1/webhooks", &body).await
    };
    for (url, word) in [
        ("http://169.254.169.254/latest/meta-data/", "metadata"),
        ("http://0xa9fea9fe/", "metadata"),
        ("http://2130706433/", "loopback"),
        ("http://0177.1/", "loopback"),
        ("http://[::ffff:127.0.0.1]/", "loopback"),
        ("http://localhost/", "loopback"),
        ("http://10.0.0.1/", "REEVE_WEBHOOK_ALLOW_CIDRS"),
        ("http://user:pass@hooks.example/", "login"),
        ("file:///etc/passwd", "http"),
        ("no url", "URL"),
    ] {
        let refused = post(&closed, url).await;
        let Err(ClientError::Problem(problem)) = refused else { panic!("{url}: {refused:?}") };
        assert_eq!((problem.status, problem.code.as_deref()), (422, Some("invalid_body")), "{url}");
        assert_eq!(problem.errors[0].pointer, "/url");
        assert!(problem.errors[0].detail.contains(word), "{url}: {}", problem.errors[0].detail);
    }
    let bad = json!({ "url": "https://hooks.example/", "events": ["nodes.*"] });
    let Err(ClientError::Problem(problem)) = closed.client.post("/v1/webhooks", &bad).await else {
        panic!("taken");
    };
    assert_eq!(problem.errors[0].pointer, "/events/0");
    // A name that leads inside, as this machine's resolver has it.
    let own = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    if !own.trim().is_empty() && own.trim() != "localhost" {
        let url = format!("http://{}/", own.trim());
        assert!(post(&closed, &url).await.is_err(), "{url}");
    }

    // Where the range is allowed, all its spellings are, and redirects lead nowhere.
    let open = world().await;
    let receiver = Receiver::answering(Manner::Redirect).await;
    let spelt = receiver.url().replace("127.0.0.1", "0x7f.1");
    let body = json!({ "url": spelt, "events": ["*"] });
    let webhook = open.client.post("/v1/webhooks", &body).await.unwrap();
    open.client.post(&format!("{}/test", path(&webhook)), &json!({})).await.unwrap();
    until("it says why", SOON, async || {
        let log = log(&open, &webhook).await;
        let attempt = &log[0]["attempts"][0];
        let why = attempt["error"].as_str().unwrap_or_default();
        if attempt["status"] == 307 && why.contains("redirect") {
            Ok(())
        } else {
            Err(format!("{log:?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn only_admins_see_webhooks() {
    let world = World::new().await;
    let body = json!({ "name": "ops", "role": "operator" });
    let token = world.client.post("/v1/tokens", &body).await.unwrap();
    let operator =
        reeve::client::Client::new(world.client.base(), token["secret"].as_str().unwrap()).unwrap();
    for answer in [
        operator.get("/v1/webhooks").await,
        operator
            .post("/v1/webhooks", &json!({ "url": "https://a.example/", "events": ["*"] }))
            .await,
    ] {
        let Err(ClientError::Problem(problem)) = answer else { panic!("{answer:?}") };
        assert_eq!(problem.code.as_deref(), Some("forbidden"));
    }
}
