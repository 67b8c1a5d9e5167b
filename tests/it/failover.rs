//! Failover of cluster shards on real nodes, with an application that writes all the while.

use std::time::Duration;

use reeve::demo::servers::Signal;
use serde_json::{Value, json};

use crate::support::orders::{PLANS, carry_out, phase, refused, shards};
use crate::support::plans::{ends, id, terminal_events, waits_for};
use crate::support::traffic::Traffic;
use crate::support::world::World;
use crate::support::{Dice, repeats, until};

const SOON: Duration = Duration::from_secs(30);
/// A shard rests four times as long after a failover, and a second.
const NODE_TIMEOUT_MS: &str = "500";

async fn orders(env: &[(&str, &str)], nodes: usize, replicas: u16) -> World {
    let mut world = World::with(env).await;
    world.add_nodes(nodes, &[("cluster-node-timeout", NODE_TIMEOUT_MS)]).await;
    world.create(&world.cluster("orders", 3, replicas)).await;
    world
}

fn failover(shard: usize) -> Value {
    json!({ "intent": { "kind": "failover", "shard": shard.to_string() } })
}

/// Two of three primaries in one zone: its loss would take the cluster with it.
#[tokio::test]
async fn primaries_that_came_together_are_told_and_spread_again() {
    let world = orders(&[], 6, 1).await;
    let open = async || {
        let findings = world.client.get("/v1/topologies/orders/findings").await.unwrap();
        let mut items = findings["items"].as_array().unwrap().clone();
        items.retain(|f| f["rule"] == "crowded_primaries" && f["closed_at"].is_null());
        items.pop()
    };
    let zone_survived = async || {
        let path = "/v1/topologies/orders/survivability?basis=observed";
        world.client.get(path).await.unwrap()["survives"]["any_zone"] == true
    };
    assert!(zone_survived().await);
    carry_out(&world, &failover(0)).await;
    let found = until("it is told", SOON, async || open().await.ok_or("nothing".to_owned())).await;
    assert!(!zone_survived().await);
    assert_eq!(found["severity"], "warning", "{found:#}");
    carry_out(&world, &json!({ "intent": found["remedy"]["intent"] })).await;
    until("it is over", SOON, async || match open().await {
        None => Ok(()),
        Some(finding) => Err(finding.to_string()),
    })
    .await;
    assert!(zone_survived().await);
}

#[tokio::test]
async fn graceful_failovers_lose_no_acknowledged_write() {
    let turns = if repeats() > 3 { 50 } else { 6 };
    let world = orders(&[], 6, 1).await;
    let traffic = Traffic::start(&world.nodes[0].address());
    for turn in 0..turns {
        let shard = turn % 3;
        let before = shards(&world).await;
        let plan = carry_out(&world, &failover(shard)).await;
        let steps = plan["steps"].as_array().unwrap();
        assert_eq!(steps[0]["kind"], "fail_over", "{plan:#}");
        let after = shards(&world).await;
        assert_eq!((after[shard].0, &after[shard].1), (before[shard].1[0], &vec![before[shard].0]));
    }
    // Some more writes, so that the last promotion is read through as well.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let seen = traffic.stop();
    let mut gaps = seen.gaps_ms[..turns].to_vec();
    gaps.sort_by(f64::total_cmp);
    println!(
        "{turns} failovers, {} writes acknowledged, write gaps of these: median {} ms, longest {} ms, errors {}",
        seen.acknowledged,
        gaps[turns / 2],
        gaps[turns - 1],
        seen.errors
    );
    assert!(seen.lost.is_empty(), "{seen:?}");
    assert!(seen.acknowledged >= if turns > 6 { 10_000 } else { 1_000 }, "{seen:?}");
    world.check_cluster(&[]);
    // The change of primary stands in the journal.
    let events = world.client.get("/v1/events?types=primary.changed").await.unwrap();
    assert!(events["items"].as_array().unwrap().len() >= turns - 1, "{events:#}");
}

#[tokio::test]
async fn a_preview_says_what_would_be_sent_and_what_it_costs() {
    let world = orders(&[], 6, 1).await;
    let before = shards(&world).await;
    let (from, to) = (before[1].0, before[1].1[0]);
    let untouched = world.untouched();
    let body = json!({ "intent": { "kind": "failover", "node": world.nodes[from].address() } });
    let path = format!("{PLANS}/preview");
    let preview = world.client.post(&path, &body).await.unwrap();
    assert_eq!(preview["consent_needed"], json!([]));
    let hazard = &preview["hazards"][0];
    assert_eq!(hazard["kind"], "write_pause");
    assert!(hazard["expected_ms"].as_u64().unwrap() < 250, "{hazard}");
    let command = &preview["steps"][0]["commands"][1];
    assert_eq!(command["command"], "CLUSTER FAILOVER");
    assert_eq!(command["node"], world.nodes[to].address());
    assert_eq!(untouched, world.untouched());
    // Proposed today for tomorrow, it starts while the world is as it was.
    let proposed = json!({ "intent": body["intent"], "plan": { "start": false } });
    let plan = world.client.submit(PLANS, &proposed, None).await.unwrap();
    assert_eq!(plan["state"], "proposed");
    assert_eq!(untouched, world.untouched());
    world.client.post(&format!("/v1/plans/{}/start", id(&plan)), &json!({})).await.unwrap();
    ends(&world, &id(&plan), "succeeded", SOON).await;
    assert_eq!(shards(&world).await[1].0, to);
}

#[tokio::test]
async fn a_shard_rests_before_it_fails_back() {
    let world = orders(&[], 6, 1).await;
    let before = shards(&world).await;
    carry_out(&world, &failover(0)).await;
    let again = world.client.submit(PLANS, &failover(0), None).await.unwrap();
    until("it says why it waits", SOON, async || {
        let plan = world.client.get(&format!("/v1/plans/{}", id(&again))).await.unwrap();
        if plan["waiting_for"] == "hold" { Ok(()) } else { Err(plan.to_string()) }
    })
    .await;
    ends(&world, &id(&again), "succeeded", SOON).await;
    assert_eq!(shards(&world).await[0].0, before[0].0, "it failed back");
    world.check_cluster(&[]);
}

#[tokio::test]
async fn a_shard_rests_after_an_election_too() {
    let mut world = World::new().await;
    world.add_nodes(6, &[("cluster-node-timeout", "2000")]).await;
    world.create(&world.cluster("orders", 3, 1)).await;
    let (primary, replica) = (shards(&world).await[0].0, shards(&world).await[0].1[0]);
    world.nodes[primary].kill();
    until("the replica is elected", SOON, async || {
        let now = shards(&world).await[0].0;
        if now == replica { Ok(()) } else { Err(format!("{now}")) }
    })
    .await;
    world.nodes[primary].restart().await.unwrap();
    let plan = until("it can take over", SOON, async || {
        world.client.submit(PLANS, &failover(0), None).await.map_err(|e| e.to_string())
    })
    .await;
    waits_for(&world, &id(&plan), "hold").await;
    ends(&world, &id(&plan), "succeeded", SOON).await;
    assert_eq!(shards(&world).await[0].0, primary);
    world.check_cluster(&[]);
}

#[tokio::test]
async fn a_plan_whose_shard_elected_another_says_so() {
    let world = orders(&[], 9, 2).await;
    carry_out(&world, &failover(0)).await;
    let (primary, replicas) = shards(&world).await[0].clone();
    let (named, other) = (world.nodes[replicas[0]].address(), world.nodes[replicas[1]].address());
    let body = json!({ "intent": { "kind": "failover", "to": named } });
    let plan = world.client.submit(PLANS, &body, None).await.unwrap();
    waits_for(&world, &id(&plan), "hold").await;
    world.ask(replicas[1], &["CLUSTER", "FAILOVER", "TAKEOVER"]);
    let ended = ends(&world, &id(&plan), "succeeded", SOON).await;
    let warning = ended["warnings"].as_array().unwrap().last().unwrap();
    assert_eq!(warning["code"], "elected_another", "{ended:#}");
    let message = warning["message"].as_str().unwrap();
    assert!(message.starts_with(&other) && message.contains(&named), "{message}");
    assert_eq!(shards(&world).await[0].0, replicas[1]);
    let path = format!("/v1/events?plan={}&types=plan.succeeded", id(&plan));
    let events = world.client.get(&path).await.unwrap();
    assert_eq!(&events["items"][0]["data"]["warnings"][0], warning, "{events:#}");
    assert_ne!(primary, replicas[1]);
    world.check_cluster(&[]);
}

#[tokio::test]
async fn what_cannot_work_is_refused_and_touches_nothing() {
    let mut world = orders(&[], 7, 1).await;
    let now = shards(&world).await;
    let (primary, replica) = (now[0].0, now[0].1[0]);
    let addresses: Vec<String> = world.nodes.iter().map(|n| n.address()).collect();
    let address = |n: usize| addresses[n].clone();
    let intent = |more: Value| {
        let mut intent = json!({ "kind": "failover" });
        for (name, value) in more.as_object().unwrap() {
            intent[name] = value.clone();
        }
        json!({ "intent": intent })
    };
    let untouched = world.untouched();
    let cases = [
        (json!({}), 422, "name the shard"),
        (json!({ "shard": "9" }), 422, "there is no shard `9`"),
        (json!({ "node": "127.0.0.1:1" }), 422, "is no member"),
        (json!({ "shard": "1", "to": address(replica) }), 422, "different shards"),
        (json!({ "to": address(primary) }), 409, "is the primary of shard 0 already"),
        (json!({ "shard": "0", "method": "gently" }), 422, "`graceful`, `force`, `takeover`"),
        (json!({ "shard": "0", "method": "takeover" }), 409, "ask for method force"),
        (json!({ "shard": "0", "method": "force" }), 409, "need your consent"),
    ];
    for (more, status, word) in cases {
        let problem = refused(&world, &intent(more)).await;
        let told = format!("{} {:?}", problem.detail.as_deref().unwrap_or(""), problem.errors);
        assert_eq!(problem.status, status, "{told}");
        assert!(told.contains(word), "{word}: {told}");
    }
    assert_eq!(untouched, world.untouched());

    // A replica that does not answer is none to fail over to.
    world.nodes[replica].signal(Signal::STOP).unwrap();
    let problem = refused(&world, &intent(json!({ "shard": "0" }))).await;
    assert_eq!((problem.status, problem.code.as_deref().unwrap_or("")), (409, "nodes_unfit"));
    assert!(format!("{:?}", problem.errors).contains("does not answer"), "{problem:?}");
    world.nodes[replica].signal(Signal::CONT).unwrap();

    // Nor is one whose link to its primary is down.
    phase(&world, "steady").await;
    world.ask(replica, &["CONFIG", "SET", "masterauth", "wrong"]);
    world.ask(primary, &["CONFIG", "SET", "requirepass", "secret"]);
    redis_kill_replicas(&world, primary);
    until("its link is down", SOON, async || {
        let info = world.ask(replica, &["INFO", "replication"]);
        if info.contains("master_link_status:down") { Ok(()) } else { Err(info) }
    })
    .await;
    let problem = refused(&world, &intent(json!({ "to": address(replica) }))).await;
    assert_eq!(problem.status, 409, "{problem:?}");
    drop(world);
}

fn redis_kill_replicas(world: &World, node: usize) {
    let kill = ["-a", "secret", "CLIENT", "KILL", "TYPE", "replica"];
    crate::support::world::redis_cli(world.nodes[node].port(), &kill);
}

#[tokio::test]
async fn a_killed_server_finishes_the_failover() {
    let mut dice = Dice::new(61);
    let mut world = orders(&[("REEVE_LEASE_TTL_MS", "1000")], 6, 1).await;
    for turn in 0..repeats() {
        let shard = usize::try_from(turn % 3).unwrap();
        let before = shards(&world).await;
        let plan = world.client.submit(PLANS, &failover(shard), None).await.unwrap();
        tokio::time::sleep(Duration::from_millis(dice.below(120))).await;
        world.server.kill9();
        world.server.restart().await.unwrap();
        ends(&world, &id(&plan), "succeeded", SOON).await;
        assert_eq!(terminal_events(&world, &id(&plan)).await, 1);
        phase(&world, "steady").await;
        assert_eq!(shards(&world).await[shard].0, before[shard].1[0], "turn {turn}");
        world.check_cluster(&[]);
    }
}

#[tokio::test]
async fn force_needs_a_majority_and_consent() {
    // The dead primary's replica is told not to stand for election by itself.
    let mut world = orders(&[], 6, 1).await;
    let (primary, replica) = {
        let all = shards(&world).await;
        (all[2].0, all[2].1[0])
    };
    world.ask(replica, &["CONFIG", "SET", "cluster-replica-no-failover", "yes"]);
    world.nodes[primary].kill();
    phase(&world, "down").await;
    let body = json!({ "intent": { "kind": "failover", "shard": "2" } });
    let problem = refused(&world, &body).await;
    assert!(format!("{:?}", problem.errors).contains("ask for method force"), "{problem:?}");
    let id_of = format!("lost_writes:{}", world.nodes[primary].address());
    let body = json!({ "intent": { "kind": "failover", "shard": "2", "method": "force" } });
    let problem = refused(&world, &body).await;
    assert_eq!(problem.code.as_deref(), Some("consent_required"));
    let body = json!({ "intent": body["intent"], "plan": { "accept": [id_of] } });
    carry_out(&world, &body).await;
    assert_eq!(shards(&world).await[2].0, replica);
    world.nodes[primary].restart().await.unwrap();
    phase(&world, "steady").await;
    world.check_cluster(&[]);
}

#[tokio::test]
async fn takeover_brings_back_what_lost_its_majority() {
    let mut world = orders(&[], 6, 1).await;
    let all = shards(&world).await;
    let dead = [all[0].0, all[1].0];
    for node in dead {
        world.nodes[node].kill();
    }
    phase(&world, "down").await;
    until("the nodes know it", SOON, async || {
        let info = world.ask(all[2].0, &["CLUSTER", "INFO"]);
        if info.contains("cluster_state:fail") { Ok(()) } else { Err(info) }
    })
    .await;
    for shard in [0, 1] {
        let from = world.nodes[dead[shard]].address();
        let force = json!({ "intent": { "kind": "failover", "shard": shard.to_string(), "method": "force" },
                            "plan": { "accept": [format!("lost_writes:{from}")] } });
        let takeover = json!({ "intent": { "kind": "failover", "shard": shard.to_string(), "method": "takeover" },
                               "plan": { "accept": [format!("lost_writes:{from}")] } });
        if shard == 0 {
            let problem = refused(&world, &force).await;
            assert!(format!("{:?}", problem.errors).contains("takeover"), "{problem:?}");
            let body = json!({ "intent": takeover["intent"] });
            let problem = refused(&world, &body).await;
            assert_eq!(problem.code.as_deref(), Some("consent_required"));
            carry_out(&world, &takeover).await;
        } else {
            // With two of three primaries there again, those can vote, or elect by themselves.
            let elected = until("a way is open", SOON, async || {
                match world.client.submit(PLANS, &force, Some(40)).await {
                    Ok(plan) if plan["state"] == "succeeded" => Ok(()),
                    Ok(plan) => Err(plan.to_string()),
                    Err(e) if shards(&world).await[1].0 == all[1].1[0] => {
                        drop(e);
                        Ok(())
                    }
                    Err(e) => Err(e.to_string()),
                }
            });
            elected.await;
        }
    }
    for node in dead {
        world.nodes[node].restart().await.unwrap();
    }
    phase(&world, "steady").await;
    let after = shards(&world).await;
    assert_eq!((after[0].0, after[1].0), (all[0].1[0], all[1].1[0]));
    assert_eq!((after[0].1[0], after[1].1[0]), (dead[0], dead[1]));
    world.check_cluster(&[]);
}
