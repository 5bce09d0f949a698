//! What is said when one side, or both, are away or late.

use nbd_proxy::tracking::DiskInfo;
use uuid::Uuid;

use super::*;

const STATUS: &str = r#"{"machine": "web1", "health": "normal", "cause": "", "remedy": "", "generation": 1,
    "head": null, "newest": null, "phase": "idle", "activity": "", "sync_cause": "", "next_retry": null,
    "interval_seconds": 30.0, "encryption": "aes-256-gcm", "counts": {"puts": 0, "gets": 0, "lists": 0, "bytes_up": 0, "bytes_down": 0},
    "points": 0,
    "disks": [{"name": "root", "state": "initial", "size": 1000, "bytes_done": 400, "bytes_total": 1000, "bytes_shipped": 400,
               "bytes_undecided": 0, "bytes_unreadable": 0,
               "dirty_bytes": 1, "log_bytes": 1}]}"#;

fn replication() -> Vec<Status> {
    vec![serde_json::from_str(STATUS).unwrap()]
}

fn tracking() -> Vec<MachineInfo> {
    let disk = DiskInfo {
        name: "root".into(),
        size: 1000,
        tracking: Uuid::nil(),
        logged: true,
        cause: String::new(),
        syncing: false,
        bases: Vec::new(),
        dirty_bytes: 4096,
        log_bytes: 8192,
        clients: 1,
        trouble: None,
    };
    vec![MachineInfo { name: "web1".into(), disks: vec![disk] }]
}

fn away(role: &str) -> Error {
    Error::new(Kind::Unavailable, format!("{role}.sock"), "connection refused").remedy("is lifeboat running?")
}

#[test]
fn the_proxy_says_how_much_waits_and_the_uploader_the_rest() {
    let report = merge(Ok(replication()), Ok(tracking()), Timestamp::now()).unwrap();
    let machine = &report.machines[0];
    assert_eq!((machine.health, machine.generation, machine.rpo_seconds), (Health::Normal, Some(1), None));
    let disk = &machine.disks[0];
    assert_eq!((disk.state.as_str(), disk.bytes_done, disk.bytes_total), ("initial", 400, 1000));
    assert_eq!((disk.dirty_bytes, disk.log_bytes), (4096, 8192));
    let text = people(&report);
    assert!(
        text.contains("40 %")
            && text.contains("vault: encrypted, aes-256-gcm")
            && text.contains("no point yet")
            && text.contains("4.0 KiB to ship"),
        "{text}"
    );
}

#[test]
fn an_uploader_that_is_away_is_a_warning_with_a_remedy() {
    let report = merge(Err(away("uploader")), Ok(tracking()), Timestamp::now()).unwrap();
    let machine = &report.machines[0];
    assert_eq!(machine.health, Health::Warning);
    assert!(machine.cause.contains("uploader") && machine.remedy.contains("lifeboat uploader"));
    assert_eq!(machine.disks[0].log_bytes, 8192);
}

#[test]
fn a_proxy_that_is_away_is_a_warning_with_a_remedy() {
    let report = merge(Ok(replication()), Err(away("proxy")), Timestamp::now()).unwrap();
    let machine = &report.machines[0];
    assert_eq!(machine.health, Health::Warning);
    assert!(machine.remedy.contains("lifeboat proxy"), "{}", machine.remedy);
    assert!(people(&report).contains("what to do: start `lifeboat proxy`"));
}

#[test]
fn with_both_away_it_is_an_error() {
    let error = merge(Err(away("uploader")), Err(away("proxy")), Timestamp::now()).unwrap_err();
    assert!(error.remedy.contains("is lifeboat running?"));
}

#[test]
fn a_paused_machine_is_a_warning_with_the_way_on() {
    let mut statuses = replication();
    statuses[0].phase = Phase::Paused;
    let report = merge(Ok(statuses), Ok(tracking()), Timestamp::now()).unwrap();
    assert_eq!(report.machines[0].health, Health::Warning);
    assert!(report.machines[0].remedy.contains("lifeboat resume"));
}

#[test]
fn a_newest_point_that_is_an_hour_late_is_a_warning() {
    let mut statuses = replication();
    let now = Timestamp::now();
    statuses[0].newest = Some(now - jiff::SignedDuration::from_mins(60));
    let in_time = merge(Ok(statuses.clone()), Ok(tracking()), now).unwrap();
    assert_eq!(in_time.machines[0].health, Health::Normal);
    statuses[0].newest = Some(now - jiff::SignedDuration::from_mins(61));
    let report = merge(Ok(statuses), Ok(tracking()), now).unwrap();
    assert_eq!(report.machines[0].health, Health::Warning);
    assert!(report.machines[0].rpo_seconds.unwrap() > 3600.0);
    assert!(people(&report).contains("1h 1m"), "{}", people(&report));
}
