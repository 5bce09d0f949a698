//! The label `application` is given to the machine whose guest was still, and to no other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::*;
use crate::disk::testing::{Replica, settings};
use crate::machine::MachineSettings;
use crate::machine::group::Group;
use crate::tracking::CutRequest;
use crate::{Error, Kind};

const CONSISTENT: CutRequest = CutRequest { max_age: Duration::ZERO, application: true };

/// A guest that fails as told, and counts how often it was made to hold still and let go.
#[derive(Clone, Debug, Default)]
struct Fake {
    deaf: bool,
    restless: bool,
    held: Arc<AtomicU32>,
    released: Arc<AtomicU32>,
}

impl Guest for Fake {
    fn hold(&self) -> Result<Box<dyn Held>> {
        if self.deaf {
            return Err(Error::new(Kind::Unavailable, "agent", "does not answer"));
        }
        self.held.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(self.clone()))
    }
}

impl Held for Fake {
    fn release(self: Box<Self>) -> Result<()> {
        self.released.fetch_add(1, Ordering::SeqCst);
        match self.restless {
            true => Err(Error::new(Kind::NotReady, "agent", "thawed in between")),
            false => Ok(()),
        }
    }
}

fn machine(dir: &std::path::Path, name: &str, guest: Option<&Fake>) -> Arc<Machine> {
    let disks = vec![settings(dir, name, 1 << 20, Some(1 << 30))];
    let machine = Machine::open_in(&MachineSettings { name: name.to_owned(), disks }, "boot").unwrap();
    if let Some(guest) = guest {
        machine.attend(Box::new(guest.clone()));
    }
    Replica::default().cycle(&machine).unwrap();
    machine
}

#[test]
fn a_guest_that_was_still_until_the_end_gives_the_label() {
    let dir = tempfile::tempdir().unwrap();
    let guest = Fake::default();
    let machine = machine(dir.path(), "m", Some(&guest));
    assert!(!machine.cut().unwrap().application, "nobody asked");
    assert_eq!(guest.held.load(Ordering::SeqCst), 0);
    let cut = machine.cut_as(&CONSISTENT).unwrap();
    assert!(cut.application && cut.notes.is_empty());
}

#[test]
fn without_a_believable_guest_the_cut_is_crash_consistent_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let deaf = Fake { deaf: true, ..Fake::default() };
    let restless = Fake { restless: true, ..Fake::default() };
    for (name, guest, why) in [
        ("a", Some(&deaf), "does not answer"),
        ("b", Some(&restless), "thawed in between"),
        ("c", None, "no guest agent configured"),
    ] {
        let cut = machine(dir.path(), name, guest).cut_as(&CONSISTENT).unwrap();
        assert!(!cut.application);
        assert!(
            cut.notes[0].starts_with("crash-consistent: ") && cut.notes[0].contains(why),
            "{:?}",
            cut.notes
        );
    }
}

/// A cut that cannot be made must not leave its guest frozen.
#[test]
fn a_guest_is_let_go_when_the_cut_fails() {
    let dir = tempfile::tempdir().unwrap();
    let guest = Fake::default();
    let machine = machine(dir.path(), "m", Some(&guest));
    machine.disks[0].lose_log("a test");
    machine.cut_as(&CONSISTENT).unwrap_err();
    assert_eq!((guest.held.load(Ordering::SeqCst), guest.released.load(Ordering::SeqCst)), (1, 1));
}

#[test]
fn a_group_is_held_still_as_one_and_each_share_has_its_own_label() {
    let dir = tempfile::tempdir().unwrap();
    let (still, deaf) = (Fake::default(), Fake { deaf: true, ..Fake::default() });
    let a = machine(dir.path(), "a", Some(&deaf));
    let b = machine(dir.path(), "b", Some(&still));
    Group::form("shop", &[a.clone(), b.clone()]);
    let cut = a.cut_as(&CONSISTENT).unwrap();
    assert!(!cut.application && cut.group.is_some());
    let share = b.cut_as(&CutRequest { max_age: Duration::MAX, application: true }).unwrap();
    assert!(share.application && share.group == cut.group);
    // A share of a cut for which nobody was held still does not do for who wants that.
    let plain = a.cut().unwrap();
    let own = b.cut_as(&CutRequest { max_age: Duration::MAX, application: true }).unwrap();
    assert!(own.application && own.group != plain.group);
}
