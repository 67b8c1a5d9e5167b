//! What a cluster node says of its cluster: `CLUSTER NODES`, `CLUSTER INFO`, `CLUSTER SHARDS`.
//!
//! A line that cannot be read is left out, so that one odd peer does not hide the others.
//! Source: the Redis documentation of the three commands; the answers in the tests are from real
//! servers.

use std::collections::BTreeMap;

use redis::Value;

use super::info::{Info, address};
use super::value::{field, items, text};
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::observation::{ClusterView, OpenSlot, Peer, Role};
use crate::domain::slot::{SlotRange, SlotSet};

/// How many hex digits an id has.
const ID_LENGTH: usize = 40;

/// The view of the node that answered, or `None` where it does not name itself.
pub(super) fn view(
    nodes: &str,
    info: &str,
    health: BTreeMap<ClusterNodeId, String>,
) -> Option<ClusterView> {
    let lines: Vec<_> = nodes.lines().filter_map(Line::parse).collect();
    let me = lines.iter().find(|line| line.myself)?;
    let info = Info::parse(info);
    Some(ClusterView {
        my_id: me.id.clone(),
        state_ok: info.is("cluster_state", "ok"),
        my_epoch: info.count("cluster_my_epoch").unwrap_or(me.peer.epoch),
        current_epoch: info.number("cluster_current_epoch"),
        open: me.open.clone(),
        peers: lines.iter().map(|line| (line.id.clone(), line.peer.clone())).collect(),
        health,
        jobs: vec![],
        trims: info.number("cluster_slot_migration_active_trim_running") > 0,
    })
}

/// Health by node id.
pub(super) fn health(shards: &Value) -> BTreeMap<ClusterNodeId, String> {
    items(shards)
        .filter_map(|shard| field(shard, "nodes"))
        .flat_map(items)
        .filter_map(|node| {
            let word = |name| field(node, name).and_then(text);
            Some((id(&word("id")?)?, word("health")?.into_owned()))
        })
        .collect()
}

/// One line: `id ip:port@bus[,hostname[,aux=…]] flags primary ping pong epoch link [slots…]`.
struct Line {
    id: ClusterNodeId,
    myself: bool,
    peer: Peer,
    open: Vec<OpenSlot>,
}

impl Line {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let mut next = || words.next();
        let (own_id, endpoint, flags, primary) = (id(next()?)?, next()?, next()?, id(next()?));
        let (_ping, _pong, epoch, link) = (next()?, next()?, next()?, next()?);
        let slots: Vec<_> = words.collect();

        let has = |flag| flags.split(',').any(|f| f == flag);
        let (address, bus_port) = endpoint_of(endpoint);
        let replica = has("slave") || has("replica") || primary.is_some();
        Some(Self {
            id: own_id,
            myself: has("myself"),
            peer: Peer {
                address: address.filter(|_| !has("noaddr")),
                bus_port,
                role: if replica { Role::Replica } else { Role::Primary },
                primary,
                epoch: epoch.parse().unwrap_or(0),
                linked: link == "connected",
                suspect: has("fail?"),
                failed: has("fail"),
                handshake: has("handshake"),
                slots: slots.iter().filter_map(|word| range(word)).collect::<SlotSet>(),
            },
            open: slots.iter().filter_map(|word| open(word)).collect(),
        })
    }
}

pub(super) fn id(word: &str) -> Option<ClusterNodeId> {
    let valid = word.len() == ID_LENGTH && word.bytes().all(|b| b.is_ascii_hexdigit());
    valid.then(|| ClusterNodeId(word.to_owned()))
}

/// The address and the bus port. What follows the first comma (hostname, shard id) is left alone:
/// nodes know each other by what stands before it.
fn endpoint_of(word: &str) -> (Option<Address>, Option<u16>) {
    let socket = word.split(',').next().unwrap_or_default();
    let (socket, bus) = match socket.split_once('@') {
        Some((socket, bus)) => (socket, bus.parse().ok().filter(|&port| port != 0)),
        None => (socket, None),
    };
    let address =
        socket.rsplit_once(':').and_then(|(host, port)| address(host, port.parse().ok()?));
    (address, bus)
}

/// `5` or `0-5460`.
fn range(word: &str) -> Option<SlotRange> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    SlotRange::new(first.parse().ok()?, last.parse().ok()?)
}

/// `[5->-id]` while it gives slot 5 away, `[5-<-id]` while it takes it.
fn open(word: &str) -> Option<OpenSlot> {
    let inner = word.strip_prefix('[')?.strip_suffix(']')?;
    let (giving, (slot, other)) = match inner.split_once("->-") {
        Some(parts) => (true, parts),
        None => (false, inner.split_once("-<-")?),
    };
    let slot: u16 = slot.parse().ok()?;
    SlotRange::new(slot, slot)?;
    Some(OpenSlot { slot, giving, other: id(other)? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "52ba4d238ef04acb07b0d7c8e522b21918445185";
    const B: &str = "d6f3a720c3133ba46aa6a4b833ab6fd92ea7c03c";
    const C: &str = "07c37dfeb235213a872192d90877d0cd55635b91";

    const REDIS_6_2: &str = "\
d6f3a720c3133ba46aa6a4b833ab6fd92ea7c03c ::1:17101@27101 master - 0 1795354860727 0 connected 10
52ba4d238ef04acb07b0d7c8e522b21918445185 ::1:17100@27100 myself,master - 0 0 1 connected 0-2 7 \
[1->-d6f3a720c3133ba46aa6a4b833ab6fd92ea7c03c] [10-<-d6f3a720c3133ba46aa6a4b833ab6fd92ea7c03c]
";
    const REDIS_7_0: &str = "\
d6f3a720c3133ba46aa6a4b833ab6fd92ea7c03c 127.0.0.1:17110@27110,node-b.example slave \
52ba4d238ef04acb07b0d7c8e522b21918445185 0 1795354864652 3 connected
52ba4d238ef04acb07b0d7c8e522b21918445185 127.0.0.1:17111@27111,node-a.example \
myself,master,nofailover - 0 0 3 connected 0-5460 10923
07c37dfeb235213a872192d90877d0cd55635b91 127.0.0.1:17112@27112, master,fail? - 1795354864000 \
1795354863000 2 disconnected 5461-10922
";
    const REDIS_7_2: &str = "\
d6f3a720c3133ba46aa6a4b833ab6fd92ea7c03c \
10.0.0.7:6379@16379,,tls-port=0,shard-id=69bc080733d1355567173199cff4a6a039a2f024 slave,fail \
52ba4d238ef04acb07b0d7c8e522b21918445185 1795354864000 1795354863000 3 disconnected
52ba4d238ef04acb07b0d7c8e522b21918445185 \
10.0.0.8:6379@16379,a.example,tls-port=0,shard-id=69bc080733d1355567173199cff4a6a039a2f024 \
myself,master - 0 0 3 connected 0-16383
";
    const VALKEY_9_1: &str = "\
c8e9d25bb5a9c286d05d1d6e60012e5e940aa67c ::1:17121@27121 handshake - 0 0 0 disconnected
16bd25f0d9f22e64a1f1f804156c9956213ed644 :17120@27120,node-a.example myself,master - 0 0 0 \
connected 0-2 7
";

    fn read(nodes: &str) -> ClusterView {
        view(nodes, "cluster_state:ok\r\ncluster_current_epoch:5\r\n", BTreeMap::new()).unwrap()
    }

    fn peer<'a>(view: &'a ClusterView, id: &str) -> &'a Peer {
        &view.peers[&ClusterNodeId(id.to_owned())]
    }

    fn shown(peer: &Peer) -> Option<String> {
        peer.address.as_ref().map(Address::to_string)
    }

    #[test]
    fn redis_6_2_with_ipv6_and_open_slots() {
        let view = read(REDIS_6_2);
        assert_eq!((view.my_id.0.as_str(), view.my_epoch, view.current_epoch), (A, 1, 5));
        assert_eq!(view.my_slots().to_string(), "0-2,7");
        assert_eq!(shown(peer(&view, B)).as_deref(), Some("[::1]:17101"));
        assert_eq!(peer(&view, B).bus_port, Some(27101));
        let other = ClusterNodeId(B.to_owned());
        let taking = OpenSlot { slot: 10, giving: false, other: other.clone() };
        assert_eq!(view.open, [OpenSlot { slot: 1, giving: true, other }, taking]);
    }

    #[test]
    fn redis_7_0_with_hostnames_and_a_suspect() {
        let view = read(REDIS_7_0);
        let replica = peer(&view, B);
        assert_eq!((replica.role, replica.epoch), (Role::Replica, 3));
        assert_eq!(replica.primary, Some(ClusterNodeId(A.to_owned())));
        assert_eq!(shown(replica).as_deref(), Some("127.0.0.1:17110"));
        let suspect = peer(&view, C);
        assert!(suspect.suspect && !suspect.failed && !suspect.linked);
        assert_eq!(view.my_slots().to_string(), "0-5460,10923");
    }

    #[test]
    fn redis_7_2_with_shard_ids_and_a_failed_node() {
        let view = read(REDIS_7_2);
        assert!(peer(&view, B).failed && !peer(&view, B).suspect);
        assert_eq!(shown(peer(&view, B)).as_deref(), Some("10.0.0.7:6379"));
        assert_eq!(view.my_slots(), SlotSet::all());
    }

    #[test]
    fn valkey_with_a_handshake_and_no_address_of_its_own() {
        let view = read(VALKEY_9_1);
        assert!(view.shaking_hands());
        assert_eq!(view.me().map(|me| (&me.address, me.bus_port)), Some((&None, Some(27120))));
    }

    #[test]
    fn both_vocabularies_and_unknown_endpoints() {
        let view = read(&format!(
            "{A} ?:6379@16379 myself,primary - 0 0 1 connected\n\
             {B} :0@0 replica,noaddr,newflag {A} 0 0 1 disconnected\n\
             {C} 10.0.0.1:6379@16379 noflags - 0 0 x connected 5-3 99999 1 [2->-x]\n\
             short 10.0.0.1:6379@16379 master - 0 0 1 connected\n\
             {C} 10.0.0.1:6379 master\n\n"
        ));
        assert_eq!(view.peers.len(), 3);
        assert_eq!((peer(&view, A).role, &peer(&view, A).address), (Role::Primary, &None));
        assert_eq!((peer(&view, B).role, &peer(&view, B).address), (Role::Replica, &None));
        assert_eq!((peer(&view, C).epoch, peer(&view, C).slots.to_string()), (0, "1".to_owned()));
        assert_eq!(endpoint_of("::ffff:10.0.0.1:6379").0.map(|a| a.port()), Some(6379));
    }

    #[test]
    fn a_view_needs_the_node_itself() {
        assert_eq!(
            view(&format!("{A} ::1:1@2 master - 0 0 1 connected"), "", BTreeMap::new()),
            None
        );
    }

    #[test]
    fn health_comes_from_flat_arrays_and_from_maps() {
        let word = |s: &str| Value::BulkString(s.into());
        let fields = [
            (word("id"), word(A)),
            (word("port"), Value::Int(1)),
            (word("health"), word("online")),
        ];
        let flat = |of: &[(Value, Value)]| {
            Value::Array(of.iter().flat_map(|(k, v)| [k.clone(), v.clone()]).collect())
        };
        let shards = |node| {
            let fields =
                [(word("slots"), Value::Array(vec![])), (word("nodes"), Value::Array(vec![node]))];
            Value::Array(vec![flat(&fields), Value::Map(fields.into()), Value::Nil])
        };
        let expected = BTreeMap::from([(ClusterNodeId(A.to_owned()), "online".to_owned())]);
        assert_eq!(health(&shards(flat(&fields))), expected);
        assert_eq!(health(&shards(Value::Map(fields.to_vec()))), expected);
        assert_eq!(health(&shards(Value::Int(3))), BTreeMap::new());
    }

    fn anything() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Nil),
            any::<i64>().prop_map(Value::Int),
            any::<Vec<u8>>().prop_map(Value::BulkString),
            prop::sample::select(vec!["nodes", "id", "health", A])
                .prop_map(|s| Value::SimpleString(s.to_owned())),
        ];
        leaf.prop_recursive(5, 64, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
                prop::collection::vec((inner.clone(), inner), 0..4).prop_map(Value::Map),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_text_trips_it(text in any::<String>(), value in anything()) {
            let _ = view(&text, &text, health(&value));
        }

        #[test]
        fn no_damage_trips_it(
            which in prop::sample::select(vec![REDIS_6_2, REDIS_7_0, REDIS_7_2, VALKEY_9_1]),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..9),
        ) {
            let mut bytes = which.as_bytes().to_vec();
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let text = String::from_utf8_lossy(&bytes);
            let _ = view(&text, &text, BTreeMap::new());
        }
    }
}
