//! Credentials: they go in and never come out.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::domain::credential::Credential;
use crate::domain::refusal::FieldError;
use crate::http::App;
use crate::http::auth::Admin;
use crate::http::error::{ApiError, no_secret_key};
use crate::http::extract::{Body, Path, Query, invalid};
use crate::http::page::Page;
use crate::store::credentials::ShownCredential;

/// A credential without its password.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Credential)]
pub struct CredentialView {
    name: String,
    username: Option<String>,
    created_at: DateTime<Utc>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct CredentialList {
    items: Vec<CredentialView>,
    next_cursor: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateCredential {
    #[schema(pattern = "^[a-z][a-z0-9-]{0,62}$")]
    name: String,
    /// The ACL user; the default user when left out.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128)]
    username: Option<String>,
    #[schema(min_length = 1, max_length = 512, write_only)]
    password: String,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListCredentials {
    #[param(minimum = 1, maximum = 200)]
    limit: Option<i64>,
    cursor: Option<String>,
}

impl From<ShownCredential> for CredentialView {
    fn from(c: ShownCredential) -> Self {
        Self { name: c.name, username: c.username, created_at: c.created_at }
    }
}

/// Names of stored credentials.
#[utoipa::path(get, path = "/v1/credentials", operation_id = "list_credentials", tag = "access",
    params(ListCredentials), responses((status = 200, description = "A page of credentials.", body = CredentialList)))]
pub async fn list(
    State(app): State<App>,
    Admin(caller): Admin,
    Query(query): Query<ListCredentials>,
) -> Result<Json<CredentialList>, ApiError> {
    caller.unlimited()?;
    let page = Page::read(query.limit, query.cursor.as_deref())?;
    let mut items = app.engine.store.credentials(page.after.as_deref(), page.fetch()).await?;
    let next_cursor = page.cut(&mut items, |c| c.name.clone());
    Ok(Json(CredentialList {
        items: items.into_iter().map(CredentialView::from).collect(),
        next_cursor,
    }))
}

/// Stores a credential, sealed. It cannot be changed: store another one and use that.
#[utoipa::path(post, path = "/v1/credentials", operation_id = "create_credential", tag = "access",
    request_body = CreateCredential, responses((status = 201, description = "It is stored.", body = CredentialView)))]
pub async fn create(
    State(app): State<App>,
    Admin(caller): Admin,
    Body(body): Body<CreateCredential>,
) -> Result<(StatusCode, Json<CredentialView>), ApiError> {
    caller.unlimited()?;
    if !super::topologies::is_name(&body.name) {
        return Err(invalid(FieldError::new("/name", super::topologies::NAME_RULE)));
    }
    if body.password.is_empty() || body.password.len() > 512 {
        return Err(invalid(FieldError::new("/password", "a password has 1 to 512 characters")));
    }
    let odd = |u: &String| u.is_empty() || u.len() > 128 || u.contains(' ');
    if body.username.as_ref().is_some_and(odd) {
        return Err(invalid(FieldError::new(
            "/username",
            "a user has 1 to 128 characters and no spaces; leave it out for the default user",
        )));
    }
    let key = app.engine.secret_key.as_ref().ok_or_else(no_secret_key)?;
    let mut nonce = [0u8; 12];
    if getrandom::fill(&mut nonce).is_err() {
        return Err(ApiError::new("internal", "the machine gives no random numbers"));
    }
    let credential = Credential::new(body.username, body.password);
    let shown = app.engine.store.add_credential(key, &body.name, &credential, nonce).await?;
    Ok((StatusCode::CREATED, Json(shown.into())))
}

/// Forgets a credential that nothing uses.
#[utoipa::path(delete, path = "/v1/credentials/{name}", operation_id = "delete_credential", tag = "access",
    params(("name" = String, Path)), responses((status = 204, description = "It is gone.")))]
pub async fn delete(
    State(app): State<App>,
    Admin(caller): Admin,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    caller.unlimited()?;
    if !super::topologies::is_name(&name) {
        return Err(ApiError::not_found("credential", name));
    }
    app.engine.store.delete_credential(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}
