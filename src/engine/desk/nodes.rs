//! Registering single nodes.

use super::DeskError;
use crate::domain::health::Health;
use crate::domain::observation::Sighting;
use crate::engine::Engine;
use crate::engine::look::{Logins, silence, target};
use crate::fleet::Ask;
use crate::store::nodes::{NewNode, Node};

impl Engine {
    /// Registers a node and looks at it once. A node that does not answer is registered all the
    /// same: it may be started later, and its health says how it is.
    pub async fn register_node(&self, node: &NewNode, actor: &str) -> Result<Node, DeskError> {
        let admin = self.login("credential", node.credential.as_deref()).await?;
        let logins = Logins { admin, ..Logins::default() };
        let target = target(&node.address, &logins);
        let (health, sighting) = match self.fleet.look(&target, &Ask::default()).await {
            Ok(report) => (Health::Up, Sighting::Seen(Box::new(report))),
            Err(error) => (Health::Unknown, silence(error, None)),
        };
        let kind = match &sighting {
            Sighting::Seen(report) => report.kind,
            Sighting::Silent(_) | Sighting::Unknown => node.kind,
        };
        let node = NewNode { kind, ..node.clone() };
        let id = self.store.register_node(&node, actor).await?;
        let seen = [(node.address.clone(), sighting)].into();
        self.store.record_spares(&seen, &[(node.address, health)].into(), &[]).await?;
        Ok(self.store.node(id).await?)
    }
}
