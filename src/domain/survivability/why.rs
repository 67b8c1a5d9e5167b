//! What a failure does, in one sentence that a person can check.

use super::trial::{Toll, Trial};
use super::{Electors, Lost};

impl Trial<'_> {
    pub(super) fn why(&self, lost: &Lost, at: &[usize], toll: &Toll) -> String {
        let refuses = if toll.refusing.is_empty() {
            String::new()
        } else {
            let whom = match self.electors {
                Electors::Primaries => format!("{} then", shards(&toll.refusing)),
                Electors::Sentinels { .. } | Electors::Nobody => "the primary then".to_owned(),
            };
            format!(
                "; {whom} {} fewer replicas than min-replicas-to-write asks for, so writes are refused until one is back",
                if toll.refusing.len() == 1 { "has" } else { "have" }
            )
        };
        self.outcome(&Subject::of(lost), at, toll) + &refuses
    }

    fn outcome(&self, subject: &Subject, at: &[usize], toll: &Toll) -> String {
        match self.electors {
            Electors::Primaries => self.of_cluster(subject, at, toll),
            Electors::Sentinels { .. } => {
                let voters = self.voters(toll, "Sentinel");
                let unwatched = if toll.voters_left < self.needed() {
                    format!("; {voters}, so the next loss of a primary goes unanswered")
                } else {
                    String::new()
                };
                let then = if toll.answered {
                    format!("{voters}, so a replica takes over")
                } else {
                    format!(
                        "{voters}, so no replica is promoted until more Sentinels are back or somebody asks for a failover with method force"
                    )
                };
                self.of_one_shard(subject, at, toll, &unwatched, &then)
            }
            Electors::Nobody => {
                let then = "nothing promotes a replica by itself in replication mode, so writes fail until somebody asks for a failover with method force";
                self.of_one_shard(subject, at, toll, "", then)
            }
        }
    }

    fn voters(&self, toll: &Toll, noun: &str) -> String {
        format!(
            "{} of {} {noun}s {} left and {} {} needed",
            toll.voters_left,
            self.voters,
            is(toll.voters_left),
            self.needed(),
            is(self.needed()),
        )
    }

    /// For the modes that have one shard.
    fn of_one_shard(
        &self,
        subject: &Subject,
        at: &[usize],
        toll: &Toll,
        unwatched: &str,
        then: &str,
    ) -> String {
        let Subject { name, holds, .. } = subject;
        if at.is_empty() {
            return format!("{name} {holds} no node of this topology");
        }
        match (toll.emptied.as_slice(), toll.headless.as_slice()) {
            ([], []) if toll.thinned.is_empty() => {
                format!("{name} {holds} only Sentinels; the primary is left{unwatched}")
            }
            ([], []) => {
                format!("{name} {holds} no primary, only replicas; the primary is left{unwatched}")
            }
            ([], headless) => {
                let doubt = headless.iter().any(|&g| self.groups[g].leader().is_none());
                let holds = if doubt { "may hold" } else { holds };
                format!("{name} {holds} the primary; {then}")
            }
            (_, _) => format!(
                "{name} {holds} every node that has the data, which is not served until one is back"
            ),
        }
    }

    fn of_cluster(&self, subject: &Subject, at: &[usize], toll: &Toll) -> String {
        let Subject { name, holds } = subject;
        if self.voters == 0 {
            return String::from(
                "no shard owns slots, so there are no voters and nothing is served",
            );
        }
        if at.is_empty() {
            return format!("{name} {holds} no member of any shard");
        }
        let doubt = toll.headless.iter().any(|&g| self.groups[g].leader().is_none());
        let primaries = {
            let noun = if toll.headless.len() == 1 { "the primary of" } else { "the primaries of" };
            format!("{noun} {}", shards(&toll.headless))
        };
        let votes = self.voters(toll, "voter");
        let quorum = toll.answered;
        match (toll.emptied.as_slice(), toll.headless.as_slice()) {
            ([], []) if toll.thinned.is_empty() => {
                format!("{name} {holds} members of shards without slots alone, so no key is lost")
            }
            ([], []) if !quorum => format!(
                "{name} {holds} no primary that answers, only members of {}; {votes}, so the whole cluster stays down",
                shards(&toll.thinned)
            ),
            ([], []) if toll.voters_left < self.voters => format!(
                "{name} {holds} no primary that answers, only members of {}; {votes}",
                shards(&toll.thinned)
            ),
            ([], []) => format!(
                "{name} {holds} no primary, only replicas of {}; all primaries are left",
                shards(&toll.thinned)
            ),
            ([], _) => {
                let holds = if doubt { "may hold" } else { holds };
                let then = match (quorum, toll.headless.len()) {
                    (true, 1) => "so a replica takes over",
                    (true, _) => "so a replica of each takes over",
                    (false, _) => "so no replica is promoted and the whole cluster goes down",
                };
                format!("{name} {holds} {primaries}; {votes}, {then}")
            }
            (emptied, headless) => {
                let slots = self.slots(emptied);
                let maybe = if doubt { "perhaps " } else { "" };
                let also = match (headless, quorum) {
                    ([], true) => String::new(),
                    ([], false) => format!("; {votes}, so the whole cluster goes down"),
                    (_, true) => {
                        format!(", and {maybe}{primaries}; {votes}, so replicas take over there")
                    }
                    (_, false) => format!(
                        ", and {maybe}{primaries}; {votes}, so no replica is promoted and the whole cluster goes down"
                    ),
                };
                format!(
                    "{name} {holds} every member of {}, whose {slots} {} not served until one is back (nor is the rest, unless cluster-require-full-coverage is no){also}",
                    shards(emptied),
                    if slots == 1 { "slot is" } else { "slots are" },
                )
            }
        }
    }
}

/// Who fails.
struct Subject {
    name: String,
    /// `holds`, or `hold` where it is grammatically more than one.
    holds: &'static str,
}

impl Subject {
    fn of(lost: &Lost) -> Self {
        let named = |one: &str, names: Vec<String>| match names.len() {
            0 => None,
            1 => Some(format!("{one} {}", list(&names))),
            _ => Some(format!("{one}s {}", list(&names))),
        };
        let nodes = lost.nodes.iter().map(ToString::to_string).collect();
        let parts: Vec<String> = [
            named("zone", lost.zones.clone()),
            named("host", lost.hosts.clone()),
            named("node", nodes),
        ]
        .into_iter()
        .flatten()
        .collect();
        match lost.zones.len() + lost.hosts.len() + lost.nodes.len() {
            0 => Self { name: String::from("nothing"), holds: "holds" },
            1 => Self { name: list(&parts), holds: "holds" },
            _ => Self { name: list(&parts), holds: "hold" },
        }
    }
}

fn shards(indices: &[usize]) -> String {
    let names: Vec<String> = indices.iter().map(ToString::to_string).collect();
    format!("{} {}", if names.len() == 1 { "shard" } else { "shards" }, list(&names))
}

fn is(count: usize) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

/// `a, b and c`; of a long list the first few and how many more.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 8;
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] if names.len() <= SHOWN => format!("{} and {last}", first.join(", ")),
        many => {
            let shown: Vec<&str> = many.iter().take(SHOWN).map(String::as_str).collect();
            format!("{} and {} more", shown.join(", "), many.len() - SHOWN)
        }
    }
}
