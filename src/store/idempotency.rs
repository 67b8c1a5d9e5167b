//! Requests that carry an `Idempotency-Key`: who carries one out, and what was answered.

use uuid::Uuid;

use super::credentials::SecretKey;
use super::{Store, StoreError, violated};
use crate::domain::id::TokenId;

/// How long a request in flight is held without another word from its holder. A process that was
/// killed lets a repeat wait for as long.
const HOLD_SECONDS: f64 = 15.0;

/// A key of one caller, and the request that it stands for.
#[derive(Debug, Clone)]
pub struct KeyedRequest {
    pub token: TokenId,
    pub key: String,
    /// A digest of the request.
    pub request: Vec<u8>,
    /// Whoever carries it out; new for each attempt, so that one that was given up cannot speak for
    /// its successor.
    pub holder: Uuid,
}

/// What a key stands for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// Nobody has answered it; it is for this holder to carry out.
    Ours,
    /// It was carried out, and this was the answer.
    Answered(String),
    /// Somebody is carrying it out.
    InFlight,
    /// The key stands for another request.
    Reused,
    /// The token was revoked in the meantime.
    Revoked,
}

impl KeyedRequest {
    /// What a sealed answer is bound to, so that rows cannot be swapped.
    fn name(&self) -> String {
        format!("{}/{}", self.token, self.key)
    }
}

impl Store {
    /// Takes a request in hand, unless somebody has or had it. Of all that ask at once, on whichever
    /// instance, one is told [`Claim::Ours`].
    pub async fn claim_key(
        &self,
        keyed: &KeyedRequest,
        seal: &SecretKey,
    ) -> Result<Claim, StoreError> {
        self.drop_old_keys().await?;
        let taken = sqlx::query_scalar!(
            "INSERT INTO idempotency_keys AS k (token_id, key, request, holder, held_until)
             VALUES ($1, $2, $3, $4, clock_timestamp() + make_interval(secs => $5))
             ON CONFLICT (token_id, key) DO UPDATE
             SET request = EXCLUDED.request, holder = EXCLUDED.holder,
                 held_until = EXCLUDED.held_until, created_at = now(), nonce = NULL, answer = NULL
             WHERE k.created_at < now() - interval '24 hours'
                OR (k.answer IS NULL AND k.held_until < clock_timestamp()
                    AND k.request = EXCLUDED.request)
             RETURNING true AS \"ours!\"",
            keyed.token.0,
            keyed.key,
            keyed.request,
            keyed.holder,
            HOLD_SECONDS
        )
        .fetch_optional(&self.pool)
        .await;
        match taken {
            Ok(Some(_)) => return Ok(Claim::Ours),
            Ok(None) => {}
            Err(e) if violated(&e) == Some("idempotency_keys_token_id_fkey") => {
                return Ok(Claim::Revoked);
            }
            Err(error) => return Err(error.into()),
        }
        let row = sqlx::query!(
            "SELECT request, nonce, answer FROM idempotency_keys WHERE token_id = $1 AND key = $2",
            keyed.token.0,
            keyed.key
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(match row {
            // Freed just now: the repeat that follows will find it so.
            None => Claim::InFlight,
            Some(row) if row.request != keyed.request => Claim::Reused,
            Some(row) => match (row.nonce, row.answer) {
                (Some(nonce), Some(answer)) => {
                    Claim::Answered(seal.open(&keyed.name(), &nonce, &answer)?)
                }
                _ => Claim::InFlight,
            },
        })
    }

    /// Goes on holding a request that is still being carried out.
    pub async fn hold_key(&self, keyed: &KeyedRequest) -> Result<(), StoreError> {
        sqlx::query!(
            "UPDATE idempotency_keys SET held_until = clock_timestamp() + make_interval(secs => $4)
             WHERE token_id = $1 AND key = $2 AND holder = $3",
            keyed.token.0,
            keyed.key,
            keyed.holder,
            HOLD_SECONDS
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Keeps the answer for repeats; whether the request was still this holder's.
    pub async fn answer_key(
        &self,
        keyed: &KeyedRequest,
        seal: &SecretKey,
        nonce: [u8; 12],
        answer: &str,
    ) -> Result<bool, StoreError> {
        let sealed = seal.seal(&keyed.name(), answer, nonce)?;
        let done = sqlx::query!(
            "UPDATE idempotency_keys SET nonce = $4, answer = $5
             WHERE token_id = $1 AND key = $2 AND holder = $3",
            keyed.token.0,
            keyed.key,
            keyed.holder,
            &nonce[..],
            sealed
        );
        Ok(done.execute(&self.pool).await?.rows_affected() > 0)
    }

    /// Forgets a request that came to nothing, so that a repeat runs anew.
    pub async fn free_key(&self, keyed: &KeyedRequest) -> Result<(), StoreError> {
        sqlx::query!(
            "DELETE FROM idempotency_keys WHERE token_id = $1 AND key = $2 AND holder = $3",
            keyed.token.0,
            keyed.key,
            keyed.holder
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// In passing, a few at a time, and never those that somebody else is at.
    async fn drop_old_keys(&self) -> Result<(), StoreError> {
        sqlx::query!(
            "DELETE FROM idempotency_keys WHERE (token_id, key) IN
             (SELECT token_id, key FROM idempotency_keys
              WHERE created_at < now() - interval '24 hours' LIMIT 100 FOR UPDATE SKIP LOCKED)"
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
