//! One shard of two, looked at once a second and then more often.

use super::*;
use crate::domain::id::TopologyId;
use crate::domain::node::{ClusterNodeId, Flavor, NodeKind, Version};
use crate::domain::observation::{
    ClusterView, DeposedMark, HoldMark, Mark, Memory, Peer, Persistence, Replication, Sighting,
    Silence,
};
use crate::domain::topology::Shards;

fn address(n: u16) -> Address {
    format!("10.0.0.{n}:7000").parse().unwrap()
}

fn shard() -> ShardId {
    ShardId::derive(TopologyId(Uuid::nil()), 0)
}

fn at(ms: i64) -> Timestamp {
    DateTime::UNIX_EPOCH + TimeDelta::milliseconds(ms)
}

/// What a node says of itself and of its only peer.
/// What each node holds.
const KEYS: u64 = 10;

fn report(n: u16, role: Role, offset: u64, peer_failed: bool) -> Sighting {
    let id = |n: u16| ClusterNodeId(format!("{n:040}"));
    let peer = |n: u16, role, failed| Peer {
        address: Some(address(n)),
        bus_port: None,
        role,
        primary: None,
        epoch: 1,
        linked: true,
        suspect: false,
        failed,
        handshake: false,
        slots: if role == Role::Primary { SlotSet::all() } else { SlotSet::empty() },
    };
    let other = if role == Role::Primary { Role::Replica } else { Role::Primary };
    Sighting::Seen(Box::new(Report {
        observed_at: at(0),
        kind: NodeKind::Data,
        flavor: Flavor::Redis,
        version: Version::new(7, 0, 15),
        run_id: n.to_string(),
        uptime_seconds: 10,
        loading: false,
        role,
        replication: Replication {
            replid: "same".to_owned(),
            offset,
            last_io_seconds: (role == Role::Replica).then_some(1),
            ..Replication::default()
        },
        memory: Memory::default(),
        persistence: Persistence::default(),
        keys: KEYS,
        functions: false,
        libraries: None,
        connected_clients: 1,
        cluster_enabled: true,
        sentinel: None,
        cluster: Some(ClusterView {
            my_id: id(n),
            state_ok: true,
            my_epoch: 1,
            current_epoch: 1,
            peers: [(id(n), peer(n, role, false)), (id(3 - n), peer(3 - n, other, peer_failed))]
                .into(),
            open: vec![],
            health: BTreeMap::new(),
            jobs: vec![],
            trims: false,
        }),
        settings: BTreeMap::new(),
        has_replication_login: false,
        replication_login_as_wanted: None,
        requires_login: false,
        bus_reachable: None,
    }))
}

fn silent() -> Sighting {
    Sighting::Silent(Silence { since: at(0), code: String::new(), message: String::new() })
}

struct Case {
    failovers: Failovers,
    layout: Layout,
    marks: Vec<Mark>,
    down: bool,
    plan: Option<PlanId>,
}

impl Case {
    /// Node 1 is primary, node 2 its replica.
    fn new() -> Self {
        let members = vec![address(1), address(2)];
        let shards = vec![(Shard { id: shard(), index: 0, members }, SlotSet::all())];
        let layout = Layout::Cluster { shards: Shards::new(shards).unwrap() };
        let (failovers, marks) = Default::default();
        let mut case = Self { failovers, layout, marks, down: false, plan: None };
        let well =
            case.look(0, report(1, Role::Primary, 100, false), report(2, Role::Replica, 90, false));
        assert_eq!(well, []);
        case
    }

    /// A look that asks at this time; answers take 5 ms.
    fn look(&mut self, ms: i64, one: Sighting, two: Sighting) -> Vec<Told> {
        let seen = Observation {
            nodes: [(address(1), one), (address(2), two)].into(),
            marks: self.marks.clone(),
        };
        let glance = Glance { asked: at(ms), ended: at(ms + 5), late: false };
        self.failovers.note(&Look {
            now: at(ms + 5),
            by: InstanceId(Uuid::nil()),
            layout: &self.layout,
            seen: &seen,
            glances: &[(address(1), glance), (address(2), glance)].into(),
            down: &|_| self.down,
            plan: self.plan,
        })
    }
}

fn kinds(told: &[Told]) -> Vec<&'static str> {
    told.iter().map(|t| t.kind().as_str()).collect()
}

fn completed(told: &[Told]) -> FailoverCompleted {
    let done = |t: &Told| match t {
        Told::Completed(done) => Some(done.clone()),
        Told::Detected(_) | Told::Started(_) | Told::Failed(_) => None,
    };
    told.iter().find_map(done).unwrap()
}

#[test]
fn an_election_is_told_step_by_step_with_bounds_and_loss() {
    let mut case = Case::new();
    let replica = |failed| report(2, Role::Replica, 90, failed);
    assert_eq!(case.look(1000, silent(), replica(false)), []);
    assert!(case.failovers.is_troubled(shard()));
    case.down = true;
    assert_eq!(kinds(&case.look(1250, silent(), replica(false))), ["failover.detected"]);
    assert_eq!(kinds(&case.look(1500, silent(), replica(true))), ["failover.started"]);
    assert_eq!(case.look(3000, silent(), replica(true)), []);
    let told = case.look(3100, silent(), report(2, Role::Primary, 95, true));
    assert_eq!(kinds(&told), ["failover.completed"]);
    let done = completed(&told);
    assert_eq!(
        (done.cause, &done.old_primary, &done.new_primary),
        (Cause::Election, &address(1), &address(2))
    );
    // Asked at 0 it was there, and it was gone when its silence was noticed at 1005; its successor said
    // at 3000 that it did not serve, and at 3105 that it did.
    let bounds = done.unavailable_ms.unwrap();
    assert_eq!((bounds.at_least, bounds.at_most), (3000 - 1005, 3105 + 1));
    // Of 100 bytes the new one had 90. At 3000 it had heard of the old one a second before.
    assert_eq!(done.possibly_lost, Some(Loss { bytes: 10, seconds: 1 }));
    assert!(!case.failovers.is_troubled(shard()));
    assert_eq!(case.look(4000, silent(), report(2, Role::Primary, 99, true)), []);
    // And when the old one comes back as a replica, that is no news.
    let (back, there) = (report(1, Role::Replica, 99, false), report(2, Role::Primary, 99, false));
    assert_eq!(case.look(5000, back, there), []);
}

#[test]
fn what_is_seen_late_is_told_all_at_once() {
    let mut case = Case::new();
    let told = case.look(1000, silent(), report(2, Role::Primary, 100, true));
    assert_eq!(kinds(&told), ["failover.detected", "failover.started", "failover.completed"]);
    assert_eq!(completed(&told).possibly_lost, Some(Loss { bytes: 10, seconds: 1 }));
}

#[test]
fn a_primary_that_returns_ends_it() {
    let mut case = Case::new();
    let replica = || report(2, Role::Replica, 90, false);
    case.down = true;
    assert_eq!(kinds(&case.look(1000, silent(), replica())), ["failover.detected"]);
    let mut anew = report(1, Role::Primary, 100, false);
    if let Sighting::Seen(report) = &mut anew {
        (report.run_id, report.keys) = ("anew".to_owned(), 3);
    }
    let told = case.look(2000, anew.clone(), replica());
    assert_eq!(kinds(&told), ["failover.failed"]);
    let Told::Failed(failed) = &told[0] else { panic!("{told:?}") };
    assert_eq!(failed.reason, NotTaken::PrimaryReturned);
    let away = failed.unavailable_ms.unwrap();
    assert!(away.at_least <= 1000 && away.at_most >= 1000, "{away:?}");
    assert_eq!(failed.missing_keys, Some(KEYS - 3));
    assert_eq!(case.look(3000, anew, replica()), []);
}

#[test]
fn who_hears_nobody_tells_of_no_failover() {
    let mut case = Case::new();
    case.down = true;
    assert_eq!(case.look(1000, silent(), silent()), []);
    let (one, two) = (report(1, Role::Primary, 100, false), report(2, Role::Replica, 90, false));
    assert_eq!(case.look(2000, one, two), []);
}

#[test]
fn that_nobody_takes_over_is_told_once_and_a_late_successor_is_a_failover_of_its_own() {
    let mut case = Case::new();
    let replica = || report(2, Role::Replica, 90, true);
    case.down = true;
    assert_eq!(
        kinds(&case.look(1000, silent(), replica())),
        ["failover.detected", "failover.started"]
    );
    let told: Vec<Told> =
        (2..200).flat_map(|second| case.look(second * 1000, silent(), replica())).collect();
    assert_eq!(kinds(&told), ["failover.failed"]);
    assert!(!case.failovers.is_troubled(shard()), "it is no longer looked at many times a second");
    let told = case.look(300_000, silent(), report(2, Role::Primary, 90, true));
    assert_eq!(kinds(&told), ["failover.detected", "failover.started", "failover.completed"]);
}

#[test]
fn a_plan_and_another_hand_are_told_apart() {
    let mut case = Case::new();
    let hold = HoldMark { shard: shard(), until: at(60_000), elected: false };
    case.marks = vec![Mark { node: address(2), what: MarkKind::Hold(hold) }];
    case.plan = Some(PlanId(Uuid::nil()));
    let (one, two) = (|role| report(1, role, 100, false), |role| report(2, role, 100, false));
    assert_eq!(
        kinds(&case.look(100, one(Role::Primary), two(Role::Replica))),
        ["failover.started"]
    );
    assert_eq!(case.look(200, one(Role::Primary), two(Role::Replica)), []);
    let told = case.look(300, one(Role::Replica), two(Role::Primary));
    assert_eq!(kinds(&told), ["failover.completed"]);
    let done = completed(&told);
    assert_eq!((done.cause, done.plan), (Cause::Planned, case.plan));
    assert_eq!(done.possibly_lost, None);
    assert_eq!(done.unavailable_ms.map(|b| b.at_least), Some(0));
    // While the shard rests, somebody else takes it back.
    case.plan = None;
    let told = case.look(1000, one(Role::Primary), two(Role::Replica));
    assert_eq!(kinds(&told), ["failover.started", "failover.completed"]);
    assert_eq!(completed(&told).cause, Cause::External);
    assert_eq!(case.look(2000, one(Role::Primary), two(Role::Replica)), []);
}

/// Started again from a file that has it follow a sibling, and nobody has taken its place.
#[test]
fn a_primary_that_comes_back_as_a_replica_is_missing() {
    let mut case = Case::new();
    let replica = |n| report(n, Role::Replica, 90, false);
    assert_eq!(case.look(1000, replica(1), replica(2)), []);
    assert_eq!(case.look(3000, replica(1), replica(2)), []);
    assert_eq!(kinds(&case.look(5000, replica(1), replica(2))), ["failover.detected"]);
    let told: Vec<Told> =
        (6..100).flat_map(|second| case.look(second * 1000, replica(1), replica(2))).collect();
    assert_eq!(kinds(&told), ["failover.failed"]);
    // While a plan is at work it is the plan's doing.
    let mut case = Case::new();
    case.plan = Some(PlanId(Uuid::nil()));
    let told: Vec<Told> =
        (1..9).flat_map(|second| case.look(second * 1000, replica(1), replica(2))).collect();
    assert_eq!(told, []);
}

#[test]
fn a_forced_hand_over_is_the_plan_s() {
    let mut case = Case::new();
    case.down = true;
    let replica = || report(2, Role::Replica, 90, false);
    assert_eq!(kinds(&case.look(1000, silent(), replica())), ["failover.detected"]);
    let deposed = DeposedMark {
        shard: shard(),
        successor: address(2),
        run_id: String::new(),
        replid: String::new(),
        offset: 90,
        forced: true,
    };
    case.marks = vec![Mark { node: address(1), what: MarkKind::Deposed(deposed) }];
    case.plan = Some(PlanId(Uuid::nil()));
    let done = completed(&case.look(2000, silent(), report(2, Role::Primary, 90, false)));
    assert_eq!((done.cause, done.plan), (Cause::Planned, case.plan));
}

/// Clients wait from when a plan has writes held back, although the primary still says that it is one.
#[test]
fn the_pause_of_a_plan_is_counted() {
    let mut case = Case::new();
    let (one, two) = (|role| report(1, role, 100, false), |role| report(2, role, 100, false));
    let hold = HoldMark { shard: shard(), until: at(60_000), elected: false };
    case.marks = vec![Mark { node: address(2), what: MarkKind::Hold(hold) }];
    case.plan = Some(PlanId(Uuid::nil()));
    case.look(20, one(Role::Primary), two(Role::Replica));
    case.look(40, one(Role::Primary), two(Role::Replica));
    let done = completed(&case.look(60, one(Role::Replica), two(Role::Primary)));
    assert!(done.unavailable_ms.unwrap().at_most >= 60, "{done:?}");
    assert!(done.detected_at <= done.completed_at, "{done:?}");
}

/// A process that died when no node led, in the middle of a plan's change: its successor knows by the
/// plan who did before.
#[test]
fn a_change_that_a_plan_was_at_is_told_by_whoever_goes_on() {
    let mut case = Case::new();
    let replica = |n| report(n, Role::Replica, 90, true);
    let nodes = [1, 2].map(|n| (address(n), replica(n)));
    let seen = Observation { nodes: nodes.into(), marks: vec![] };
    let seat = Seat {
        from: address(1),
        from_id: ClusterNodeId("a".repeat(40)),
        slots: SlotSet::all(),
        to: address(2),
        method: crate::domain::step::command::FailoverMethod::Graceful,
        expected_ms: None,
    };
    case.failovers = Failovers::resume(&case.layout, &[(shard(), seat)].into(), &seen, &[]);
    case.plan = Some(PlanId(Uuid::nil()));
    let told = case.look(1000, replica(1), report(2, Role::Primary, 90, true));
    assert_eq!(kinds(&told), ["failover.started", "failover.completed"]);
    assert_eq!(completed(&told).cause, Cause::Planned);
}

#[test]
fn what_was_under_way_goes_on_in_another_process() {
    let mut case = Case::new();
    let replica = || report(2, Role::Replica, 90, true);
    case.down = true;
    let told = case.look(1000, silent(), replica());
    let seen = Observation {
        nodes: [(address(1), silent()), (address(2), replica())].into(),
        marks: vec![],
    };
    case.failovers = Failovers::resume(&case.layout, &BTreeMap::new(), &seen, &told[1..]);
    assert_eq!(case.look(2000, silent(), replica()), []);
    let told = case.look(3000, silent(), report(2, Role::Primary, 90, true));
    assert_eq!(kinds(&told), ["failover.completed"]);
}
