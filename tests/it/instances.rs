//! Several instances on one database: topologies are shared, and no instance, node or database that
//! stands still or goes away does harm.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::join_all;
use reeve::client::Client;
use reeve::demo::servers::{Server, Signal};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, Row};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::support::world::{World, client_of};
use crate::support::{Dice, repeats, until};

const LEASE: Duration = Duration::from_secs(2);

async fn world(nodes: usize) -> World {
    let mut world = World::with(&[("REEVE_LEASE_TTL_MS", "2000")]).await;
    world.add_nodes(nodes, &[]).await;
    world
}

async fn database(world: &World) -> PgConnection {
    PgConnection::connect(&world.postgres.url()).await.unwrap()
}

/// The topologies that each instance holds, by where it listens; only of those that live.
async fn shares(client: &Client) -> BTreeMap<String, Vec<String>> {
    let list = client.get("/v1/instances").await.unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let alive = list["items"].as_array().unwrap().iter().filter(|i| i["alive"] == true);
    let holds =
        |i: &Value| i["holds"].as_array().unwrap().iter().map(|h| text(&h["topology"])).collect();
    alive.map(|i| (text(&i["listen"]), holds(i))).collect()
}

async fn until_shared(client: &Client, want: &[(&Server, usize)], within: Duration) {
    until("topologies are shared", within, async || {
        let now = shares(client).await;
        let count = |server: &Server| now.get(&server.address().to_string()).map(Vec::len);
        let so = now.len() == want.len() && want.iter().all(|(s, n)| count(s) == Some(*n));
        if so { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
}

/// Who keeps a topology, asked of the database, by where it listens.
async fn keeper(db: &mut PgConnection, topology: &str) -> String {
    until("somebody keeps it", Duration::from_secs(10), async || {
        let query = "SELECT i.listen FROM leases l JOIN topologies t ON t.id = l.topology_id
                     JOIN instances i ON i.id = l.holder
                     WHERE t.name = $1 AND l.expires_at > clock_timestamp()";
        let row = sqlx::query_scalar(query).bind(topology).fetch_optional(&mut *db).await.unwrap();
        row.ok_or_else(|| "nobody".to_owned())
    })
    .await
}

async fn ends(client: &Client, plan: &Value, state: &str, within: Duration) -> Value {
    let path = format!("/v1/plans/{}", id(plan));
    until("the plan's end", within, async || {
        let plan = client.get(&path).await.map_err(|e| e.to_string())?;
        if plan["state"] == state { Ok(plan) } else { Err(plan.to_string()) }
    })
    .await
}

fn id(plan: &Value) -> &str {
    plan["id"].as_str().unwrap()
}

/// All events, which must have no gap in a topology's numbers, and one end for each plan that ended.
async fn journal(client: &Client) -> Vec<Value> {
    let page = client.get("/v1/events?limit=200").await.unwrap();
    assert_eq!(page["next_cursor"], Value::Null, "one page holds them");
    let events = page["items"].as_array().unwrap().clone();
    let (mut last, mut ended) = (BTreeMap::new(), BTreeMap::new());
    for event in events.iter().filter(|e| !e["topology"].is_null()) {
        let seq = last.entry(event["topology"].to_string()).or_insert(0);
        assert_eq!(event["seq"], *seq + 1, "{event}");
        *seq += 1;
        let ends = ["plan.succeeded", "plan.failed", "plan.cancelled", "plan.superseded"];
        if ends.iter().any(|kind| event["type"] == *kind) {
            *ended.entry(event["plan"].to_string()).or_insert(0) += 1;
        }
    }
    assert!(ended.values().all(|ends| *ends == 1), "{ended:?}");
    events
}

/// All that the database says of plans.
async fn record(db: &mut PgConnection) -> Vec<String> {
    let query = "SELECT row_to_json(e)::text FROM events e UNION ALL
                 SELECT row_to_json(s)::text FROM steps s UNION ALL
                 SELECT row_to_json(p)::text FROM plans p UNION ALL
                 SELECT row_to_json(m)::text FROM marks m ORDER BY 1";
    sqlx::query_scalar(query).fetch_all(db).await.unwrap()
}

#[tokio::test]
async fn topologies_are_shared_and_handed_over() {
    let mut world = world(12).await;
    let mut second = world.another_server().await;
    let names = ["a", "b", "c", "d"];
    let made = names.iter().enumerate().map(|(i, name)| (name, i * 3..i * 3 + 3));
    join_all(made.map(|(name, nodes)| {
        let body = world.cluster_of(name, nodes);
        let client = world.client.clone();
        async move {
            assert_eq!(client.create_topology(&body, Some(60)).await.unwrap()["state"], "succeeded")
        }
    }))
    .await;
    let soon = Duration::from_secs(5);
    until_shared(&world.client, &[(&world.server, 2), (&second, 2)], soon).await;

    let list = client_of(&second).get("/v1/instances").await.unwrap();
    for instance in list["items"].as_array().unwrap() {
        let this = instance["listen"] == second.address().to_string();
        assert_eq!(instance["this"], this, "{instance}");
        assert_eq!(instance["alive"], true);
        for lease in instance["holds"].as_array().unwrap() {
            assert!(lease["token"].as_i64().unwrap() > 0);
            let path = format!("/v1/topologies/{}", lease["topology"].as_str().unwrap());
            let topology = world.client.get(&path).await.unwrap();
            assert_eq!(topology["status"]["keeper"], instance["id"]);
        }
    }

    // Four are not divisible by three, and still nobody is left without.
    let mut third = world.another_server().await;
    until("the third has its part", soon, async || {
        let now = shares(&world.client).await;
        let all = now.values().map(Vec::len).sum::<usize>() == 4;
        if all && now.len() == 3 && now.values().all(|h| !h.is_empty()) {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    })
    .await;
    sleep(Duration::from_secs(2)).await;
    let settled = shares(&world.client).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(settled, shares(&world.client).await, "nothing goes back and forth");

    let began = Instant::now();
    third.signal(Signal::TERM).unwrap();
    until_shared(&world.client, &[(&world.server, 2), (&second, 2)], soon).await;
    println!("handed over within {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    assert!(third.sigterm().await.unwrap().success());

    let began = Instant::now();
    second.kill9();
    until_shared(&world.client, &[(&world.server, 4)], soon).await;
    println!("taken over within {:?}", began.elapsed());
    assert!(began.elapsed() < LEASE + Duration::from_millis(1500), "{:?}", began.elapsed());
}

#[tokio::test]
async fn what_happens_to_a_spare_node_is_told_once() {
    let mut world = world(1).await;
    let _second = world.another_server().await;
    let node = json!({ "address": world.nodes[0].address(), "zone": "a" });
    world.client.post("/v1/nodes", &node).await.unwrap();
    sleep(Duration::from_secs(3)).await;
    world.nodes[0].kill();
    until("it is down", Duration::from_secs(15), async || {
        let events = journal(&world.client).await;
        if events.iter().any(|e| e["type"] == "node.down") { Ok(()) } else { Err(String::new()) }
    })
    .await;
    sleep(Duration::from_secs(3)).await;
    let events = journal(&world.client).await;
    for kind in ["node.suspect", "node.down"] {
        assert_eq!(events.iter().filter(|e| e["type"] == kind).count(), 1, "{events:#?}");
    }
}

/// One of two instances stands still: the other ends its plan in time, and nothing that the first
/// does when it goes on is of any consequence.
async fn the_other_goes_on(
    world: &mut World,
    second: &mut Server,
    frozen_second: bool,
    plan: &Value,
    frozen_at: Instant,
) {
    let client = client_of(if frozen_second { &world.server } else { second });
    let within = (LEASE + Duration::from_secs(5)).saturating_sub(frozen_at.elapsed());
    until("the plan's end", within, async || {
        let plan = client.get(&format!("/v1/plans/{}", id(plan))).await.unwrap();
        let still = plan["steps"].as_array().unwrap().iter().filter(|s| s["state"] != "done");
        let still: Vec<_> = still.map(|s| (&s["key"], &s["attempts"], &s["state"])).collect();
        if plan["state"] == "succeeded" {
            return Ok(());
        }
        Err(format!("{} {still:?} {:#?}", plan["state"], world.untouched()))
    })
    .await;
    println!("the other was done {:?} after the freeze", frozen_at.elapsed());
    journal(&client).await;
    let mut db = database(world).await;
    let before = (record(&mut db).await, world.commands(), world.untouched());
    if frozen_second { second.signal(Signal::CONT) } else { world.server.signal(Signal::CONT) }
        .unwrap();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(before.0, record(&mut db).await);
    assert_eq!((before.1, before.2), (world.commands(), world.untouched()));
    world.check_cluster(&[]);
    world.settings_are_back();
    // Both live.
    assert_eq!(shares(&client).await.len(), 2);
}

#[tokio::test]
async fn when_an_instance_freezes_in_mid_create_the_other_finishes() {
    let mut dice = Dice::new(31);
    for _ in 0..repeats().min(15) {
        let mut world = world(6).await;
        let mut second = world.another_server().await;
        let made =
            world.client.create_topology(&world.cluster("frozen", 3, 1), None).await.unwrap();
        let mut db = database(&world).await;
        sleep(Duration::from_millis(dice.below(900))).await;
        let frozen_second = keeper(&mut db, "frozen").await == second.address().to_string();
        let frozen_at = Instant::now();
        if frozen_second { second.signal(Signal::STOP) } else { world.server.signal(Signal::STOP) }
            .unwrap();
        the_other_goes_on(&mut world, &mut second, frozen_second, &made, frozen_at).await;
    }
}

#[tokio::test]
async fn when_an_instance_freezes_with_locks_in_its_hands_the_other_finishes() {
    let mut dice = Dice::new(37);
    for _ in 0..repeats().div_ceil(3) {
        let mut world = world(6).await;
        let mut second = world.another_server().await;
        let made = world.client.create_topology(&world.cluster("locks", 3, 1), None).await.unwrap();
        let (mut db, mut monitor) = (database(&world).await, database(&world).await);
        let frozen_second = keeper(&mut db, "locks").await == second.address().to_string();
        sleep(Duration::from_millis(dice.below(400))).await;
        // Its transaction comes to wait for the row that is locked here; it freezes, and then gets it.
        let mut lock = db.begin().await.unwrap();
        sqlx::query("SELECT 1 FROM topologies FOR UPDATE").execute(&mut *lock).await.unwrap();
        until("its transaction waits", Duration::from_secs(5), async || {
            let waits = "SELECT count(*) FROM pg_stat_activity
                         WHERE wait_event_type = 'Lock' AND state = 'active'";
            let waiting: i64 = sqlx::query_scalar(waits).fetch_one(&mut monitor).await.unwrap();
            if waiting > 0 { Ok(()) } else { Err("no".to_owned()) }
        })
        .await;
        let frozen_at = Instant::now();
        if frozen_second { second.signal(Signal::STOP) } else { world.server.signal(Signal::STOP) }
            .unwrap();
        lock.commit().await.unwrap();
        until("it stands still in a transaction", LEASE / 4, async || {
            let idle = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'";
            let idle: i64 = sqlx::query_scalar(idle).fetch_one(&mut monitor).await.unwrap();
            if idle > 0 { Ok(()) } else { Err("no".to_owned()) }
        })
        .await;
        the_other_goes_on(&mut world, &mut second, frozen_second, &made, frozen_at).await;
    }
}

#[tokio::test]
async fn a_node_that_freezes_with_a_command_under_way_does_no_harm_when_it_thaws() {
    let mut dice = Dice::new(41);
    for _ in 0..repeats().div_ceil(3) {
        let mut world = world(6).await;
        let node = dice.below(6) as usize;
        let address = world.nodes[node].address();
        let skipped = dice.below(4);
        let made = world.client.create_topology(&world.cluster("thaw", 3, 1), None).await.unwrap();
        let stream = world.client.events(&format!("/v1/plans/{}/stream", id(&made)), None);
        let mut begun = stream.filter(|event| {
            let event = event.as_ref().unwrap();
            let data = event.json();
            let nodes = data["data"]["nodes"].as_array().cloned().unwrap_or_default();
            std::future::ready(
                event.event == "plan.step_started" && nodes.contains(&json!(address)),
            )
        });
        for _ in 0..=skipped {
            begun.next().await.unwrap().unwrap();
        }
        world.nodes[node].signal(Signal::STOP).unwrap();
        sleep(Duration::from_secs(10)).await;
        world.nodes[node].signal(Signal::CONT).unwrap();
        ends(&world.client, &made, "succeeded", Duration::from_secs(40)).await;
        journal(&world.client).await;
        let before = (world.commands(), world.untouched());
        sleep(Duration::from_secs(1)).await;
        assert_eq!(before, (world.commands(), world.untouched()));
        world.check_cluster(&[]);
        world.settings_are_back();
    }
}

/// Follows the journal and gathers the ids of all events, until `last` comes or it is told to stop.
fn follow(client: &Client, types: &str, last: &'static str) -> JoinHandle<Vec<i64>> {
    let mut stream = client.events(&format!("/v1/events/stream?types={types}"), Some("0".into()));
    tokio::spawn(async move {
        let mut ids = vec![];
        while let Some(event) = stream.next().await {
            let event = event.unwrap();
            ids.extend(event.id.map(|id| id.parse::<i64>().unwrap()));
            if event.event == last {
                break;
            }
        }
        ids
    })
}

async fn status(server: &Server, path: &str) -> (u16, bool) {
    let request = reqwest::Client::new().get(format!("{}{path}", server.url()));
    let answer = request.bearer_auth(server.token()).send().await.unwrap();
    (answer.status().as_u16(), answer.headers().contains_key("retry-after"))
}

#[tokio::test]
async fn while_the_database_is_away_nothing_is_done_and_afterwards_nothing_is_lost() {
    let away = Duration::from_secs(if repeats() > 3 { 20 } else { 6 });
    let mut dice = Dice::new(43);
    // Each kind of outage with one instance and with two; more would take too long.
    for turn in 0..repeats().min(6) {
        let mut world = world(6).await;
        let second =
            if (turn + turn / 3) % 2 == 1 { Some(world.another_server().await) } else { None };
        let followed = follow(&world.client, "*", "plan.succeeded");
        let made = world.client.create_topology(&world.cluster("away", 3, 1), None).await.unwrap();
        sleep(Duration::from_millis(dice.below(800))).await;
        let frozen = match turn % 3 {
            0 => Some(world.freeze_postgres()),
            1 => {
                world.postgres.stop().await;
                None
            }
            _ => {
                world.postgres.kill();
                None
            }
        };
        let began = Instant::now();
        // Backends of a killed PostgreSQL answer once more before they notice.
        until("it is told", Duration::from_secs(8), async || {
            match status(&world.server, "/readyz").await.0 {
                503 => Ok(()),
                other => Err(other.to_string()),
            }
        })
        .await;
        let in_flight_ends = async {
            sleep(Duration::from_secs(3)).await;
            world.commands()
        };
        let (before, list, ready, health) = tokio::join!(
            in_flight_ends,
            status(&world.server, "/v1/topologies"),
            status(&world.server, "/readyz"),
            status(&world.server, "/healthz"),
        );
        assert_eq!((list, ready.0, health.0), ((503, true), 503, 200), "turn {turn}");
        sleep(away.saturating_sub(began.elapsed())).await;
        assert_eq!(before, world.commands(), "turn {turn}");
        match frozen {
            Some(frozen) => drop(frozen),
            None => world.postgres.restart().await.unwrap(),
        }
        let client = second.as_ref().map_or_else(|| world.client.clone(), client_of);
        ends(&client, &made, "succeeded", Duration::from_secs(30)).await;
        println!("turn {turn}: done {:?} after the outage began", began.elapsed());
        let ids =
            |events: &[Value]| events.iter().map(|e| e["id"].as_i64().unwrap()).collect::<Vec<_>>();
        let followed =
            tokio::time::timeout(Duration::from_secs(10), followed).await.unwrap().unwrap();
        let mut told = ids(&journal(&client).await);
        told.retain(|id| *id <= followed[followed.len() - 1]);
        assert_eq!(followed, told, "each once and in order");
        assert_eq!(status(&world.server, "/readyz").await.0, 200);
        world.check_cluster(&[]);
        world.settings_are_back();
    }
}

/// A plan is backed up in the middle and then ends; the newest event id that was handed out.
async fn outlive_a_backup(world: &mut World) -> (Value, i64) {
    let made = world.client.create_topology(&world.cluster("older", 3, 1), None).await.unwrap();
    world.nodes[5].signal(Signal::STOP).unwrap();
    let path = format!("/v1/plans/{}", id(&made));
    until("it runs", Duration::from_secs(5), async || {
        let plan = world.client.get(&path).await.unwrap();
        if plan["state"] == "running" { Ok(()) } else { Err(plan.to_string()) }
    })
    .await;
    world.back_up().await;
    world.nodes[5].signal(Signal::CONT).unwrap();
    ends(&world.client, &made, "succeeded", Duration::from_secs(40)).await;
    let events = journal(&world.client).await;
    (made, events[events.len() - 1]["id"].as_i64().unwrap())
}

async fn goes_on_after_restore(world: &World, plan: &Value, warning: &str) {
    let paused = ends(&world.client, plan, "paused", Duration::from_secs(15)).await;
    assert_eq!(paused["waiting_for"], "stale");
    let warnings = paused["warnings"].as_array().unwrap();
    assert!(warnings.iter().any(|w| w["code"] == warning), "{paused:#}");
    let before = world.commands();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(before, world.commands(), "it pauses");
    world.client.post(&format!("/v1/plans/{}/resume", id(plan)), &json!({})).await.unwrap();
    let done = ends(&world.client, plan, "succeeded", Duration::from_secs(30)).await;
    for step in done["steps"].as_array().unwrap() {
        assert!(step["state"] == "done" || step["state"] == "skipped", "{step}");
    }
    journal(&world.client).await;
    world.check_cluster(&[]);
    world.settings_are_back();
}

#[tokio::test]
async fn a_database_that_is_put_back_while_instances_run_is_noticed() {
    let mut world = world(6).await;
    let second = world.another_server().await;
    let (made, newest) = outlive_a_backup(&mut world).await;
    let path = "/v1/events/stream?types=plan.paused,plan.resumed";
    let mut follower = world.client.events(path, Some(newest.to_string()));
    world.put_back().await;
    world.postgres.restart().await.unwrap();
    goes_on_after_restore(&world, &made, "database_restored").await;
    for kind in ["plan.paused", "plan.resumed"] {
        let next = async {
            loop {
                let event = follower.next().await.unwrap().unwrap();
                if event.id.is_some() {
                    return event;
                }
            }
        };
        let event = tokio::time::timeout(Duration::from_secs(5), next).await.unwrap();
        assert_eq!(event.event, kind);
        assert!(event.id.unwrap().parse::<i64>().unwrap() > newest);
    }
    let row = "SELECT (SELECT min(token) FROM leases) AS token,
                      (SELECT count(*) FROM events WHERE type = 'plan.paused') AS paused";
    let row = sqlx::query(row).fetch_one(&mut database(&world).await).await.unwrap();
    assert!(row.get::<i64, _>("token") > 1 << 32);
    assert_eq!(row.get::<i64, _>("paused"), 1, "two instances noticed, and one has done it");
    drop(second);
}

#[tokio::test]
async fn a_database_that_is_put_back_before_a_start_is_noticed_by_what_the_nodes_show() {
    let mut world = world(6).await;
    let (made, _) = outlive_a_backup(&mut world).await;
    assert!(world.server.sigterm().await.unwrap().success());
    world.put_back().await;
    world.postgres.restart().await.unwrap();
    world.server.restart().await.unwrap();
    goes_on_after_restore(&world, &made, "world_ahead").await;
}

#[tokio::test]
async fn many_topologies_at_once_are_made_side_by_side_and_none_starves() {
    let count = if repeats() > 3 { 50 } else { 8 };
    let mut world = World::with(&[("REEVE_LEASE_TTL_MS", "3000")]).await;
    world.add_nodes(count * 3, &[]).await;
    let second = world.another_server().await;
    let mut db = database(&world).await;
    let commits = async |db: &mut PgConnection| -> i64 {
        // Statistics are told once a second.
        sleep(Duration::from_millis(1500)).await;
        let query = "SELECT xact_commit + xact_rollback FROM pg_stat_database
                     WHERE datname = current_database()";
        sqlx::query_scalar(query).fetch_one(db).await.unwrap()
    };
    let before = commits(&mut db).await;
    let began = Instant::now();
    let clients = [world.client.clone(), client_of(&second)];
    let made = join_all((0..count).map(|i| {
        let body = world.cluster_of(&format!("many-{i}"), i * 3..i * 3 + 3);
        let client = clients[i % 2].clone();
        async move {
            let began = Instant::now();
            // Asking again and again would count as transactions.
            let mut turned_away = false;
            let plan = loop {
                match client.create_topology(&body, Some(60)).await {
                    Ok(plan) => break plan,
                    // So many at once may have to wait for a connection to the database.
                    Err(e) if e.code() == Some("database_unavailable") => {
                        println!("turned away: {e}");
                        turned_away = true;
                        sleep(Duration::from_secs(1)).await;
                    }
                    // The connection was lacking only when the answer was to be read.
                    Err(e) if turned_away && e.code() == Some("name_taken") => {
                        let plans = format!("/v1/plans?topology=many-{i}");
                        let plan = client.get(&plans).await.unwrap()["items"][0].clone();
                        ends(&client, &plan, "succeeded", Duration::from_secs(60)).await;
                        break client.get(&format!("/v1/plans/{}", id(&plan))).await.unwrap();
                    }
                    Err(e) => panic!("{e}"),
                }
            };
            assert_eq!(plan["state"], "succeeded", "{plan:#}");
            (began.elapsed(), plan["steps"].as_array().unwrap().len())
        }
    }));
    let made = made.await;
    let took = began.elapsed();
    let held = shares(&world.client).await;
    let commits = commits(&mut db).await - before;
    let mut times: Vec<Duration> = made.iter().map(|(time, _)| *time).collect();
    times.sort();
    let steps: usize = made.iter().map(|(_, steps)| steps).sum();
    let parts: Vec<usize> = held.values().map(Vec::len).collect();
    println!(
        "{count} topologies in {took:?}: each in {:?} to {:?}, median {:?}; held {parts:?}; \
         {commits} transactions for {steps} steps, {:.1} each",
        times[0],
        times[count - 1],
        times[count / 2],
        commits as f64 / steps as f64
    );
    assert_eq!(parts.iter().sum::<usize>(), count);
    assert!(parts.iter().all(|part| part.abs_diff(count / 2) <= count / 8), "{parts:?}");
}
