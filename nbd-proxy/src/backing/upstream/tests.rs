//! The device over servers that can do more or less, and over such as no server should be.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::testing::{Offer, Quirk, Server};
use super::*;
use crate::backing::Lost;
use crate::nbd::wire::rep;

const SIZE: u64 = 1 << 20;

fn soon() -> Settings {
    Settings { reconnect_delay: Duration::from_secs(20), reply_timeout: Duration::from_millis(400) }
}

fn open(server: &Server) -> UpstreamDisk {
    UpstreamDisk::open(&server.path(), Access::ReadWrite, soon()).unwrap()
}

fn write(disk: &dyn BlockDevice, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
    let mut results = Vec::new();
    disk.write_batch(&[Write { offset, data, fua }], &mut results);
    results.pop().unwrap()
}

fn read(disk: &dyn BlockDevice, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xCC; len];
    disk.read(&mut buf, offset).unwrap();
    buf
}

/// Numbers that look random.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

#[test]
fn whatever_a_server_can_do_the_device_keeps_its_contract() {
    let blocks = [None, Some((1, 4096, 4096)), Some((512, 4096, 1 << 20)), Some((4096, 65536, 65536))];
    let all = Offer::new(SIZE).flags;
    for flags in [all, all & !tflag::SEND_FUA, all & !tflag::SEND_WRITE_ZEROES] {
        for (blocks, structured) in blocks.into_iter().flat_map(|blocks| [(blocks, true), (blocks, false)]) {
            let offer = Offer { flags, blocks, structured, ..Offer::new(SIZE) };
            let server = Server::start(offer.clone());
            let disk = open(&server);
            let mut model = vec![0; usize::try_from(SIZE).unwrap()];
            let mut seed = 7;
            for step in 0..60_u8 {
                let len = 1 + next(&mut seed) % [700, 9000, 300_000][usize::from(step % 3)];
                let offset = next(&mut seed) % (SIZE - len);
                let range = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
                match step % 5 {
                    0 => {
                        let mode = ZeroMode { punch: step % 2 == 0, fast: false, fua: step % 3 == 0 };
                        disk.zero(offset, len, mode).unwrap();
                        model[range].fill(0);
                    }
                    1 => assert!(read(&disk, offset, range.len()) == model[range], "{offer:?}, step {step}"),
                    _ => {
                        let data = vec![step; range.len()];
                        write(&disk, offset, &data, step % 4 == 0).unwrap();
                        model[range].copy_from_slice(&data);
                    }
                }
            }
            disk.flush().unwrap();
            assert!(read(&disk, 0, model.len()) == model && server.contents() == model, "{offer:?}");
            let mut extents = Vec::new();
            disk.extents(5000, SIZE - 5000, &mut extents).unwrap();
            let mut at = 5000;
            for Extent { offset, len, hole } in extents {
                assert!(offset == at && len > 0, "{offer:?}: consecutive");
                at += len;
                let bytes = &model[usize::try_from(offset).unwrap()..usize::try_from(at).unwrap()];
                assert!(!hole || bytes.iter().all(|byte| *byte == 0), "{offer:?}: a hole reads as zero");
            }
            assert_eq!(at, SIZE, "{offer:?}");
        }
    }
}

#[test]
fn a_durable_write_outlives_the_server_with_and_without_fua() {
    let all = Offer::new(SIZE).flags;
    for flags in [all, all & !tflag::SEND_FUA] {
        let server = Server::start(Offer { flags, ..Offer::new(SIZE) });
        let disk = open(&server);
        write(&disk, 4096, &[1; 4096], true).unwrap();
        disk.zero(4096, 512, ZeroMode { fua: true, ..ZeroMode::default() }).unwrap();
        server.die(|| false);
        server.come_back();
        assert_eq!(read(&disk, 4096, 1024), [[0; 512], [1; 512]].concat(), "{flags:b}");
    }
}

#[test]
fn a_batch_of_overlapping_writes_lands_in_order() {
    let server = Server::start(Offer::new(SIZE));
    let disk = open(&server);
    let write = |offset, data: &'static [u8]| Write { offset, data, fua: false };
    let mut results = Vec::new();
    disk.write_batch(&[write(0, &[1; 8192]), write(4096, &[2; 512]), write(4000, &[3; 200])], &mut results);
    assert!(results.len() == 3 && results.iter().all(Result::is_ok));
    assert_eq!(read(&disk, 0, 8192), [vec![1; 4000], vec![3; 200], vec![2; 408], vec![1; 3584]].concat());
}

#[test]
fn neighbours_in_one_block_do_not_undo_each_other() {
    let server = Server::start(Offer { blocks: Some((4096, 4096, 1 << 20)), ..Offer::new(SIZE) });
    let disk = open(&server);
    std::thread::scope(|scope| {
        for part in 0..8_u8 {
            let disk = &disk;
            scope.spawn(move || {
                for round in 0..30_u8 {
                    write(disk, u64::from(part) * 512 + 4096, &[part * 30 + round; 512], false).unwrap();
                }
            });
        }
    });
    let expected: Vec<u8> = (0..8).flat_map(|part| [part * 30 + 29; 512]).collect();
    assert_eq!(read(&disk, 4096, 4096), expected);
}

#[test]
fn a_server_that_breaks_the_protocol_is_left_and_asked_again() {
    let server = Server::start(Offer::new(SIZE));
    let disk = open(&server);
    write(&disk, 8192, &[7; 4096], true).unwrap();
    let quirks = [
        Quirk::HangUp,
        Quirk::Hang,
        Quirk::BadMagic,
        Quirk::UnknownHandle,
        Quirk::Outside,
        Quirk::Twice,
        Quirk::Missing,
        Quirk::WrongLength,
        Quirk::EndlessError,
        Quirk::DoneAndDead,
    ];
    for quirk in quirks {
        server.quirk(cmd::READ, quirk);
        assert_eq!(read(&disk, 8192, 4096), [7; 4096], "{quirk:?}");
        server.quirk(cmd::WRITE, quirk);
        write(&disk, 0, &[8; 512], false).unwrap_or_else(|error| panic!("{quirk:?}: {error}"));
        assert_eq!(server.contents()[..512], [8; 512], "{quirk:?}");
        let _ = disk.flush();
    }
    server.quirk(cmd::READ, Quirk::Refused);
    assert_eq!(
        disk.read(&mut [0; 512], 0).unwrap_err().raw_os_error(),
        Some(5),
        "an honest error is passed on"
    );
    assert_eq!(read(&disk, 8192, 4096), [7; 4096], "and leaves the connection in step");
}

#[test]
fn a_server_that_is_away_costs_a_bounded_wait_and_is_told() {
    let server = Server::start(Offer::new(SIZE));
    let settings = Settings { reconnect_delay: Duration::from_millis(300), ..soon() };
    let disk = UpstreamDisk::open(&server.path(), Access::ReadWrite, settings).unwrap();
    assert_eq!(disk.trouble(), None);
    server.die(|| true);
    let begun = Instant::now();
    let error = disk.read(&mut [0; 512], 0).unwrap_err();
    assert!(Lost::is(&error) && begun.elapsed() >= Duration::from_millis(250), "{error}");
    let trouble = disk.trouble().unwrap();
    assert!(trouble.contains("no connection"), "{trouble}");
    assert!(Lost::is(&disk.flush().unwrap_err()) && write(&disk, 0, &[1; 512], true).is_err());
    server.come_back();
    until(|| disk.trouble().is_none());
    disk.flush().unwrap();
    assert_eq!(read(&disk, 0, 512), [0; 512]);
    // One that accepts and says nothing more is away as well.
    server.offer(|offer| offer.silent = true);
    server.die(|| true);
    server.come_back();
    assert!(Lost::is(&disk.read(&mut [0; 512], 0).unwrap_err()));
}

fn until(done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_server_that_comes_back_with_another_disk_is_not_used() {
    type Change = (&'static str, fn(&mut Offer));
    let changes: [Change; 4] = [
        ("shrunk", |offer| offer.size /= 2),
        ("grown", |offer| offer.size *= 2),
        ("read-only", |offer| offer.flags |= tflag::READ_ONLY),
        ("without FLUSH", |offer| offer.flags &= !tflag::SEND_FLUSH),
    ];
    for (what, change) in changes {
        let server = Server::start(Offer::new(SIZE));
        let settings = Settings { reconnect_delay: Duration::from_millis(400), ..soon() };
        let disk = UpstreamDisk::open(&server.path(), Access::ReadWrite, settings).unwrap();
        server.offer(change);
        server.die(|| true);
        server.come_back();
        assert!(write(&disk, 0, &[1; 512], false).is_err(), "{what}");
        let trouble = disk.trouble().unwrap();
        assert!(trouble.contains("came back with"), "{what}: {trouble}");
        assert_eq!(server.contents()[..512], [0; 512], "{what}: nothing reached it");
        server.offer(|offer| *offer = Offer::new(SIZE));
        until(|| disk.trouble().is_none());
        write(&disk, 0, &[1; 512], false).unwrap();
    }
}

#[derive(Debug, Default)]
struct Hears(AtomicU64);

impl Watcher for Hears {
    fn power_lost(&self) {
        // Long enough for somebody to be answered who must not be.
        std::thread::sleep(Duration::from_millis(50));
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_loss_is_told_before_anything_is_answered_and_only_if_something_was_not_flushed() {
    let server = Server::start(Offer::new(SIZE));
    let disk = open(&server);
    let hears: Arc<Hears> = Arc::default();
    let watcher: Weak<Hears> = Arc::downgrade(&hears);
    disk.watch(watcher);
    let lose = || {
        server.die(|| false);
        server.come_back();
        read(&disk, 0, 512);
        hears.0.swap(0, Ordering::SeqCst)
    };
    assert_eq!(lose(), 0, "nothing was written");
    write(&disk, 0, &[1; 512], true).unwrap();
    assert_eq!(lose(), 0, "it was durable");
    write(&disk, 0, &[2; 512], false).unwrap();
    assert_eq!(lose(), 1, "it was not");
    assert_eq!(read(&disk, 0, 512), [1; 512]);
    assert_eq!(lose(), 1, "what the server still has of it is not durable either");
    disk.flush().unwrap();
    assert_eq!(lose(), 0, "now it is");
    // In flight when the connection is lost: done, for all we know, and not durable.
    server.quirk(cmd::WRITE, Quirk::DoneAndDead);
    write(&disk, 0, &[3; 512], true).unwrap();
    assert_eq!(hears.0.swap(0, Ordering::SeqCst), 0);
    assert_eq!(lose(), 1);
}

#[test]
fn a_flush_across_a_loss_fails_and_the_next_is_good() {
    let server = Server::start(Offer::new(SIZE));
    let disk = open(&server);
    write(&disk, 0, &[1; 512], false).unwrap();
    server.quirk(cmd::FLUSH, Quirk::HangUp);
    assert!(Lost::is(&disk.flush().unwrap_err()), "what it was to cover may be gone");
    disk.flush().unwrap();
    server.quirk(cmd::FLUSH, Quirk::HangUp);
    disk.flush().unwrap();
    server.quirk(cmd::FLUSH, Quirk::Refused);
    let error = disk.flush().unwrap_err();
    assert!(
        !Lost::is(&error) && error.raw_os_error() == Some(5),
        "the server's own failure is another thing"
    );
}

#[test]
fn what_cannot_carry_a_disk_is_refused_with_a_remedy() {
    let all = Offer::new(SIZE).flags;
    let offers: [(&str, Kind, Offer); 9] = [
        (
            "no such export",
            Kind::NotFound,
            Offer { refuse: Some((rep::ERR_UNKNOWN, "no such export".into())), ..Offer::new(SIZE) },
        ),
        (
            "policy",
            Kind::Denied,
            Offer { refuse: Some((rep::ERR_POLICY, "go away".into())), ..Offer::new(SIZE) },
        ),
        (
            "xxx",
            Kind::NotFound,
            Offer { refuse: Some((rep::ERR_UNKNOWN, "x".repeat(60_000))), ..Offer::new(SIZE) },
        ),
        ("read-only", Kind::InvalidInput, Offer { flags: all | tflag::READ_ONLY, ..Offer::new(SIZE) }),
        ("FLUSH", Kind::InvalidInput, Offer { flags: all & !tflag::SEND_FLUSH, ..Offer::new(SIZE) }),
        ("empty", Kind::InvalidInput, Offer::new(0)),
        (
            "no block size",
            Kind::InvalidInput,
            Offer { blocks: Some((3000, 4096, 1 << 20)), ..Offer::new(SIZE) },
        ),
        ("too few", Kind::InvalidInput, Offer { blocks: Some((1, 512, 512)), ..Offer::new(SIZE) }),
        (
            "not a multiple",
            Kind::InvalidInput,
            Offer { blocks: Some((4096, 4096, 1 << 20)), ..Offer::new(SIZE + 512) },
        ),
    ];
    for (what, kind, offer) in offers {
        let server = Server::start(offer);
        let error = UpstreamDisk::open(&server.path(), Access::ReadWrite, soon()).unwrap_err();
        assert!(error.kind == kind && error.message.contains(what), "{what}: {error}");
        assert!(error.message.len() < 400 && !error.remedy.is_empty(), "{what}: {error}");
        assert!(error.object.contains("nbd+unix:"), "{what}: {error}");
    }
    let server = Server::start(Offer { flags: all | tflag::READ_ONLY, ..Offer::new(SIZE) });
    let disk = UpstreamDisk::open(&server.path(), Access::ReadOnly, soon()).unwrap();
    assert!(disk.capabilities().read_only && read(&disk, 0, 512) == [0; 512]);
    disk.flush().unwrap();
    let nobody = PathBuf::from("nbd+unix:///?socket=/nowhere/at/all.sock");
    let error = UpstreamDisk::open(&nobody, Access::ReadWrite, soon()).unwrap_err();
    assert!(error.kind == Kind::Unavailable && !error.remedy.is_empty(), "{error}");
}

#[test]
fn a_second_proxy_on_one_upstream_is_refused_by_process_id() {
    let server = Server::start(Offer::new(SIZE));
    let first = open(&server);
    let link = server.dir().join("link");
    std::os::unix::fs::symlink(server.dir(), &link).unwrap();
    let aliased = PathBuf::from(format!("nbd+unix:///%64isk?socket={}", link.join("s").display()));
    for path in [server.path(), aliased] {
        let error = UpstreamDisk::open(&path, Access::ReadWrite, soon()).unwrap_err();
        let named = error.message.contains(&format!("process {}", std::process::id()));
        assert!(error.kind == Kind::InUse && named, "{error}");
    }
    drop(first);
    open(&server);
}

#[test]
fn addresses_are_read_as_they_are_written() {
    let parse = |text: &str| Address::parse(Path::new(text));
    let unix = parse("nbd+unix:///a%2Fb?socket=/run/x%20y.sock").unwrap();
    assert_eq!((unix.place, unix.export), (Place::Unix("/run/x y.sock".into()), "a/b".to_owned()));
    let tcp = parse("nbd://[::1]:10810/disk").unwrap();
    assert_eq!((tcp.place, tcp.export), (Place::Tcp("::1".to_owned(), 10810), "disk".to_owned()));
    assert_eq!(parse("nbd://host").unwrap().place, Place::Tcp("host".to_owned(), 10809));
    assert_eq!(parse("nbd://[::1]/").unwrap().place, Place::Tcp("::1".to_owned(), 10809));
    for wrong in [
        "nbds://host/disk",
        "nbd+unix:///disk",
        "nbd+unix:///disk?socket=relative",
        "nbd+unix:///disk?socket=/a&tls=x",
        "nbd+unix://host/disk?socket=/a",
        "nbd:///disk",
        "nbd://host:port/disk",
        "nbd://user@host/disk",
        "nbd://host/disk%2",
        "nbd://host/disk%zz",
        "http://host/disk",
    ] {
        let error = parse(wrong).unwrap_err();
        assert!(error.kind == Kind::InvalidInput && error.remedy.contains("nbd+unix:///EXPORT"), "{error}");
    }
    assert!(Address::is_meant(Path::new("nbd://h")) && !Address::is_meant(Path::new("/images/nbd.img")));
}
