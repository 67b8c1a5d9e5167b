//! Noticing that the database was put back to an older state: it has handed out fewer event ids than
//! this process knows of.

use std::sync::atomic::{AtomicI64, Ordering};

use super::Engine;
use crate::store::StoreError;

/// The newest event id that this process knows to have been handed out.
#[derive(Debug, Default)]
pub struct NewestEvent(AtomicI64);

impl NewestEvent {
    pub(super) fn saw(&self, id: i64) {
        self.0.fetch_max(id, Ordering::Relaxed);
    }
}

impl Engine {
    /// Given the newest id that the database knows of: whether it was put back. Then it is made fit
    /// to go on with, and all leases are lost.
    pub(super) async fn notice_restore(&self, newest: i64) -> Result<bool, StoreError> {
        let known = self.newest_event.0.load(Ordering::Relaxed);
        // It may have been told of a newer one since that was read.
        let newest = if newest < known { self.store.newest_event().await? } else { newest };
        if newest >= known {
            self.newest_event.saw(newest);
            return Ok(false);
        }
        tracing::error!(
            newest,
            known,
            "the database was put back to an older state; active plans pause until somebody looks"
        );
        self.store.go_on_after_restore(known).await?;
        Ok(true)
    }
}
