use std::path::PathBuf;

use uuid::Uuid;

use super::super::intent::Regions;
use super::super::state::DiskState;
use super::*;
use crate::backing::{Access, RawDisk};

struct Left {
    dir: tempfile::TempDir,
    state: DiskState,
    era: Era,
    marks: Option<Marks>,
}

impl Left {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("d"), [1; 8192]).unwrap();
        let image = RawDisk::open(&dir.path().join("d"), Access::ReadWrite).unwrap().identity().unwrap();
        let state = DiskState {
            disk: Uuid::new_v4(),
            tracking: Uuid::new_v4(),
            logged: true,
            sync: None,
            bases: Vec::new(),
            cause: "new disk".to_owned(),
            intent: true,
            sync_failed: false,
            boot: "1".to_owned(),
            mount: "5 5".to_owned(),
            image,
            clean: false,
            afar: Default::default(),
        };
        let era = Era { boot: "1".to_owned(), mount: "5 5".to_owned() };
        let marks = Some(Marks { regions: Regions::none(8192), until: i64::MAX / 2 });
        Self { dir, state, era, marks }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("d")
    }

    fn verdict(&self) -> Result<Verdict> {
        let disk = RawDisk::open(&self.path(), Access::ReadWrite).unwrap();
        judge(&self.found(), None, &disk, &self.era, self.marks.as_ref())
    }

    fn found(&self) -> FoundState {
        FoundState { state: Some(self.state.clone()), damaged: false }
    }
}

/// What is expected, and the change to what a killed process leaves behind that leads there.
type Row = (&'static str, fn(&mut Left));

#[test]
fn each_thing_left_behind_is_judged_as_the_table_says() {
    let rows: [Row; 15] = [
        ("go on", |_| {}),
        ("go on", |left| left.state.sync = Some(SyncScope::Whole)),
        ("go on", |left| left.state.clean = true),
        ("go on", |left| (left.state.clean, left.state.boot) = (true, "0".to_owned())),
        ("compare", |left| left.state.boot = "0".to_owned()),
        ("compare", |left| left.state.mount = "5 4".to_owned()),
        ("compare", |left| left.state.sync_failed = true),
        ("compare", |left| left.state.logged = false),
        ("compare", |left| left.state.sync = Some(SyncScope::Dirty)),
        ("compare", |left| left.state.sync = Some(SyncScope::Marked)),
        ("anew", |left| left.state.intent = false),
        ("anew", |left| left.marks = None),
        ("anew", |left| left.marks.iter_mut().for_each(|marks| marks.until = 0)),
        ("anew", |left| {
            std::fs::rename(left.path(), left.dir.path().join("old")).unwrap();
            std::fs::write(left.path(), [1; 8192]).unwrap();
        }),
        ("anew", |left| {
            left.state.clean = true;
            std::thread::sleep(std::time::Duration::from_millis(20));
            std::fs::write(left.path(), [2; 8192]).unwrap();
        }),
    ];
    for (number, (expected, change)) in rows.iter().enumerate() {
        let mut left = Left::new();
        change(&mut left);
        let verdict = match left.verdict().unwrap() {
            Verdict::GoOn => "go on",
            Verdict::Compare(_) => "compare",
            Verdict::Anew(_) => "anew",
        };
        assert_eq!(verdict, *expected, "row {number}");
    }
}

#[test]
fn a_grown_disk_is_taken_and_a_shrunk_one_refused_with_advice() {
    for clean in [true, false] {
        let mut left = Left::new();
        left.state.clean = clean;
        std::fs::File::options().write(true).open(left.path()).unwrap().set_len(16384).unwrap();
        assert!(matches!(left.verdict().unwrap(), Verdict::Anew(cause) if cause.contains("grown")));
        std::fs::File::options().write(true).open(left.path()).unwrap().set_len(4096).unwrap();
        let error = left.verdict().unwrap_err();
        assert!(
            error.message.contains("8192 to 4096") && error.remedy.contains("truncate -s 8192"),
            "{error}"
        );
    }
}

#[test]
fn a_note_beside_the_image_goes_before_everything() {
    let left = Left::new();
    let disk = RawDisk::open(&left.path(), Access::ReadWrite).unwrap();
    let verdict = judge(&left.found(), Some("why".to_owned()), &disk, &left.era, left.marks.as_ref());
    assert!(matches!(verdict.unwrap(), Verdict::Anew(cause) if cause.contains("why")));
}
