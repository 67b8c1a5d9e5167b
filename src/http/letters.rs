//! The `webhooks` section of the OpenAPI document: what each type of event looks like when it is sent.

use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use crate::domain::event::EventType;
use crate::domain::event_data as data;
use crate::domain::failovers::{
    FailoverCompleted, FailoverDetected, FailoverFailed, FailoverStarted,
};

const SCHEMAS: &str = "#/components/schemas/";

#[derive(OpenApi)]
#[openapi(components(schemas(
    data::NoData,
    data::TopologyCreatedData,
    data::TopologyChangedData,
    data::PlanProposedData,
    data::StepStartedData,
    data::StepDoneData,
    data::StepFailedData,
    data::PlanPausedData,
    data::PlanResumedData,
    data::PlanEndedData,
    data::BigKeyMovedData,
    data::NodeRegisteredData,
    data::NodeHealthData,
    data::SentinelSwitchedData,
    data::WritesLostData,
    data::PossibleLoss,
    data::SplitBrainData,
    data::FindingOpenedData,
    data::FindingClosedData,
    data::SlotsUncoveredData,
    data::WebhookDisabledData,
    FailoverDetected,
    FailoverStarted,
    FailoverCompleted,
    FailoverFailed,
)))]
struct Shapes;

/// Adds the section, and the schemas that it needs, to a document that has everything else.
pub fn add(document: &mut Value) {
    let shapes = serde_json::to_value(Shapes::openapi()).unwrap_or_default();
    let Some(schemas) = document.pointer_mut("/components/schemas").and_then(Value::as_object_mut)
    else {
        return;
    };
    for (name, shape) in shapes["components"]["schemas"].as_object().into_iter().flatten() {
        schemas.entry(name.clone()).or_insert_with(|| shape.clone());
    }
    let mut hooks = Map::new();
    for kind in EventType::ALL {
        let name = format!("{}Letter", pascal(kind.as_str()));
        schemas.insert(name.clone(), letter(*kind));
        hooks.insert(kind.as_str().to_owned(), json!({ "post": hook(*kind, &name) }));
    }
    document["webhooks"] = hooks.into();
}

/// A CloudEvents 1.0 event in structured mode.
fn letter(kind: EventType) -> Value {
    let text = json!({ "type": "string" });
    let data = json!({
        "type": "object",
        "description": "The event as the journal has it.",
        "required": ["id", "seq", "topology", "type", "at", "data", "plan", "actor"],
        "properties": {
            "id": { "type": "integer", "format": "int64" },
            "seq": { "type": ["integer", "null"], "format": "int64",
                     "description": "Gapless within a topology: sort by it." },
            "topology": { "type": ["string", "null"] },
            "type": { "type": "string", "enum": [kind.as_str()] },
            "at": { "type": "string", "format": "date-time" },
            "data": { "$ref": format!("{SCHEMAS}{}", data::name(kind)) },
            "plan": { "type": ["string", "null"], "format": "uuid" },
            "actor": { "type": ["string", "null"] },
        },
    });
    json!({
        "type": "object",
        "description": format!("`{}` as it is sent to webhooks (CloudEvents 1.0).", kind.as_str()),
        "required": ["specversion", "id", "source", "type", "time", "datacontenttype", "data"],
        "properties": {
            "specversion": { "type": "string", "enum": ["1.0"] },
            "id": { "type": "string", "description": "The same in each attempt, and in `webhook-id`." },
            "source": text,
            "type": { "type": "string", "enum": [kind.as_str()] },
            "time": { "type": "string", "format": "date-time" },
            "subject": { "type": "string", "description": "The topology, where the event is of one." },
            "datacontenttype": { "type": "string", "enum": ["application/json"] },
            "data": data,
        },
    })
}

fn hook(kind: EventType, schema: &str) -> Value {
    let header = |name: &str, text: &str| {
        json!({ "name": name, "in": "header", "required": true, "description": text,
                "schema": { "type": "string" } })
    };
    json!({
        "operationId": format!("on_{}", kind.as_str().replace('.', "_")),
        "tags": ["webhooks"],
        "summary": format!("{} happened.", kind.as_str()),
        "parameters": [
            header("webhook-id", "The same in each attempt."),
            header("webhook-timestamp", "When this attempt was made, in seconds since 1970."),
            header("webhook-signature", "Signatures by Standard Webhooks, with spaces between them."),
        ],
        "requestBody": {
            "required": true,
            "content": { "application/cloudevents+json": {
                "schema": { "$ref": format!("{SCHEMAS}{schema}") } } },
        },
        "responses": { "204": { "description": "It arrived. Any status from 200 to 299 says so." } },
    })
}

/// `plan.step_done` → `PlanStepDone`
fn pascal(kind: &str) -> String {
    kind.split(['.', '_'])
        .flat_map(|part| {
            let mut letters = part.chars();
            letters.next().map(|first| first.to_uppercase().chain(letters).collect::<String>())
        })
        .collect()
}
