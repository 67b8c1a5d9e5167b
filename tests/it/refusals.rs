//! Bad input: each gets a problem that names the field and the remedy, and nothing is touched.

use serde_json::{Value, json};

use crate::support::world::World;

/// A raw request; the status, the content type and the body.
async fn send(
    world: &World,
    method: reqwest::Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<reqwest::Body>,
) -> (u16, Value) {
    let mut request = reqwest::Client::new()
        .request(method, format!("{}{path}", world.server.url()))
        .header("content-type", "application/json")
        .body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
    let body: Value = response.json().await.unwrap();
    if status >= 400 {
        assert_eq!(kind, "application/problem+json", "{body}");
        assert_eq!(body["status"], status);
        assert_eq!(body["type"], format!("/errors/{}", body["code"].as_str().unwrap()));
        assert!(!body["request_id"].as_str().unwrap().is_empty());
        assert!(!body["detail"].as_str().unwrap().is_empty());
        assert_eq!(body["instance"], path);
    }
    (status, body)
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// Posts a topology that is wrong; the problem's status, code, first pointer, and text.
async fn refused(world: &World, body: &Value) -> (u16, String, String, String) {
    let login = bearer(world.server.token());
    let headers = [("authorization", login.as_str())];
    let (status, problem) =
        send(world, reqwest::Method::POST, "/v1/topologies", &headers, body.to_string()).await;
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let pointer = text(&problem["errors"][0]["pointer"]);
    let detail = text(&problem["errors"][0]["detail"]);
    (status, text(&problem["code"]), pointer, detail)
}

#[tokio::test]
async fn a_spec_that_makes_no_sense_is_told_where() {
    let world = World::with_nodes(3).await;
    let before = world.untouched();
    let good = world.cluster("bad", 3, 0);
    let with = |pointer: &str, value: Value| {
        let mut body = good.clone();
        *body.pointer_mut(pointer).unwrap() = value;
        body
    };
    let twice = world.nodes[0].address();
    let mut unknown = good.clone();
    unknown["spec"]["colour"] = json!("red");
    let mut array = good.clone();
    array["spec"]["placement"] = json!([["zone"], true]);
    let mut nul = good.clone();
    nul["labels"] = json!({ "team": "a\u{0}b" });
    let cases = [
        (with("/spec/mode", json!("pool")), "/spec/mode", "cluster"),
        (with("/spec/shards", json!(0)), "/spec/shards", "3 or more"),
        (with("/spec/shards", json!("three")), "/spec/shards", "a whole number"),
        (with("/spec/shards", json!(-1)), "/spec/shards", "a whole number"),
        (with("/spec/shards", json!(4)), "/spec/nodes", "add nodes"),
        (with("/spec/nodes/1/address", json!(twice)), "/spec/nodes/1/address", "listed twice"),
        (with("/spec/nodes/1/address", json!("nowhere")), "/spec/nodes/1/address", "host:port"),
        (with("/spec/nodes/1/address", json!("127.0.0.1:60000")), "/spec/nodes/1/address", "55535"),
        (with("/spec/nodes/1/zone", json!("")), "/spec/nodes/1/zone", "1 to 128"),
        (with("/name", json!("Not A Name")), "/name", "small letter"),
        (unknown, "/spec/colour", "unknown field"),
        (array, "/spec/placement", "an object"),
        (nul, "/labels/team", "NUL"),
        (json!({ "name": "x" }), "/spec", "missing field"),
        (json!([]), "", "an object"),
    ];
    for (body, at, says) in cases {
        let (status, code, pointer, detail) = refused(&world, &body).await;
        assert_eq!(
            (status, code.as_str(), pointer.as_str()),
            (422, "invalid_body", at),
            "{detail}"
        );
        assert!(detail.contains(says), "{at}: {detail}");
    }
    assert_eq!(before, world.untouched());
    let none = world.client.get("/v1/topologies").await.unwrap();
    assert_eq!(none["items"], json!([]));
}

#[tokio::test]
async fn every_fault_of_every_node_is_told_at_once_and_none_is_touched() {
    let mut world = World::with_nodes(6).await;
    // 0 and 1 form a cluster with each other; 2 is not cluster-enabled; 3 is locked; 4 holds keys;
    // 5 is gone; 6 is blank.
    world.add_nodes(1, &[]).await;
    world.nodes.push({
        let dir = world.folder.join("plain");
        let mut options = reeve::demo::servers::RedisOptions::cluster(dir);
        options.cluster = false;
        reeve::demo::servers::Redis::start(options).await.unwrap()
    });
    let port = world.nodes[1].port().to_string();
    world.ask(0, &["CLUSTER", "MEET", "127.0.0.1", &port]);
    world.ask(3, &["CONFIG", "SET", "requirepass", "locked"]);
    world.ask(4, &["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    crate::support::until("it serves", std::time::Duration::from_secs(10), async || {
        let said = world.ask(4, &["SET", "a", "1"]);
        if said == "OK" { Ok(()) } else { Err(said) }
    })
    .await;
    crate::support::until("they met", std::time::Duration::from_secs(10), async || {
        let known = world.ask(0, &["CLUSTER", "NODES"]);
        if known.contains("handshake") || known.lines().count() < 2 { Err(known) } else { Ok(()) }
    })
    .await;
    world.nodes[5].kill();
    let before = world.untouched();

    let mut body = world.cluster("many", 3, 0);
    // Leave out node 1, so that node 0 belongs to a cluster that is not this one.
    body["spec"]["nodes"].as_array_mut().unwrap().remove(1);
    let error = world.client.create_topology(&body, None).await.unwrap_err();
    assert_eq!(error.code(), Some("nodes_unfit"));
    let text = error.to_string();
    for (node, says) in [
        (0, "belongs to another cluster"),
        (3, "demands a login"),
        (4, "holds 1 keys"),
        (5, "does not answer"),
        (7, "does not run in cluster mode"),
    ] {
        let address = world.nodes[node].address();
        assert!(text.contains(&format!("{address} {says}")), "{address} {says}: {text}");
    }
    let blank = world.nodes[6].address();
    assert!(!text.contains(&format!("{blank} ")), "the blank node is fine: {text}");
    // Even consent does not reset a node of somebody else's cluster.
    body["reset_nodes"] = json!(true);
    let error = world.client.create_topology(&body, None).await.unwrap_err();
    assert!(error.to_string().contains("belongs to another cluster"), "{error}");
    assert_eq!(before, world.untouched());
}

#[tokio::test]
async fn nodes_of_another_topology_are_taken() {
    let world = World::with_nodes(3).await;
    world.create(&world.cluster("one", 3, 0)).await;
    let (status, code, pointer, detail) = refused(&world, &world.cluster("two", 3, 0)).await;
    assert_eq!((status, code.as_str()), (409, "node_taken"), "{detail}");
    assert!(pointer.starts_with("/spec/nodes/"));
    assert!(detail.contains("`one`"), "{detail}");
    let (status, code, ..) = refused(&world, &world.cluster("one", 3, 0)).await;
    assert_eq!((status, code.as_str()), (409, "name_taken"));
    world.check_cluster(&[]);
}

#[tokio::test]
async fn the_frameworks_own_rejections_are_problems_too() {
    let world = World::new().await;
    let login = bearer(world.server.token());
    let auth = ("authorization", login.as_str());
    let post = reqwest::Method::POST;
    let code = |(status, body): (u16, Value)| (status, body["code"].as_str().unwrap().to_owned());
    let path = "/v1/topologies";

    let huge = format!("{{\"name\": \"{}\"}}", "x".repeat(10 << 20));
    let answer = send(&world, post.clone(), path, &[auth], huge).await;
    assert_eq!(code(answer), (413, "body_too_large".to_owned()));
    let answer = send(&world, post.clone(), path, &[auth], "{\"name\": ").await;
    assert_eq!(code(answer), (400, "invalid_json".to_owned()));
    let answer = send(&world, post.clone(), path, &[], "{}").await;
    assert_eq!(code(answer), (401, "unauthorized".to_owned()));
    let wrong = [("authorization", "Bearer reeve_0_nonsense")];
    let answer = send(&world, post.clone(), path, &wrong, "{}").await;
    assert_eq!(code(answer), (401, "unauthorized".to_owned()));
    let answer = send(&world, reqwest::Method::GET, "/v1/nothing", &[auth], "").await;
    assert_eq!(code(answer), (404, "unknown_path".to_owned()));
    let answer = send(&world, reqwest::Method::DELETE, "/v1/me", &[auth], "").await;
    assert_eq!(code(answer), (405, "method_not_allowed".to_owned()));
    let answer = send(&world, reqwest::Method::GET, "/v1/plans/xyz", &[auth], "").await;
    assert_eq!(code(answer), (400, "invalid_parameter".to_owned()));

    let plain = reqwest::Client::new()
        .post(format!("{}{path}", world.server.url()))
        .header("authorization", &login)
        .header("content-type", "text/plain")
        .body("{}");
    assert_eq!(plain.send().await.unwrap().status(), 415);
}

#[tokio::test]
async fn roles_and_scopes_hold() {
    let world = World::with_nodes(3).await;
    let token = async |body: Value| {
        let made = world.client.post("/v1/tokens", &body).await.unwrap();
        made["secret"].as_str().unwrap().to_owned()
    };
    let viewer = token(json!({ "name": "eyes", "role": "viewer" })).await;
    let other =
        token(json!({ "name": "other", "role": "operator", "topologies": { "names": ["x"] } }))
            .await;
    let body = world.cluster("orders", 3, 0);
    let before = world.untouched();
    let post = reqwest::Method::POST;
    for (secret, code) in [(&viewer, "forbidden"), (&other, "forbidden")] {
        let login = bearer(secret);
        let headers = [("authorization", login.as_str())];
        let (status, problem) =
            send(&world, post.clone(), "/v1/topologies", &headers, body.to_string()).await;
        assert_eq!((status, problem["code"].as_str()), (403, Some(code)));
    }
    assert_eq!(before, world.untouched());
    world.create(&body).await;
    let login = bearer(&viewer);
    let get = reqwest::Method::GET;
    let path = "/v1/topologies/orders";
    let seen = send(&world, get.clone(), path, &[("authorization", &login)], "").await;
    assert_eq!(seen.0, 200);
    // Who is limited to another topology does not learn that this one exists.
    let login = bearer(&other);
    for path in [path, "/v1/topologies/orders/slots"] {
        let hidden = send(&world, get.clone(), path, &[("authorization", &login)], "").await;
        assert_eq!(hidden.0, 404);
    }
    let list = send(&world, get.clone(), "/v1/nodes", &[("authorization", &login)], "").await;
    assert_eq!(list.1["items"], json!([]));
    let events = send(&world, get, "/v1/events", &[("authorization", &login)], "").await;
    assert_eq!(events.1["items"], json!([]));
    // An admin of some topologies is none of the whole, and cannot have a stored password sent
    // to a node of its own.
    let some =
        token(json!({ "name": "some", "role": "admin", "topologies": { "names": ["x"] } })).await;
    let login = bearer(&some);
    let headers = [("authorization", login.as_str())];
    for path in ["/v1/tokens", "/v1/credentials"] {
        let answer = send(&world, reqwest::Method::GET, path, &headers, "").await;
        assert_eq!(answer.0, 403, "{path}");
    }
    let mut lure = world.cluster("x", 3, 0);
    lure["spec"]["credentials"] = json!({ "admin": "somebody-elses" });
    let path = "/v1/topologies/preview";
    let answer = send(&world, post.clone(), path, &headers, lure.to_string()).await;
    assert_eq!((answer.0, answer.1["code"].as_str()), (403, Some("forbidden")));

    let shown = world.client.get("/v1/tokens").await.unwrap().to_string();
    assert!(!shown.contains(&viewer), "a secret is shown once");
}

#[tokio::test]
async fn changes_need_the_version_that_was_read() {
    let world = World::with_nodes(3).await;
    world.create(&world.cluster("orders", 3, 0)).await;
    let login = bearer(world.server.token());
    let auth = ("authorization", login.as_str());
    let path = "/v1/topologies/orders";
    let patch = async |headers: &[(&str, &str)]| {
        send(&world, reqwest::Method::PATCH, path, headers, r#"{"labels": {"team": "shop"}}"#).await
    };
    assert_eq!(patch(&[auth]).await.0, 428);
    assert_eq!(patch(&[auth, ("if-match", "\"9-9\"")]).await.0, 412);
    assert_eq!(patch(&[auth, ("if-match", "nonsense")]).await.0, 412);
    let (status, body) = patch(&[auth, ("if-match", "\"1-1\"")]).await;
    assert_eq!((status, &body["labels"]), (200, &json!({ "team": "shop" })));
    assert_eq!(patch(&[auth, ("if-match", "\"1-1\"")]).await.0, 412, "the revision went on");
    assert_eq!(world.client.etag(path).await.unwrap().as_deref(), Some("\"1-2\""));
}
