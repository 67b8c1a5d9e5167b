//! A small cluster client: it asks the node that it believes to own a key's slot, and follows
//! where that node sends it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, FromRedisValue};
use serde_json::Value;

use super::DemoError;
use crate::domain::slot::{SlotSet, key_slot};

/// How often one command is sent on to another node.
const REDIRECTS: usize = 5;

/// Writes so many keys and reads them again; how long that took, and how many went to each node.
/// `slots` is what `/v1/topologies/{name}/slots` answers.
pub(super) async fn write_and_read(
    slots: &Value,
    count: usize,
) -> Result<(Duration, BTreeMap<String, usize>), DemoError> {
    let mut cluster = Cluster::new(slots);
    let mut spread = BTreeMap::new();
    let begun = Instant::now();
    for n in 0..count {
        let (key, value) = (format!("user:{n}"), format!("value {n}"));
        let node = cluster.ask::<()>(&key, redis::cmd("SET").arg(&key).arg(&value)).await?.0;
        *spread.entry(node).or_default() += 1;
    }
    for n in 0..count {
        let (key, value) = (format!("user:{n}"), format!("value {n}"));
        let read: Option<String> = cluster.ask(&key, redis::cmd("GET").arg(&key)).await?.1;
        if read.as_deref() != Some(value.as_str()) {
            return Err(DemoError::Keys(format!("`{key}` should be `{value}`, but is {read:?}")));
        }
    }
    Ok((begun.elapsed(), spread))
}

struct Cluster {
    owners: Vec<(SlotSet, String)>,
    /// What nodes said since.
    moved: BTreeMap<u16, String>,
    connections: BTreeMap<String, MultiplexedConnection>,
}

impl Cluster {
    fn new(slots: &Value) -> Self {
        let shards = slots["shards"].as_array().into_iter().flatten();
        let owner = |shard: &Value| {
            Some((shard["slots"].as_str()?.parse().ok()?, shard["primary"].as_str()?.to_owned()))
        };
        Self {
            owners: shards.filter_map(owner).collect(),
            moved: BTreeMap::new(),
            connections: BTreeMap::new(),
        }
    }

    /// Who answered, and what.
    async fn ask<T: FromRedisValue>(
        &mut self,
        key: &str,
        command: &Cmd,
    ) -> Result<(String, T), DemoError> {
        let slot = key_slot(key.as_bytes());
        for _ in 0..=REDIRECTS {
            let node = self.owner(slot)?;
            let failed = |error| DemoError::Keys(format!("{node}: {error}"));
            let connection = self.connection(&node).await.map_err(failed)?;
            match command.query_async(connection).await {
                Ok(answer) => return Ok((node, answer)),
                Err(error) => match error.redirect_node() {
                    Some((to, _)) => self.moved.insert(slot, to.to_owned()),
                    None => return Err(failed(error)),
                },
            };
        }
        Err(DemoError::Keys(format!("the nodes send `{key}` around in circles")))
    }

    fn owner(&self, slot: u16) -> Result<String, DemoError> {
        let told = || self.owners.iter().find(|(slots, _)| slots.contains(slot)).map(|(_, n)| n);
        let owner = self.moved.get(&slot).or_else(told).cloned();
        owner.ok_or_else(|| DemoError::Keys(format!("nobody serves slot {slot}")))
    }

    async fn connection(&mut self, node: &str) -> redis::RedisResult<&mut MultiplexedConnection> {
        use std::collections::btree_map::Entry;
        match self.connections.entry(node.to_owned()) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let client = redis::Client::open(format!("redis://{node}/"))?;
                Ok(entry.insert(client.get_multiplexed_async_connection().await?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers whatever is asked with one line.
    async fn node(answer: String) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut asked = [0; 4096];
                while let Ok(length @ 1..) = socket.read(&mut asked).await {
                    let commands = asked[..length].iter().filter(|&&byte| byte == b'*').count();
                    socket.write_all(answer.repeat(commands).as_bytes()).await.unwrap();
                }
            }
        });
        address
    }

    #[tokio::test]
    async fn it_goes_where_it_is_sent_and_remembers() {
        let owner = node("+OK\r\n".to_owned()).await;
        let slot = key_slot(b"k");
        let other = node(format!("-MOVED {slot} {owner}\r\n")).await;
        let slots = json!({"shards": [{"primary": other, "slots": "0-16383"}]});
        let mut cluster = Cluster::new(&slots);
        let set = || redis::cmd("SET").arg("k").arg("v").to_owned();
        assert_eq!(cluster.ask::<()>("k", &set()).await.unwrap().0, owner);
        assert_eq!(cluster.moved, [(slot, owner)].into());
    }

    #[tokio::test]
    async fn what_cannot_be_served_is_told() {
        let half = json!({"shards": [{"primary": "127.0.0.1:1", "slots": "0-1"}, {"primary": null, "slots": "2-3"}]});
        let get = redis::cmd("GET").arg("k").to_owned();
        let error = Cluster::new(&half).ask::<()>("k", &get).await.unwrap_err().to_string();
        assert_eq!(error, format!("nobody serves slot {}", key_slot(b"k")));
    }
}
