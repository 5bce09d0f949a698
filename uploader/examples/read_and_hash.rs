//! How long reading and hashing takes by itself, as a measure for compares with the vault:
//!
//!     cargo run --release -p uploader --example read_and_hash -- FILE BYTES
//!
//! Reads the first BYTES of FILE in pieces of 1 MiB, one after another in one thread, makes the digest of each 64 KiB, and
//! prints the seconds that it took.
#![allow(clippy::expect_used, reason = "a tool for benchmarks says what went wrong and ends")]

use std::fs::File;
use std::io::Read as _;
use std::time::Instant;

use uploader::digest::Digest;

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let usage = "usage: read_and_hash FILE BYTES";
    let path = arguments.next().expect(usage);
    let count: u64 = arguments.next().and_then(|count| count.to_str()?.parse().ok()).expect(usage);
    let mut file = File::open(path).expect("the file").take(count);
    let mut piece = vec![0; 1 << 20];
    let begun = Instant::now();
    let mut seen = 0_u8;
    loop {
        let read = file.read(&mut piece).expect("readable bytes");
        if read == 0 {
            break;
        }
        for cell in piece[..read].chunks(64 << 10) {
            seen ^= Digest::of(cell).0[0];
        }
    }
    // Nothing may be left out as unused.
    std::hint::black_box(seen);
    println!("{}", begun.elapsed().as_secs_f64());
}
