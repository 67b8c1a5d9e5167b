//! What the tests stand on: a world of real servers, and ways to look at it.

pub mod world;

use std::time::{Duration, Instant};

/// How often randomised tests repeat themselves; `make soak` raises it.
pub fn repeats() -> u64 {
    std::env::var("REEVE_TEST_REPEATS").ok().and_then(|n| n.parse().ok()).unwrap_or(3)
}

/// Asks again and again until it is so; fails with what it was last when time is up.
pub async fn until<T: std::fmt::Debug>(
    what: &str,
    within: Duration,
    mut ask: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let began = Instant::now();
    loop {
        match ask().await {
            Ok(value) => return value,
            Err(now) if began.elapsed() > within => panic!("{what}: not within {within:?}: {now}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(25)).await,
        }
    }
}

/// Numbers that look random and are the same in every run (splitmix64).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}
