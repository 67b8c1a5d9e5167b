//! API tokens.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::clock;
use crate::domain::access::{Role, Scope};
use crate::domain::id::TokenId;
use crate::domain::refusal::{FieldError, Refusal};
use crate::http::App;
use crate::http::auth::{Admin, digest};
use crate::http::error::ApiError;
use crate::http::extract::{Body, Path, Query, invalid};
use crate::http::page::Page;
use crate::store::tokens::Token;

/// A token as it may be shown.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Token)]
pub struct TokenView {
    id: TokenId,
    name: String,
    role: Role,
    topologies: Option<Scope>,
    created_by: String,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
}

/// A new token, with its secret, which is shown this once.
#[derive(Debug, Serialize, ToSchema)]
pub struct NewToken {
    #[serde(flatten)]
    token: TokenView,
    /// What to send as `Authorization: Bearer …`.
    secret: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct TokenList {
    items: Vec<TokenView>,
    next_cursor: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    #[schema(min_length = 1, max_length = 128)]
    name: String,
    role: Role,
    /// Limits the token to topologies by name or labels.
    #[serde(default)]
    topologies: Option<Scope>,
    #[serde(default)]
    expires_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListTokens {
    #[param(minimum = 1, maximum = 200)]
    limit: Option<i64>,
    cursor: Option<String>,
}

impl From<Token> for TokenView {
    fn from(t: Token) -> Self {
        Self {
            id: t.id,
            name: t.name,
            role: t.role,
            topologies: t.scope,
            created_by: t.created_by,
            created_at: t.created_at,
            expires_at: t.expires_at,
        }
    }
}

/// Tokens, without their secrets.
#[utoipa::path(get, path = "/v1/tokens", operation_id = "list_tokens", tag = "access",
    params(ListTokens), responses((status = 200, description = "A page of tokens.", body = TokenList)))]
pub async fn list(
    State(app): State<App>,
    Admin(caller): Admin,
    Query(query): Query<ListTokens>,
) -> Result<Json<TokenList>, ApiError> {
    caller.unlimited()?;
    let page = Page::read(query.limit, query.cursor.as_deref())?;
    let after = page.key::<Uuid>()?.map(TokenId);
    let mut tokens = app.engine.store.tokens(after, page.fetch()).await?;
    let next_cursor = page.cut(&mut tokens, |t| t.id.to_string());
    Ok(Json(TokenList { items: tokens.into_iter().map(TokenView::from).collect(), next_cursor }))
}

/// Makes a token. Its secret is in this answer and nowhere else.
#[utoipa::path(post, path = "/v1/tokens", operation_id = "create_token", tag = "access",
    request_body = CreateToken, responses((status = 201, description = "The token.", body = NewToken)))]
pub async fn create(
    State(app): State<App>,
    Admin(caller): Admin,
    Body(body): Body<CreateToken>,
) -> Result<(StatusCode, Json<NewToken>), ApiError> {
    caller.unlimited()?;
    if body.name.is_empty() || body.name.len() > 128 {
        return Err(invalid(FieldError::new("/name", "a name has 1 to 128 characters")));
    }
    let mut bytes = [0u8; 32];
    if getrandom::fill(&mut bytes).is_err() {
        return Err(ApiError::new("internal", "the machine gives no random numbers"));
    }
    let id = TokenId(clock::new_id());
    let secret = format!("reeve_{}_{}", id.0.simple(), URL_SAFE_NO_PAD.encode(bytes));
    let token = Token {
        id,
        name: body.name,
        role: body.role,
        scope: body.topologies,
        created_by: caller.name().to_owned(),
        created_at: clock::now(),
        expires_at: body.expires_at,
    };
    let token = app.engine.store.add_token(&token, &digest(&secret)).await?;
    Ok((StatusCode::CREATED, Json(NewToken { token: token.into(), secret })))
}

/// Revokes a token at once.
#[utoipa::path(delete, path = "/v1/tokens/{id}", operation_id = "delete_token", tag = "access",
    params(("id" = TokenId, Path)), responses((status = 204, description = "It is revoked.")))]
pub async fn delete(
    State(app): State<App>,
    Admin(caller): Admin,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, ApiError> {
    caller.unlimited()?;
    if caller.token.id.0 == id {
        return Err(Refusal::InUse(
            "this is the token that you use; revoke it with another one, so that nobody locks themselves out".to_owned(),
        )
        .into());
    }
    app.engine.store.delete_token(TokenId(id)).await?;
    Ok(StatusCode::NO_CONTENT)
}
