//! Credentials: sealed (ChaCha20-Poly1305, RFC 8439) before they reach the database, immutable, and
//! opened only to log in to nodes.

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, KeyInit, Nonce};
use chrono::{DateTime, Utc};

use super::{Store, StoreError, violated};
use crate::domain::credential::Credential;
use crate::domain::refusal::Refusal;

/// The key under which credentials are sealed: `REEVE_SECRET_KEY`.
#[derive(Clone)]
pub struct SecretKey([u8; 32]);

impl SecretKey {
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    fn cipher(&self) -> ChaCha20Poly1305 {
        ChaCha20Poly1305::new(&Key::from(self.0))
    }

    /// Seals a secret. The name is bound to it, so that rows cannot be swapped.
    pub(super) fn seal(
        &self,
        name: &str,
        secret: &str,
        nonce: [u8; 12],
    ) -> Result<Vec<u8>, StoreError> {
        let payload = Payload { msg: secret.as_bytes(), aad: name.as_bytes() };
        self.cipher().encrypt(&Nonce::from(nonce), payload).map_err(|_| StoreError::Sealed)
    }

    pub(super) fn open(
        &self,
        name: &str,
        nonce: &[u8],
        sealed: &[u8],
    ) -> Result<String, StoreError> {
        let nonce: [u8; 12] = nonce.try_into().map_err(|_| StoreError::Sealed)?;
        let payload = Payload { msg: sealed, aad: name.as_bytes() };
        let plain = self.cipher().decrypt(&Nonce::from(nonce), payload);
        String::from_utf8(plain.map_err(|_| StoreError::Sealed)?).map_err(|_| StoreError::Sealed)
    }
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey(***)")
    }
}

/// A credential as it may be shown.
#[derive(Debug, Clone, PartialEq)]
pub struct ShownCredential {
    pub name: String,
    pub username: Option<String>,
    pub created_at: DateTime<Utc>,
}

impl Store {
    pub async fn add_credential(
        &self,
        key: &SecretKey,
        name: &str,
        credential: &Credential,
        nonce: [u8; 12],
    ) -> Result<ShownCredential, StoreError> {
        let sealed = key.seal(name, credential.reveal(), nonce)?;
        sqlx::query_as!(
            ShownCredential,
            "INSERT INTO credentials (name, username, nonce, ciphertext) VALUES ($1, $2, $3, $4)
             RETURNING name, username, created_at",
            name,
            credential.username,
            &nonce[..],
            sealed
        )
        .fetch_one(&self.pool)
        .await
        .map_err(|error| match violated(&error) {
            Some("credentials_pkey") => Refusal::NameTaken(name.to_owned()).into(),
            _ => error.into(),
        })
    }

    /// Opens a credential; `None` when there is none of that name.
    pub async fn credential(
        &self,
        key: &SecretKey,
        name: &str,
    ) -> Result<Option<Credential>, StoreError> {
        let row = sqlx::query!(
            "SELECT username, nonce, ciphertext FROM credentials WHERE name = $1",
            name
        )
        .fetch_optional(&self.pool)
        .await?;
        row.map(|r| Ok(Credential::new(r.username, key.open(name, &r.nonce, &r.ciphertext)?)))
            .transpose()
    }

    pub async fn credentials(
        &self,
        after: Option<&str>,
        limit: i64,
    ) -> Result<Vec<ShownCredential>, StoreError> {
        let rows = sqlx::query_as!(
            ShownCredential,
            "SELECT name, username, created_at FROM credentials
             WHERE ($1::text IS NULL OR name > $1) ORDER BY name LIMIT $2",
            after,
            limit
        );
        Ok(rows.fetch_all(&self.pool).await?)
    }

    /// Forgets a credential that no topology and no node names.
    pub async fn delete_credential(&self, name: &str) -> Result<(), StoreError> {
        let user = sqlx::query_scalar!(
            "SELECT t.name FROM topologies t
             JOIN topology_versions v ON v.topology_id = t.id AND v.version = t.version
             WHERE $1 IN (v.spec->'credentials'->>'admin', v.spec->'credentials'->>'replication',
                          v.spec->'credentials'->>'sentinel')
             UNION ALL SELECT address FROM nodes WHERE credential = $1 LIMIT 1",
            name
        )
        .fetch_optional(&self.pool)
        .await?
        .flatten();
        if let Some(user) = user {
            return Err(Refusal::InUse(format!(
                "`{user}` uses the credential `{name}`; let it use another one first"
            ))
            .into());
        }
        let done = sqlx::query!("DELETE FROM credentials WHERE name = $1", name)
            .execute(&self.pool)
            .await?;
        if done.rows_affected() == 0 {
            return Err(Refusal::NotFound { kind: "credential", name: name.to_owned() }.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_its_key_and_name_alone() {
        let key = SecretKey::new([7; 32]);
        let sealed = key.seal("orders", "s3cret", [1; 12]).unwrap();
        assert!(!sealed.windows(6).any(|w| w == b"s3cret"));
        assert_eq!(key.open("orders", &[1; 12], &sealed).unwrap(), "s3cret");
        assert!(key.open("other", &[1; 12], &sealed).is_err());
        assert!(SecretKey::new([8; 32]).open("orders", &[1; 12], &sealed).is_err());
        assert!(key.open("orders", b"short", &sealed).is_err());
    }
}
