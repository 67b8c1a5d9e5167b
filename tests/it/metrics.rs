//! The dashboard and the alerts ask for what `/metrics` really shows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;

use super::openapi::repository;
use crate::support::world::World;

/// Names of metrics, each with the labels that it comes with.
pub type Shown = BTreeMap<String, BTreeSet<String>>;

pub async fn scrape(world: &World, into: &mut Shown) {
    let url = format!("{}/metrics", world.server.url());
    let text = reqwest::get(url).await.unwrap().text().await.unwrap();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, _)) = line.rsplit_once(' ') else { continue };
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let labels = labels.trim_end_matches('}').split("\",").filter_map(|l| l.split_once('='));
        let known = into.entry(name.to_owned()).or_default();
        known.extend(labels.map(|(label, _)| label.to_owned()));
    }
}

/// Fails if the dashboard or an alert asks for a metric or a label that is not shown.
pub fn assert_enough(shown: &Shown) {
    let asked = questions();
    assert!(asked.len() > 20, "{asked:?}");
    for question in asked {
        let metrics: Vec<&str> = words(&question).filter(|w| w.starts_with("reeve_")).collect();
        let mut labels: BTreeSet<&str> = ["instance"].into();
        for metric in &metrics {
            let known = shown.get(*metric);
            let known = known.unwrap_or_else(|| panic!("/metrics has no {metric}: {question}"));
            labels.extend(known.iter().map(String::as_str));
        }
        let lists = question.split("by (").skip(1).filter_map(|rest| rest.split(')').next());
        for label in lists.flat_map(|list| list.split(',')).map(str::trim) {
            assert!(labels.contains(label), "no {label} in {metrics:?}: {question}");
        }
    }
}

/// All that Prometheus is asked.
fn questions() -> Vec<String> {
    let read = |file: &str| fs::read_to_string(repository().join("deploy").join(file)).unwrap();
    let alerts = read("alerts.yml");
    let of_alerts = alerts.lines().filter_map(|l| l.trim().strip_prefix("expr: "));
    let mut asked: Vec<String> = of_alerts.map(str::to_owned).collect();
    let dashboard: Value = serde_json::from_str(&read("grafana.json")).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        let targets = panel["targets"].as_array().unwrap().iter();
        asked.extend(targets.map(|t| t["expr"].as_str().unwrap().to_owned()));
    }
    asked
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
}
