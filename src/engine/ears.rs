//! Listening to the Sentinels of a topology while it is kept: what they publish has it looked at now, and
//! not only when the next look is due.
//!
//! What was heard is not believed: looks are. So it is no harm when a message is lost, or a Sentinel
//! lets nobody listen.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Engine;
use super::lease::Lease;
use super::look::{Logins, target};
use crate::domain::node::Address;
use crate::domain::published::{NEWS, concerns};
use crate::domain::spec::Spec;
use crate::fleet::{Published, Target};

/// After one that could not be listened to, or hung up.
const PAUSE: Duration = Duration::from_secs(2);
/// A connection that died unnoticed is found by beginning anew.
const ANEW: Duration = Duration::from_secs(60);

/// Those that are listened to; all of it ends with this.
#[derive(Default)]
pub(super) struct Ears {
    at: Vec<Target>,
    tasks: JoinSet<()>,
}

impl Ears {
    /// Listens to the Sentinels of this spec from now on.
    pub fn follow(
        &mut self,
        engine: &Arc<Engine>,
        lease: &Arc<Lease>,
        spec: &Spec,
        logins: &Logins,
    ) {
        let Spec::Sentinel(watched) = spec else { return };
        let sentinels: BTreeSet<&Address> = spec.sentinels().iter().map(|n| &n.address).collect();
        let at: Vec<Target> = sentinels.into_iter().map(|s| target(s, logins)).collect();
        if at == self.at {
            return;
        }
        self.tasks = JoinSet::new();
        for target in &at {
            let (engine, lease, target) = (engine.clone(), lease.clone(), target.clone());
            self.tasks.spawn(listen(engine, lease, target, watched.master_name.clone()));
        }
        self.at = at;
    }
}

async fn listen(engine: Arc<Engine>, lease: Arc<Lease>, target: Target, name: String) {
    loop {
        match engine.fleet.listen(&target, &NEWS).await {
            Ok(published) => {
                // It may have told of something just before.
                lease.ring();
                if timeout(ANEW, hear(published, &lease, &name)).await.is_err() {
                    continue;
                }
            }
            Err(error) => tracing::debug!(
                error = &error as &dyn std::error::Error,
                "a Sentinel cannot be listened to"
            ),
        }
        sleep(PAUSE).await;
    }
}

async fn hear(mut published: Published, lease: &Lease, name: &str) {
    while let Some(message) = published.next().await {
        if concerns(name, &message.channel, &message.text) {
            tracing::debug!(channel = message.channel, text = message.text, "heard");
            lease.ring();
        }
    }
}
