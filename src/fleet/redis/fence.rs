//! Fencing on the node: connections for sending are named after the lease that they belong to, and
//! a new holder ends those of earlier ones. A holder that was frozen, and thaws with a command on
//! its lips, then finds its connection closed; and one that opens another is told that it is late.

use std::time::Duration;

use redis::Value;

use super::connection::{Link, unreachable};
use super::value::text;
use crate::domain::id::TopologyId;
use crate::fleet::{Fence, FleetError, Target};

/// Names a connection and ends those of earlier holders. The name comes first: of two that do this
/// at the same time, each sees the other, and the later lease wins.
///
/// A login that may not do this (`CLIENT SETNAME`, `LIST`, `KILL`) goes without: then the lease in
/// the database is the only fence.
pub(super) async fn take_over(
    link: &Link,
    target: &Target,
    fence: Fence,
    within: Duration,
) -> Result<(), FleetError> {
    let mut who = redis::pipe();
    who.cmd("CLIENT").arg("SETNAME").arg(name(fence));
    who.cmd("CLIENT").arg("LIST").arg("TYPE").arg("normal");
    let lost = |lost| unreachable(target, lost);
    let replies = link.ask(&who, within).await.map_err(lost)?;
    let Some(list) = replies.get(1).and_then(text) else { return Ok(()) };
    let (mut earlier, mut later) = (Vec::new(), false);
    for (id, token) in list.lines().filter_map(|line| holder(line, fence.topology)) {
        if token < fence.token {
            earlier.push(id);
        }
        later |= token > fence.token;
    }
    if later {
        return Err(FleetError::Rejected {
            node: target.address.clone(),
            code: "FENCED".to_owned(),
            message: "another instance has taken this topology over".to_owned(),
        });
    }
    if earlier.is_empty() {
        return Ok(());
    }
    let mut end = redis::pipe();
    for id in earlier {
        end.cmd("CLIENT").arg("KILL").arg("ID").arg(id);
    }
    let _: Vec<Value> = link.ask(&end, within).await.map_err(lost)?;
    Ok(())
}

fn name(fence: Fence) -> String {
    format!("reeve:{}:{}", fence.topology, fence.token)
}

/// The id of a client, and the token in its name, from a line of `CLIENT LIST`, if it is a holder of
/// this topology's lease.
fn holder(line: &str, topology: TopologyId) -> Option<(&str, i64)> {
    let field = |name| line.split(' ').find_map(|word| word.strip_prefix(name));
    let token = field("name=reeve:")?.strip_prefix(topology.to_string().as_str())?;
    Some((field("id=")?, token.strip_prefix(':')?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_are_told_by_their_names() {
        let topology = TopologyId(uuid::Uuid::from_u128(7));
        let mine = name(Fence { topology, token: 12 });
        let line = format!("id=5 addr=127.0.0.1:5 laddr=x fd=8 name={mine} age=1");
        assert_eq!(holder(&line, topology), Some(("5", 12)));
        let other = TopologyId(uuid::Uuid::from_u128(8));
        assert_eq!(holder(&line, other), None);
        assert_eq!(holder("id=5 addr=127.0.0.1:5 name= age=1", topology), None);
        assert_eq!(holder("id=5 name=reeve:nonsense", topology), None);
    }
}
