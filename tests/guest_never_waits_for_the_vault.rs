//! The store stops answering. Writes are answered as before, a second segment records while the first is in transit,
//! and when the store comes back both are shipped: the point that was being taken has what was written before its cut,
//! the next one has the rest.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use std::process::Stdio;
use std::time::{Duration, Instant};

use lab::model::Model;
use lab::{Client, MIB, Random, Scratch, Setup, Store, judge, store, until};

/// Far below any timeout of a store, far above a write to the page cache.
const AT_ONCE: Duration = Duration::from_secs(2);

#[test]
fn while_the_store_hangs_a_second_segment_records_and_both_ship_after() {
    if !judge::have(&["weed"]) {
        return;
    }
    let scratch = Scratch::new();
    let (server, port) = store::own_seaweed(&scratch);
    let vault = Store {
        kind: store::Kind::Seaweed,
        url: "s3://bucket1/blocked".into(),
        ca_file: None,
        env: store::s3_env(port),
    };
    let setup = Setup::new().disk("root", 32 * MIB).policy("retry = [\"1s\"]");
    let mut lifeboat = setup.create(&scratch, &vault).run_apart();
    lifeboat.wait_protected();
    // What the uploader says of a store that hangs is for the operator, and right.
    lifeboat.expect_log("vm1");

    let mut client = Client::connect(&lifeboat.disk("root").target);
    let mut model = Model::new(32 * MIB);
    let mut random = Random::new(3);
    write_some(&mut client, &mut model, &mut random);
    let at_first_cut = model.clone();

    let log_dir = lifeboat.disk("root").image.with_file_name("lifeboat-logs/vm1/root");
    // The log's next segment stands ready before it is needed: what counts is which ones hold records.
    let recording = || {
        let entries = std::fs::read_dir(&log_dir).expect("the disk's folder");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        let segments = paths.filter(|path| path.extension().is_some_and(|it| it == "seg"));
        let inside = segments.map(|path| lifeboat.json(&["inspect", path.to_str().expect("a plain path")]));
        inside.filter(|inside| lab::lifeboat::number(inside, "records") > 0).count()
    };
    assert_eq!(recording(), 1, "one segment records what was written so far");

    server.signal("STOP");
    let mut cut = lifeboat.command();
    cut.args(["--json", "cut", lab::lifeboat::MACHINE, "--timeout", "120s"]);
    let mut cut = cut.stdout(Stdio::piped()).spawn().expect("the cut");
    until("a second segment that records", Duration::from_secs(20), || {
        write_some(&mut client, &mut model, &mut random);
        (recording() == 2).then_some(())
    });
    write_some(&mut client, &mut model, &mut random);
    assert!(cut.try_wait().expect("its state").is_none(), "the cut waits for the store");
    server.signal("CONT");

    let first = cut.wait_with_output().expect("the cut's end");
    assert!(first.status.success(), "the cut that met a hanging store: {first:?}");
    let first: serde_json::Value = serde_json::from_slice(&first.stdout).expect("an answer");
    let second = lifeboat.cut_id();
    let first = lab::lifeboat::text(&first, "point");
    let restored = lifeboat.restore(&second, &scratch.join("second"));
    model.expect(&restored[0], "the point after the store came back");
    let restored = lifeboat.restore(&first, &scratch.join("first"));
    let early = std::fs::read(&restored[0]).expect("the restored disk");
    let start = usize::try_from(MIB).expect("a MiB");
    assert!(
        early[..start] == at_first_cut.bytes()[..start],
        "the point whose shipping hung lacks what was written before its cut"
    );
    lifeboat.stop();
}

/// Writes to the first MiB only the first time, later beyond it; each answer comes at once.
fn write_some(client: &mut Client, model: &mut Model, random: &mut Random) {
    let later = model.bytes().iter().take(4096).any(|byte| *byte != 0);
    for n in 0..64 {
        let mut data = vec![0; 16_384];
        random.fill(&mut data);
        let offset = if later { MIB + random.below(31 * MIB - 16_384) } else { n * 16_384 };
        let start = Instant::now();
        client.write(offset, &data, 0);
        assert!(start.elapsed() < AT_ONCE, "a write took {:?} while the store hung", start.elapsed());
        model.write(offset, &data);
    }
}
