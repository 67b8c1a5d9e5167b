//! Pages for people: the API's documentation and one page per error. They load nothing from
//! elsewhere.

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;

use crate::http::App;
use crate::http::error::ApiError;
use crate::http::extract::Path;

macro_rules! error_pages {
    ($($code:literal)*) => {
        /// The page of each code, in Markdown.
        pub const ERROR_PAGES: &[(&str, &str)] = &[
            $(($code, include_str!(concat!("../../../docs/errors/", $code, ".md")))),*
        ];
    };
}

error_pages! {
    "E501" "E502" "E503" "E504" "E505" "E506"
    "another_node" "body_too_large" "busy" "consent_required" "convergence_timeout" "database_unavailable"
    "forbidden" "full_sync" "gone" "idempotency_in_flight" "idempotency_key_reused" "in_use" "incompatible_version" "internal" "invalid_body" "invalid_json" "invalid_parameter" "keys_left_behind"
    "majority_alive" "method_not_allowed" "name_taken" "no_effect" "no_majority" "no_reply" "node_has_keys" "node_taken"
    "nodes_unfit" "not_a_sentinel" "not_acceptable" "not_cluster_enabled" "not_found" "old_primary_answers" "open_slot" "placement_impossible"
    "plan_active" "plan_state" "precondition_failed" "precondition_required" "refused" "rejected"
    "replica_of_ghost" "role_changed"
    "replica_lag" "secret_key_missing" "slot_job_failed" "sentinel_id_twice" "slots_taken" "stale_fingerprint" "stranger" "stranger_sentinel" "target_full" "two_primaries" "unauthorized"
    "unknown_path" "unreachable" "unsettled" "unsupported" "unsupported_media_type" "watches_another" "webhook_disabled" "wrong_role"
}

/// The page of a code.
#[must_use]
pub fn page(code: &str) -> Option<&'static str> {
    ERROR_PAGES.iter().find(|(c, _)| *c == code).map(|(_, text)| *text)
}

pub fn router(document: serde_json::Value) -> Router<App> {
    let document: Arc<str> = document.to_string().into();
    let json = move || {
        let document = document.clone();
        async move {
            ([(header::CONTENT_TYPE, "application/json")], document.to_string()).into_response()
        }
    };
    Router::new()
        .route("/openapi.json", get(json))
        .route("/docs", get(|| async { Html(include_str!("../docs.html")) }))
        .route("/errors/{code}", get(error_page))
}

async fn error_page(Path(code): Path<String>) -> Result<Response, ApiError> {
    let text = page(&code).ok_or_else(|| ApiError::not_found("error page", &code))?;
    let mut body = String::new();
    pulldown_cmark::html::push_html(
        &mut body,
        pulldown_cmark::Parser::new_ext(text, pulldown_cmark::Options::ENABLE_TABLES),
    );
    Ok(Html(format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{code} · Reeve</title>\
         <style>:root{{color-scheme:light dark}}body{{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem}}\
         code,pre{{font-family:ui-monospace,monospace;background:#8882}}pre{{padding:.8rem;overflow:auto}}</style>\
         {body}</html>"
    ))
    .into_response())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_file_is_served_and_begins_with_its_code() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/errors");
        let files: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|f| f.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        let served: BTreeSet<String> = ERROR_PAGES.iter().map(|(c, _)| (*c).to_owned()).collect();
        assert_eq!(files, served);
        for (code, text) in ERROR_PAGES {
            assert!(text.starts_with(&format!("# {code}: ")), "{code}");
        }
    }
}
