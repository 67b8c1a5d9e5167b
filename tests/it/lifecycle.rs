//! What is wanted changes: dissolving, going back, accepting what is seen, and making way. Plans
//! begin where the topology is settled, cost nobody what was not accepted, and never half-end.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;
use reeve::client::{ClientError, Problem};
use reeve::demo::servers::Signal;
use serde_json::{Value, json};

use crate::support::plans::{ends, id, plan, terminal_events, waits_for};
use crate::support::world::World;
use crate::support::{Dice, repeats, until};

const TOPOLOGY: &str = "/v1/topologies/orders";
const PLANS: &str = "/v1/topologies/orders/plans";
const SOON: Duration = Duration::from_secs(20);

/// Gossip goes the faster the shorter this is.
const NODE_TIMEOUT: &str = "4000";
/// Seconds until a full copy begins.
const SYNC_DELAY: &str = "1";
/// After a crash the next server soon takes over.
const SHORT_LEASE: (&str, &str) = ("REEVE_LEASE_TTL_MS", "2000");

/// Three shards with a replica each.
async fn orders(env: &[(&str, &str)]) -> World {
    let world = blank_nodes(env).await;
    world.create(&world.cluster("orders", 3, 1)).await;
    world
}

async fn blank_nodes(env: &[(&str, &str)]) -> World {
    let mut world = World::with(env).await;
    let config = [("cluster-node-timeout", NODE_TIMEOUT), ("repl-diskless-sync-delay", SYNC_DELAY)];
    world.add_nodes(6, &config).await;
    world
}

fn settings_are_back(world: &World) {
    for node in 0..world.nodes.len() {
        for (name, value) in
            [("cluster-node-timeout", NODE_TIMEOUT), ("repl-diskless-sync-delay", SYNC_DELAY)]
        {
            let now = world.ask(node, &["CONFIG", "GET", name]);
            assert_eq!(now, format!("{name}\n{value}"), "on node {node}");
        }
    }
}

/// Each shard's primary and replicas, as numbers of nodes.
async fn shards(world: &World) -> Vec<(usize, Vec<usize>)> {
    let topology = world.client.get(TOPOLOGY).await.unwrap();
    let shards = topology["status"]["shards"].as_array().unwrap().clone();
    let replicas = |s: &Value| {
        s["replicas"].as_array().unwrap().iter().map(|r| index_of(world, &r["address"])).collect()
    };
    shards.iter().map(|s| (index_of(world, &s["primary"]), replicas(s))).collect()
}

fn index_of(world: &World, address: &Value) -> usize {
    world.nodes.iter().position(|n| *address == n.address()).unwrap()
}

/// Thirty keys, wherever they belong, and their copies.
async fn fill(world: &World) {
    for n in 0..30 {
        let set = world.ask(0, &["-c", "SET", &format!("key:{n}"), "x"]);
        assert!(set.ends_with("OK"), "{set}");
    }
    until("all copies", SOON, async || {
        let all: usize = (0..6).map(|n| keys(world, n)).sum();
        if all == 60 { Ok(()) } else { Err(all.to_string()) }
    })
    .await;
}

fn keys(world: &World, node: usize) -> usize {
    world.ask(node, &["DBSIZE"]).parse().unwrap()
}

fn flush(world: &World, nodes: impl IntoIterator<Item = usize>) -> Vec<String> {
    nodes.into_iter().map(|n| format!("flush:{}", world.nodes[n].address())).collect()
}

/// A request to dissolve, with consent to all that it can cost.
fn dissolve(world: &World) -> Value {
    let accept = flush(world, 0..world.nodes.len());
    json!({ "intent": { "kind": "dissolve" },
            "plan": { "accept": accept, "accept_hazard": "outage" } })
}

fn intent(kind: &str) -> Value {
    json!({ "intent": { "kind": kind } })
}

fn revert(version: u32) -> Value {
    json!({ "intent": { "kind": "revert", "version": version } })
}

async fn submit(world: &World, body: &Value) -> Value {
    world.client.submit(PLANS, body, None).await.unwrap()
}

/// Submits it and sees it succeed.
async fn carry_out(world: &World, body: &Value) -> Value {
    let plan = world.client.submit(PLANS, body, Some(40)).await.unwrap();
    assert_eq!(plan["state"], "succeeded", "{plan:#}");
    assert_eq!(terminal_events(world, &id(&plan)).await, 1);
    plan
}

async fn refused(world: &World, path: &str, body: &Value) -> Problem {
    match world.client.post(path, body).await {
        Err(ClientError::Problem(problem)) => *problem,
        other => panic!("{path} {body}: {other:#?}"),
    }
}

fn offers(problem: &Problem) -> Vec<&str> {
    problem.offers.iter().map(|o| o.offer.as_str()).collect()
}

async fn turn(world: &World, plan: &Value, verb: &str) -> Value {
    let path = format!("/v1/plans/{}/{verb}", id(plan));
    world.client.post(&path, &json!({})).await.unwrap()
}

fn is_blank(world: &World, node: usize) -> bool {
    let info = world.ask(node, &["CLUSTER", "INFO"]);
    info.contains("cluster_known_nodes:1\r") && keys(world, node) == 0
}

/// All nodes are blank, nobody's, and without traces.
async fn is_dissolved(world: &World) {
    for node in 0..world.nodes.len() {
        assert!(is_blank(world, node), "{}", world.ask(node, &["CLUSTER", "NODES"]));
    }
    settings_are_back(world);
    let gone = world.client.get(TOPOLOGY).await.unwrap_err();
    assert_eq!(gone.code(), Some("not_found"));
    let spares = world.client.get("/v1/nodes?unassigned=true").await.unwrap();
    assert_eq!(spares["items"].as_array().unwrap().len(), world.nodes.len());
}

async fn is_steady(world: &World) {
    until("it is steady", SOON, async || {
        let topology = world.client.get(TOPOLOGY).await.unwrap();
        let phase = &topology["status"]["phase"];
        if *phase == "steady" { Ok(()) } else { Err(phase.to_string()) }
    })
    .await;
}

/// Writes to a primary are refused with an error that may pass, so that it cannot be emptied.
fn hold_back(world: &World, node: usize) {
    assert_eq!(world.ask(node, &["CONFIG", "SET", "min-replicas-to-write", "3"]), "OK");
}

fn let_go(world: &World, node: usize) {
    assert_eq!(world.ask(node, &["CONFIG", "SET", "min-replicas-to-write", "0"]), "OK");
}

/// By hand, behind Reeve's back: makes a replica follow another shard's primary.
async fn drift(world: &World) -> (usize, usize) {
    let shards = shards(world).await;
    let (moved, to) = (shards[0].1[0], shards[1].0);
    let primary = world.ask(to, &["CLUSTER", "MYID"]);
    assert_eq!(world.ask(moved, &["CLUSTER", "REPLICATE", &primary]), "OK");
    agree(world).await;
    (moved, to)
}

/// Waits until all nodes say the same of each other and every replica has its link.
async fn agree(world: &World) {
    let shape = |node: usize| -> BTreeSet<String> {
        let nodes = world.ask(node, &["CLUSTER", "NODES"]);
        let line = |l: &str| {
            let words: Vec<&str> = l.split(' ').collect();
            let flags = words[2].replace("myself,", "");
            format!("{} {flags} {} {:?}", words[0], words[3], &words[8..])
        };
        nodes.lines().map(line).collect()
    };
    until("all agree", SOON, async || {
        let model = shape(0);
        let agree = (1..world.nodes.len()).all(|n| shape(n) == model);
        let linked = (0..world.nodes.len()).all(|n| {
            let replication = world.ask(n, &["INFO", "replication"]);
            !replication.contains("master_link_status:down")
        });
        if agree && linked { Ok(()) } else { Err(format!("{model:#?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_dissolve_empties_nodes_only_with_consent_to_each() {
    let world = orders(&[]).await;
    fill(&world).await;
    let before = world.untouched();
    let all: BTreeSet<String> = flush(&world, 0..6).into_iter().collect();
    let problem = refused(&world, PLANS, &intent("dissolve")).await;
    assert_eq!(problem.code.as_deref(), Some("consent_required"));
    let lacking: BTreeSet<String> = problem.hazards.iter().map(|h| h.id.clone()).collect();
    assert_eq!(lacking, all);
    // A ceiling does not reach to data loss, and consent to some is none to the others.
    let mut body = dissolve(&world);
    body["plan"]["accept"].as_array_mut().unwrap().pop();
    let problem = refused(&world, PLANS, &body).await;
    assert_eq!(problem.hazards.len(), 1, "{problem}");

    let path = "/v1/topologies/orders/plans/preview";
    let preview = world.client.post(path, &intent("dissolve")).await.unwrap();
    assert_eq!(preview["consent_needed"].as_array().unwrap().len(), 6);
    let steps = preview["steps"].as_array().unwrap();
    let replicas: BTreeSet<usize> = shards(&world).await.into_iter().flat_map(|s| s.1).collect();
    let first: BTreeSet<usize> =
        steps.iter().take(3).map(|s| index_of(&world, &s["nodes"][0])).collect();
    assert_eq!(first, replicas, "replicas go first: {steps:#?}");
    assert_eq!(before, world.untouched(), "nothing was touched so far");
    let plans = world.client.get("/v1/plans?topology=orders").await.unwrap();
    assert_eq!(plans["items"].as_array().unwrap().len(), 1, "nothing was stored so far");

    let dissolved = carry_out(&world, &dissolve(&world)).await;
    is_dissolved(&world).await;
    // The end of the plan comes before that of the topology, and both are told once.
    let path = "/v1/events?topology=orders&limit=200";
    let events = world.client.get(path).await.unwrap();
    let kinds: Vec<&Value> =
        events["items"].as_array().unwrap().iter().map(|e| &e["type"]).collect();
    let first = |kind: &str| kinds.iter().position(|k| *k == kind).unwrap();
    let last_succeeded = kinds.iter().rposition(|k| *k == "plan.succeeded").unwrap();
    assert_eq!(kinds.iter().filter(|k| **k == "topology.deleted").count(), 1);
    assert_eq!(last_succeeded.abs_diff(first("topology.deleted")), 1, "{kinds:?}");
    let stream = format!("/v1/plans/{}/stream", id(&dissolved));
    let told: Vec<_> = world.client.events(&stream, None).collect().await;
    assert_eq!(told.last().unwrap().as_ref().unwrap().event, "plan.succeeded");

    // They are as new: a cluster of the same name can be made, and one without keys costs no data.
    world.create(&world.cluster("orders", 3, 1)).await;
    world.check_cluster(&[]);
    let problem = refused(&world, PLANS, &intent("dissolve")).await;
    assert!(problem.hazards.iter().all(|h| h.id.starts_with("outage:")), "{problem}");
    let body = json!({ "intent": { "kind": "dissolve" }, "plan": { "accept_hazard": "outage" } });
    carry_out(&world, &body).await;
    is_dissolved(&world).await;
}

#[tokio::test]
async fn a_dissolve_that_fails_half_way_is_finished_by_a_retry() {
    let deadline = [("REEVE_WAIT_DEADLINE_MS", "2500"), ("REEVE_BACKOFF_BASE_MS", "400")];
    let mut world = orders(&deadline).await;
    fill(&world).await;
    let stays = shards(&world).await[1].0;
    hold_back(&world, stays);
    let made = submit(&world, &dissolve(&world)).await;
    waits_for(&world, &id(&made), "retry").await;
    world.nodes[stays].signal(Signal::STOP).unwrap();
    let failed = ends(&world, &id(&made), "failed", SOON).await;
    assert_eq!(failed["error"]["node"], world.nodes[stays].address());
    assert_eq!(terminal_events(&world, &id(&made)).await, 1);
    let topology = world.client.get(TOPOLOGY).await.unwrap();
    assert_eq!(
        (&topology["version"], &topology["status"]["phase"]),
        (&json!(2), &json!("deleting"))
    );
    world.nodes[stays].signal(Signal::CONT).unwrap();
    let_go(&world, stays);

    // What is half gone is neither repaired nor accepted.
    for kind in ["repair", "accept_drift"] {
        let problem = refused(&world, PLANS, &intent(kind)).await;
        assert!(["unsettled", "unsupported"].contains(&problem.code.as_deref().unwrap()));
    }
    // Consent to a loss is for the moment at which it is given.
    let retry = format!("/v1/plans/{}/retry", id(&made));
    let problem = refused(&world, &retry, &json!({})).await;
    let lacking: Vec<&String> = problem.hazards.iter().map(|h| &h.id).collect();
    assert_eq!(lacking, flush(&world, [stays]).iter().collect::<Vec<_>>());
    let accept = json!({ "accept": flush(&world, [stays]) });
    let retried = world.client.submit(&retry, &accept, Some(30)).await.unwrap();
    assert_eq!(retried["state"], "succeeded", "{retried:#}");
    is_dissolved(&world).await;
}

#[tokio::test]
async fn what_a_failed_dissolve_left_can_be_brought_back() {
    let world = orders(&[("REEVE_MAX_RETRIES", "0"), ("REEVE_BACKOFF_BASE_MS", "50")]).await;
    fill(&world).await;
    let replica = shards(&world).await[2].1[0];
    let old: Vec<String> = (0..6).map(|n| world.ask(n, &["CLUSTER", "MYID"])).collect();
    let is_whole = async |keys_left: usize| {
        agree(&world).await;
        world.check_cluster(&[]);
        settings_are_back(&world);
        is_steady(&world).await;
        let ids: BTreeSet<String> = (0..6).map(|n| world.ask(n, &["CLUSTER", "MYID"])).collect();
        for node in 0..6 {
            let known = world.ask(node, &["CLUSTER", "NODES"]);
            let gone = old.iter().filter(|id| !ids.contains(*id));
            assert!(gone.into_iter().all(|id| !known.contains(id.as_str())), "{known}");
        }
        let primaries: usize =
            shards(&world).await.into_iter().map(|(primary, _)| keys(&world, primary)).sum();
        assert_eq!(primaries, keys_left);
    };

    // A replica that may not be reset keeps the primaries from being emptied.
    world.ask(replica, &["ACL", "SETUSER", "default", "-cluster|reset"]);
    let made = submit(&world, &dissolve(&world)).await;
    let failed = ends(&world, &id(&made), "failed", SOON).await;
    assert!(failed["error"]["recovery"].as_str().unwrap().contains("ACL"), "{failed:#}");
    let topology = world.client.get(TOPOLOGY).await.unwrap();
    assert_eq!(
        (&topology["version"], &topology["status"]["phase"]),
        (&json!(2), &json!("deleting"))
    );
    world.ask(replica, &["ACL", "SETUSER", "default", "+cluster|reset"]);
    let reverted = carry_out(&world, &revert(1)).await;
    assert_eq!((&reverted["from_version"], &reverted["to_version"]), (&json!(2), &json!(3)));
    is_whole(30).await;

    // Only one primary is left: its keys stay, and the other slots are served by empty nodes.
    let stays = shards(&world).await[1].0;
    let left = keys(&world, stays);
    hold_back(&world, stays);
    let made = submit(&world, &dissolve(&world)).await;
    ends(&world, &id(&made), "failed", SOON).await;
    assert_eq!((0..6).filter(|n| is_blank(&world, *n)).count(), 5);
    let_go(&world, stays);
    let reverted = carry_out(&world, &revert(1)).await;
    assert_eq!(reverted["to_version"], 5);
    is_whole(left).await;
}

#[tokio::test]
async fn drift_is_settled_by_accepting_it_reverting_it_or_repairing_it() {
    let world = orders(&[]).await;
    fill(&world).await;
    let first = world.client.get(TOPOLOGY).await.unwrap();
    let (moved, to) = drift(&world).await;
    let problem = refused(&world, PLANS, &dissolve(&world)).await;
    assert_eq!(problem.code.as_deref(), Some("unsettled"));
    assert_eq!(offers(&problem), ["repair", "accept_drift"], "{problem}");
    let address = world.nodes[moved].address();
    assert!(problem.errors.iter().any(|e| e.detail.contains(&address)), "{problem}");
    until("the drift shows", SOON, async || {
        let phase = world.client.get(TOPOLOGY).await.unwrap()["status"]["phase"].clone();
        if phase == "degraded" { Ok(()) } else { Err(phase.to_string()) }
    })
    .await;

    // What is seen is wanted from now on; nobody does anything.
    let before = world.untouched();
    let accepted = carry_out(&world, &intent("accept_drift")).await;
    assert_eq!((&accepted["steps"], &accepted["to_version"]), (&json!([]), &json!(2)));
    assert_eq!(before, world.untouched());
    let topology = world.client.get(TOPOLOGY).await.unwrap();
    let members = topology["layout"]["shards"].as_array().unwrap();
    let with = |node: usize| {
        let address = json!(world.nodes[node].address());
        let of = |s: &&Value| s["members"].as_array().unwrap().contains(&address);
        members.iter().find(of).unwrap()["id"].clone()
    };
    assert_eq!(with(moved), with(to));
    is_steady(&world).await;
    let versions = world.client.get("/v1/topologies/orders/versions").await.unwrap();
    assert_eq!(versions["items"][0]["version"], 2);
    assert_eq!(versions["items"][0]["parent"], 1);
    let preview =
        world.client.post("/v1/topologies/orders/plans/preview", &dissolve(&world)).await.unwrap();
    assert_eq!(preview["from_version"], 2, "it is settled");

    let reverted = carry_out(&world, &revert(1)).await;
    let kinds: Vec<&Value> =
        reverted["steps"].as_array().unwrap().iter().map(|s| &s["kind"]).collect();
    assert_eq!(kinds.iter().filter(|k| **k == "replicate").count(), 1, "{kinds:?}");
    let back = world.client.get(TOPOLOGY).await.unwrap();
    assert_eq!((&back["version"], &back["layout"]), (&json!(3), &first["layout"]));
    assert_eq!(back["spec"], first["spec"]);
    world.check_cluster(&[]);

    // With a past, to go back is offered too; a repair does the same without a version.
    drift(&world).await;
    let problem = refused(&world, PLANS, &dissolve(&world)).await;
    assert_eq!(offers(&problem), ["repair", "revert", "accept_drift"], "{problem}");
    carry_out(&world, &intent("repair")).await;
    let repaired = world.client.get(TOPOLOGY).await.unwrap();
    assert_eq!((&repaired["version"], &repaired["layout"]), (&json!(3), &first["layout"]));
    world.check_cluster(&[]);
    assert_eq!(30, shards(&world).await.into_iter().map(|s| keys(&world, s.0)).sum::<usize>());
}

#[tokio::test]
async fn only_what_is_plain_to_see_can_be_accepted() {
    let mut world = orders(&[]).await;
    let shards = shards(&world).await;
    let at = |world: &World, node: usize, problem: &Problem| {
        assert_eq!(problem.code.as_deref(), Some("unsettled"), "{problem}");
        let nodes = world.node_specs();
        let address = world.nodes[node].address();
        let listed = nodes.iter().position(|n| n["address"] == address).unwrap();
        let pointer = format!("/spec/nodes/{listed}/address");
        let found = problem.errors.iter().find(|e| e.pointer == pointer);
        found.unwrap_or_else(|| panic!("{pointer}: {problem}")).detail.clone()
    };
    let silent = shards[0].1[0];
    world.nodes[silent].signal(Signal::STOP).unwrap();
    let problem = refused(&world, PLANS, &intent("accept_drift")).await;
    assert!(at(&world, silent, &problem).contains("does not answer"), "{problem}");
    world.nodes[silent].signal(Signal::CONT).unwrap();

    // A replica that knows nobody any more, while everybody knows it.
    let alone = shards[1].1[0];
    let old = world.ask(alone, &["CLUSTER", "MYID"]);
    assert_eq!(world.ask(alone, &["CLUSTER", "RESET", "SOFT"]), "OK");
    let problem = refused(&world, PLANS, &intent("accept_drift")).await;
    at(&world, alone, &problem);
    assert_eq!(world.ask(alone, &["CLUSTER", "MYID"]), old);
    carry_out(&world, &intent("repair")).await;
    world.check_cluster(&[]);

    for node in 0..6 {
        world.ask(node, &["CLUSTER", "DELSLOTS", "0", "1", "2"]);
    }
    let problem = refused(&world, PLANS, &intent("accept_drift")).await;
    assert_eq!(problem.code.as_deref(), Some("unsettled"));
    let uncovered = problem.errors.iter().find(|e| e.pointer == "/layout/shards");
    assert!(uncovered.is_some_and(|e| e.detail.contains("0-2")), "{problem}");
    carry_out(&world, &intent("repair")).await;
    world.check_cluster(&[]);
    // Nothing is to be accepted where nothing has changed; the version stays.
    let same = carry_out(&world, &intent("accept_drift")).await;
    assert_eq!((&same["steps"], &same["to_version"]), (&json!([]), &json!(1)));
}

#[tokio::test]
async fn a_create_that_waits_is_superseded_by_a_dissolve() {
    let mut world = blank_nodes(&[]).await;
    let made = world.client.create_topology(&world.cluster("orders", 3, 1), None).await.unwrap();
    let frozen = 5;
    world.nodes[frozen].signal(Signal::STOP).unwrap();
    waits_for(&world, &id(&made), "node").await;
    let problem = refused(&world, PLANS, &dissolve(&world)).await;
    assert_eq!(problem.code.as_deref(), Some("plan_active"));
    let mut body = dissolve(&world);
    body["plan"]["supersede"] = json!(true);
    // Nobody can say what a node holds that does not answer, and nobody proposes to take a place.
    let problem = refused(&world, PLANS, &body).await;
    assert_eq!(problem.code.as_deref(), Some("nodes_unfit"));
    assert!(problem.to_string().contains(&world.nodes[frozen].address()), "{problem}");
    body["plan"]["start"] = json!(false);
    let problem = refused(&world, PLANS, &body).await;
    assert_eq!(problem.errors[0].pointer, "/plan/supersede");
    body["plan"]["start"] = json!(true);
    assert_eq!(plan(&world, &id(&made)).await.unwrap()["state"], "running");

    // A paused plan stays where it is when the node comes back.
    turn(&world, &made, "pause").await;
    ends(&world, &id(&made), "paused", SOON).await;
    world.nodes[frozen].signal(Signal::CONT).unwrap();
    let superseding = until("it is taken", SOON, async || {
        world.client.post(PLANS, &body).await.map_err(|e| e.to_string())
    })
    .await;
    // Wherever the new one is by now, it waits too.
    world.nodes[frozen].signal(Signal::STOP).unwrap();
    ends(&world, &id(&made), "superseded", SOON).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.nodes[frozen].signal(Signal::CONT).unwrap();
    ends(&world, &id(&superseding), "succeeded", SOON).await;
    assert_eq!(terminal_events(&world, &id(&made)).await, 1);
    assert_eq!(terminal_events(&world, &id(&superseding)).await, 1);
    is_dissolved(&world).await;
}

#[tokio::test]
async fn an_emergency_goes_before_a_plan_that_goes_on_by_itself() {
    let mut world = orders(&[]).await;
    fill(&world).await;
    let (moved, _) = drift(&world).await;
    carry_out(&world, &intent("accept_drift")).await;
    let lone = shards(&world).await[0].0;
    // The way back needs the moved replica, which is frozen.
    world.nodes[moved].signal(Signal::STOP).unwrap();
    let reverting = submit(&world, &revert(1)).await;
    waits_for(&world, &id(&reverting), "node").await;
    let problem = refused(&world, PLANS, &intent("repair")).await;
    assert_eq!(problem.code.as_deref(), Some("plan_active"), "there is no emergency");

    world.nodes[lone].kill();
    let repair = submit(&world, &intent("repair")).await;
    let paused = ends(&world, &id(&reverting), "paused", SOON).await;
    assert_eq!(paused["waiting_for"], "preempted");
    let mut third = intent("accept_drift");
    third["plan"]["supersede"] = json!(true);
    let problem = refused(&world, PLANS, &third).await;
    assert_eq!(problem.code.as_deref(), Some("plan_active"), "one at a time takes a place");
    world.nodes[lone].restart().await.unwrap();
    world.nodes[moved].signal(Signal::CONT).unwrap();
    ends(&world, &id(&repair), "succeeded", SOON).await;
    let reverted = ends(&world, &id(&reverting), "succeeded", SOON).await;
    assert_eq!(reverted["warnings"], json!([]), "{reverted:#}");
    assert_eq!(terminal_events(&world, &id(&repair)).await, 1);
    assert_eq!(terminal_events(&world, &id(&reverting)).await, 1);
    agree(&world).await;
    world.check_cluster(&[]);
    is_steady(&world).await;
}

#[tokio::test]
async fn slots_that_nobody_serves_are_an_emergency_too() {
    let mut world = orders(&[]).await;
    let (moved, _) = drift(&world).await;
    carry_out(&world, &intent("accept_drift")).await;
    world.nodes[moved].signal(Signal::STOP).unwrap();
    let reverting = submit(&world, &revert(1)).await;
    waits_for(&world, &id(&reverting), "node").await;
    turn(&world, &reverting, "pause").await;
    ends(&world, &id(&reverting), "paused", SOON).await;
    world.nodes[moved].signal(Signal::CONT).unwrap();
    for node in 0..6 {
        world.ask(node, &["CLUSTER", "DELSLOTS", "5", "6"]);
    }
    carry_out(&world, &intent("repair")).await;
    world.check_cluster(&[]);
    // Whom a person paused only a person has go on.
    let paused = plan(&world, &id(&reverting)).await.unwrap();
    assert_eq!((&paused["state"], &paused["waiting_for"]), (&json!("paused"), &json!("operator")));
    turn(&world, &reverting, "resume").await;
    ends(&world, &id(&reverting), "succeeded", SOON).await;
    world.check_cluster(&[]);
}

#[tokio::test]
async fn a_proposed_plan_is_not_started_when_the_topology_has_gone_on() {
    let world = orders(&[]).await;
    let propose = async |mut body: Value| {
        body["plan"]["start"] = json!(false);
        submit(&world, &body).await
    };
    let outdated = propose(intent("repair")).await;
    let unwanted = propose(dissolve(&world)).await;
    assert_eq!(outdated["state"], "proposed");
    let topology = world.client.get(TOPOLOGY).await.unwrap();
    assert_eq!(topology["version"], 1, "a proposal changes nothing");

    drift(&world).await;
    let start = |plan: &Value| format!("/v1/plans/{}/start", id(plan));
    let problem = refused(&world, &start(&unwanted), &json!({})).await;
    assert_eq!(problem.code.as_deref(), Some("stale_fingerprint"));
    carry_out(&world, &intent("accept_drift")).await;
    let before = world.untouched();
    for plan in [&outdated, &unwanted] {
        let problem = refused(&world, &start(plan), &json!({})).await;
        assert_eq!(problem.code.as_deref(), Some("unsettled"), "{problem}");
        assert!(problem.to_string().contains("gone on"), "{problem}");
    }
    assert_eq!(before, world.untouched());

    // One that is proposed now is started, and ends what else was proposed.
    let wanted = propose(dissolve(&world)).await;
    turn(&world, &wanted, "start").await;
    ends(&world, &id(&wanted), "succeeded", SOON).await;
    is_dissolved(&world).await;
    for plan in [&outdated, &unwanted] {
        assert_eq!(terminal_events(&world, &id(plan)).await, 1);
        ends(&world, &id(plan), "superseded", SOON).await;
    }
}

#[tokio::test]
async fn a_queued_plan_whose_nodes_changed_asks_before_it_begins() {
    let mut world = orders(&[SHORT_LEASE]).await;
    let (moved, _) = drift(&world).await;
    carry_out(&world, &intent("accept_drift")).await;
    let other = shards(&world).await[2].1[0];
    // A look past a frozen node takes its time: the server dies before the plan is begun.
    world.nodes[moved].signal(Signal::STOP).unwrap();
    let reverting = submit(&world, &revert(1)).await;
    world.server.kill9();
    world.nodes[moved].signal(Signal::CONT).unwrap();
    world.nodes[other].restart().await.unwrap();
    world.server.restart().await.unwrap();
    let paused = ends(&world, &id(&reverting), "paused", SOON).await;
    assert_eq!(paused["waiting_for"], "stale");
    let why = paused["warnings"].to_string();
    assert!(why.contains(&world.nodes[other].address()), "{why}");
    turn(&world, &reverting, "resume").await;
    ends(&world, &id(&reverting), "succeeded", SOON).await;
    agree(&world).await;
    world.check_cluster(&[]);

    // Once more, and now it is not wanted any longer.
    world.nodes[moved].signal(Signal::STOP).unwrap();
    let again = submit(&world, &revert(2)).await;
    world.server.kill9();
    world.nodes[moved].signal(Signal::CONT).unwrap();
    world.nodes[other].restart().await.unwrap();
    world.server.restart().await.unwrap();
    ends(&world, &id(&again), "paused", SOON).await;
    turn(&world, &again, "cancel").await;
    ends(&world, &id(&again), "cancelled", SOON).await;
    assert_eq!(terminal_events(&world, &id(&again)).await, 1);
    agree(&world).await;
    world.check_cluster(&[]);
    // It left a version that the nodes are not at: what may be asked for now is offered.
    let problem = refused(&world, PLANS, &dissolve(&world)).await;
    assert_eq!(offers(&problem), ["retry", "repair", "revert", "accept_drift"], "{problem}");
    let path = format!("/v1/plans/{}/retry", id(&again));
    assert!(problem.offers[0].detail.contains(&path), "{problem}");
    let retried = world.client.submit(&path, &json!({}), Some(20)).await.unwrap();
    assert_eq!(retried["state"], "succeeded", "{retried:#}");
    is_steady(&world).await;
}

#[tokio::test]
async fn a_dissolve_is_paused_and_cancelled_between_steps() {
    let world = orders(&[]).await;
    fill(&world).await;
    let stays = shards(&world).await[0].0;
    hold_back(&world, stays);
    let made = submit(&world, &dissolve(&world)).await;
    waits_for(&world, &id(&made), "retry").await;
    turn(&world, &made, "pause").await;
    let paused = ends(&world, &id(&made), "paused", SOON).await;
    assert_eq!(paused["waiting_for"], "operator");
    // Five are done with, and one is as it was.
    assert_eq!((0..6).filter(|n| is_blank(&world, *n)).count(), 5);
    assert!(keys(&world, stays) > 0);
    settings_are_back(&world);
    let before = world.untouched();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(before, world.untouched());

    turn(&world, &made, "resume").await;
    waits_for(&world, &id(&made), "retry").await;
    turn(&world, &made, "cancel").await;
    ends(&world, &id(&made), "cancelled", SOON).await;
    assert_eq!(before, world.untouched());
    let topology = world.client.get(TOPOLOGY).await.unwrap();
    assert_eq!(
        (&topology["version"], &topology["status"]["phase"]),
        (&json!(2), &json!("deleting"))
    );

    // To ask once more is as good as to retry.
    let lacking = refused(&world, PLANS, &intent("dissolve")).await;
    assert_eq!(lacking.hazards.len(), 1, "{lacking}");
    let again = submit(&world, &dissolve(&world)).await;
    assert_eq!(again["to_version"], 2);
    waits_for(&world, &id(&again), "retry").await;
    turn(&world, &again, "pause").await;
    ends(&world, &id(&again), "paused", SOON).await;
    let_go(&world, stays);
    turn(&world, &again, "resume").await;
    ends(&world, &id(&again), "succeeded", SOON).await;
    assert_eq!(terminal_events(&world, &id(&again)).await, 1);
    is_dissolved(&world).await;
}

#[tokio::test]
async fn a_server_that_is_killed_in_mid_dissolve_finishes_after_its_restart() {
    let mut dice = Dice::new(37);
    let mut world = blank_nodes(&[SHORT_LEASE]).await;
    for _ in 0..repeats() {
        world.create(&world.cluster("orders", 3, 1)).await;
        fill(&world).await;
        let made = submit(&world, &dissolve(&world)).await;
        tokio::time::sleep(Duration::from_millis(dice.below(120))).await;
        world.server.kill9();
        world.server.restart().await.unwrap();
        ends(&world, &id(&made), "succeeded", Duration::from_secs(30)).await;
        assert_eq!(terminal_events(&world, &id(&made)).await, 1);
        is_dissolved(&world).await;
    }
}
