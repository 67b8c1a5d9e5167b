//! What the tests stand on: a world of real servers, and ways to look at it.

pub mod installed;
pub mod instance;
pub mod orders;
pub mod plans;
pub mod receiver;
pub mod record;
pub mod safety;
pub mod seconds;
pub mod shim;
pub mod sweep;
pub mod traffic;
pub mod watched;
pub mod world;

use std::path::{Path, PathBuf};
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

/// A program that a Python package carries, somewhere in one of its folders.
pub fn packaged(package: &str, program: &str) -> PathBuf {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/lib");
    let pythons = folders(&lib).into_iter().map(|python| python.join("site-packages"));
    let mut places: Vec<PathBuf> = pythons.map(|site| site.join(package)).collect();
    for _ in 0..2 {
        places.extend(places.clone().iter().flat_map(|place| folders(place)));
    }
    let found = places.into_iter().map(|place| place.join(program)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("{package} with its {program} is not in .venv; run scripts/install-deps.sh --test")
    })
}

fn folders(within: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(within).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
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
