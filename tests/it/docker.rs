//! The Docker files name what is there: paths, programs, verbs, variables, addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use reeve::client::Client;
use reeve::demo::servers::{Folder, Redis, RedisOptions};
use serde_json::{Value, json};

use crate::openapi::{repository, said, tool};
use crate::support::world::World;

const PRINT_AS_JSON: &str =
    "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";

fn compose() -> Value {
    let mut python = tool(".venv/bin/python");
    python.args(["-c", PRINT_AS_JSON]).arg(repository().join("docker-compose.yml"));
    serde_json::from_str(&said(&mut python)).unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap()
}

fn words(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

fn entries(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object.as_object().into_iter().flatten()
}

/// What stands between ``` and ```, the name of the language first.
fn fences(markdown: &str) -> Vec<&str> {
    markdown.split("\n```").skip(1).step_by(2).collect()
}

fn assert_in_repository(path: &str) {
    assert!(repository().join(path).exists(), "{path} is not in the repository");
}

/// An image of a known version: a number, or a release of Debian.
fn assert_pinned(image: &str) {
    let (_, tag) = image.split_once(':').unwrap_or_else(|| panic!("{image} has no version"));
    let pinned = tag.starts_with(|c: char| c.is_ascii_digit()) || tag.starts_with("bookworm");
    assert!(pinned, "{image}");
}

fn reeve(args: &[&str]) -> String {
    said(Command::new(env!("CARGO_BIN_EXE_reeve")).args(args).arg("--help"))
}

fn assert_setting(name: &str) {
    let known = format!("{} {}", reeve(&["serve"]), reeve(&["health"]));
    let reads = |end| known.contains(&format!("[env: {name}{end}"));
    assert!(reads("=") || reads("]"), "nothing reads {name}");
}

/// Its instructions, each on one line.
fn dockerfile() -> Vec<(String, String)> {
    let text = read("Dockerfile");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let joined = lines.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    let instructions = joined.lines().filter_map(|line| line.trim().split_once(' '));
    instructions.map(|(name, rest)| (name.to_owned(), rest.trim().to_owned())).collect()
}

#[test]
fn the_dockerfile_names_what_is_there() {
    let instructions = dockerfile();
    let of = |name: &str| {
        let found = instructions.iter().filter(|(n, _)| n == name).map(|(_, rest)| rest.as_str());
        found.collect::<Vec<_>>()
    };
    let cargo: toml::Table = read("Cargo.toml").parse().unwrap();
    let mut stages = BTreeSet::new();
    for from in of("FROM") {
        let mut words = from.split(' ');
        let image = words.next().unwrap();
        assert_pinned(image);
        if let Some(rust) = image.strip_prefix("rust:") {
            assert!(rust.starts_with(cargo["package"]["rust-version"].as_str().unwrap()), "{rust}");
        }
        stages.extend(words.nth(1));
    }
    let runs = of("RUN").join("\n");
    for copy in [of("COPY"), of("ADD")].concat() {
        let (flags, paths): (Vec<&str>, Vec<&str>) =
            copy.split_whitespace().partition(|word| word.starts_with("--"));
        let from = flags.iter().find_map(|flag| flag.strip_prefix("--from="));
        for path in &paths[..paths.len() - 1] {
            match from {
                // Something has put it there, under its name.
                Some(stage) => assert!(stages.contains(stage) && runs.contains(path), "{copy}"),
                None => assert_in_repository(path),
            }
        }
    }
    assert!(runs.contains("--bin reeve"), "{runs}");
    assert_in_repository("Cargo.lock");
    if of("ENV").concat().contains("SQLX_OFFLINE") {
        assert_in_repository(".sqlx");
    }
    for needed in ["Cargo.toml", "Cargo.lock", "src", "migrations", ".sqlx", "docs", "tests"] {
        let ignored = read(".dockerignore");
        assert!(ignored.lines().all(|line| line.trim_matches('/') != needed), "{needed}");
    }

    let user = *of("USER").last().unwrap();
    assert!(user != "root" && !user.starts_with('0') && runs.contains(user), "{user}");
    let variables = of("ENV").join(" ");
    let variables = variables.split_whitespace().filter_map(|word| word.split_once('='));
    variables.filter(|(n, _)| n.starts_with("REEVE_")).for_each(|(n, _)| assert_setting(n));

    let list = |text: &str| -> Vec<String> { serde_json::from_str(text).unwrap() };
    assert_eq!(list(of("ENTRYPOINT")[0]), ["reeve"]);
    assert!(of("COPY").iter().any(|copy| copy.ends_with("bin/reeve")), "it is on the path");
    let (_, check) = of("HEALTHCHECK")[0].split_once("CMD ").unwrap();
    let check = list(check);
    assert_eq!(check[0], "reeve");
    for verb in [list(of("CMD")[0]), check[1..].to_vec()] {
        reeve(&verb.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn the_compose_file_names_what_is_there() {
    let compose = compose();
    let services = compose["services"].as_object().unwrap();
    let mut clusters = 0;
    for (name, service) in services {
        match service["image"].as_str() {
            Some(image) => assert_pinned(image),
            None => {
                let context = service["build"].as_str().unwrap();
                assert_in_repository(&format!("{context}/Dockerfile"));
            }
        }
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let from = volume.as_str().unwrap().split(':').next().unwrap();
            if from.starts_with(['.', '/']) {
                assert_in_repository(from);
            } else {
                assert!(compose["volumes"].get(from).is_some(), "{name}: volume {from}");
            }
        }
        for (needed, how) in entries(&service["depends_on"]) {
            let other = &services[needed];
            let checked = other.get("healthcheck").is_some();
            assert!(how["condition"] != "service_healthy" || checked, "{name} waits for {needed}");
        }
        for (variable, _) in entries(&service["environment"]) {
            if variable.starts_with("REEVE_") {
                assert_setting(variable);
            }
        }
        if let Some(check) = service.get("healthcheck") {
            let check = words(&check["test"]);
            assert_eq!(check[0], "CMD");
            assert!(["redis-cli", "pg_isready"].contains(&check[1]), "{check:?}");
        }
        if service["image"].as_str().is_some_and(|image| image.starts_with("redis:")) {
            clusters += 1;
            assert_eq!(service["command"], services["redis-1"]["command"]);
        }
    }
    assert_eq!(clusters, 6);

    // A real server takes the same options, and is a cluster node then.
    let command = words(&services["redis-1"]["command"]);
    let (["redis-server"], options) = command.split_at(1) else { panic!("{command:?}") };
    let folder = Folder::fresh("reeve-test").unwrap();
    let mut node = RedisOptions { dir: folder.join("node"), ..RedisOptions::default() };
    for option in options.chunks(2).filter(|option| option[0] != "--port") {
        node = node.with(option[0].strip_prefix("--").unwrap(), option[1]);
    }
    let node = Redis::start(node).await.unwrap();
    let info = said(Command::new("redis-cli").args(["-p", &node.port().to_string(), "info"]));
    assert!(info.contains("cluster_enabled:1"), "{info}");
    let check = words(&services["redis-1"]["healthcheck"]["test"]);
    let port = node.port().to_string();
    let pong = said(Command::new(check[1]).args(["-p", &port]).args(&check[2..]));
    assert_eq!(pong.trim(), "PONG");
}

#[tokio::test]
async fn the_server_takes_the_settings_and_topologies_that_are_shown() {
    let compose = compose();
    let mut settings: BTreeMap<&str, &str> = entries(&compose["services"]["reeve"]["environment"])
        .map(|(name, value)| (name.as_str(), value.as_str().unwrap()))
        .collect();
    let database = settings.remove("REEVE_DATABASE_URL").unwrap();
    let postgres = &compose["services"]["postgres"]["environment"];
    let part = |name: &str| postgres[name].as_str().unwrap();
    let (user, password) = (part("POSTGRES_USER"), part("POSTGRES_PASSWORD"));
    let want = format!("postgres://{user}:{password}@postgres:5432/{}", part("POSTGRES_DB"));
    assert_eq!(database, want);
    let listen = settings.remove("REEVE_LISTEN").unwrap();
    let port = listen.strip_prefix("0.0.0.0:").unwrap();
    assert_eq!(words(&compose["services"]["reeve"]["ports"]), [format!("127.0.0.1:{port}:{port}")]);

    let topology: Value = serde_json::from_str(&read("deploy/compose/topology.json")).unwrap();
    let nodes = topology["spec"]["nodes"].as_array().unwrap().iter();
    let listed: BTreeSet<&str> = nodes.map(|node| node["address"].as_str().unwrap()).collect();
    let services = entries(&compose["services"]).filter(|(name, _)| name.starts_with("redis-"));
    let addresses = services.map(|(_, s)| s["networks"]["reeve"]["ipv4_address"].as_str().unwrap());
    let addresses: Vec<String> = addresses.map(|address| format!("{address}:6379")).collect();
    assert_eq!(listed, addresses.iter().map(String::as_str).collect());
    let subnet = compose["networks"]["reeve"]["ipam"]["config"][0]["subnet"].as_str().unwrap();
    let subnet: ipnet::IpNet = subnet.parse().unwrap();
    for address in listed {
        let ip = address.strip_suffix(":6379").unwrap().parse().unwrap();
        assert!(subnet.contains::<&std::net::IpAddr>(&ip), "{address}");
    }

    // No node may be reached, so none is asked.
    settings.insert("REEVE_NODE_ALLOW_CIDRS", "192.0.2.0/24");
    let token = settings["REEVE_ADMIN_TOKEN"];
    let settings: Vec<_> = settings.into_iter().collect();
    let world = World::with(&settings).await;
    let client = Client::new(&world.server.url(), token).unwrap();
    let readme = read("README.md");
    let (_, shown) = readme.split_once("`orders.json`:").unwrap();
    let shown = serde_json::from_str(fences(shown)[0].strip_prefix("json").unwrap()).unwrap();
    for body in [topology, shown] {
        let refused = client.post("/v1/topologies/preview", &body).await.unwrap_err();
        assert_eq!(refused.code(), Some("nodes_unfit"), "{refused}");
        assert!(refused.to_string().contains("REEVE_NODE_ALLOW_CIDRS"), "{refused}");
    }
    let credential = json!({ "name": "orders", "password": "x" });
    client.post("/v1/credentials", &credential).await.unwrap();
}

#[test]
fn the_readme_shows_json_and_settings_that_exist() {
    let readme = read("README.md");
    let mut bodies = 0;
    for fence in fences(&readme) {
        for body in fence.split("-d '").skip(1).map(|rest| rest.split('\'').next().unwrap()) {
            let parsed: Result<Value, _> = serde_json::from_str(body);
            assert!(parsed.is_ok(), "{body}");
            bodies += 1;
        }
    }
    assert!(bodies > 0, "no body was found");
    for row in readme.lines().filter(|line| line.starts_with("| `REEVE_")) {
        assert_setting(row.split('`').nth(1).unwrap());
    }
}
