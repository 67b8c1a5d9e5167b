//! Open streams: each ends when the token that opened it is revoked or expires, or sees other
//! topologies than it did.
//!
//! A request is let in once; a stream stays. So the tokens behind all open streams are looked at
//! together, every few seconds, at the cost of one query (and one more where a token is limited).

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Engine;
use crate::clock;
use crate::domain::access::Scope;
use crate::domain::id::TokenId;
use crate::store::StoreError;

const EVERY: Duration = Duration::from_secs(2);

#[derive(Default)]
pub struct Guests {
    open: Mutex<HashMap<Uuid, Guest>>,
}

struct Guest {
    token: TokenId,
    scope: Option<Scope>,
    visible: Option<Vec<String>>,
    out: CancellationToken,
}

/// A stream's place among the open ones, for as long as it is kept.
pub struct Seat {
    id: Uuid,
    guests: Arc<Guests>,
    /// Cancelled when the stream is to end.
    pub out: CancellationToken,
}

impl Guests {
    /// `visible` is what the token sees now, where it is limited.
    pub fn admit(
        self: &Arc<Self>,
        token: TokenId,
        scope: Option<Scope>,
        visible: Option<Vec<String>>,
    ) -> Seat {
        let (id, out) = (clock::new_id(), CancellationToken::new());
        let guest = Guest { token, scope, visible, out: out.clone() };
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(id, guest);
        metrics::gauge!("reeve_streams").increment(1);
        Seat { id, guests: self.clone(), out }
    }

    async fn check(&self, engine: &Engine) -> Result<(), StoreError> {
        let (tokens, limited) = {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            let tokens: BTreeSet<Uuid> = open.values().map(|g| g.token.0).collect();
            (tokens.into_iter().collect::<Vec<_>>(), open.values().any(|g| g.scope.is_some()))
        };
        if tokens.is_empty() {
            return Ok(());
        }
        let living = engine.store.living_tokens(&tokens).await?;
        let labels = if limited { engine.store.topology_labels().await? } else { vec![] };
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Who came in the meantime is looked at next time.
        for guest in open.values().filter(|g| tokens.contains(&g.token.0)) {
            let sees = guest.scope.as_ref().map(|scope| scope.among(&labels));
            let limited_now = limited || guest.scope.is_none();
            if !living.contains(&guest.token.0) || (limited_now && sees != guest.visible) {
                guest.out.cancel();
            }
        }
        Ok(())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.guests.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        metrics::gauge!("reeve_streams").decrement(1);
    }
}

/// Looks at the tokens for as long as the process lives.
pub(super) async fn watch(engine: Arc<Engine>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        // While the database is away nobody is turned out.
        if let Err(error) = engine.guests.check(&engine).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the tokens of open streams cannot be looked at"
            );
        }
    }
}
