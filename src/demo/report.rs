//! What the API says of a topology, laid out for people.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::time::sleep;

use super::POLL;
use crate::client::{Client, ClientError};

/// How long the watcher may take to see what the plan has made.
const SEEN_WITHIN: Duration = Duration::from_secs(5);

/// The topology once it is seen to be steady, or as it is when that takes too long.
pub(super) async fn steady(client: &Client, path: &str) -> Result<Value, ClientError> {
    let begun = Instant::now();
    loop {
        let topology = client.get(path).await?;
        if topology["status"]["phase"] == "steady" || begun.elapsed() > SEEN_WITHIN {
            return Ok(topology);
        }
        sleep(POLL).await;
    }
}

/// Each shard with its slots and its nodes, then the nodes that are left over.
pub(super) fn layout(topology: &Value) -> Vec<String> {
    let zones = zones(topology);
    let placed = |address: &str| match zones.get(address) {
        Some(zone) => format!("{address} ({zone})"),
        None => address.to_owned(),
    };
    let mut rows = vec![["shard", "slots", "primary (zone)", "replicas (zone)"].map(str::to_owned)];
    let mut used = BTreeSet::new();
    for (number, shard) in list(&topology["status"]["shards"]).enumerate() {
        let primary = shard["primary"].as_str();
        let replicas = list(&shard["replicas"]);
        let replicas: Vec<_> = replicas.map(|r| (text(&r["address"]), text(&r["state"]))).collect();
        used.extend(primary.into_iter().chain(replicas.iter().map(|(address, _)| *address)));
        let shown = |(address, state): &(&str, &str)| format!("{} {state}", placed(address));
        rows.push([
            number.to_string(),
            text(&shard["slots"]).to_owned(),
            primary.map_or("none".to_owned(), placed),
            replicas.iter().map(shown).collect::<Vec<_>>().join(", "),
        ]);
    }
    for spare in zones.keys().filter(|address| !used.contains(*address)) {
        rows.push(["spare".to_owned(), String::new(), placed(spare), String::new()]);
    }
    let mut lines = table(&rows);
    lines.push(format!("  Phase: {}", text(&topology["status"]["phase"])));
    lines
}

/// The primary of the first shard, and its zone.
pub(super) fn first_primary(topology: &Value) -> (&str, &str) {
    let primary = text(&topology["status"]["shards"][0]["primary"]);
    (primary, zones(topology).get(primary).copied().unwrap_or_default())
}

pub(super) fn survivability(answer: &Value) -> Vec<String> {
    let survives = &answer["survives"];
    let word = |name: &str| if survives[name] == true { "yes" } else { "no" }.to_owned();
    let pairs = &answer["node_pairs"];
    table(&[
        ["the loss of any node".to_owned(), word("any_node")],
        ["the loss of any host".to_owned(), word("any_host")],
        ["the loss of any zone".to_owned(), word("any_zone")],
        [
            "two nodes at the same time".to_owned(),
            format!("{} of {} pairs", pairs["survived"], pairs["total"]),
        ],
    ])
}

/// Where the API is, and commands to paste.
pub(super) fn hints(url: &str, token: &str, path: &str, zone: &str) -> Vec<String> {
    let curl = format!("curl -s -H 'Authorization: Bearer {token}'");
    let fail =
        format!(r#"-H 'Content-Type: application/json' -d '{{"fail":{{"zones":["{zone}"]}}}}'"#);
    vec![
        format!("  URL    {url}"),
        format!("  token  {token}"),
        String::new(),
        "  See the topology, wanted and seen:".to_owned(),
        format!("    {curl} {url}{path}"),
        "  Follow everything that happens:".to_owned(),
        format!("    {curl} -N {url}/v1/events/stream"),
        format!("  Ask what would happen if zone {zone} failed:"),
        format!("    {curl} {fail} {url}{path}/what-if"),
    ]
}

/// The zone of each node, by address.
fn zones(topology: &Value) -> BTreeMap<&str, &str> {
    let nodes = list(&topology["spec"]["nodes"]);
    nodes.map(|node| (text(&node["address"]), text(&node["zone"]))).collect()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Rows with their columns aligned.
fn table<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        format!("  {}", cells.collect::<Vec<_>>().join("  ")).trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_layout_shows_every_node_once() {
        let topology = json!({
            "spec": {"nodes": [
                {"address": "h:1", "zone": "a"}, {"address": "h:2", "zone": "b"},
                {"address": "h:3", "zone": "c"},
            ]},
            "status": {"phase": "steady", "shards": [
                {"primary": "h:1", "slots": "0-16383", "replicas": [{"address": "h:2", "state": "online"}]},
                {"primary": null, "slots": "", "replicas": []},
            ]},
        });
        assert_eq!(
            layout(&topology),
            [
                "  shard  slots    primary (zone)  replicas (zone)",
                "  0      0-16383  h:1 (a)         h:2 (b) online",
                "  1               none",
                "  spare           h:3 (c)",
                "  Phase: steady",
            ]
        );
        assert_eq!(first_primary(&topology), ("h:1", "a"));
    }

    #[test]
    fn what_is_survived_is_told_in_words() {
        let answer = json!({"survives": {"any_node": true, "any_host": true, "any_zone": false},
            "node_pairs": {"total": 15, "survived": 12}});
        let lines = survivability(&answer);
        assert_eq!(lines[2], "  the loss of any zone        no");
        assert_eq!(lines[3], "  two nodes at the same time  12 of 15 pairs");
    }
}
