use nbd_proxy::tracking::DiskInfo;

use super::*;

const MIB: u64 = 1 << 20;

/// A complete round of 100 MiB, the so manieth, with a log or without; since it began, `written` bytes were written.
fn log_next(number: u32, logged: bool, written: u64) -> bool {
    let disk = SyncDisk {
        name: "a".to_owned(),
        size: 1 << 30,
        tracking: Uuid::nil(),
        attempt: Uuid::nil(),
        round: Uuid::nil(),
        number,
        logged,
        scope: SyncScope::Dirty,
        tail: 1 << 30,
        whole: false,
        compare: false,
        against: None,
        unreadable: Vec::new(),
        cause: String::new(),
        total: 100 * MIB,
    };
    let now = DiskInfo {
        name: "a".to_owned(),
        size: 1 << 30,
        tracking: Uuid::nil(),
        logged: false,
        cause: String::new(),
        syncing: true,
        bases: Vec::new(),
        dirty_bytes: written,
        log_bytes: 0,
        clients: 0,
        trouble: None,
    };
    Work::log_next(&disk, &MachineInfo { name: "m".to_owned(), disks: vec![now] })
}

#[test]
fn rounds_without_a_log_go_on_only_while_they_shrink() {
    assert!(log_next(0, true, 40 * MIB), "one log was lost, which may have been bad luck");
    assert!(!log_next(0, false, 40 * MIB), "so much would fill the next one too");
    assert!(!log_next(3, true, 40 * MIB));
    assert!(log_next(1, false, 50 * MIB), "it will not get better: rounds must end");
    assert!(log_next(1, false, 200 * MIB));
    assert!(log_next(1, false, MIB), "no log is filled by that");
}
