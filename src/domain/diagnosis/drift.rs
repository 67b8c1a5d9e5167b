//! Drift: the nodes are not as wanted, though no plan is at work. Somebody moved a replica, a slot or
//! a setting, added a node or took one away; or a plan ended half-way.
//!
//! Who is primary is never drift. Nor is what only waits: a node that is silent or loads its data, a
//! link that is being made, gossip on its way. Those have signs of their own.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Finding, Remedy, Rule, Severity, Subject};
use crate::domain::observation::Observation;
use crate::domain::planner::{self, DifferenceKind};
use crate::domain::policy::Policy;
use crate::domain::settled::{Offer, OfferKind};
use crate::domain::topology::{Layout, Topology};

/// The ways in which nodes differ, by keys that stay the same from look to look.
pub type Differences = BTreeMap<String, Vec<String>>;

/// The evidence of a finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Evidence {
    differences: Vec<Told>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    key: String,
    detail: String,
}

/// How the nodes differ now. A topology that is to be gone is not judged.
#[must_use]
pub fn differences(want: &Topology, seen: &Observation, policy: &Policy) -> Differences {
    let mut all = Differences::new();
    if want.layout == Layout::Gone {
        return all;
    }
    for difference in planner::differences(want, &BTreeSet::new(), &BTreeSet::new(), seen, policy) {
        match difference.kind {
            DifferenceKind::Deed => all.entry(difference.key).or_default().push(difference.why),
            DifferenceKind::Sight | DifferenceKind::Wait => {}
        }
    }
    all
}

/// The finding of these differences, if there are any; `offers` are the ways out.
#[must_use]
pub fn finding(name: &str, differences: &Differences, offers: &[Offer]) -> Option<Finding> {
    let told = |(key, details): (&String, &Vec<String>)| {
        let told = |detail: &String| Told { key: key.clone(), detail: detail.clone() };
        details.iter().map(told).collect::<Vec<_>>()
    };
    let differences: Vec<Told> = differences.iter().flat_map(told).collect();
    let detail = match differences.as_slice() {
        [] => return None,
        [one] => one.detail.clone(),
        [one, rest @ ..] => {
            format!("{}, and {} more", one.detail.trim_end_matches('.'), rest.len())
        }
    };
    Some(Finding {
        rule: Rule::Drift,
        severity: Severity::Warning,
        title: format!("The nodes of `{name}` are not as wanted"),
        detail,
        evidence: json!({ "differences": differences }),
        subject: Subject::default(),
        remedy: remedy(offers),
    })
}

/// The differences that a finding told of.
#[must_use]
pub fn told(evidence: &Value) -> Differences {
    let mut all = Differences::new();
    for told in Evidence::deserialize(evidence).into_iter().flat_map(|e| e.differences) {
        all.entry(told.key).or_default().push(told.detail);
    }
    all
}

fn remedy(offers: &[Offer]) -> Remedy {
    if offers.is_empty() {
        let text = "No plan can take this away: follow what the evidence says of each difference.";
        return Remedy { text: text.to_owned(), intent: None };
    }
    let text: Vec<&str> = offers.iter().map(|o| o.detail.as_str()).collect();
    let intent = offers.iter().find_map(|o| match o.offer {
        // That one is asked for elsewhere.
        OfferKind::Retry => None,
        OfferKind::Repair => Some(json!({ "kind": "repair" })),
        OfferKind::AcceptDrift => Some(json!({ "kind": "accept_drift" })),
        OfferKind::Revert => None,
    });
    Remedy { text: text.join("; or "), intent }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differences(told: &[(&str, &str)]) -> Differences {
        let mut all = Differences::new();
        for (key, why) in told {
            all.entry((*key).to_owned()).or_default().push((*why).to_owned());
        }
        all
    }

    #[test]
    fn a_finding_tells_all_and_is_read_again() {
        let none = finding("orders", &differences(&[]), &[]);
        assert_eq!(none, None);
        let two = differences(&[("replicate:a:1", "Make a:1 a replica"), ("stranger:b:1", "b:1")]);
        let offers = [OfferKind::Retry, OfferKind::AcceptDrift]
            .map(|offer| Offer { offer, detail: format!("{offer:?}") });
        let found = finding("orders", &two, &offers).unwrap();
        assert_eq!(found.detail, "Make a:1 a replica, and 1 more");
        assert_eq!(super::told(&found.evidence), two);
        assert_eq!(found.remedy.text, "Retry; or AcceptDrift");
        assert_eq!(found.remedy.intent, Some(json!({ "kind": "accept_drift" })));
        assert_eq!(finding("orders", &two, &[]).unwrap().remedy.intent, None);
        assert_eq!(super::told(&json!({ "other": 1 })), Differences::new());
    }
}
