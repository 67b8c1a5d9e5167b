//! `make bench`: Reeve and `redis-cli --cluster` at the same work, in one run on this machine and by
//! the same judge.
//!
//! [`create`] compares how a cluster is made, [`slots`] how slots move; [`watch`] measures Reeve alone. All nodes have their default
//! settings but for saving to disk, which is off, and what a part says of itself.

mod bench;
mod cluster;
mod create;
mod judge;
mod keys;
mod movers;
mod slots;
mod traffic;
mod watch;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use self::bench::{Bench, Error};

/// Compares Reeve with redis-cli.
#[derive(Parser)]
struct Args {
    /// What to compare; everything, when left out
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// How often each contestant does each work; 5 times for create and 3 for slots, when left out
    #[arg(long)]
    rounds: Option<usize>,
    /// Sizes of clusters to create, in nodes
    #[arg(long, value_delimiter = ',', default_value = "6,30")]
    nodes: Vec<usize>,
    /// How many nodes to watch
    #[arg(long, default_value_t = 2000)]
    watched: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Clusters, shards of two nodes each
    Create,
    /// 4096 slots without keys, from one primary to another
    Empty,
    /// 4096 slots with 500,000 keys
    Dense,
    /// Three primaries become six, with 200,000 keys
    Grow,
    /// 100 slots with 2000 keys each
    Packed,
    /// 4096 slots with 500,000 keys, moved by the servers themselves (Valkey 9)
    Atomic,
    /// 2000 nodes, watched; not among everything, since it is about Reeve alone
    Watch,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    if args.nodes.iter().any(|n| *n < 6 || n % 2 == 1) || args.rounds == Some(0) {
        eprintln!("sizes are even numbers from 6 on, and there is at least one round");
        return ExitCode::from(2);
    }
    match measure(&args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the benchmark broke off: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether all that was compared is as it should be.
async fn measure(args: &Args) -> Result<bool, Error> {
    let bench = Bench::start().await?;
    let mut all_met = true;
    for &part in Part::value_variants() {
        let meant =
            if args.only.is_empty() { part != Part::Watch } else { args.only.contains(&part) };
        if !meant {
            continue;
        }
        all_met &= match part {
            Part::Create => create::measure(&bench, &args.nodes, args.rounds.unwrap_or(5)).await?,
            Part::Empty => slots::empty(&bench, args.rounds.unwrap_or(3)).await?,
            Part::Dense => slots::dense(&bench, args.rounds.unwrap_or(3)).await?,
            Part::Grow => slots::grow(&bench, args.rounds.unwrap_or(3)).await?,
            Part::Packed => slots::packed(&bench, args.rounds.unwrap_or(3)).await?,
            Part::Atomic => slots::atomic(&bench, args.rounds.unwrap_or(3)).await?,
            Part::Watch => watch::measure(args.watched).await?,
        };
    }
    Ok(all_met)
}
