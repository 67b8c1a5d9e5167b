//! A look: every question in one batch, every answer in one [`Report`].
//!
//! Only `INFO` must be answered. The others may be refused (an ACL, an older version, cluster mode
//! off), and what they would have said is then left at its emptiest.

use std::collections::{BTreeMap, BTreeSet};

use redis::{ServerError, Value};

use super::Timeouts;
use super::connection::{Facts, Link, Lost, Node, rejected, unreachable};
use super::converse;
use super::info::Info;
use super::nodes;
use super::sentinel;
use super::value::{field, items, pairs, text};
use crate::domain::Timestamp;
use crate::domain::functions::{Libraries, digest};
use crate::domain::moving::talk::{Answer, JobState, SlotJob};
use crate::domain::node::{Capabilities, ClusterNodeId, MovedBy, NodeKind};
use crate::domain::observation::{Memory, Persistence, Replication, Report, Role, SlotJobView};
use crate::fleet::{Ask, FleetError, Target};

/// A replica's login to its primary.
const LOGIN: [&str; 2] = ["masteruser", "masterauth"];

/// Settings whose value is nobody's to see.
const SECRET: [&str; 5] =
    ["masterauth", "primaryauth", "requirepass", "tls-key-file-pass", "tls-client-key-file-pass"];

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Question {
    Info,
    ClusterInfo,
    ClusterNodes,
    ClusterShards,
    SlotJobs,
    Imports,
    Setting(String),
    Functions,
    Libraries,
    DefaultUser,
    SentinelId,
    Watches,
}

/// The answers that are no errors.
struct Answers(BTreeMap<Question, Value>);

pub(super) async fn look(
    node: &Node,
    target: &Target,
    ask: &Ask,
    times: &Timeouts,
    now: impl Fn() -> Timestamp,
) -> Result<Report, FleetError> {
    loop {
        let (link, fresh) = node.looking(target, times).await?;
        match ask_all(&link, target, ask, times, &now).await {
            Ok(looked) => return looked,
            Err(lost) => {
                node.hang_up(&link).await;
                match lost {
                    // It was kept from before: the server may have been started again since.
                    Lost::Broken(_) if !fresh => {}
                    Lost::Broken(_) | Lost::Late(_) => return Err(unreachable(target, lost)),
                }
            }
        }
    }
}

/// Asks everything; a Sentinel is asked a second time, about those that it says it watches.
async fn ask_all(
    link: &Link,
    target: &Target,
    ask: &Ask,
    times: &Timeouts,
    now: impl Fn() -> Timestamp,
) -> Result<Result<Report, FleetError>, Lost> {
    let questions = questions(ask, link.facts.get());
    let replies = link.ask(&batch(&questions), times.look).await?;
    let understood = |replies| -> Result<_, FleetError> {
        let answers = Answers::new(target, questions, replies)?;
        let report = report(target, ask, &answers, now())?;
        Ok((answers, report))
    };
    let (answers, mut report) = match understood(replies) {
        Ok(understood) => understood,
        Err(error) => return Ok(Err(error)),
    };
    let (capabilities, clustered, kind) =
        (report.capabilities(), report.cluster_enabled, report.kind);
    link.facts.get_or_init(|| Facts { capabilities, clustered, kind });
    if kind == NodeKind::Sentinel {
        let masters = answers.0.get(&Question::Watches);
        let mut view = sentinel::view(masters, ask.master.as_deref());
        view.my_id = answers.text(&Question::SentinelId);
        view.tilt = report_tilt(&answers);
        let names: Vec<String> = view.watches.keys().cloned().collect();
        if !names.is_empty() {
            let replies = link.ask(&sentinel::questions(&names), times.look).await?;
            sentinel::complete(&mut view, &names, &replies);
        }
        report.sentinel = Some(view);
    }
    Ok(Ok(report))
}

fn report_tilt(answers: &Answers) -> bool {
    Info::parse(&answers.text(&Question::Info)).is("sentinel_tilt", "1")
}

/// What to ask; everything while the server is not known.
fn questions(ask: &Ask, facts: Option<&Facts>) -> Vec<Question> {
    let clustered = facts.is_none_or(|f| f.clustered);
    let can = |what: fn(&Capabilities) -> bool| facts.is_none_or(|f| what(&f.capabilities));
    let is = |kind| facts.is_none_or(|f| f.kind == kind);
    let mut questions = vec![Question::Info, Question::DefaultUser];
    if is(NodeKind::Sentinel) {
        questions.extend([Question::SentinelId, Question::Watches]);
    }
    if !is(NodeKind::Data) {
        return questions;
    }
    if clustered {
        questions.extend([Question::ClusterInfo, Question::ClusterNodes]);
    }
    if clustered && can(|c| c.cluster_shards) {
        questions.push(Question::ClusterShards);
    }
    if clustered && can(|c| c.atomic_slots == Some(MovedBy::Source)) {
        questions.push(Question::SlotJobs);
    }
    if clustered && can(|c| c.atomic_slots == Some(MovedBy::Target)) {
        questions.push(Question::Imports);
    }
    if can(|c| c.functions) {
        questions.push(Question::Functions);
        if ask.libraries {
            questions.push(Question::Libraries);
        }
    }
    let names: BTreeSet<&str> = ask.settings.iter().map(String::as_str).chain(LOGIN).collect();
    questions.extend(names.into_iter().map(|name| Question::Setting(name.to_owned())));
    questions
}

fn batch(questions: &[Question]) -> redis::Pipeline {
    let mut batch = redis::pipe();
    for question in questions {
        match question {
            Question::Info => batch.cmd("INFO"),
            Question::ClusterInfo => batch.cmd("CLUSTER").arg("INFO"),
            Question::ClusterNodes => batch.cmd("CLUSTER").arg("NODES"),
            Question::ClusterShards => batch.cmd("CLUSTER").arg("SHARDS"),
            Question::SlotJobs => batch.cmd("CLUSTER").arg("GETSLOTMIGRATIONS"),
            Question::Imports => batch.cmd("CLUSTER").arg("MIGRATION").arg("STATUS").arg("ALL"),
            // One name each: Redis 6.2 takes no more.
            Question::Setting(name) => batch.cmd("CONFIG").arg("GET").arg(name),
            Question::Functions => batch.cmd("FUNCTION").arg("STATS"),
            Question::Libraries => batch.cmd("FUNCTION").arg("LIST").arg("WITHCODE"),
            Question::DefaultUser => batch.cmd("ACL").arg("GETUSER").arg("default"),
            Question::SentinelId => batch.cmd("SENTINEL").arg("MYID"),
            Question::Watches => batch.cmd("SENTINEL").arg("MASTERS"),
        };
    }
    batch
}

impl Question {
    /// Whether a look without this answer would tell an untruth: a cluster that may not be looked
    /// at is not the same as none.
    fn is_vital(&self, error: &ServerError) -> bool {
        match self {
            Self::Info => true,
            Self::ClusterInfo | Self::ClusterNodes | Self::SentinelId | Self::Watches => {
                error.code() == "NOPERM"
            }
            Self::ClusterShards
            | Self::SlotJobs
            | Self::Imports
            | Self::Setting(_)
            | Self::Functions
            | Self::Libraries
            | Self::DefaultUser => false,
        }
    }
}

impl Answers {
    fn new(
        target: &Target,
        questions: Vec<Question>,
        replies: Vec<Value>,
    ) -> Result<Self, FleetError> {
        let mut answers = BTreeMap::new();
        for (question, reply) in questions.into_iter().zip(replies) {
            match reply {
                Value::ServerError(error) if question.is_vital(&error) => {
                    return Err(rejected(target, &error));
                }
                Value::ServerError(_) => {}
                reply => {
                    answers.insert(question, reply);
                }
            }
        }
        Ok(Self(answers))
    }

    fn text(&self, question: &Question) -> String {
        self.0.get(question).and_then(text).unwrap_or_default().into_owned()
    }

    fn setting(&self, name: &str) -> Option<String> {
        let answer = self.0.get(&Question::Setting(name.to_owned()))?;
        field(answer, name).and_then(text).map(|value| value.into_owned())
    }

    /// Slots that the server moves by itself, now: those that it gives away (Valkey 9), or takes
    /// (Redis 8.4, where what has failed is tried again).
    fn jobs(&self, target: &Target, me: &ClusterNodeId) -> Vec<SlotJobView> {
        let me = || Some(me.clone());
        let gives = |job: &SlotJob| job.giving && job.state == JobState::Running;
        let given = |job: SlotJob| SlotJobView { slots: job.slots, from: me(), to: job.other };
        let takes = |job: &SlotJob| {
            !job.giving && matches!(job.state, JobState::Running | JobState::Failed)
        };
        let taken = |job: SlotJob| SlotJobView { slots: job.slots, from: job.other, to: me() };
        let told = |question: Question, read: fn(&Value, &Target) -> Option<Answer>| match self
            .0
            .get(&question)
            .and_then(|reply| read(reply, target))
        {
            Some(Answer::Jobs(jobs)) => jobs,
            Some(_) | None => vec![],
        };
        let given = told(Question::SlotJobs, converse::jobs).into_iter().filter(gives).map(given);
        let taken = told(Question::Imports, converse::imports).into_iter().filter(takes).map(taken);
        given.chain(taken).collect()
    }

    fn has_functions(&self) -> bool {
        let engines = self.0.get(&Question::Functions).and_then(|stats| field(stats, "engines"));
        let count = |engine| field(engine, "functions_count").and_then(text);
        engines
            .into_iter()
            .flat_map(pairs)
            .filter_map(|(_, engine)| count(engine))
            .any(|count| count != "0")
    }

    /// All libraries or none: one that was left out would be taken for one that is not there.
    fn libraries(&self) -> Option<Libraries> {
        let library = |library| {
            let name = field(library, "library_name").and_then(text)?;
            let code = field(library, "library_code").and_then(text)?;
            Some((name.into_owned(), digest(code.as_bytes())))
        };
        items(self.0.get(&Question::Libraries)?).map(library).collect()
    }

    /// Whether the default user, as which every connection starts, is off or has a password.
    fn requires_login(&self) -> Option<bool> {
        let flags = field(self.0.get(&Question::DefaultUser)?, "flags")?;
        let has = |name| items(flags).filter_map(text).any(|flag| flag == name);
        Some(!(has("on") && has("nopass")))
    }
}

fn report(
    target: &Target,
    ask: &Ask,
    answers: &Answers,
    observed_at: Timestamp,
) -> Result<Report, FleetError> {
    let text = answers.text(&Question::Info);
    let info = Info::parse(&text);
    if !info.is_credible() {
        return Err(unreachable(target, "it does not answer INFO as Redis does"));
    }
    let (flavor, version) = info.server();
    let kind = info.kind();
    let role = match kind {
        NodeKind::Sentinel => Role::Sentinel,
        NodeKind::Data => info.role(),
    };
    let cluster_enabled = info.is("cluster_enabled", "1");
    let health = answers.0.get(&Question::ClusterShards).map(nodes::health).unwrap_or_default();
    let cluster = || {
        let (nodes, info) = (Question::ClusterNodes, Question::ClusterInfo);
        let mut view = nodes::view(&answers.text(&nodes), &answers.text(&info), health)?;
        view.jobs = answers.jobs(target, &view.my_id);
        Some(view)
    };
    let [user, password] = LOGIN.map(|name| answers.setting(name));
    let shown = |name: &String| !SECRET.contains(&name.to_ascii_lowercase().as_str());
    Ok(Report {
        observed_at,
        kind,
        flavor,
        version,
        run_id: info.text("run_id"),
        uptime_seconds: info.number("uptime_in_seconds"),
        loading: info.is("loading", "1"),
        role,
        replication: replication(&info, role),
        memory: Memory {
            used_bytes: info.number("used_memory"),
            max_bytes: info.number("maxmemory"),
            evicts: info.get("maxmemory_policy").is_some_and(|policy| policy != "noeviction"),
        },
        persistence: Persistence {
            aof_enabled: info.is("aof_enabled", "1"),
            last_bgsave_ok: info.is("rdb_last_bgsave_status", "ok"),
            last_save_at: info.number("rdb_last_save_time"),
        },
        keys: info.keys(),
        functions: answers.has_functions(),
        libraries: answers.libraries(),
        connected_clients: info.number("connected_clients"),
        cluster_enabled,
        cluster: cluster_enabled.then(cluster).flatten(),
        settings: ask
            .settings
            .iter()
            .filter(|name| shown(name))
            .filter_map(|name| Some((name.clone(), answers.setting(name)?)))
            .collect(),
        has_replication_login: password.as_ref().is_some_and(|password| !password.is_empty()),
        // A login that may not be read counts as another one.
        replication_login_as_wanted: target.replication.as_ref().map(|wanted| {
            let user = user.as_deref().filter(|user| !user.is_empty());
            user == wanted.username.as_deref() && password.as_deref() == Some(wanted.reveal())
        }),
        sentinel: None,
        requires_login: answers.requires_login().unwrap_or(target.login.is_some()),
        // A look asks the node alone; whoever wants to know knocks.
        bus_reachable: None,
    })
}

pub(super) fn replication(info: &Info<'_>, role: Role) -> Replication {
    let written = info.number("master_repl_offset");
    let offset = match role {
        Role::Replica => info.count("slave_repl_offset").unwrap_or(written),
        Role::Primary | Role::Sentinel => written,
    };
    Replication {
        primary: info.primary(),
        link_up: info.is("master_link_status", "up"),
        sync_in_progress: info.is("master_sync_in_progress", "1"),
        last_io_seconds: info.count("master_last_io_seconds_ago"),
        offset,
        replid: info.text("master_replid"),
        connected_replicas: info.number("connected_slaves").try_into().unwrap_or(u32::MAX),
        before: info.history_before(),
        priority: info.count("slave_priority").and_then(|priority| priority.try_into().ok()),
        read_only: info.get("slave_read_only").map(|value| value == "1"),
        failover: info
            .get("master_failover_state")
            .filter(|state| *state != "no-failover")
            .map(str::to_owned),
        replicas: info.replicas(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::info::tests::{REPLICA, VALKEY};
    use super::*;
    use crate::domain::credential::Credential;
    use crate::domain::node::{Flavor, Version};

    fn word(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn list(texts: &[&str]) -> Value {
        Value::Array(texts.iter().map(|text| word(text)).collect())
    }

    fn target(replication: Option<(Option<&str>, &str)>) -> Target {
        let credential = |(user, password): (Option<&str>, &str)| {
            Arc::new(Credential::new(user.map(str::to_owned), password.to_owned()))
        };
        let address = "127.0.0.1:7001".parse().unwrap();
        let replication = replication.map(credential);
        Target { address, login: None, replication, fence: None }
    }

    fn read(target: &Target, ask: &Ask, answers: &[(Question, Value)]) -> Report {
        let answers = Answers(answers.iter().cloned().collect());
        report(target, ask, &answers, Timestamp::UNIX_EPOCH).unwrap()
    }

    fn setting(name: &str, value: &str) -> (Question, Value) {
        (Question::Setting(name.to_owned()), list(&[name, value]))
    }

    #[test]
    fn info_alone_is_enough() {
        let seen = read(&target(None), &Ask::default(), &[(Question::Info, word(REPLICA))]);
        assert_eq!(seen.role, Role::Replica);
        assert_eq!((seen.replication.offset, seen.replication.last_io_seconds), (240, Some(3)));
        assert!(seen.replication.link_up && seen.persistence.last_bgsave_ok);
        assert!(seen.cluster_enabled && seen.cluster.is_none());
        assert_eq!(
            (seen.keys, seen.has_replication_login, seen.requires_login),
            (42, false, false)
        );
        assert_eq!(seen.replication_login_as_wanted, None);
    }

    #[test]
    fn secrets_are_compared_but_never_shown() {
        let names = ["masterauth", "requirepass", "maxmemory"].map(str::to_owned);
        let ask = Ask { settings: names.into(), ..Ask::default() };
        let answers = [
            (Question::Info, word(REPLICA)),
            setting("masteruser", ""),
            setting("masterauth", "s3cret"),
            setting("requirepass", "s3cret"),
            setting("maxmemory", "0"),
        ];
        for (wanted, same) in
            [((None, "s3cret"), true), ((Some("repl"), "s3cret"), false), ((None, "other"), false)]
        {
            let seen = read(&target(Some(wanted)), &ask, &answers);
            assert_eq!(seen.replication_login_as_wanted, Some(same), "{wanted:?}");
            assert!(seen.has_replication_login);
            assert_eq!(
                seen.settings.into_iter().collect::<Vec<_>>(),
                [("maxmemory".to_owned(), "0".to_owned())]
            );
        }
    }

    #[test]
    fn the_default_user_says_whether_a_login_is_needed() {
        for (flags, needed) in [
            (["on", "nopass"], false),
            (["on", "sanitize-payload"], true),
            (["off", "nopass"], true),
        ] {
            let user = Value::Array(vec![word("flags"), list(&flags)]);
            let answers = [(Question::Info, word(VALKEY)), (Question::DefaultUser, user)];
            assert_eq!(read(&target(None), &Ask::default(), &answers).requires_login, needed);
        }
    }

    #[test]
    fn functions_are_counted() {
        for (count, some) in [(0, false), (2, true)] {
            let engine = Value::Array(vec![word("functions_count"), Value::Int(count)]);
            let engines = Value::Array(vec![word("LUA"), engine]);
            let stats = Value::Array(vec![word("engines"), engines]);
            let answers = [(Question::Info, word(VALKEY)), (Question::Functions, stats)];
            assert_eq!(read(&target(None), &Ask::default(), &answers).functions, some);
        }
    }

    #[test]
    fn libraries_are_told_by_their_code() {
        let library = |fields: &[&str]| list(fields);
        let ask = Ask { libraries: true, ..Ask::default() };
        let seen = |libraries: Vec<Value>| {
            let answers =
                [(Question::Info, word(VALKEY)), (Question::Libraries, Value::Array(libraries))];
            read(&target(None), &ask, &answers).libraries
        };
        let mine = || library(&["library_name", "mine", "engine", "LUA", "library_code", "#!lua"]);
        let known = seen(vec![mine()]);
        assert_eq!(known, Some([("mine".to_owned(), digest(b"#!lua"))].into()));
        assert_eq!(seen(vec![]), Some(Libraries::new()));
        assert_eq!(seen(vec![mine(), library(&["library_name", "other"])]), None);
        assert!(questions(&ask, None).contains(&Question::Libraries));
        assert!(!questions(&Ask::default(), None).contains(&Question::Libraries));
    }

    #[test]
    fn a_known_server_is_not_asked_what_it_lacks() {
        let facts = |flavor, major, clustered| {
            let capabilities = Capabilities::of(flavor, Version::new(major, 2, 0));
            let kind = NodeKind::Data;
            questions(&Ask::default(), Some(&Facts { capabilities, clustered, kind }))
        };
        let mut unknown = questions(&Ask::default(), None);
        unknown
            .retain(|q| !matches!(q, Question::SentinelId | Question::Watches | Question::Imports));
        assert_eq!(facts(Flavor::Valkey, 9, true), unknown);
        assert!(!facts(Flavor::Valkey, 8, true).contains(&Question::SlotJobs));
        let newest = Facts {
            capabilities: Capabilities::of(Flavor::Redis, Version::new(8, 4, 0)),
            clustered: true,
            kind: NodeKind::Data,
        };
        let newest = questions(&Ask::default(), Some(&newest));
        assert!(newest.contains(&Question::Imports) && !newest.contains(&Question::SlotJobs));
        let old = facts(Flavor::Redis, 6, true);
        assert!(!old.contains(&Question::ClusterShards) && !old.contains(&Question::Functions));
        let alone = facts(Flavor::Redis, 7, false);
        assert!(!alone.contains(&Question::ClusterNodes) && alone.contains(&Question::Functions));
    }

    #[test]
    fn a_stranger_is_no_report() {
        let answers = Answers(BTreeMap::from([(Question::Info, word("hello"))]));
        let seen = report(&target(None), &Ask::default(), &answers, Timestamp::UNIX_EPOCH);
        assert!(matches!(seen, Err(FleetError::Unreachable { .. })));
    }
}
