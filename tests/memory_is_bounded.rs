//! Memory is bounded and the bounds are these: proxy 64 MiB and 100 MiB per TiB of disks; uploader 300 MiB, whatever is
//! changed between two cuts. The most that each process ever held is read from the kernel.
//!
//! `LIFEBOAT_HUGE_MIB` is how much is changed between two cuts.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use std::time::Duration;

use lab::lifeboat::number;
use lab::load::Load;
use lab::{Client, GIB, MIB, Random, Scratch, Setup, Store, scale};

const PROXY_MAX: u64 = 64 * MIB;
const PROXY_PER_TIB: u64 = 100 * MIB;
const UPLOADER_MAX: u64 = 300 * MIB;

#[test]
fn under_load_and_after_huge_changes() {
    let scratch = Scratch::new();
    let huge = scale("LIFEBOAT_HUGE_MIB", 768);
    let setup = Setup::new().disk("root", GIB + huge * MIB).disk("empty", 1024 * GIB);
    let mut lifeboat = setup.create(&scratch, &Store::folder(&scratch)).run_apart();
    lifeboat.wait_protected();

    // Many clients, small and odd requests.
    let load = Load::start(&lifeboat.disks()[..1], 8, 5, Duration::ZERO);
    std::thread::sleep(Duration::from_secs(3));
    lifeboat.cut();
    load.stop();

    // The largest payloads that clients in the wild send, one range after another, in one interval.
    let mut client = Client::connect(&lifeboat.disk("root").target);
    let mut random = Random::new(8);
    let mut payload = vec![0; usize::try_from(48 * MIB).expect("a size")];
    for n in 0..huge / 48 {
        random.fill(&mut payload);
        client.write(n * 48 * MIB, &payload, 0);
    }
    let cut = lifeboat.cut();
    assert!(number(&cut, "bytes") >= huge / 48 * 48 * MIB, "noise does not compress: {cut}");
    // And single blocks all over a big disk, which is what indexes and maps are afraid of.
    let mut client = Client::connect(&lifeboat.disk("empty").target);
    for _ in 0..20_000 {
        client.write(random.below(1024 * GIB / 4096) * 4096, &payload[..4096], 0);
    }
    lifeboat.cut();

    let of = |process: &Option<lab::process::Process>| process.as_ref().expect("a running process").memory();
    let ((proxy, proxy_most), (uploader, uploader_most)) = (of(&lifeboat.proxy), of(&lifeboat.uploader));
    let in_mib = |bytes: u64| bytes / MIB;
    eprintln!(
        "resident MiB now and at most: proxy {} {}, uploader {} {}",
        in_mib(proxy),
        in_mib(proxy_most),
        in_mib(uploader),
        in_mib(uploader_most)
    );
    let disks: u64 = lifeboat.disks().iter().map(|disk| disk.size).sum();
    let proxy_limit = PROXY_MAX + disks.div_ceil(1024 * GIB) * PROXY_PER_TIB;
    assert!(proxy_most <= proxy_limit, "proxy: {proxy_most} bytes, {proxy_limit} promised");
    assert!(uploader_most <= UPLOADER_MAX, "uploader: {uploader_most} bytes, {UPLOADER_MAX} promised");
    lifeboat.stop();
}
