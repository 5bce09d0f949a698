//! What the bucket shows, and what happens to whoever changes it.

mod keys;
mod objects;
mod units;
