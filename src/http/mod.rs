//! The HTTP door: routes, and the layers around them.
//!
//! To add an endpoint, write a handler in `routes/`, and add it to [`api`]; its place in the OpenAPI
//! document comes with it.

pub mod auth;
pub mod error;
pub mod extract;
pub mod idempotency;
mod letters;
pub mod listener;
pub mod openapi;
pub mod page;
pub mod routes;
pub mod sse;
mod strict;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::header;
use axum::middleware::{self, Next};
use axum::response::Response;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{
    MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer,
};
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::trace::TraceLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::error::REQUEST_ID;
use crate::clock;
use crate::engine::Engine;

/// What handlers share.
#[derive(Clone)]
pub struct App {
    pub engine: Arc<Engine>,
    pub metrics: PrometheusHandle,
    /// Ends streams when the process is to stop.
    pub stop: CancellationToken,
    /// What is carried out even if its client hangs up; waited for when the process stops.
    pub tasks: TaskTracker,
}

/// Every route that the OpenAPI document shows.
pub fn api() -> OpenApiRouter<App> {
    use routes::{
        adoptions, advice, credentials, events, files, findings, instances, keyslot, me, nodes,
        ops, plans, shape, tokens, topologies, webhooks,
    };
    OpenApiRouter::new()
        .routes(routes!(ops::healthz))
        .routes(routes!(ops::readyz))
        .routes(routes!(ops::metrics))
        .routes(routes!(nodes::list, nodes::register))
        .routes(routes!(nodes::get, nodes::change, nodes::delete))
        .routes(routes!(topologies::list, topologies::create))
        .routes(routes!(topologies::preview))
        .routes(routes!(adoptions::adopt))
        .routes(routes!(
            topologies::get,
            topologies::replace,
            topologies::relabel,
            topologies::delete
        ))
        .routes(routes!(shape::versions))
        .routes(routes!(shape::version))
        .routes(routes!(shape::observation))
        .routes(routes!(shape::endpoints))
        .routes(routes!(shape::slots))
        .routes(routes!(shape::survivability))
        .routes(routes!(shape::what_if))
        .routes(routes!(files::config_files))
        .routes(routes!(findings::list))
        .routes(routes!(plans::submit))
        .routes(routes!(plans::preview))
        .routes(routes!(plans::list))
        .routes(routes!(plans::get))
        .routes(routes!(plans::steps))
        .routes(routes!(plans::start))
        .routes(routes!(plans::pause))
        .routes(routes!(plans::resume))
        .routes(routes!(plans::cancel))
        .routes(routes!(plans::retry))
        .routes(routes!(plans::stream))
        .routes(routes!(events::list))
        .routes(routes!(events::stream))
        .routes(routes!(events::ticket))
        .routes(routes!(keyslot::keyslot))
        .routes(routes!(advice::advise))
        .routes(routes!(credentials::list, credentials::create))
        .routes(routes!(credentials::delete))
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(tokens::delete))
        .routes(routes!(webhooks::list, webhooks::create))
        .routes(routes!(webhooks::get, webhooks::change, webhooks::delete))
        .routes(routes!(webhooks::rotate))
        .routes(routes!(webhooks::test))
        .routes(routes!(webhooks::deliveries))
        .routes(routes!(webhooks::redeliver))
        .routes(routes!(me::me))
        .routes(routes!(instances::list))
}

/// The whole service.
pub fn router(app: App) -> Router {
    let (router, document) = api().split_for_parts();
    let document = openapi::finish(document);
    let layers = ServiceBuilder::new()
        .layer(SetSensitiveRequestHeadersLayer::new([header::AUTHORIZATION]))
        .layer(SetRequestIdLayer::new(REQUEST_ID.clone(), FreshId))
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(|request: &Request| {
                    let id = request.extensions().get::<RequestId>();
                    let id = id.and_then(|i| i.header_value().to_str().ok()).unwrap_or_default();
                    tracing::info_span!("request", method = %request.method(), path = request.uri().path(), id)
                })
                .on_response(|response: &Response, took: Duration, _: &tracing::Span| {
                    tracing::debug!(status = response.status().as_u16(), took_ms = took.as_millis(), "answered");
                })
                .on_failure(()),
        )
        .layer(PropagateRequestIdLayer::new(REQUEST_ID.clone()))
        .layer(middleware::from_fn(measure))
        .layer(middleware::from_fn(error::finish))
        .layer(middleware::from_fn_with_state(app.clone(), idempotency::once))
        .layer(CatchPanicLayer::new());
    router.merge(routes::pages::router(document)).layer(layers).with_state(app)
}

#[derive(Clone)]
struct FreshId;

impl MakeRequestId for FreshId {
    fn make_request_id<B>(&mut self, _: &axum::http::Request<B>) -> Option<RequestId> {
        clock::new_id().to_string().parse().ok().map(RequestId::new)
    }
}

/// Counts requests and times them, by the route's pattern so that ids make no new series.
async fn measure(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|p| p.as_str().to_owned());
    let route = route.unwrap_or_else(|| "(unknown)".to_owned());
    let method = request.method().as_str().to_owned();
    let began = Instant::now();
    let response = next.run(request).await;
    let status = response.status().as_u16().to_string();
    metrics::counter!("reeve_http_requests_total", "method" => method, "route" => route.clone(), "status" => status)
        .increment(1);
    metrics::histogram!("reeve_http_request_seconds", "route" => route)
        .record(began.elapsed().as_secs_f64());
    response
}
