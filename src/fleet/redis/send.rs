//! Sending: verbs become commands that the server's version understands, go out in one batch, and
//! every answer is read.

use std::time::Duration;

use redis::{Pipeline, Value};
use tokio::net::lookup_host;
use tokio::time::timeout;

use super::Timeouts;
use super::connection::{Lost, Node, io_words, rejected};
use crate::domain::credential::Credential;
use crate::domain::node::{Address, Capabilities};
use crate::domain::step::command::Verb;
use crate::fleet::{FleetError, Target};

pub(super) async fn send(
    node: &Node,
    target: &Target,
    verbs: &[Verb],
    capabilities: Capabilities,
    times: &Timeouts,
) -> Result<(), FleetError> {
    if verbs.is_empty() {
        return Ok(());
    }
    let (identity, verbs) = match verbs {
        [Verb::Confirm(identity), rest @ ..] => (Some(identity), rest),
        all => (None, all),
    };
    let mut batch = redis::pipe();
    for verb in verbs {
        add(&mut batch, verb, target, capabilities, times).await?;
    }
    let confirm = identity.map(|id| id.0.as_str());
    let replies = node.send(target, confirm, &batch, times.send, times).await?;
    replies.iter().try_for_each(|reply| match reply {
        Value::ServerError(error) => Err(rejected(target, error)),
        _ => Ok(()),
    })
}

async fn add(
    batch: &mut Pipeline,
    verb: &Verb,
    target: &Target,
    capabilities: Capabilities,
    times: &Timeouts,
) -> Result<(), FleetError> {
    match verb {
        Verb::SetReplicationLogin => {
            let login = login(target)?;
            // One setting each: Redis 6.2 takes no more.
            let user = login.username.as_deref().unwrap_or_default();
            for (name, value) in [("masteruser", user), ("masterauth", login.reveal())] {
                batch.cmd("CONFIG").arg("SET").arg(name).arg(value);
            }
        }
        Verb::SetWatchLogin(name) => {
            let login = login(target)?;
            let user = login.username.as_deref().unwrap_or_default();
            for (option, value) in [("auth-user", user), ("auth-pass", login.reveal())] {
                batch.cmd("SENTINEL").arg("SET").arg(name).arg(option).arg(value);
            }
        }
        Verb::Watch { name, primary, quorum } => {
            let ip = resolve(primary, times.connect).await?;
            let port = primary.port();
            batch.cmd("SENTINEL").arg("MONITOR").arg(name).arg(ip).arg(port).arg(*quorum);
        }
        Verb::Meet(other) => {
            let ip = resolve(other, times.connect).await?;
            batch.cmd("CLUSTER").arg("MEET").arg(ip).arg(other.port());
        }
        Verb::ConfigSet { .. }
        | Verb::ConfigRewrite
        | Verb::SetConfigEpoch(_)
        | Verb::AddSlots(_)
        | Verb::Replicate(_)
        | Verb::Forget(_)
        | Verb::Failover(_)
        | Verb::BumpEpoch
        | Verb::CancelSlotJobs
        | Verb::Confirm(_)
        | Verb::FlushAll
        | Verb::FlushFunctions
        | Verb::DropClients
        | Verb::ReplicaOf(_)
        | Verb::ReplicaOfNone
        | Verb::PauseWrites { .. }
        | Verb::Unpause
        | Verb::ResetHard
        | Verb::SetWatch { .. }
        | Verb::Unwatch(_)
        | Verb::ResetWatch(_)
        | Verb::FailOverWatch(_)
        | Verb::FlushSentinelConfig => {
            let mut command = redis::Cmd::new();
            command.arg(verb.words(capabilities));
            batch.add_command(command);
        }
    }
    Ok(())
}

/// What the node is to log in to others with.
fn login(target: &Target) -> Result<&Credential, FleetError> {
    target.replication.as_deref().ok_or_else(|| FleetError::Rejected {
        node: target.address.clone(),
        code: "no_login".to_owned(),
        message: "the topology names no credential for this".to_owned(),
    })
}

/// `CLUSTER MEET` and `SENTINEL MONITOR` take IP literals only.
async fn resolve(node: &Address, within: Duration) -> Result<String, FleetError> {
    let failed = |message| FleetError::Unreachable { node: node.clone(), message };
    match timeout(within, lookup_host((node.host(), node.port()))).await {
        Ok(Ok(mut found)) => match found.next() {
            Some(socket) => Ok(socket.ip().to_string()),
            None => Err(failed("its name has no address".to_owned())),
        },
        Ok(Err(error)) => Err(failed(io_words(error))),
        Err(_) => Err(failed(Lost::Late(within).to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::node::{Flavor, Version};
    use crate::domain::step::command::FailoverMethod;

    async fn sent(
        verb: Verb,
        flavor: Flavor,
        major: u16,
        login: Option<Credential>,
    ) -> Result<String, FleetError> {
        let address = "127.0.0.1:7001".parse().unwrap();
        let replication = login.map(Arc::new);
        let target = Target { address, login: None, replication, fence: None };
        let capabilities = Capabilities::of(flavor, Version::new(major, 2, 0));
        let mut batch = redis::pipe();
        add(&mut batch, &verb, &target, capabilities, &Timeouts::default()).await?;
        let packed = String::from_utf8(batch.get_packed_pipeline()).unwrap();
        let words = packed.split("\r\n").filter(|w| !w.starts_with(['*', '$']));
        Ok(words.collect::<Vec<_>>().join(" ").trim_end().to_owned())
    }

    #[tokio::test]
    async fn verbs_become_what_the_version_understands() {
        let slots = || Verb::AddSlots("0-2,7".parse().unwrap());
        assert_eq!(
            sent(slots(), Flavor::Redis, 6, None).await.unwrap(),
            "CLUSTER ADDSLOTS 0 1 2 7"
        );
        assert_eq!(
            sent(slots(), Flavor::Valkey, 8, None).await.unwrap(),
            "CLUSTER ADDSLOTSRANGE 0 2 7 7"
        );
        let force = Verb::Failover(FailoverMethod::Force);
        assert_eq!(sent(force, Flavor::Redis, 6, None).await.unwrap(), "CLUSTER FAILOVER FORCE");
        let meet = Verb::Meet("[::1]:7002".parse().unwrap());
        assert_eq!(sent(meet, Flavor::Redis, 7, None).await.unwrap(), "CLUSTER MEET ::1 7002");
    }

    #[tokio::test]
    async fn the_login_is_filled_in_here() {
        let verb = || Verb::SetReplicationLogin;
        let login = Credential::new(Some("repl".to_owned()), "s3cret".to_owned());
        assert_eq!(
            sent(verb(), Flavor::Redis, 6, Some(login)).await.unwrap(),
            "CONFIG SET masteruser repl CONFIG SET masterauth s3cret"
        );
        let watch = Verb::SetWatchLogin("orders".to_owned());
        let login = Credential::new(None, "s3cret".to_owned());
        assert_eq!(
            sent(watch, Flavor::Redis, 6, Some(login)).await.unwrap(),
            "SENTINEL SET orders auth-user  SENTINEL SET orders auth-pass s3cret"
        );
        let refused = sent(verb(), Flavor::Redis, 6, None).await;
        assert!(matches!(refused, Err(FleetError::Rejected { code, .. }) if code == "no_login"));
    }

    #[tokio::test]
    async fn a_name_without_address_names_its_node() {
        let node: Address = "nowhere.invalid:7001".parse().unwrap();
        let refused = sent(Verb::Meet(node.clone()), Flavor::Redis, 7, None).await;
        assert!(matches!(refused, Err(FleetError::Unreachable { node: n, .. }) if n == node));
    }
}
