//! Who asks, and what they may do.
//!
//! A token reads `reeve_<id>_<secret>`; only its SHA-256 digest is stored, and looked up by an
//! index, so no comparison of secrets takes place here.

use std::sync::Arc;

use axum::extract::{FromRef, FromRequestParts};
use axum::http::header;
use axum::http::request::Parts;
use sha2::{Digest, Sha256};

use super::App;
use super::error::ApiError;
use crate::domain::access::Role;
use crate::domain::node::Labels;
use crate::domain::spec::CredentialNames;
use crate::engine::Engine;
use crate::store::tokens::Token;

/// The token behind a request.
#[derive(Debug, Clone)]
pub struct Caller {
    pub token: Token,
}

/// A caller who may read.
#[derive(Debug)]
pub struct Viewer(pub Caller);
/// A caller who may also make and steer plans.
#[derive(Debug)]
pub struct Operator(pub Caller);
/// A caller who may do everything.
#[derive(Debug)]
pub struct Admin(pub Caller);

macro_rules! roles {
    ($($name:ident = $role:expr),*) => {$(
        impl<S> FromRequestParts<S> for $name
        where
            App: FromRef<S>,
            S: Send + Sync,
        {
            type Rejection = ApiError;

            async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
                let caller = caller(parts, &App::from_ref(state).engine).await?;
                caller.require($role)?;
                Ok(Self(caller))
            }
        }
    )*};
}
roles!(Viewer = Role::Viewer, Operator = Role::Operator, Admin = Role::Admin);

/// The digest under which a secret is stored.
#[must_use]
pub fn digest(secret: &str) -> Vec<u8> {
    Sha256::digest(secret.as_bytes()).to_vec()
}

/// Who sent a request.
pub(super) async fn caller(parts: &Parts, engine: &Arc<Engine>) -> Result<Caller, ApiError> {
    let token = match (bearer(parts), ticket(parts)) {
        (Some(token), _) => engine.store.token_by_digest(&digest(token)).await?,
        (None, Some(ticket)) => engine.store.token_by_ticket(&digest(&ticket)).await?,
        (None, None) => {
            return Err(ApiError::new(
                "unauthorized",
                "send Authorization: Bearer with a token; an admin makes them with POST /v1/tokens",
            ));
        }
    };
    token
        .map(|token| Caller { token })
        .ok_or_else(|| ApiError::new("unauthorized", "the token is unknown, expired or revoked"))
}

/// The token that a request carries.
pub(super) fn bearer(parts: &Parts) -> Option<&str> {
    let value = parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Tickets count on streams alone: a URL ends up in more logs than a header does.
fn ticket(parts: &Parts) -> Option<String> {
    let stream = parts.uri.path().ends_with("/stream");
    let query = parts.uri.query().filter(|_| stream)?;
    form_urlencoded::parse(query.as_bytes())
        .find(|(name, _)| name == "ticket")
        .map(|(_, value)| value.into_owned())
}

impl Caller {
    #[must_use]
    pub fn name(&self) -> &str {
        &self.token.name
    }

    fn require(&self, role: Role) -> Result<(), ApiError> {
        if self.token.role >= role {
            return Ok(());
        }
        Err(ApiError::new(
            "forbidden",
            format!(
                "this needs the role {}; the token `{}` is {}",
                role.as_str(),
                self.name(),
                self.token.role.as_str()
            ),
        ))
    }

    /// Hides what the token is not meant for: to whoever may not see it, it is not there.
    pub fn see(&self, name: &str, labels: &Labels) -> Result<(), ApiError> {
        match &self.token.scope {
            Some(scope) if !scope.covers(name, labels) => {
                Err(ApiError::not_found("topology", name))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Refuses a new topology that is not the token's to make.
    pub fn make(
        &self,
        name: &str,
        labels: &Labels,
        credentials: &CredentialNames,
    ) -> Result<(), ApiError> {
        let Some(scope) = &self.token.scope else { return Ok(()) };
        if !scope.covers(name, labels) {
            return Err(ApiError::new("forbidden", "this token is limited to other topologies"));
        }
        // Otherwise it could have somebody else's password sent to a node of its own.
        if *credentials != CredentialNames::default() {
            return Err(ApiError::new(
                "forbidden",
                "a token that is limited to some topologies cannot name credentials; let one that is not create the topology",
            ));
        }
        Ok(())
    }

    /// Refuses logins that a token which is limited to some topologies would bring into one.
    pub fn respec(&self, now: &CredentialNames, new: &CredentialNames) -> Result<(), ApiError> {
        if self.token.scope.is_none() || now == new {
            return Ok(());
        }
        Err(ApiError::new(
            "forbidden",
            "a token that is limited to some topologies cannot change which credentials one uses; let one that is not do so",
        ))
    }

    /// Refuses what concerns the whole fleet to a token that is limited to some topologies.
    pub fn unlimited(&self) -> Result<(), ApiError> {
        match self.token.scope {
            None => Ok(()),
            Some(_) => Err(ApiError::new("forbidden", "this token is limited to some topologies")),
        }
    }

    /// The names that the token may see, or `None` for all.
    pub async fn visible(&self, engine: &Engine) -> Result<Option<Vec<String>>, ApiError> {
        let Some(scope) = &self.token.scope else { return Ok(None) };
        Ok(Some(scope.among(&engine.store.topology_labels().await?)))
    }
}
