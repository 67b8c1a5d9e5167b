//! One test binary, so that the crate is linked once.

#[path = "../architecture.rs"]
mod architecture;
