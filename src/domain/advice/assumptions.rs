//! What sizing takes for granted. Each can be overridden in the request.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::refusal::FieldError;

macro_rules! assumptions {
    ($($(#[$doc:meta])* $name:ident: $default:tt in $least:tt to $most:tt;)*) => {
        /// What the sizing takes for granted; the answer shows all of it.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
        #[serde(deny_unknown_fields, default)]
        #[schema(as = AdviceAssumptions)]
        pub struct Assumptions {
            $($(#[$doc])* #[schema(minimum = $least, maximum = $most)] pub $name: f64,)*
            /// Whether nodes keep their data on disk (`appendonly`).
            pub persistence: bool,
            /// What happens when `maxmemory` is reached (`maxmemory-policy`).
            #[schema(pattern = "^[a-z-]{1,40}$")]
            pub eviction: String,
        }

        impl Default for Assumptions {
            fn default() -> Self {
                Self { $($name: $default,)* persistence: true, eviction: "noeviction".to_owned() }
            }
        }

        impl Assumptions {
            /// Values that make no sense.
            pub(super) fn wrong(&self) -> Vec<FieldError> {
                let mut wrong = Vec::new();
                $(
                    // Written so that NaN is wrong too.
                    if !($least..=$most).contains(&self.$name) {
                        let name = stringify!($name);
                        let detail = format!("give {} to {} (left out, it is {})", $least, $most, $default);
                        wrong.push(FieldError::new(format!("/assumptions/{name}"), detail));
                    }
                )*
                if self.sentinels.fract() != 0.0 {
                    let detail = "give a whole number of Sentinels, 3 as a rule";
                    wrong.push(FieldError::new("/assumptions/sentinels", detail));
                }
                if !EVICTIONS.contains(&self.eviction.as_str()) {
                    let detail = format!("give one of {}", EVICTIONS.join(", "));
                    wrong.push(FieldError::new("/assumptions/eviction", detail));
                }
                wrong
            }
        }
    };
}

assumptions! {
    /// Data in GiB beyond which one primary takes too long to copy, save and load.
    one_primary_gb: 100.0 in 0.1 to 100_000.0;
    /// Operations a second that one node serves.
    node_ops: 100_000.0 in 1.0 to 100_000_000.0;
    /// Data in GiB of one shard of a cluster, where the servers' memory is not given: a copy, a
    /// save or a load of it takes minutes at most.
    shard_gb: 25.0 in 0.1 to 10_000.0;
    /// How much more than the average the fullest shard of a cluster holds.
    skew_percent: 10.0 in 0.0 to 300.0;
    /// Writes among the operations.
    write_percent: 20.0 in 0.0 to 100.0;
    /// Bytes that a write adds to the replication stream.
    write_bytes: 512.0 in 1.0 to 100_000_000.0;
    /// How much of `maxmemory` stays free when the data has grown as planned.
    headroom_percent: 20.0 in 0.0 to 90.0;
    /// Memory that the process takes from the system for each byte that it uses.
    fragmentation_ratio: 1.1 in 1.0 to 4.0;
    /// Data that is written to, and so copied, while a fork saves it.
    copy_on_write_percent: 25.0 in 0.0 to 100.0;
    /// Memory in GiB for the system and all else on the server.
    system_gb: 1.0 in 0.0 to 1_000.0;
    /// The largest server that there is, in GiB.
    largest_server_gb: 4_096.0 in 1.0 to 1_000_000.0;
    /// How long a replica may be away and still catch up without a full copy.
    outage_seconds: 120.0 in 1.0 to 86_400.0;
    /// MiB a second that a full copy takes over the network.
    copy_mb_per_second: 100.0 in 0.1 to 100_000.0;
    /// How many Sentinels watch.
    sentinels: 3.0 in 1.0 to 15.0;
    /// `down-after-milliseconds` of the Sentinels.
    down_after_ms: 5_000.0 in 500.0 to 600_000.0;
    /// `cluster-node-timeout`.
    node_timeout_ms: 5_000.0 in 500.0 to 600_000.0;
}

const EVICTIONS: &[&str] = &[
    "noeviction",
    "allkeys-lru",
    "allkeys-lfu",
    "allkeys-random",
    "volatile-lru",
    "volatile-lfu",
    "volatile-random",
    "volatile-ttl",
];
