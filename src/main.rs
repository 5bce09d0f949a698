//! Lifeboat.
fn main() {}
