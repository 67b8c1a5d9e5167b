//! Where nodes may live. Checked on the address that is really connected to, after the name was
//! resolved, so that no name can lead elsewhere.

use std::io;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use tokio::net::lookup_host;

use crate::domain::node::Address;

/// Address ranges that may be connected to: these, or where none are named, any but link-local
/// ones, where clouds keep the metadata of their machines.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    allowed: Option<Vec<IpNet>>,
}

#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no address range; write ranges as 10.0.0.0/8,fd00::/8")]
pub struct ParseReachError(String);

impl Reach {
    /// Reads ranges with commas between them.
    pub fn parse(ranges: &str) -> Result<Self, ParseReachError> {
        let range = |text: &str| text.trim().parse().map_err(|_| ParseReachError(text.to_owned()));
        let allowed = ranges.split(',').filter(|r| !r.trim().is_empty()).map(range);
        Ok(Self { allowed: Some(allowed.collect::<Result<_, _>>()?) })
    }

    fn permits(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        match &self.allowed {
            Some(ranges) => ranges.iter().any(|r| r.contains(&ip)),
            None => match ip {
                IpAddr::V4(v4) => !v4.is_link_local(),
                IpAddr::V6(v6) => !v6.is_unicast_link_local(),
            },
        }
    }

    /// The first address of a node that may be connected to.
    pub(super) async fn resolve(&self, node: &Address, port: u16) -> io::Result<SocketAddr> {
        let mut found = lookup_host((node.host(), port)).await?.peekable();
        if found.peek().is_none() {
            return Err(io::Error::other("its name has no address"));
        }
        found.find(|socket| self.permits(socket.ip())).ok_or_else(|| {
            io::Error::other(
                "its address is outside of the ranges that REEVE_NODE_ALLOW_CIDRS permits",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_is_permitted_is_reached() {
        let reached = async |reach: &Reach, node: &str| {
            reach.resolve(&node.parse().unwrap(), 1).await.is_ok()
        };
        let default = Reach::default();
        assert!(reached(&default, "127.0.0.1:1").await);
        assert!(!reached(&default, "169.254.169.254:80").await);
        assert!(!reached(&default, "[fe80::1]:80").await);
        assert!(!reached(&default, "[::ffff:169.254.169.254]:80").await, "mapped addresses too");
        let inside = Reach::parse("10.0.0.0/8, fd00::/8").unwrap();
        assert!(reached(&inside, "10.1.2.3:1").await && reached(&inside, "[fd00::1]:1").await);
        assert!(!reached(&inside, "127.0.0.1:1").await && !reached(&inside, "localhost:1").await);
        assert!(Reach::parse("10.0.0.0").is_err());
    }
}
