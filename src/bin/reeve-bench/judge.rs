//! Says when the nodes of a cluster are agreed on something. It asks the nodes themselves and knows
//! nothing of who works on them.

use std::time::{Duration, Instant};

use futures::future::try_join_all;
use redis::aio::MultiplexedConnection;
use reeve::demo::servers::Redis;
use reeve::domain::slot::SlotSet;
use tokio::time::{sleep, timeout};

use super::bench::Error;

const POLL: Duration = Duration::from_millis(10);
const GIVE_UP: Duration = Duration::from_secs(180);

pub struct Judge(Vec<MultiplexedConnection>);

/// A node as every other one sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    pub id: String,
    pub address: String,
    pub is_primary: bool,
    pub primary: String,
    /// As `CLUSTER NODES` writes them; slots that are half-way too, which only the node itself shows.
    slots: Vec<String>,
}

impl Member {
    pub fn slots(&self) -> SlotSet {
        self.slots.join(",").parse().unwrap_or_default()
    }
}

impl Judge {
    pub async fn new(nodes: &[Redis]) -> Result<Self, Error> {
        let connect = |node: &Redis| {
            let client = redis::Client::open(format!("redis://{}/", node.address()));
            async move { client?.get_multiplexed_async_connection().await }
        };
        Ok(Self(try_join_all(nodes.iter().map(connect)).await?))
    }

    /// Waits until every node says ok, all agree on members, roles and slots, replicas have their
    /// data, and it all is as it should be; how long that took since `begun`.
    pub async fn satisfied(
        &mut self,
        begun: Instant,
        fits: impl Fn(&[Member]) -> bool,
    ) -> Result<Duration, Error> {
        self.members(fits).await?;
        Ok(begun.elapsed())
    }

    /// The same; what they agree on.
    pub async fn members(
        &mut self,
        fits: impl Fn(&[Member]) -> bool,
    ) -> Result<Vec<Member>, Error> {
        let look = async {
            loop {
                if let Some(members) = self.common(&fits).await? {
                    return Ok(members);
                }
                sleep(POLL).await;
            }
        };
        match timeout(GIVE_UP, look).await {
            Ok(members) => members,
            Err(_) => Err(format!("the nodes are not agreed after {GIVE_UP:?}").into()),
        }
    }

    async fn common(
        &mut self,
        fits: impl Fn(&[Member]) -> bool,
    ) -> Result<Option<Vec<Member>>, Error> {
        let size = self.0.len();
        let mut common: Option<Vec<Member>> = None;
        for i in 0..size {
            let view = view(&mut self.0[i]).await?.filter(|v| v.len() == size && fits(v));
            // One objection is enough, and the node that made it is asked first next time.
            if view.is_none() || (common.is_some() && common != view) {
                self.0.swap(0, i);
                return Ok(None);
            }
            common = view;
        }
        Ok(common)
    }
}

/// What one node believes of all, or `None` while it is not content itself.
async fn view(node: &mut MultiplexedConnection) -> Result<Option<Vec<Member>>, Error> {
    let (info, nodes, replication): (String, String, String) = redis::pipe()
        .cmd("CLUSTER")
        .arg("INFO")
        .cmd("CLUSTER")
        .arg("NODES")
        .cmd("INFO")
        .arg("replication")
        .query_async(node)
        .await?;
    let has = |text: &str, line: &str| text.lines().any(|l| l.trim() == line);
    let ready = has(&info, "cluster_state:ok")
        && (has(&replication, "role:master") || has(&replication, "master_link_status:up"));
    Ok(members(&nodes).filter(|_| ready))
}

/// The members, the same from wherever it is asked; `None` while some member is not fully known or not
/// well.
fn members(nodes: &str) -> Option<Vec<Member>> {
    let mut members = vec![];
    for line in nodes.lines().filter(|line| !line.trim().is_empty()) {
        let fields: Vec<&str> = line.split(' ').collect();
        let [id, address, flags, primary, _, _, _, _, slots @ ..] = fields.as_slice() else {
            return None;
        };
        let role = flags.split(',').find(|flag| ["master", "slave"].contains(flag))?;
        let unwell = ["fail", "fail?", "handshake", "noaddr"];
        if flags.split(',').any(|flag| unwell.contains(&flag)) {
            return None;
        }
        members.push(Member {
            id: (*id).to_owned(),
            address: address.split('@').next()?.to_owned(),
            is_primary: role == "master",
            primary: (*primary).to_owned(),
            slots: slots.iter().map(|s| (*s).to_owned()).collect(),
        });
    }
    members.sort_unstable();
    Some(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_shows_the_same_when_they_agree() {
        let a = "1 h:1@2 myself,master - 0 0 1 connected 0-1 5\n2 h:2@3 slave 1 0 5 1 connected\n";
        let b = "2 h:2@3 myself,slave 1 0 0 1 connected\n1 h:1@2 master - 0 9 1 connected 0-1 5\n";
        assert_eq!(members(a), members(b));
        let seen = members(a).unwrap();
        assert_eq!(seen.len(), 2);
        assert_eq!((seen[0].slots().to_string(), &*seen[0].address), ("0-1,5".to_owned(), "h:1"));
        assert_ne!(members(a), members(&a.replace("0-1", "0-2")));
        assert_ne!(members(a), members(&a.replace("0-1", "0-1 [3-<-2]")));
        for bad in ["master,fail?", "handshake", "master,fail", "noaddr"] {
            assert_eq!(members(&b.replace(" master ", &format!(" {bad} "))), None);
        }
    }
}
