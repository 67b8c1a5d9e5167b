//! API tokens and stream tickets; of both only SHA-256 digests are stored.

use chrono::{DateTime, Utc};

use super::{Store, StoreError, document, json, word};
use crate::domain::access::{Role, Scope};
use crate::domain::id::TokenId;
use crate::domain::refusal::Refusal;

#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    pub id: TokenId,
    pub name: String,
    pub role: Role,
    pub scope: Option<Scope>,
    pub created_by: String,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
}

struct TokenRow {
    id: uuid::Uuid,
    name: String,
    role: String,
    topologies: Option<serde_json::Value>,
    created_by: String,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
}

impl TryFrom<TokenRow> for Token {
    type Error = StoreError;

    fn try_from(row: TokenRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: TokenId(row.id),
            name: row.name,
            role: word("tokens", "role", row.role)?,
            scope: row.topologies.map(|t| document("tokens", "topologies", t)).transpose()?,
            created_by: row.created_by,
            created_at: row.created_at,
            expires_at: row.expires_at,
        })
    }
}

impl Store {
    pub async fn add_token(&self, token: &Token, digest: &[u8]) -> Result<Token, StoreError> {
        sqlx::query_as!(
            TokenRow,
            "INSERT INTO tokens (id, name, role, topologies, digest, created_by, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (digest) DO UPDATE SET name = EXCLUDED.name, role = EXCLUDED.role,
                 topologies = EXCLUDED.topologies, expires_at = EXCLUDED.expires_at
             RETURNING id, name, role, topologies, created_by, created_at, expires_at",
            token.id.0,
            token.name,
            token.role.as_str(),
            token.scope.as_ref().map(json).transpose()?,
            digest,
            token.created_by,
            token.expires_at
        )
        .fetch_one(&self.pool)
        .await?
        .try_into()
    }

    /// The same for the token from the settings, whose predecessors become void.
    pub async fn replace_settings_token(
        &self,
        token: &Token,
        digest: &[u8],
    ) -> Result<(), StoreError> {
        sqlx::query!(
            "DELETE FROM tokens WHERE created_by = $1 AND digest <> $2",
            token.created_by,
            digest
        )
        .execute(&self.pool)
        .await?;
        self.add_token(token, digest).await?;
        Ok(())
    }

    /// The token with this digest, unless it has expired.
    pub async fn token_by_digest(&self, digest: &[u8]) -> Result<Option<Token>, StoreError> {
        sqlx::query_as!(
            TokenRow,
            "SELECT id, name, role, topologies, created_by, created_at, expires_at FROM tokens
             WHERE digest = $1 AND (expires_at IS NULL OR expires_at > now())",
            digest
        )
        .fetch_optional(&self.pool)
        .await?
        .map(Token::try_from)
        .transpose()
    }

    /// Those of the tokens that are neither revoked nor expired.
    pub async fn living_tokens(&self, ids: &[uuid::Uuid]) -> Result<Vec<uuid::Uuid>, StoreError> {
        let living = sqlx::query_scalar!(
            "SELECT id FROM tokens
             WHERE id = ANY($1) AND (expires_at IS NULL OR expires_at > now())",
            ids
        );
        Ok(living.fetch_all(&self.pool).await?)
    }

    pub async fn has_admin_token(&self) -> Result<bool, StoreError> {
        let any = sqlx::query_scalar!(
            "SELECT EXISTS (SELECT 1 FROM tokens WHERE role = 'admin' AND topologies IS NULL
                            AND (expires_at IS NULL OR expires_at > now())) AS \"any!\""
        );
        Ok(any.fetch_one(&self.pool).await?)
    }

    pub async fn tokens(
        &self,
        after: Option<TokenId>,
        limit: i64,
    ) -> Result<Vec<Token>, StoreError> {
        let rows = sqlx::query_as!(
            TokenRow,
            "SELECT id, name, role, topologies, created_by, created_at, expires_at FROM tokens
             WHERE ($1::uuid IS NULL OR id > $1) ORDER BY id LIMIT $2",
            after.map(|t| t.0),
            limit
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(Token::try_from).collect()
    }

    pub async fn delete_token(&self, id: TokenId) -> Result<(), StoreError> {
        let done =
            sqlx::query!("DELETE FROM tokens WHERE id = $1", id.0).execute(&self.pool).await?;
        if done.rows_affected() == 0 {
            return Err(Refusal::NotFound { kind: "token", name: id.to_string() }.into());
        }
        Ok(())
    }

    /// Keeps a ticket that stands for a token for `seconds`; returns when it expires.
    pub async fn add_ticket(
        &self,
        token: TokenId,
        digest: &[u8],
        seconds: f64,
    ) -> Result<DateTime<Utc>, StoreError> {
        sqlx::query!("DELETE FROM stream_tickets WHERE expires_at < now()")
            .execute(&self.pool)
            .await?;
        let expires_at = sqlx::query_scalar!(
            "INSERT INTO stream_tickets (digest, token_id, expires_at)
             VALUES ($1, $2, now() + make_interval(secs => $3)) RETURNING expires_at",
            digest,
            token.0,
            seconds
        );
        Ok(expires_at.fetch_one(&self.pool).await?)
    }

    pub async fn token_by_ticket(&self, digest: &[u8]) -> Result<Option<Token>, StoreError> {
        sqlx::query_as!(
            TokenRow,
            "SELECT t.id, t.name, t.role, t.topologies, t.created_by, t.created_at, t.expires_at
             FROM stream_tickets s JOIN tokens t ON t.id = s.token_id
             WHERE s.digest = $1 AND s.expires_at > now()
               AND (t.expires_at IS NULL OR t.expires_at > now())",
            digest
        )
        .fetch_optional(&self.pool)
        .await?
        .map(Token::try_from)
        .transpose()
    }
}
