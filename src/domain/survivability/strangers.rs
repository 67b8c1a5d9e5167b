//! Names in an imagined loss that the topology does not have: a misspelt zone would be survived by
//! everybody.

use std::collections::BTreeSet;

use super::Lost;
use crate::domain::refusal::FieldError;
use crate::domain::topology::Topology;

/// Each name that means nothing here, with those that do.
#[must_use]
pub fn strangers(wanted: &Topology, fail: &Lost) -> Vec<FieldError> {
    let places = wanted.places();
    if *fail == Lost::default() {
        let why = "name what fails: `nodes`, `hosts` or `zones`";
        return vec![FieldError::new("/fail", why)];
    }
    let zones = places.values().map(|place| place.zone.clone()).collect();
    let hosts = places.values().map(|place| place.machine().to_owned()).collect();
    let nodes = places.keys().map(ToString::to_string).collect();
    let failing: Vec<String> = fail.nodes.iter().map(ToString::to_string).collect();
    let mut wrong = among("node", &failing, &nodes);
    wrong.extend(among("host", &fail.hosts, &hosts));
    wrong.extend(among("zone", &fail.zones, &zones));
    wrong
}

fn among(kind: &str, names: &[String], known: &BTreeSet<String>) -> Vec<FieldError> {
    let strange = names.iter().enumerate().filter(|(_, name)| !known.contains(*name));
    let wrong = strange.map(|(i, name)| {
        let known: Vec<&str> = known.iter().map(String::as_str).take(NAMED).collect();
        let why = format!("the topology has no {kind} `{name}`; it has {}", known.join(", "));
        FieldError::new(format!("/fail/{kind}s/{i}"), why)
    });
    wrong.collect()
}

/// More are not told: a topology may have a thousand nodes.
const NAMED: usize = 20;
