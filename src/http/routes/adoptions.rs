//! Adoptions: clusters that run already become topologies.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::topologies::{NAME_RULE, TopologyView, is_name, show};
use crate::domain::node::Address;
use crate::domain::placement::Warning;
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::spec::CredentialNames;
use crate::engine::desk::AdoptRequest;
use crate::http::App;
use crate::http::auth::{Caller, Operator};
use crate::http::error::ApiError;
use crate::http::extract::{Body, IfMatch};

/// Most seeds that a request may name.
const MAX_SEEDS: usize = 100;

/// A cluster that is to be taken over.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdoptCluster {
    #[schema(pattern = "^[a-z][a-z0-9-]{0,62}$", example = "orders")]
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// Nodes of the cluster. Any one that answers leads to all others.
    #[schema(min_items = 1, max_items = 100)]
    seeds: Vec<Address>,
    #[serde(default)]
    credentials: CredentialNames,
    /// The zone of each node, by its address as the other nodes know it (`CLUSTER NODES`). Nodes that
    /// are not named get the zone `unknown`.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    zones: BTreeMap<Address, String>,
}

/// The topology, with what was not plain about the cluster.
#[derive(Debug, Serialize, ToSchema)]
pub struct AdoptedTopology {
    #[serde(flatten)]
    topology: TopologyView,
    warnings: Vec<Warning>,
}

fn request(body: AdoptCluster, caller: &Caller) -> Result<AdoptRequest, ApiError> {
    let mut errors = Vec::new();
    if !is_name(&body.name) {
        errors.push(FieldError::new("/name", NAME_RULE));
    }
    if !(1..=MAX_SEEDS).contains(&body.seeds.len()) {
        let detail = format!("name 1 to {MAX_SEEDS} nodes of the cluster, each as host:port");
        errors.push(FieldError::new("/seeds", detail));
    }
    for (address, zone) in &body.zones {
        if zone.trim().is_empty() || zone.len() > 128 {
            let detail = "a zone is a name of 1 to 128 characters; leave the node out where its zone is not known";
            errors.push(FieldError::new(format!("/zones/{address}"), detail));
        }
    }
    if !errors.is_empty() {
        return Err(Refusal::Invalid(errors).into());
    }
    caller.make(&body.name, &body.labels, &body.credentials)?;
    Ok(AdoptRequest {
        name: body.name,
        labels: body.labels,
        seeds: body.seeds,
        credentials: body.credentials,
        zones: body.zones,
    })
}

/// Takes over a Redis Cluster that runs, as it is: nodes are looked at, and nothing is changed on
/// them. What was not plain is told by `warnings`.
#[utoipa::path(post, path = "/v1/adoptions", operation_id = "adopt_topology", tag = "topologies",
    request_body = AdoptCluster,
    responses((status = 201, description = "The topology.", body = AdoptedTopology,
        headers(("Location" = String), ("ETag" = String)))))]
pub async fn adopt(
    State(app): State<App>,
    Operator(caller): Operator,
    Body(body): Body<AdoptCluster>,
) -> Result<Response, ApiError> {
    let request = request(body, &caller)?;
    let warnings = app.engine.adopt(&request, caller.name()).await?;
    let stored = app.engine.store.topology(&request.name).await?;
    let headers = [
        (header::LOCATION, format!("/v1/topologies/{}", request.name)),
        (header::ETAG, IfMatch::etag(stored.wanted.version, stored.revision)),
    ];
    let adopted = AdoptedTopology { topology: show(&app, stored).await?, warnings };
    Ok((StatusCode::CREATED, headers, Json(adopted)).into_response())
}
