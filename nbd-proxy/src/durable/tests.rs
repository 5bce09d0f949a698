use super::failpoint::{self, Action, arm};
use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn a_file_is_replaced_as_a_whole_or_not_at_all() {
    let dir = folder();
    let path = dir.path().join("f");
    replace(Step::JobSaved, &path, b"old").unwrap();
    let points = ["Create", "Sync", "Rename", "SyncFolder"];
    for op in points {
        for when in ["before", "after"] {
            let dead = arm(&[(&format!("JobSaved.{op}.{when}"), Action::Die, 1)]);
            replace(Step::JobSaved, &path, b"new").unwrap_err();
            assert!(failpoint::is_dead());
            drop(dead);
            let renamed = op == "SyncFolder" || (op, when) == ("Rename", "after");
            let wanted: &[u8] = if renamed { b"new" } else { b"old" };
            assert_eq!(read(&path).unwrap().unwrap(), wanted, "{op} {when}");
            replace(Step::JobSaved, &path, b"old").unwrap();
        }
    }
}

#[test]
fn the_dead_make_nothing_durable_any_more() {
    let dir = folder();
    let path = dir.path().join("f");
    let guard = arm(&[("JobSaved.Create.after", Action::Die, 1)]);
    replace(Step::JobSaved, &path, b"x").unwrap_err();
    make_folder(Step::JobsFolder, &dir.path().join("d")).unwrap_err();
    remove(Step::JobForgotten, &dir.path().join("f.new")).unwrap_err();
    assert_eq!(guard.passed(), ["JobSaved.Create.before", "JobSaved.Create.after"]);
    drop(guard);
    assert!(dir.path().join("f.new").exists() && !dir.path().join("d").exists());
}

#[test]
fn a_failpoint_strikes_at_the_passing_it_was_armed_for() {
    let dir = folder();
    let _armed = arm(&[("VoidLifted.Remove.before", Action::Fail, 2)]);
    let lift = || remove(Step::VoidLifted, &dir.path().join("f"));
    assert!(!lift().unwrap());
    let error = lift().unwrap_err();
    assert!(error.to_string().contains("VoidLifted.Remove.before"), "{error}");
    lift().unwrap();
}

#[test]
fn a_new_name_is_never_taken_from_another_file() {
    let dir = folder();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::write(&from, "ours").unwrap();
    std::fs::write(&to, "theirs").unwrap();
    let refused = rename_to_new(Step::RestoreNamed, &from, &to).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
    std::fs::remove_file(&to).unwrap();
    rename_to_new(Step::RestoreNamed, &from, &to).unwrap();
    assert_eq!(std::fs::read(&to).unwrap(), b"ours");
}

#[test]
fn a_plan_that_cannot_be_understood_is_refused() {
    for plan in [
        "StateWritten",
        "StateWritten.Sync.before=sleep",
        "Nothing.Sync.before=die",
        "StateWritten.Sync.before=die@x",
    ] {
        let error = failpoint::plan(plan).unwrap_err();
        assert_eq!(error.kind, crate::Kind::InvalidInput, "{plan}");
    }
}

#[test]
fn every_failpoint_has_a_name_of_its_own() {
    let names: Vec<String> = failpoint::all().collect();
    let distinct: std::collections::BTreeSet<&String> = names.iter().collect();
    assert_eq!(names.len(), distinct.len());
    assert!(names.contains(&"StateWritten.Sync.before".to_owned()));
}
