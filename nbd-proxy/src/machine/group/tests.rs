//! A group's cut is one instant over all its machines, and none of them can hold up or wear out the others.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::*;
use crate::device::BlockDevice;
use crate::disk::testing::{Replica, contents, settings, write};
use crate::machine::MachineSettings;
use crate::tracking::Cut;

const SIZE: u64 = 1 << 20;
/// Whatever is pending will do.
const ANY: CutRequest = CutRequest { max_age: Duration::MAX, application: false };

/// The group `shop` of machines that have one disk each, called like the machine; each has been cut once.
fn shop(dir: &Path, names: &[&str]) -> (Vec<Arc<Machine>>, Vec<Replica>) {
    let open = |name: &&str| {
        let disks = vec![settings(dir, name, SIZE, Some(1 << 30))];
        Machine::open_in(&MachineSettings { name: (*name).to_owned(), disks }, "boot").unwrap()
    };
    let machines: Vec<_> = names.iter().map(open).collect();
    let mut replicas: Vec<Replica> = names.iter().map(|_| Replica::default()).collect();
    for (machine, replica) in machines.iter().zip(&mut replicas) {
        replica.cycle(machine).unwrap();
    }
    Group::form("shop", &machines);
    (machines, replicas)
}

fn put(machine: &Machine, offset: u64, byte: u8) {
    write(&*machine.disks[0], offset, &[byte; 512]).unwrap();
}

fn label(cut: &Cut) -> Option<uuid::Uuid> {
    cut.group.as_ref().map(|group| group.cut)
}

/// Applies the share and releases it.
fn ship(machine: &Machine, replica: &mut Replica, request: &CutRequest) -> Cut {
    let cut = machine.cut_as(request).unwrap();
    cut.disks.iter().for_each(|disk| replica.apply(disk).unwrap());
    machine.release(cut.id).unwrap();
    cut
}

/// Write A on one machine and, after its reply, B on the other, thousands of times, while each machine is cut at its own
/// pace: no two points of one group cut have B without A.
#[test]
fn no_cut_of_a_group_has_a_write_without_what_it_depended_on() {
    let dir = tempfile::tempdir().unwrap();
    let (machines, replicas) = shop(dir.path(), &["a", "b"]);
    let (stop, writes) = (AtomicBool::new(false), AtomicU64::new(0));
    // The numbers in each lane, by group cut, of each machine.
    let seen: [Mutex<BTreeMap<uuid::Uuid, [u64; 4]>>; 2] = Default::default();
    std::thread::scope(|scope| {
        for lane in 0..4 {
            let (machines, stop, writes) = (&machines, &stop, &writes);
            scope.spawn(move || {
                for number in 1u64.. {
                    for machine in machines {
                        write(&*machine.disks[0], lane * 4096, &number.to_le_bytes()).unwrap();
                    }
                    writes.fetch_add(1, Ordering::SeqCst);
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                }
            });
        }
        let writes = &writes;
        let cutters = machines.iter().zip(replicas).zip(&seen).enumerate();
        let cutters: Vec<_> = cutters
            .map(|(at, ((machine, mut replica), seen))| {
                scope.spawn(move || {
                    let began = Instant::now();
                    let (mut last, mut cuts) = (None, 0);
                    let enough = || writes.load(Ordering::SeqCst) > 2000;
                    while began.elapsed() < Duration::from_secs(2) || cuts < 100 || !enough() {
                        cuts += 1;
                        let cut = ship(machine, &mut replica, &ANY);
                        assert!(last.replace(cut.time) < Some(cut.time), "time goes forward");
                        let numbers = std::array::from_fn(|lane| {
                            let bytes = &replica.disks[machine.name()][lane * 4096..lane * 4096 + 8];
                            u64::from_le_bytes(bytes.try_into().unwrap())
                        });
                        label(&cut).map(|id| seen.lock().unwrap().insert(id, numbers));
                        std::thread::sleep(Duration::from_millis(3 + 2 * at as u64));
                    }
                })
            })
            .collect();
        cutters.into_iter().for_each(|cutter| cutter.join().unwrap());
        stop.store(true, Ordering::SeqCst);
    });
    let [a, b] = seen.map(|seen| seen.into_inner().unwrap());
    let complete: Vec<_> = a.iter().filter_map(|(id, a)| b.get(id).map(|b| (a, b))).collect();
    assert!(complete.len() > 20, "{} complete cuts", complete.len());
    for (a, b) in complete {
        let holds = a.iter().zip(b).all(|(a, b)| a == b || *a == b + 1);
        assert!(holds, "one group cut shows A {a:?} and B {b:?}");
    }
}

#[test]
fn a_member_takes_its_share_of_the_instant_later() {
    let dir = tempfile::tempdir().unwrap();
    let (machines, mut replicas) = shop(dir.path(), &["a", "b"]);
    put(&machines[1], 0, 1);
    let first = machines[0].cut_as(&ANY).unwrap();
    put(&machines[1], 0, 2);
    let share = ship(&machines[1], &mut replicas[1], &ANY);
    assert_eq!((label(&first), first.time), (label(&share), share.time));
    assert_eq!(share.group.unwrap().members, ["a", "b"]);
    assert_eq!(replicas[1].disks["b"][0], 1, "as it was at the instant");
    let next = ship(&machines[1], &mut replicas[1], &ANY);
    assert_ne!(label(&next), label(&first), "a share is taken once");
    assert_eq!(replicas[1].disks["b"], contents(dir.path(), "b"));
}

#[test]
fn who_asks_for_something_newer_gets_a_new_cut() {
    let dir = tempfile::tempdir().unwrap();
    let (machines, mut replicas) = shop(dir.path(), &["a", "b"]);
    let first = machines[0].cut_as(&ANY).unwrap();
    put(&machines[1], 0, 3);
    let now = ship(&machines[1], &mut replicas[1], &CutRequest::default());
    assert!(label(&now).is_some() && label(&now) != label(&first));
    assert_eq!(replicas[1].disks["b"][0], 3);
    // The pending share of the other is of that newer cut.
    assert_eq!(label(&machines[0].cut_as(&ANY).unwrap()), label(&now));
}

#[test]
fn a_release_leaves_the_pending_share_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (machines, mut replicas) = shop(dir.path(), &["a", "b"]);
    put(&machines[1], 0, 1);
    let out = machines[1].cut_as(&ANY).unwrap();
    replicas[1].apply(&out.disks[0]).unwrap();
    machines[0].cut_as(&ANY).unwrap();
    put(&machines[1], 4096, 2);
    let pending = machines[0].cut_as(&ANY).unwrap();
    machines[1].release(out.id).unwrap();
    put(&machines[1], 8192, 3);
    assert_eq!(machines[1].info().disks[0].dirty_bytes, 8192, "what was released is not dirty");
    let share = ship(&machines[1], &mut replicas[1], &ANY);
    assert_eq!(label(&share), label(&pending));
    assert_eq!(replicas[1].disks["b"][4096], 2);
    assert_eq!(replicas[1].disks["b"][8192], 0, "written after the instant");
    assert_eq!(machines[1].info().disks[0].dirty_bytes, 4096);
}

#[test]
fn a_cut_that_was_not_released_joins_the_share() {
    let dir = tempfile::tempdir().unwrap();
    let (machines, mut replicas) = shop(dir.path(), &["a", "b"]);
    put(&machines[1], 0, 1);
    let lost = machines[1].cut_as(&ANY).unwrap();
    ship(&machines[0], &mut replicas[0], &ANY);
    put(&machines[1], 4096, 2);
    ship(&machines[0], &mut replicas[0], &ANY);
    let share = machines[1].cut_as(&ANY).unwrap();
    assert_eq!(share.disks[0].segments.len(), 2);
    machines[1].release(lost.id).unwrap();
    assert_eq!(machines[1].info().disks[0].dirty_bytes, 8192, "an old cut's release is of no effect");
    machines[1].release(share.id).unwrap();
    assert_eq!(machines[1].info().disks[0].dirty_bytes, 0);
}

/// The other goes on without it, and it collects no segments.
#[test]
fn a_member_that_does_not_come_holds_nobody_up_and_grows_no_log() {
    let dir = tempfile::tempdir().unwrap();
    let (machines, mut replicas) = shop(dir.path(), &["a", "b"]);
    put(&machines[1], 0, 1);
    let first = ship(&machines[0], &mut replicas[0], &ANY);
    for round in 0..50 {
        put(&machines[1], 4096, round);
        let alone = ship(&machines[0], &mut replicas[0], &ANY);
        assert_eq!(alone.group, None);
        assert!(alone.notes[0].contains("b has not taken"), "{:?}", alone.notes);
    }
    let share = machines[1].cut_as(&ANY).unwrap();
    assert_eq!((share.disks[0].segments.len(), label(&share)), (1, label(&first)));
    let next = machines[1].cut_as(&ANY).unwrap();
    assert_eq!(next.disks[0].segments.len(), 2, "all that came after it is one segment");
    assert!(next.group.is_some());
}

#[test]
fn a_member_that_is_being_copied_is_left_out_and_takes_no_share() {
    let dir = tempfile::tempdir().unwrap();
    let (machines, mut replicas) = shop(dir.path(), &["a", "b"]);
    let early = ship(&machines[0], &mut replicas[0], &ANY);
    machines[1].begin_sync("b", None).unwrap();
    let alone = ship(&machines[0], &mut replicas[0], &ANY);
    assert_eq!(alone.notes, ["cut apart from its group shop: b/b is not exact yet"]);
    // Copied after the instant of the share that is pending: a point of that instant would be wrong.
    let closing = machines[1].cut_as(&ANY).unwrap();
    assert!(closing.time > early.time && label(&closing) != label(&early));
    machines[1].end_sync("b", closing.disks[0].tracking).unwrap();
    machines[1].release(closing.id).unwrap();
    assert!(machines[0].cut_as(&ANY).unwrap().group.is_some(), "together again");
}

/// Its copying begins when all that can be looked at before the instant has been.
#[test]
fn a_machine_that_begins_to_be_copied_is_left_out_at_the_instant() {
    let dir = tempfile::tempdir().unwrap();
    let (machines, _) = shop(dir.path(), &["a", "b"]);
    machines[1].begin_sync("b", None).unwrap();
    let taken = cut::cut(&[&machines[0], &machines[1]], 0, false).unwrap();
    assert!(matches!(&taken, Taken::Apart(why) if why.contains("b/b")), "{taken:?}");
}

/// The vault lacks what is pending: a power loss must find it marked.
#[test]
fn what_is_pending_stays_marked_until_it_is_released() {
    let dir = tempfile::tempdir().unwrap();
    let (machines, mut replicas) = shop(dir.path(), &["a", "b"]);
    let disk = &machines[1].disks[0];
    let is_marked = || {
        (0..3).for_each(|_| disk.clear_intent());
        disk.lock().intent.marked().covers(&(0..512))
    };
    put(&machines[1], 0, 1);
    ship(&machines[0], &mut replicas[0], &ANY);
    assert!(is_marked());
    ship(&machines[1], &mut replicas[1], &ANY);
    assert!(!is_marked(), "the vault has it");
}

#[test]
fn a_log_that_broke_voids_the_share() {
    let dir = tempfile::tempdir().unwrap();
    let (machines, mut replicas) = shop(dir.path(), &["a", "b"]);
    put(&machines[1], 0, 1);
    ship(&machines[0], &mut replicas[0], &ANY);
    machines[1].disks[0].lose_log("a test");
    assert_eq!(machines[1].info().disks[0].dirty_bytes, 4096, "nothing of it is forgotten");
    assert_eq!(machines[1].cut_as(&ANY).unwrap_err().kind, Kind::NotReady);
    replicas[1].cycle(&machines[1]).unwrap();
    assert_eq!(replicas[1].disks["b"], contents(dir.path(), "b"));
}

#[test]
fn a_log_folder_that_hangs_holds_up_its_own_machine_only() {
    let dir = tempfile::tempdir().unwrap();
    let (machines, mut replicas) = shop(dir.path(), &["a", "b"]);
    put(&machines[1], 0, 1);
    ship(&machines[1], &mut replicas[1], &ANY);
    ship(&machines[0], &mut replicas[0], &ANY);
    // As a thread does that makes a segment and does not come back.
    machines[1].preparing.store(true, Ordering::SeqCst);
    put(&machines[1], 0, 2);
    let alone = ship(&machines[0], &mut replicas[0], &ANY);
    assert!(alone.notes[0].contains("b: its change log has no segment"), "{:?}", alone.notes);
    assert_eq!(machines[1].cut_as(&ANY).unwrap_err().kind, Kind::Unavailable);
    machines[1].preparing.store(false, Ordering::SeqCst);
    assert!(ship(&machines[0], &mut replicas[0], &ANY).group.is_some());
}

#[test]
fn a_proxy_that_starts_again_forgets_the_share_and_loses_no_write() {
    let dir = tempfile::tempdir().unwrap();
    let (machines, mut replicas) = shop(dir.path(), &["a", "b"]);
    put(&machines[1], 0, 1);
    machines[0].cut_as(&ANY).unwrap();
    drop(machines);
    let disks = vec![settings(dir.path(), "b", SIZE, Some(1 << 30))];
    let again = Machine::open_in(&MachineSettings { name: "b".to_owned(), disks }, "boot").unwrap();
    assert_eq!(replicas[1].cycle(&again).unwrap(), [], "no copy is needed");
    assert_eq!(replicas[1].disks["b"], contents(dir.path(), "b"));
    again.disks[0].flush().unwrap();
}
