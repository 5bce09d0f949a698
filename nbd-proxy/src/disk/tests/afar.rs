//! A disk behind another server: what the server may have lost is compared, and its client hears of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use crate::backing::upstream::Settings;
use crate::backing::upstream::testing::{Offer, Server};
use crate::device::{BlockDevice, Write, ZeroMode};
use crate::disk::testing::{End, Replica, write};
use crate::disk::{DiskSettings, TrackedDisk};
use crate::machine::{Machine, MachineSettings};
use crate::tracking::SyncScope;

/// Several regions.
const SIZE: u64 = (14 << 20) + 512;
const MIB: u64 = 1 << 20;

struct Host {
    server: Server,
    machine: Option<Arc<Machine>>,
}

impl Host {
    fn new() -> Self {
        let mut host = Self { server: Server::start(Offer::new(SIZE)), machine: None };
        host.open();
        host
    }

    fn open(&mut self) {
        self.machine = None;
        let disk = DiskSettings {
            name: "d".to_owned(),
            path: self.server.path(),
            log_dir: Some(self.server.dir().to_owned()),
            read_only: false,
            log_limit: Some(1 << 30),
            upstream: Settings {
                reconnect_delay: Duration::from_secs(30),
                reply_timeout: Duration::from_secs(10),
            },
        };
        let settings = MachineSettings { name: "m".to_owned(), disks: vec![disk] };
        self.machine = Some(Machine::open_in(&settings, "this boot").unwrap());
    }

    fn machine(&self) -> &Machine {
        self.machine.as_ref().unwrap()
    }

    fn disk(&self) -> &TrackedDisk {
        self.machine().disk("d").unwrap()
    }

    /// The server dies and comes back; of what was not flushed it has kept what `seed` says.
    fn lose_server(&self, seed: u64) {
        let mut random = seed | 1;
        self.server.die(|| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random & 1 == 1
        });
        self.server.come_back();
    }

    /// Any answer shows that the loss was dealt with.
    fn settle(&self) {
        self.disk().read(&mut [0; 512], 0).unwrap();
    }
}

#[test]
fn a_lost_server_costs_the_regions_without_a_flush_and_the_next_flush() {
    let host = Host::new();
    let mut replica = Replica::default();
    for region in 0..3 {
        write(host.disk(), region * 4 * MIB, &[1; 8192]).unwrap();
    }
    assert_eq!(replica.cycle(host.machine()).unwrap(), [SyncScope::Whole]);
    host.disk().flush().unwrap();
    write(host.disk(), 4 * MIB, &[2; 8192]).unwrap();
    // The vault is ahead of the disk now.
    assert!(replica.cycle(host.machine()).unwrap().is_empty());
    host.server.die(|| false);
    host.server.come_back();
    host.settle();
    let info = host.machine().info().disks.remove(0);
    assert!(!info.logged && info.cause.contains("not flushed"), "{info:?}");
    assert_eq!(info.dirty_bytes, 4 * MIB, "one region");
    assert_eq!(replica.cycle(host.machine()).unwrap(), [SyncScope::Marked]);
    assert!(replica.disks["d"] == host.server.contents(), "the disk is the truth");
    let error = host.disk().flush().unwrap_err();
    assert!(error.to_string().contains("not flushed"), "{error}");
    host.disk().flush().unwrap();
    // Nothing unflushed: a server that comes and goes costs nothing.
    host.lose_server(0);
    host.settle();
    write(host.disk(), 0, &[3; 512]).unwrap();
    assert!(replica.cycle(host.machine()).unwrap().is_empty());
    host.disk().flush().unwrap();
    assert!(replica.disks["d"] == host.server.contents());
}

#[test]
fn a_flush_that_nobody_asked_for_does_not_take_the_news_away() {
    let host = Host::new();
    write(host.disk(), 0, &[1; 512]).unwrap();
    host.lose_server(0);
    host.settle();
    // What the regular work does.
    host.disk().clear_intent();
    host.disk().sync_backing().unwrap();
    assert!(host.disk().flush().is_err());
    host.disk().flush().unwrap();
}

#[test]
fn news_that_nobody_has_heard_outlives_the_proxy() {
    for clean in [true, false] {
        let mut host = Host::new();
        write(host.disk(), 0, &[1; 512]).unwrap();
        host.lose_server(0);
        host.settle();
        if clean {
            host.machine().close().unwrap();
        }
        host.open();
        assert!(host.disk().flush().is_err(), "clean {clean}");
        host.disk().flush().unwrap();
        host.machine().close().unwrap();
        host.open();
        host.disk().flush().unwrap();
    }
}

#[test]
fn a_kill_compares_the_marked_regions_and_a_server_that_lived_on_lost_nothing() {
    let mut host = Host::new();
    let mut replica = Replica::default();
    replica.cycle(host.machine()).unwrap();
    write(host.disk(), 4 * MIB, &[1; 512]).unwrap();
    replica.cycle(host.machine()).unwrap();
    host.open();
    assert_eq!(replica.cycle(host.machine()).unwrap(), [SyncScope::Marked], "who knows what the server did");
    // The server of this test is this process, and lived on.
    host.disk().flush().unwrap();
    assert!(replica.disks["d"] == host.server.contents());
    host.machine().close().unwrap();
    host.open();
    assert!(replica.cycle(host.machine()).unwrap().is_empty(), "a clean restart costs nothing");
}

#[test]
fn after_a_kill_a_server_that_may_not_be_the_same_fails_the_next_flush() {
    let mut host = Host::new();
    write(host.disk(), 4 * MIB, &[1; 512]).unwrap();
    host.disk().lock().server = Some("another process".to_owned());
    // A sync writes the state.
    Replica::default().cycle(host.machine()).unwrap();
    host.open();
    assert!(host.disk().flush().is_err());
    host.disk().flush().unwrap();
}

#[test]
fn a_change_behind_our_back_is_seen_where_the_sample_shows_it() {
    let mut host = Host::new();
    let mut replica = Replica::default();
    replica.cycle(host.machine()).unwrap();
    write(host.disk(), 5 * MIB + 4096, &[1; 512]).unwrap();
    for (at, seen) in [(700, true), (5 * MIB + 4097, true), (SIZE - 1, true), (3 * MIB + 8000, false)] {
        let at = usize::try_from(at).unwrap();
        host.machine().close().unwrap();
        host.machine = None;
        let byte = host.server.contents()[at];
        host.server.scribble(at, byte ^ 0xFF);
        host.open();
        let scopes = replica.cycle(host.machine()).unwrap();
        assert_eq!(scopes == [SyncScope::Whole], seen, "{at}: {scopes:?}");
        assert_eq!(replica.disks["d"] == host.server.contents(), seen, "{at}");
        // So that the sample of the next round knows what was written.
        write(host.disk(), 5 * MIB + 4096, &[1; 512]).unwrap();
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u8, usize, bool),
    Zero(u64, u64),
    Flush,
    Clear,
    Cycle(End),
    LogBreaks,
    ServerDies(u64),
    Kill(Option<u64>),
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    let ends = prop_oneof![Just(End::Told), Just(End::Committed), Just(End::Abandoned)];
    prop_oneof![
        10 => (0..SIZE - 70_000, any::<u8>(), 1..70_000usize, any::<bool>())
            .prop_map(|(at, byte, len, fua)| Step::Write(at, byte, len, fua)),
        2 => (0..SIZE - 1, 1..2_000_000u64).prop_map(|(at, len)| Step::Zero(at, len.min(SIZE - at))),
        3 => Just(Step::Flush),
        3 => Just(Step::Clear),
        4 => ends.prop_map(Step::Cycle),
        1 => Just(Step::LogBreaks),
        4 => any::<u64>().prop_map(Step::ServerDies),
        2 => prop::option::of(any::<u64>()).prop_map(Step::Kill),
        1 => Just(Step::Close),
    ]
}

fn apply(host: &mut Host, step: &Step, replica: &mut Replica) {
    let disk = host.disk();
    match step {
        Step::Write(offset, byte, len, fua) => {
            let data = vec![*byte; *len];
            let mut results = Vec::new();
            disk.write_batch(&[Write { offset: *offset, data: &data, fua: *fua }], &mut results);
            results.pop().unwrap().unwrap();
        }
        Step::Zero(at, len) => disk.zero(*at, *len, ZeroMode::default()).unwrap(),
        Step::Flush => drop(disk.flush()),
        Step::Clear => (disk.clear_intent(), disk.clear_intent()).0,
        Step::Cycle(end) => drop(replica.cycle_until(host.machine(), *end)),
        Step::LogBreaks => disk.lose_log("test"),
        Step::ServerDies(seed) => {
            host.lose_server(*seed);
            host.settle();
        }
        Step::Kill(server) => {
            host.machine = None;
            server.iter().for_each(|seed| host.lose_server(*seed));
            host.open();
        }
        Step::Close => {
            host.machine().close().unwrap();
            host.open();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("LIFEBOAT_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(30),
        failure_persistence: None,
        max_shrink_time: 60_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_a_server_loses_tracking_names_every_difference(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut host = Host::new();
        let mut replica = Replica::default();
        replica.cycle(host.machine()).unwrap();
        for step in &steps {
            apply(&mut host, step, &mut replica);
        }
        replica.cycle(host.machine()).unwrap();
        let disk = host.server.contents();
        let vault = &replica.disks["d"];
        let first = (0..disk.len()).find(|at| disk[*at] != vault[*at]);
        prop_assert!(first.is_none(), "the vault differs from the disk at {first:?}");
    }
}

/// If a flush is good, all that was written since the one before is there, and stays.
#[test]
fn no_write_is_lost_without_a_flush_that_says_so() {
    let host = Host::new();
    let mut seed = 3_u64;
    let (mut durable, mut pending) = (BTreeMap::new(), BTreeMap::new());
    let (mut losses, mut failed) = (0, 0);
    for round in 0..400_u64 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let place = usize::try_from(seed >> 58).unwrap();
        let byte = u8::try_from(round % 250 + 1).unwrap();
        write(host.disk(), place as u64 * 512, &[byte; 512]).unwrap();
        durable.remove(&place);
        pending.insert(place, byte);
        if seed >> 40 & 7 == 0 {
            host.lose_server(seed);
            losses += 1;
        }
        if seed >> 44 & 3 == 0 {
            match host.disk().flush() {
                Ok(()) => durable.append(&mut pending),
                Err(_) => failed += 1,
            }
            pending.clear();
        }
        for (place, byte) in &durable {
            assert_eq!(read_byte(&host, *place), *byte, "round {round}: a flush said that it is durable");
        }
    }
    assert!(losses > 10 && failed > 5 && !durable.is_empty(), "{losses} losses, {failed} flushes failed");
}

fn read_byte(host: &Host, place: usize) -> u8 {
    let mut sector = [0; 512];
    host.disk().read(&mut sector, place as u64 * 512).unwrap();
    sector[0]
}
