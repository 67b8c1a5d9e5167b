//! The committed document: it is what the code says, what the server does, and fit for generators.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::world::World;

pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// One of the tools that the tests use, with the others of its kind on its path.
pub fn tool(path: &str) -> Command {
    let program = repository().join(path);
    let there = program.exists();
    assert!(there, "{} is missing: run scripts/install-deps.sh --test", program.display());
    let mut folders = vec![program.parent().unwrap().to_owned()];
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let mut command = Command::new(program);
    command.env("PATH", std::env::join_paths(folders).unwrap());
    // The servers are here, whatever the way to others.
    command.env("NO_PROXY", "127.0.0.1").env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// All that it says, after it went well.
pub fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{command:?} ends with {}\n{text}", output.status);
    text
}

fn committed() -> PathBuf {
    repository().join("openapi/reeve.json")
}

/// The tag and the id of each operation.
fn operations() -> Vec<(String, String)> {
    let document: Value = serde_json::from_slice(&fs::read(committed()).unwrap()).unwrap();
    let paths = document["paths"].as_object().unwrap().values();
    let operations = paths.flat_map(|path| path.as_object().unwrap().values());
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    operations.map(|o| (word(&o["tags"][0]), word(&o["operationId"]))).collect()
}

fn assert_no_warning(text: &str) {
    let lower = text.to_lowercase();
    assert!(!["warn", "error", "skip", "⚠"].iter().any(|w| lower.contains(w)), "{text}");
}

#[test]
fn the_committed_document_is_what_the_code_says() {
    let says = said(Command::new(env!("CARGO_BIN_EXE_reeve")).arg("openapi"));
    let committed = fs::read_to_string(committed()).unwrap();
    assert!(says == committed, "openapi/reeve.json is out of date: run `make openapi`");
}

#[tokio::test]
async fn schemathesis_finds_nothing() {
    let world = World::with_nodes(3).await;
    world.create(&world.cluster("orders", 3, 0)).await;
    let mut schemathesis = tool(".venv/bin/schemathesis");
    schemathesis.current_dir(world.folder.path());
    schemathesis.arg("--config-file").arg(repository().join("tests/tools/schemathesis.toml"));
    schemathesis.args(["run", &format!("{}/openapi.json", world.server.url())]);
    schemathesis.args(["-H", &format!("Authorization: Bearer {}", world.server.token())]);
    schemathesis.args(["--exclude-checks", "positive_data_acceptance"]);
    // Streams do not end; the next test looks at them.
    schemathesis.args(["--exclude-path-regex", "stream$"]);
    schemathesis.args(["--phases", "examples,coverage,fuzzing,stateful"]);
    schemathesis.args(["--seed", "1", "-n", "15", "--request-timeout", "20", "--no-color"]);
    said(&mut schemathesis);
}

/// Opens a stream without any other login than what is given here.
async fn open(world: &World, path: &str, headers: &[(&str, &str)]) -> Response {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut request = client.get(format!("{}{path}", world.server.url()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    timeout(Duration::from_secs(10), request.send()).await.unwrap().unwrap()
}

fn content_type(response: &Response) -> &str {
    response.headers()[CONTENT_TYPE].to_str().unwrap()
}

async fn assert_problem(response: Response, status: u16, code: &str) {
    assert_eq!(response.status().as_u16(), status);
    assert_eq!(content_type(&response), "application/problem+json");
    let problem: Value = response.json().await.unwrap();
    assert_eq!(problem["code"], code, "{problem:#}");
}

#[tokio::test]
async fn streams_answer_as_documented() {
    let world = World::with_nodes(3).await;
    let plan = world.create(&world.cluster("orders", 3, 0)).await;
    let path = format!("/v1/plans/{}/stream", plan["id"].as_str().unwrap());
    let bearer = format!("Bearer {}", world.server.token());
    let login = ("authorization", bearer.as_str());

    let response = open(&world, &path, &[login]).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(content_type(&response), "text/event-stream");
    let text = timeout(Duration::from_secs(10), response.text()).await.unwrap().unwrap();
    assert!(text.contains("retry: 2000\n"), "{text}");
    assert!(text.contains("event: plan.succeeded\n"), "{text}");
    let ids: Vec<i64> = text.lines().filter_map(|l| l.strip_prefix("id: ")?.parse().ok()).collect();
    assert!(ids.len() > 3 && ids.is_sorted(), "{ids:?}");

    // The rest, and then nothing.
    let [.., before, last] = ids.as_slice() else { unreachable!() };
    let (before, last) = (before.to_string(), last.to_string());
    let response = open(&world, &path, &[login, ("last-event-id", &before)]).await;
    let text = timeout(Duration::from_secs(10), response.text()).await.unwrap().unwrap();
    assert_eq!(text.matches("\nid: ").count(), 1, "{text}");
    let response = open(&world, &path, &[login, ("last-event-id", &last)]).await;
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    let by_query = open(&world, &format!("{path}?last_event_id={last}"), &[login]).await;
    assert_eq!(by_query.status(), StatusCode::NO_CONTENT);

    for path in [path.as_str(), "/v1/events/stream"] {
        let response = open(&world, path, &[login, ("last-event-id", "soon")]).await;
        assert_problem(response, 400, "invalid_parameter").await;
        assert_problem(open(&world, path, &[]).await, 401, "unauthorized").await;
        let response = open(&world, &format!("{path}?ticket=unknown"), &[]).await;
        assert_problem(response, 401, "unauthorized").await;
    }

    let ticket = world.client.post("/v1/stream-tickets", &json!({})).await.unwrap();
    let ticket = format!("ticket={}", ticket["ticket"].as_str().unwrap());
    for path in [path.as_str(), "/v1/events/stream"] {
        let response = open(&world, &format!("{path}?{ticket}"), &[]).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        assert_eq!(content_type(&response), "text/event-stream");
    }
    let response = open(&world, &format!("/v1/me?{ticket}"), &[]).await;
    assert_problem(response, 401, "unauthorized").await;
}

#[tokio::test]
async fn openapi_python_client_generates_and_creates_a_cluster() {
    let world = World::with_nodes(3).await;
    let package = world.folder.join("python");
    let mut generator = tool(".venv/bin/openapi-python-client");
    generator.current_dir(world.folder.path());
    generator.args(["generate", "--fail-on-warning", "--path"]).arg(committed());
    generator.arg("--output-path").arg(&package);
    assert_no_warning(&said(&mut generator));
    for (tag, id) in operations() {
        let module = package.join("reeve_client/api").join(tag).join(format!("{id}.py"));
        assert!(module.is_file(), "{}", module.display());
    }

    let mut script = tool(".venv/bin/python");
    script.arg(repository().join("tests/tools/create_cluster.py"));
    script.arg(world.server.url()).args(world.nodes.iter().map(|node| node.address()));
    script.env("PYTHONPATH", &package).env("REEVE_TOKEN", world.server.token());
    said(&mut script);
    world.check_cluster(&[]);
}

const TYPESCRIPT: &str = r#"
import type { components, operations } from "./reeve";

type Create = operations["create_topology"];
type Plan = Create["responses"][202]["content"]["application/json"];
type Problem = components["schemas"]["Problem"];

export const request: Create["requestBody"]["content"]["application/json"] = {
  name: "orders",
  spec: {
    mode: "cluster",
    shards: 3,
    nodes: [{ address: "127.0.0.1:7001", zone: "a" }],
  },
  plan: { accept_hazard: "none" },
};

export const loss: components["schemas"]["WhatIf"] = { fail: { zones: ["a"] } };

export function shards(spec: components["schemas"]["Spec"]): number {
  // The mode tells which one it is.
  return spec.mode === "cluster" ? spec.shards : 1;
}

export function told(plan: Plan, problem: Problem): string {
  const steps: string[] = (plan.steps ?? []).map((step) => `${step.title}: ${step.state}`);
  return [plan.id, plan.state === "succeeded" ? "done" : problem.code, ...steps].join("\n");
}

// @ts-expect-error there is no such mode
export const wrong: components["schemas"]["Spec"]["mode"] = "ring";
// @ts-expect-error a cluster has shards
export const bare: components["schemas"]["ClusterSpec"] = { mode: "cluster", nodes: [] };
"#;

#[test]
fn openapi_typescript_generates() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let mut generator = node_tool("openapi-typescript", folder.path());
    assert_no_warning(&said(generator.arg(committed()).arg("-o").arg(file("reeve.d.ts"))));
    let types = fs::read_to_string(file("reeve.d.ts")).unwrap();
    for (_, id) in operations() {
        assert!(types.contains(&format!("\n    {id}: {{\n")), "{id} is missing");
    }
    fs::write(file("use.ts"), TYPESCRIPT).unwrap();
    said(node_tool("tsc", folder.path()).args(["--noEmit", "--strict", "use.ts"]));
}

fn node_tool(name: &str, folder: &Path) -> Command {
    let mut command = tool(&format!("tests/tools/node_modules/.bin/{name}"));
    command.current_dir(folder);
    command
}
