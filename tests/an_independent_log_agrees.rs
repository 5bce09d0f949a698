//! QEMU's blklogwrites keeps a log of its own of all that its client sent. Replaying that log up to a cut gives the bytes
//! of our point: the two logs share no code, and only their order is common.
//!
//! `LIFEBOAT_LOG_ROUNDS` is the number of cuts.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use lab::model::Model;
use lab::vm::blockdev;
use lab::{MIB, Random, Scratch, Setup, Store, judge, scale, tool};

const SIZE: u64 = 24 * MIB;

#[test]
fn at_every_cut() {
    if !judge::have(&["qemu-io"]) {
        return;
    }
    let scratch = Scratch::new();
    let setup = Setup::new().disk("root", SIZE);
    let mut lifeboat = setup.create(&scratch, &Store::folder(&scratch)).run();
    lifeboat.wait_protected();
    let log = scratch.join("log");
    std::fs::write(&log, b"").expect("a file");
    let mut client = QemuIo::start(&blockdev("nbd", &lifeboat.disk("root").target), &log);
    let mut random = Random::new(11);
    let mut cuts = Vec::new();
    for _ in 0..scale("LIFEBOAT_LOG_ROUNDS", 6) {
        for _ in 0..random.below(150) {
            client.command(&request(&mut random));
        }
        // Only a flush makes QEMU write the number of its entries.
        client.command("flush");
        cuts.push((lifeboat.cut_id(), entries(&log)));
    }
    client.end();
    for (point, count) in cuts {
        let restored = lifeboat.restore(&point, &scratch.join(&point)).remove(0);
        replay(&log, count).expect(&restored, &format!("point {point}, {count} entries of the other log"));
    }
    lifeboat.stop();
}

fn request(random: &mut Random) -> String {
    let len = 1 + random.below(100_000);
    let offset = random.below(SIZE - len);
    match random.below(12) {
        0 => format!("write -z {offset} {len}"),
        1 => format!("write -z -u {offset} {len}"),
        2 => format!("discard {} {}", offset / 4096 * 4096, len.next_multiple_of(4096)),
        3 => "flush".into(),
        4 => format!("write -f -P {} {offset} {len}", random.below(256)),
        _ => format!("write -P {} {offset} {len}", random.below(256)),
    }
}

const PROMPT: &str = "qemu-io> ";

/// An interactive qemu-io: a line in, and its answer before the next.
struct QemuIo {
    process: Child,
    input: Option<ChildStdin>,
    answers: Receiver<String>,
}

impl QemuIo {
    fn start(disk: &str, log: &Path) -> Self {
        let disk = disk.replace(",node-name=nbd", "").split(',').map(|it| format!("file.{it}")).collect::<Vec<_>>().join(",");
        let log = format!("log.driver=raw,log.file.driver=file,log.file.filename={}", log.display());
        let mut command = tool("qemu-io");
        command.arg("--image-opts").arg(format!("driver=blklogwrites,{disk},{log}"));
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap_or_else(|error| panic!("qemu-io: {error}"));
        let (sender, answers) = channel();
        let mut output = process.stdout.take().expect("its output");
        std::thread::spawn(move || {
            let (mut said, mut buf) = (String::new(), [0; 4096]);
            while let Ok(len @ 1..) = output.read(&mut buf) {
                said.push_str(&String::from_utf8_lossy(&buf[..len]));
                while let Some((answer, rest)) = said.split_once(PROMPT) {
                    if sender.send(answer.to_owned()).is_err() {
                        return;
                    }
                    said = rest.to_owned();
                }
            }
        });
        let input = process.stdin.take();
        let client = Self { process, input, answers };
        client.answer();
        client
    }

    /// What it said until it asked for more.
    fn answer(&self) -> String {
        self.answers.recv_timeout(Duration::from_secs(60)).expect("an answer of qemu-io")
    }

    fn command(&mut self, line: &str) {
        writeln!(self.input.as_mut().expect("its input"), "{line}").expect("a listening qemu-io");
        let said = self.answer();
        assert!(!said.contains("failed") && !said.contains("rror"), "{line}: {said}");
    }

    fn end(mut self) {
        self.input = None;
        assert!(self.process.wait().expect("its end").success());
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The kernel's log-writes format: a header sector, then entries, each a sector with four numbers and its data.
const MAGIC: u64 = 0x006A_7366_7773_6872;
const DISCARD: u64 = 4;

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn size(number: u64) -> usize {
    usize::try_from(number).expect("a size")
}

fn entries(log: &Path) -> u64 {
    let bytes = std::fs::read(log).expect("the other log");
    assert_eq!(word(&bytes, 0), MAGIC, "this is not a log of writes");
    word(&bytes, 16)
}

fn replay(log: &Path, count: u64) -> Model {
    let bytes = std::fs::read(log).expect("the other log");
    let sector = size(word(&bytes, 24) & 0xFFFF_FFFF);
    let mut model = Model::new(SIZE);
    let mut at = sector;
    for _ in 0..count {
        let [start, sectors, flags] = [0, 8, 16].map(|field| word(&bytes, at + field));
        let (offset, len) = (start * sector as u64, size(sectors) * sector);
        at += sector;
        if flags & DISCARD != 0 {
            model.zero(offset, len);
        } else {
            model.write(offset, &bytes[at..at + len]);
            at += len;
        }
    }
    model
}
