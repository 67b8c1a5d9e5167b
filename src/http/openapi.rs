//! The OpenAPI document: what utoipa derives, made fit for client generators.
//!
//! What `serde(tag)` and `serde(flatten)` make comes out as anonymous `allOf`s, on which generators
//! drop operations; [`finish`] turns each into a named object with a discriminator. It also adds
//! what is the same everywhere: the login, and the problems.

use serde_json::{Map, Value, json};
use utoipa::openapi::OpenApi;

use super::{idempotency, letters};

const SCHEMAS: &str = "#/components/schemas/";

/// The document as it is served and committed.
#[must_use]
pub fn text() -> String {
    let (_, document) = super::api().split_for_parts();
    serde_json::to_string_pretty(&finish(document)).unwrap_or_default()
}

#[must_use]
pub fn finish(document: OpenApi) -> Value {
    let mut document = serde_json::to_value(document).unwrap_or_default();
    document["info"] = json!({
        "title": "Reeve",
        "version": env!("CARGO_PKG_VERSION"),
        "description": "The HTTP control plane for Redis high availability. Errors are RFC 9457 problems; each code has a page at /errors/{code}.",
        "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
    });
    letters::add(&mut document);
    if let Some(Value::Object(schemas)) = document.pointer_mut("/components/schemas") {
        name_variants(schemas);
        merge_flattened(schemas);
        for schema in schemas.values_mut() {
            drop_null_defaults(schema);
            tell_defaults(schema);
        }
    }
    drop_null_parameters(&mut document);
    add_login(&mut document);
    add_problems(&mut document);
    add_idempotency(&mut document);
    document
}

/// Makes each variant of a tagged union a named object that carries the tag itself.
fn name_variants(schemas: &mut Map<String, Value>) {
    let unions: Vec<String> = schemas
        .iter()
        .filter(|(_, s)| s["oneOf"].as_array().is_some_and(|v| v.iter().all(|v| tag(v).is_some())))
        .map(|(name, _)| name.clone())
        .collect();
    for union in unions {
        let variants = schemas[&union]["oneOf"].as_array().cloned().unwrap_or_default();
        let (mut refs, mut mapping, mut property) = (Vec::new(), Map::new(), String::new());
        for variant in variants {
            let Some((name, value, schema)) = tag(&variant) else { continue };
            let component = match reference(&variant["allOf"][0]) {
                Some(target) => target.to_owned(),
                None => format!("{union}{}", pascal(&value)),
            };
            let object =
                schemas.entry(component.clone()).or_insert_with(|| json!({ "type": "object" }));
            object["properties"][&name] = schema;
            let required = object["required"].as_array().cloned().unwrap_or_default();
            object["required"] = [vec![json!(name)], required].concat().into();
            if object.get("description").is_none()
                && let Some(text) = variant.get("description")
            {
                object["description"] = text.clone();
            }
            let path = format!("{SCHEMAS}{component}");
            refs.push(json!({ "$ref": path }));
            mapping.insert(value, path.into());
            property = name;
        }
        schemas[&union]["oneOf"] = refs.into();
        schemas[&union]["discriminator"] = json!({ "propertyName": property, "mapping": mapping });
    }
}

/// The tag of a variant: its property, its value, and the property's schema.
fn tag(variant: &Value) -> Option<(String, String, Value)> {
    let object = variant.pointer("/allOf/1").unwrap_or(variant);
    object["properties"].as_object()?.iter().find_map(|(name, schema)| {
        match schema["enum"].as_array()?.as_slice() {
            [Value::String(value)] => Some((name.clone(), value.clone(), schema.clone())),
            _ => None,
        }
    })
}

/// Puts what `allOf` brings together into one object.
fn merge_flattened(schemas: &mut Map<String, Value>) {
    let names: Vec<String> =
        schemas.iter().filter(|(_, s)| s.get("allOf").is_some()).map(|(n, _)| n.clone()).collect();
    for name in names {
        let parts = schemas[&name]["allOf"].as_array().cloned().unwrap_or_default();
        let mut whole = json!({ "type": "object", "properties": {}, "required": [] });
        for part in parts {
            let part = reference(&part).and_then(|r| schemas.get(r)).unwrap_or(&part);
            if let (Some(into), Some(from)) =
                (whole["properties"].as_object_mut(), part["properties"].as_object())
            {
                into.extend(from.clone());
            }
            if let (Some(into), Some(from)) =
                (whole["required"].as_array_mut(), part["required"].as_array())
            {
                into.extend(from.clone());
            }
        }
        if let Some(text) = schemas[&name].get("description") {
            whole["description"] = text.clone();
        }
        schemas[&name] = whole;
    }
}

fn reference(schema: &Value) -> Option<&str> {
    schema["$ref"].as_str()?.strip_prefix(SCHEMAS)
}

/// `unknown_thing` → `UnknownThing`
fn pascal(word: &str) -> String {
    word.split('_')
        .flat_map(|part| {
            let mut letters = part.chars();
            letters.next().map(|first| first.to_uppercase().chain(letters).collect::<String>())
        })
        .collect()
}

/// A default of null says nothing more than that a field may be left out.
fn drop_null_defaults(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.get("default").is_some_and(Value::is_null) {
                map.remove("default");
            }
            map.values_mut().for_each(drop_null_defaults);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_null_defaults),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Puts defaults into words: openapi-typescript takes a property with a `default` for one that is
/// always there, and so demands it in requests.
fn tell_defaults(schema: &mut Value) {
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    for property in properties.into_iter().flat_map(Map::values_mut) {
        let default = property.as_object_mut().and_then(|p| p.remove("default"));
        let Some(default) = default.filter(|d| *d != json!([])) else { continue };
        let text = property["description"].as_str().unwrap_or_default();
        let default = default.as_str().map_or_else(|| default.to_string(), str::to_owned);
        property["description"] = format!("{text} Default: `{default}`.").trim_start().into();
    }
}

/// A parameter is given or left out; it is never null.
fn drop_null_parameters(document: &mut Value) {
    let paths = document.get_mut("paths").and_then(Value::as_object_mut);
    let items = paths.into_iter().flat_map(Map::values_mut);
    let operations = items.filter_map(Value::as_object_mut).flat_map(Map::values_mut);
    for operation in operations {
        let parameters = operation.get_mut("parameters").and_then(Value::as_array_mut);
        for parameter in parameters.into_iter().flatten() {
            if let Some(kind) = parameter.pointer_mut("/schema/type")
                && let Some([one, null]) = kind.as_array().map(Vec::as_slice)
                && null == "null"
            {
                *kind = one.clone();
            }
        }
    }
}

fn add_login(document: &mut Value) {
    document["components"]["securitySchemes"]["token"] = json!({
        "type": "http", "scheme": "bearer",
        "description": "A token that an admin made with POST /v1/tokens, or REEVE_ADMIN_TOKEN.",
    });
    document["security"] = json!([{ "token": [] }]);
}

/// Every operation below /v1 can answer with problems; which, follows from its shape.
fn add_problems(document: &mut Value) {
    document["components"]["responses"] = json!({ "Problem": {
        "description": "Why not (RFC 9457). `code` names the kind; /errors/{code} explains it.",
        "content": { "application/problem+json": { "schema": { "$ref": format!("{SCHEMAS}Problem") } } },
    }});
    if let Some(schemas) =
        document.pointer_mut("/components/schemas").and_then(Value::as_object_mut)
    {
        schemas.entry("Problem").or_insert_with(|| json!({ "type": "object" }));
    }
    let Some(paths) = document["paths"].as_object_mut() else { return };
    for (path, item) in paths.iter_mut().filter(|(p, _)| p.starts_with("/v1/")) {
        let Some(item) = item.as_object_mut() else { continue };
        for (method, operation) in item.iter_mut() {
            let mut codes = vec!["400", "401", "403", "404", "500", "503"];
            let has_body = operation.get("requestBody").is_some();
            if method != "get" {
                codes.extend(["409", "412"]);
            }
            if has_body {
                codes.extend(["413", "415", "422"]);
            }
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            if parameters.iter().any(|p| p["name"] == "If-Match") {
                codes.push("428");
            }
            if path.ends_with("/stream") {
                codes.push("410");
            }
            for code in codes {
                operation["responses"][code] = json!({ "$ref": "#/components/responses/Problem" });
            }
        }
    }
}

/// Every POST takes a key, and tells whether its answer is that of an earlier one.
fn add_idempotency(document: &mut Value) {
    let paths = document.get_mut("paths").and_then(Value::as_object_mut);
    for operation in paths.into_iter().flat_map(Map::values_mut).filter_map(|i| i.get_mut("post")) {
        let parameter = json!({
            "name": idempotency::HEADER, "in": "header", "required": false,
            "description": "A repeat with the same key, token, path and body gets the first answer for 24 hours and does nothing. A UUID will do.",
            "schema": { "type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]([ -~]*[!-~])?$" },
        });
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        operation["parameters"] = [parameters, vec![parameter]].concat().into();
        let problem = json!({ "$ref": "#/components/responses/Problem" });
        let responses = operation.get_mut("responses").and_then(Value::as_object_mut);
        for (code, response) in responses.into_iter().flatten() {
            if code.starts_with('2') {
                response["headers"]["Idempotency-Replayed"] = json!({
                    "description": "`true` where this is the answer to an earlier request with the same key.",
                    "schema": { "type": "string" },
                });
            }
        }
        operation["responses"]["422"] = problem;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn document() -> Value {
        serde_json::from_str(&text()).unwrap()
    }

    /// Calls `visit` with every object of the document.
    fn walk(value: &Value, visit: &mut impl FnMut(&Map<String, Value>)) {
        match value {
            Value::Object(map) => {
                visit(map);
                map.values().for_each(|v| walk(v, visit));
            }
            Value::Array(items) => items.iter().for_each(|v| walk(v, visit)),
            _ => {}
        }
    }

    #[test]
    fn nothing_is_left_that_generators_stumble_over() {
        let document = document();
        walk(&document["components"]["schemas"], &mut |map| {
            assert!(!map.contains_key("allOf"), "{map:?}");
            if let Some(Value::Array(variants)) = map.get("oneOf") {
                let of =
                    |v: &Value| match v["$ref"].as_str().and_then(|r| document.pointer(&r[1..])) {
                        Some(named) => named["type"].to_string(),
                        None => v["type"].to_string(),
                    };
                // Text and an object need no tag to be told apart.
                let types: BTreeSet<String> = variants.iter().map(of).collect();
                let apart = types.len() == variants.len();
                assert!(apart || map.contains_key("discriminator"), "{map:?}");
            }
        });
    }

    #[test]
    fn parameters_are_never_null_and_properties_may_be_left_out() {
        let document = document();
        for item in document["paths"].as_object().unwrap().values() {
            for operation in item.as_object().unwrap().values() {
                let parameters = operation["parameters"].as_array().into_iter().flatten();
                parameters.for_each(|p| assert!(!p["schema"]["type"].is_array(), "{p}"));
            }
        }
        for schema in document["components"]["schemas"].as_object().unwrap().values() {
            let properties = schema["properties"].as_object().into_iter().flat_map(Map::values);
            properties.for_each(|p| assert!(p.get("default").is_none(), "{p}"));
        }
        let start = &document["components"]["schemas"]["PlanOptions"]["properties"]["start"];
        assert!(start["description"].as_str().unwrap().ends_with("Default: `true`."), "{start}");
    }

    #[test]
    fn every_post_takes_an_idempotency_key_and_nothing_else_does() {
        let document = document();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let parameters = operation["parameters"].as_array().into_iter().flatten();
                let keys = parameters.filter(|p| p["name"] == "Idempotency-Key").count();
                assert_eq!(keys, usize::from(method == "post"), "{method} {path}");
                assert!(method != "post" || operation["responses"]["422"].is_object(), "{path}");
            }
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        walk(&document, &mut |map| {
            if let Some(Value::String(path)) = map.get("$ref") {
                assert!(document.pointer(&path[1..]).is_some(), "{path}");
            }
        });
    }

    #[test]
    fn variants_carry_their_tag() {
        let document = document();
        let cluster = &document["components"]["schemas"]["ClusterSpec"];
        assert_eq!(cluster["properties"]["mode"]["enum"], json!(["cluster"]));
        assert!(cluster["required"].as_array().unwrap().contains(&json!("mode")));
        let spec = &document["components"]["schemas"]["Spec"];
        assert_eq!(spec["discriminator"]["mapping"]["cluster"], "#/components/schemas/ClusterSpec");
    }

    #[test]
    fn operations_have_ids_of_their_own() {
        let document = document();
        let mut ids = BTreeSet::new();
        for item in document["paths"].as_object().unwrap().values() {
            for operation in item.as_object().unwrap().values() {
                let id = operation["operationId"].as_str().unwrap();
                assert!(ids.insert(id.to_owned()), "{id}");
                let bodies = operation["responses"].as_object().unwrap().iter();
                let typed =
                    bodies.filter(|(c, r)| c.starts_with('2') && r.get("content").is_some());
                assert!(typed.count() <= 1, "{id} has several success types");
            }
        }
    }
}
