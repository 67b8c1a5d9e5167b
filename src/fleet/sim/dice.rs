//! Numbers that look random and are the same in every run of one seed (splitmix64).

use crate::domain::node::ClusterNodeId;

#[derive(Debug, Clone)]
pub(super) struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `bound`, which must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// 40 hex digits: what servers call themselves, their processes and their data.
    pub fn hex(&mut self) -> String {
        let words = [self.next(), self.next(), self.next()];
        let text: String = words.iter().map(|word| format!("{word:016x}")).collect();
        text.chars().take(40).collect()
    }

    pub fn id(&mut self) -> ClusterNodeId {
        ClusterNodeId(self.hex())
    }
}
