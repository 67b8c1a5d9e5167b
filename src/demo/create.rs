//! Creating a topology and watching its plan, with nothing but the REST API.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::Value;

use super::DemoError;
use super::screen::{Screen, seconds};
use crate::client::Client;

/// Shows each step as it is done; how long it all took.
pub(super) async fn create(
    client: &Client,
    body: &Value,
    screen: &mut Screen,
) -> Result<Duration, DemoError> {
    let begun = Instant::now();
    screen.passing("  checking the nodes …");
    let plan = client.create_topology(body, None).await?;
    let path = format!("/v1/plans/{}/stream", text(&plan["id"]));
    let mut titles: BTreeMap<String, String> = BTreeMap::new();
    let mut events = client.events(&path, None);
    while let Some(event) = events.next().await {
        let event = event?;
        let message = event.json();
        let data = &message["data"];
        let now = seconds(begun.elapsed());
        match event.event.as_str() {
            "plan.step_started" => {
                titles.insert(text(&data["step"]).to_owned(), text(&data["title"]).to_owned());
            }
            "plan.step_done" => screen.line(&format!("  {now}  {}", text(&data["title"]))),
            "plan.step_failed" => {
                let again = if data["final"] == false { "; trying again" } else { "" };
                screen.line(&format!("  {now}  {}{again}", error(&data["error"])));
            }
            "progress" => {
                let step = text(&message["step"]);
                let title = titles.get(step).map_or(step, String::as_str);
                screen.passing(&format!("  {now}  {title}: {}", progress(&message)));
            }
            "plan.succeeded" => return Ok(begun.elapsed()),
            end @ ("plan.failed" | "plan.cancelled" | "plan.superseded") => {
                let state = end.trim_start_matches("plan.");
                let why = &data["error"];
                let why = if why.is_null() { String::new() } else { format!(": {}", error(why)) };
                return Err(DemoError::Plan(format!("{state}{why}")));
            }
            _ => {}
        }
    }
    Err(DemoError::NoEnd)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn progress(message: &Value) -> String {
    let counted = &message["progress"];
    let count = |name: &str| counted[name].as_u64().unwrap_or(0);
    let (done, total, unit) = (count("done"), count("total"), text(&counted["unit"]));
    match text(&message["note"]) {
        "" => format!("{done} of {total} {unit}"),
        note => format!("{done} of {total} {unit}, {note}"),
    }
}

fn error(error: &Value) -> String {
    let parts = [text(&error["message"]), text(&error["recovery"])];
    parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(". ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn progress_and_errors_are_told_in_words() {
        let counted = json!({"done": 3, "total": 6, "unit": "nodes"});
        assert_eq!(progress(&json!({"progress": counted})), "3 of 6 nodes");
        let note = json!({"progress": counted, "note": "h:1 knows 5 of 6 nodes"});
        assert_eq!(progress(&note), "3 of 6 nodes, h:1 knows 5 of 6 nodes");
        assert_eq!(
            error(&json!({"message": "It broke", "recovery": "Mend it."})),
            "It broke. Mend it."
        );
        assert_eq!(error(&json!({"message": "It broke"})), "It broke");
    }
}
