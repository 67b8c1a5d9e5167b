//! Slots on the move, where the contract does not reach: faults on the way, values, jobs that fail.

use super::*;
use crate::domain::moving::talk::{Answer, JobState, Key, Lane, Saying, SlotJob, SlotState};
use crate::fleet::Talk;

/// The slot of the keys `{bar}0`, `{bar}1` and so on.
const SLOT: u16 = 5061;

async fn say_on(
    fleet: &SimFleet,
    lane: Lane,
    port: u16,
    token: i64,
    sayings: &[Saying],
) -> Result<Vec<Answer>, FleetError> {
    let (target, identity) = (target(port, token), fleet.inspect(&address(port)).unwrap().id);
    let within = Duration::from_secs(2);
    let talk = Talk { target: &target, lane, identity: &identity, within };
    fleet.converse(&talk, sayings).await
}

async fn say(fleet: &SimFleet, port: u16, saying: Saying) -> Answer {
    say_on(fleet, Lane::Control, port, 1, &[saying]).await.unwrap().remove(0)
}

fn id(fleet: &SimFleet, port: u16) -> crate::domain::node::ClusterNodeId {
    fleet.inspect(&address(port)).unwrap().id
}

fn importing(fleet: &SimFleet, from: u16) -> Saying {
    Saying::SetSlot { slot: SLOT, state: SlotState::Importing(id(fleet, from)) }
}

fn migrating(fleet: &SimFleet, to: u16) -> Saying {
    Saying::SetSlot { slot: SLOT, state: SlotState::Migrating(id(fleet, to)) }
}

fn sends(to: u16, keys: &[&str]) -> Saying {
    let keys = keys.iter().map(|key| Key(key.as_bytes().to_vec())).collect();
    Saying::Migrate { to: address(to), keys, within_ms: 1500 }
}

/// The usual cluster, with the slot open from 1 to 2.
async fn half_way() -> Arc<SimFleet> {
    let fleet = cluster().await;
    assert_eq!(say(&fleet, 2, importing(&fleet, 1)).await, Answer::Done);
    assert_eq!(say(&fleet, 1, migrating(&fleet, 2)).await, Answer::Done);
    fleet
}

#[tokio::test]
async fn a_key_has_the_value_of_its_last_write_wherever_it_is() {
    let fleet = half_way().await;
    fleet.plant(&address(1), "{bar}0");
    fleet.plant(&address(1), "{bar}1");
    assert_eq!(say(&fleet, 1, sends(2, &["{bar}0"])).await, Answer::Done);
    let mut last = 0;
    for key in ["{bar}0", "{bar}1", "{bar}2", "foo"] {
        let written = fleet.put(key).unwrap();
        assert!(written > last);
        last = written;
        assert_eq!(fleet.get(key), Ok(Some(written)));
        assert_eq!(fleet.surviving_values()[key], written);
    }
    assert_eq!(fleet.get("{bar}3"), Ok(None));
    let held = |port| fleet.inspect(&address(port)).unwrap().keys;
    assert_eq!(held(1), ["{bar}1".to_owned()].into());
    assert_eq!(held(2), ["{bar}0".to_owned(), "{bar}2".to_owned()].into());
    fleet.advance(100);
    assert_eq!((held(4), held(5)), (held(1), held(2)), "replicas have the same");
    assert_eq!(fleet.surviving_keys().len(), 4);
}

#[tokio::test]
async fn only_what_changes_something_is_counted() {
    let fleet = cluster().await;
    let before = fleet.calls().len();
    let batch = [
        Saying::Ping,
        importing(&fleet, 1),
        Saying::CountKeys { slot: SLOT },
        Saying::ListKeys { slot: SLOT, at_most: 1 },
        Saying::SetSlot { slot: SLOT, state: SlotState::Stable },
    ];
    let answers = say_on(&fleet, Lane::Control, 2, 1, &batch).await.unwrap();
    assert_eq!(answers.len(), 5);
    let sent: Vec<_> = fleet.calls().drain(before..).map(|call| call.sent).collect();
    let expected = [batch[1].clone(), batch[4].clone()].map(Sent::Saying);
    assert_eq!(sent, expected);
}

#[tokio::test]
async fn a_lost_answer_leaves_the_rest_unsaid() {
    let fleet = cluster().await;
    let next = fleet.calls().len() as u64;
    fleet.fault_at(next, CallFault::LoseReply);
    let batch = [importing(&fleet, 1), Saying::SetSlot { slot: SLOT, state: SlotState::Stable }];
    let said = say_on(&fleet, Lane::Control, 2, 1, &batch).await;
    assert!(matches!(said, Err(FleetError::Ambiguous { .. })), "{said:?}");
    assert_eq!(look(&fleet, 2).await.cluster.unwrap().open.len(), 1);
}

#[tokio::test]
async fn keys_that_were_to_go_late_go_unless_somebody_took_over() {
    for fenced in [false, true] {
        let fleet = half_way().await;
        fleet.plant(&address(1), "{bar}0");
        let next = fleet.calls().len() as u64;
        fleet.fault_at(next, CallFault::Late { after_ms: 60_000 });
        let said = say_on(&fleet, Lane::Bulk, 1, 1, &[sends(2, &["{bar}0"])]).await;
        assert!(matches!(said, Err(FleetError::Ambiguous { .. })), "{said:?}");
        if fenced {
            fleet.another_process(1).fence(&target(1, 2)).await.unwrap();
            let refused = say_on(&fleet, Lane::Control, 1, 1, &[Saying::Ping]).await;
            assert!(matches!(refused, Err(FleetError::Rejected { code, .. }) if code == "FENCED"));
        }
        fleet.advance(61_000);
        assert_eq!(fleet.inspect(&address(2)).unwrap().keys.is_empty(), fenced);
    }
}

#[tokio::test]
async fn what_was_said_to_a_frozen_node_is_heard_when_it_thaws() {
    let fleet = cluster().await;
    assert_eq!(say(&fleet, 2, Saying::Ping).await, Answer::Done);
    fleet.set_timing(5, 100);
    fleet.freeze(&address(2));
    let said = say_on(&fleet, Lane::Bulk, 2, 1, &[importing(&fleet, 1)]).await;
    assert!(matches!(said, Err(FleetError::Unreachable { .. })), "no connection: {said:?}");
    let said = say_on(&fleet, Lane::Control, 2, 1, &[importing(&fleet, 1)]).await;
    assert!(matches!(said, Err(FleetError::Ambiguous { .. })), "{said:?}");
    fleet.thaw(&address(2));
    let call = fleet.calls().pop().unwrap();
    assert!(matches!(call.outcome, CallOutcome::RanLate { .. }), "{:?}", call.outcome);
}

#[tokio::test]
async fn another_node_at_the_address_hears_nothing() {
    let fleet = fleet(1);
    let gone = id(&fleet, 1);
    fleet.restart(&address(1), Keep::Nothing);
    let to = target(1, 1);
    let within = Duration::from_secs(2);
    let talk = Talk { target: &to, lane: Lane::Control, identity: &gone, within };
    for _ in 0..2 {
        let said = fleet.converse(&talk, &[Saying::Ping]).await;
        assert!(matches!(said, Err(FleetError::Rejected { code, .. }) if code == "another_node"));
    }
}

#[tokio::test]
async fn a_source_that_is_busy_for_too_long_is_replaced() {
    let fleet = half_way().await;
    fleet.plant_sized(&address(1), "{bar}0", 200_000_000);
    let size = say(&fleet, 1, Saying::Size { key: Key(b"{bar}0".to_vec()) }).await;
    assert_eq!(size, Answer::Number(200_000_000));
    assert!(look(&fleet, 1).await.memory.used_bytes > 200_000_000);
    let said = say_on(&fleet, Lane::Bulk, 1, 1, &[sends(2, &["{bar}0"])]).await;
    assert!(matches!(said, Err(FleetError::Ambiguous { .. })), "{said:?}");
    fleet.advance(1000);
    assert!(fleet.inspect(&address(4)).unwrap().primary);
    assert!(fleet.inspect(&address(2)).unwrap().keys.contains("{bar}0"));
}

/// Three primaries of Valkey 9, of which the first is to give a slot to the second.
async fn job() -> Arc<SimFleet> {
    let fleet = SimFleet::new(7);
    let options = SimOptions::of(Flavor::Valkey, Version::new(9, 1, 2))
        .with("cluster-node-timeout", "500")
        .with("repl-diskless-sync-delay", "0");
    (1..=6).for_each(|port| fleet.add_node(&address(port), &options));
    form(&fleet).await;
    fleet.plant(&address(1), "{bar}0");
    let slots = [SLOT].into_iter().collect();
    let saying = Saying::MigrateSlots { slots, to: id(&fleet, 2) };
    assert_eq!(say(&fleet, 1, saying).await, Answer::Done);
    fleet
}

async fn states(fleet: &SimFleet, port: u16) -> Vec<JobState> {
    match say(fleet, port, Saying::SlotJobs).await {
        Answer::Jobs(jobs) => jobs.into_iter().map(|job| job.state).collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_job_moves_all_or_nothing() {
    let fleet = job().await;
    let before = fleet.put("{bar}0").unwrap();
    fleet.advance(500);
    assert_eq!(states(&fleet, 1).await, [JobState::Succeeded]);
    assert_eq!(states(&fleet, 2).await, [JobState::Succeeded]);
    assert_eq!(fleet.surviving_values()["{bar}0"], before);
    fleet.advance(500);
    for (port, keys) in [(1, 0), (4, 0), (2, 1), (5, 1)] {
        assert_eq!(fleet.inspect(&address(port)).unwrap().keys.len(), keys, "{port}");
    }

    let fleet = job().await;
    fleet.kill(&address(2));
    fleet.advance(500);
    assert_eq!(states(&fleet, 1).await, [JobState::Failed]);

    let fleet = job().await;
    let verb = Verb::Failover(FailoverMethod::Takeover);
    fleet.send(&target(5, 1), &[verb]).await.unwrap();
    fleet.advance(500);
    assert_eq!(states(&fleet, 1).await, [JobState::Failed]);
    assert_eq!(fleet.inspect(&address(1)).unwrap().keys.len(), 1);

    let fleet = job().await;
    assert_eq!(say(&fleet, 1, Saying::CancelSlotJobs).await, Answer::Done);
    fleet.advance(500);
    assert_eq!(states(&fleet, 1).await, [JobState::Cancelled]);
    assert_eq!(states(&fleet, 2).await, [JobState::Failed]);
    assert_eq!(fleet.inspect(&address(1)).unwrap().keys.len(), 1);
    fleet.restart(&address(1), Keep::Everything);
    assert_eq!(states(&fleet, 1).await, [], "jobs are in memory only");
}

/// Three primaries of Redis 8.4, of which the second is to take a slot from the first.
async fn import() -> Arc<SimFleet> {
    let fleet = SimFleet::new(7);
    let options = SimOptions::of(Flavor::Redis, Version::new(8, 4, 0))
        .with("cluster-node-timeout", "500")
        .with("repl-diskless-sync-delay", "0");
    (1..=6).for_each(|port| fleet.add_node(&address(port), &options));
    form(&fleet).await;
    fleet.plant(&address(1), "{bar}0");
    assert_eq!(say(&fleet, 2, takes()).await, Answer::Done);
    fleet
}

fn takes() -> Saying {
    Saying::ImportSlots { slots: [SLOT].into_iter().collect() }
}

async fn imports(fleet: &SimFleet, port: u16) -> Vec<SlotJob> {
    match say(fleet, port, Saying::Imports).await {
        Answer::Jobs(jobs) => jobs,
        other => panic!("{other:?}"),
    }
}

async fn refusal(fleet: &SimFleet, port: u16, saying: Saying) -> String {
    match say(fleet, port, saying).await {
        Answer::Refused { message, .. } => message,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_import_is_one_at_a_time_and_trimmed_afterwards() {
    let fleet = import().await;
    let busy = refusal(&fleet, 2, takes()).await;
    assert!(busy.contains("another ASM task is already in progress"), "{busy}");
    let barred = refusal(&fleet, 2, importing(&fleet, 1)).await;
    assert!(barred.contains("import in progress"), "{barred}");
    let view = look(&fleet, 2).await.cluster.unwrap();
    assert_eq!((view.jobs[0].from.as_ref(), view.trims), (Some(&id(&fleet, 1)), false));
    assert_eq!(look(&fleet, 1).await.cluster.unwrap().jobs, []);
    let before = fleet.put("{bar}0").unwrap();
    fleet.advance(300);
    assert!(imports(&fleet, 2).await.iter().all(|job| job.state == JobState::Succeeded));
    assert!(imports(&fleet, 1).await.iter().all(|job| job.giving));
    assert_eq!(fleet.surviving_values()["{bar}0"], before);
    assert!(look(&fleet, 1).await.cluster.unwrap().trims);
    fleet.advance(500);
    assert!(!look(&fleet, 1).await.cluster.unwrap().trims);
    let own = refusal(&fleet, 2, takes()).await;
    assert!(own.contains("already the owner"), "{own}");
    assert!(refusal(&fleet, 2, Saying::SlotJobs).await.to_lowercase().contains("unknown"));
}

#[tokio::test]
async fn an_import_is_tried_again_until_it_is_cancelled() {
    let fleet = import().await;
    fleet.restart(&address(1), Keep::Everything);
    fleet.advance(100);
    assert_eq!(imports(&fleet, 2).await[0].state, JobState::Failed);
    assert_eq!(look(&fleet, 2).await.cluster.unwrap().jobs.len(), 1);
    fleet.advance(3000);
    assert_eq!(imports(&fleet, 2).await[0].state, JobState::Succeeded);
    assert!(fleet.inspect(&address(2)).unwrap().keys.contains("{bar}0"));

    for by_name in [true, false] {
        let fleet = import().await;
        fleet.kill(&address(1));
        fleet.advance(5000);
        let job = imports(&fleet, 2).await.remove(0);
        assert_eq!(job.state, JobState::Failed);
        if by_name {
            let cancel = Saying::CancelImport { name: job.name };
            assert_eq!(say(&fleet, 2, cancel.clone()).await, Answer::Number(1));
            assert_eq!(say(&fleet, 2, cancel).await, Answer::Number(0));
        } else {
            fleet.send(&target(2, 1), &[Verb::CancelSlotJobs]).await.unwrap();
        }
        assert_eq!(imports(&fleet, 2).await[0].state, JobState::Cancelled);
        assert_eq!(look(&fleet, 2).await.cluster.unwrap().jobs, []);
        assert!(fleet.inspect(&address(4)).unwrap().slots.contains(SLOT));
    }

    let fleet = import().await;
    fleet.restart(&address(2), Keep::Everything);
    assert_eq!(imports(&fleet, 2).await, [], "jobs are in memory only");
}

#[tokio::test]
async fn a_replica_takes_over_between_two_commands() {
    for member in [1, 4] {
        let fleet = half_way().await;
        fleet.plant(&address(1), "{bar}0");
        let next = fleet.calls().len() as u64;
        fleet.take_over_at(next + 1, &address(member));
        let batch = [sends(2, &["{bar}0"]), importing(&fleet, 1)];
        let answers = say_on(&fleet, Lane::Bulk, 1, 1, &batch).await.unwrap();
        assert_eq!(answers[0], Answer::Done);
        fleet.advance(100);
        let holding = |port| fleet.inspect(&address(port)).unwrap();
        assert_eq!((holding(1).primary, holding(4).primary), (false, true));
        assert!(holding(4).slots.contains(SLOT) && holding(4).epoch > holding(2).epoch);
    }
}
