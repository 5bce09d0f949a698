mod interleavings;
mod world;

use std::sync::{Arc, Mutex};

use object_store::memory::InMemory;

use super::*;
use crate::testing::{Ask, Fault, Faulty};

/// An entry of these tests: the writer's id and its generation, then anything.
fn entry(owner: Owner, content: &str) -> Bytes {
    let mut bytes = owner.writer.as_bytes().to_vec();
    bytes.push(u8::try_from(owner.generation).unwrap());
    bytes.extend_from_slice(content.as_bytes());
    bytes.into()
}

fn owner_of(name: &Named, entry: &[u8]) -> Result<Owner> {
    let (writer, rest) = entry.split_at_checked(16).ok_or_else(|| Error::corrupt(&name.object, "short"))?;
    Ok(Owner { writer: Uuid::from_slice(writer).unwrap(), generation: rest[0].into() })
}

fn owner(generation: u64) -> Owner {
    Owner { writer: Uuid::new_v4(), generation }
}

fn line(store: Arc<dyn object_store::ObjectStore>) -> Line {
    Line::new(Store::new(store, "memory://test"), Cipher::None, "machines/m/line".to_owned(), owner_of)
}

/// `owner` at work on `line`, who has looked at its head.
async fn writer(line: &Line, owner: Owner, head: u64) -> Writer {
    let mut writer = Writer::new(line.clone(), owner, Elapsed::of_host());
    assert_eq!(writer.find(head).await.unwrap(), None);
    writer
}

fn at(number: u64, bytes: Bytes) -> Entry {
    Entry { number, bytes }
}

#[tokio::test]
async fn of_two_writers_one_wins_and_the_other_learns_who() {
    let line = line(Arc::new(InMemory::new()));
    let (a, b) = (owner(1), owner(2));
    let (mut first, mut second) = (writer(&line, a, 0).await, writer(&line, b, 0).await);
    let (first, second) = tokio::join!(first.append(1, entry(a, "a")), second.append(1, entry(b, "b")));
    match (first.unwrap(), second.unwrap()) {
        (Appended::Created, Appended::Foreign(won)) => assert_eq!(won, at(1, entry(a, "a"))),
        (Appended::Foreign(won), Appended::Created) => assert_eq!(won, at(1, entry(b, "b"))),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_writer_that_stalled_between_deciding_and_writing_loses() {
    let line = line(Arc::new(InMemory::new()));
    let (a, b) = (owner(1), owner(2));
    let mut stalled = writer(&line, a, 0).await;
    assert_eq!(stalled.append(1, entry(a, "1")).await.unwrap(), Appended::Created);
    // It decides to write entry 2, and stalls; the line goes on without it.
    let mut quick = writer(&line, b, 1).await;
    for number in 2..5 {
        assert_eq!(quick.append(number, entry(b, "q")).await.unwrap(), Appended::Created);
    }
    let late = stalled.append(2, entry(a, "2")).await.unwrap();
    assert_eq!(late, Appended::Foreign(at(2, entry(b, "q"))));
}

/// A clock that stands until it is moved.
#[derive(Clone, Default)]
struct Hands(Arc<Mutex<Duration>>);

impl Hands {
    fn clock(&self) -> Elapsed {
        let hands = self.clone();
        Elapsed::new(move || Moment::new(*hands.0.lock().unwrap(), Duration::ZERO))
    }

    fn advance(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }
}

#[tokio::test]
async fn a_stalled_writer_whose_name_was_freed_meanwhile_does_not_fall_for_it() {
    let (memory, hands) = (Arc::new(InMemory::new()), Hands::default());
    let line = line(memory.clone());
    let (a, b) = (owner(1), owner(2));
    let mut stalled = Writer::new(line.clone(), a, hands.clock());
    assert_eq!(stalled.find(0).await.unwrap(), None);
    assert_eq!(stalled.append(1, entry(a, "1")).await.unwrap(), Appended::Created);
    let mut quick = writer(&line, b, 1).await;
    for number in 2..5 {
        quick.append(number, entry(b, "q")).await.unwrap();
    }
    hands.advance(2 * BOUND);
    for number in 1..4 {
        line.store.delete(&line.key(number)).await.unwrap();
    }
    let newest = Appended::Foreign(at(4, entry(b, "q")));
    assert_eq!(stalled.append(2, entry(a, "2")).await.unwrap(), newest, "created, and yet not");
    assert!(line.read(2).await.unwrap().is_some(), "the store fell for it");
    // Nor does it when it finds what it wrote there.
    assert_eq!(stalled.append(2, entry(a, "2")).await.unwrap(), newest);
    let mut restarted = Writer::new(line, a, hands.clock());
    assert_eq!(restarted.find(1).await.unwrap(), Some(newest));
}

#[tokio::test]
async fn in_the_ordinary_case_an_append_is_one_request() {
    let (line, hands) = (line(Arc::new(InMemory::new())), Hands::default());
    let a = owner(1);
    let mut writer = Writer::new(line.clone(), a, hands.clock());
    assert_eq!(writer.find(0).await.unwrap(), None);
    let mut spent = async |number| {
        let before = line.store.counts();
        assert_eq!(writer.append(number, entry(a, "x")).await.unwrap(), Appended::Created);
        let spent = line.store.counts().since(before);
        (spent.puts, spent.gets, spent.lists)
    };
    for number in 1..100 {
        hands.advance(BOUND - Duration::from_secs(1));
        assert_eq!(spent(number).await, (1, 0, 0), "each append confirms the next");
    }
    hands.advance(BOUND);
    assert_eq!(spent(100).await, (1, 0, 1), "after a long stall it looks");
    assert_eq!(spent(101).await, (1, 0, 0));
}

#[tokio::test]
async fn a_lost_reply_is_found_to_be_ours() {
    let memory = Arc::new(InMemory::new());
    let a = owner(1);
    let plan = |_, ask, _: &str| if ask == Ask::Put { Fault::After } else { Fault::None };
    let lossy = line(Faulty::new(memory, plan));
    let mut losing = writer(&lossy, a, 0).await;
    assert_eq!(losing.append(1, entry(a, "first")).await.unwrap_err().kind, Kind::Unavailable);
    let ours = Appended::Ours(at(1, entry(a, "first")));
    assert_eq!(losing.append(1, entry(a, "second")).await.unwrap(), ours);
    assert_eq!(losing.find(0).await.unwrap(), Some(ours));
    assert_eq!(losing.find(1).await.unwrap(), None);
}

#[tokio::test]
async fn the_same_writer_in_another_generation_is_foreign() {
    let line = line(Arc::new(InMemory::new()));
    let old = owner(1);
    let new = Owner { generation: 2, ..old };
    let (mut old_writer, mut new_writer) = (writer(&line, old, 0).await, writer(&line, new, 0).await);
    new_writer.append(1, entry(new, "new")).await.unwrap();
    assert!(matches!(old_writer.append(1, entry(old, "old")).await.unwrap(), Appended::Foreign(_)));
}

#[tokio::test]
async fn a_put_that_failed_before_it_happened_can_be_repeated() {
    let a = owner(1);
    let tries = Mutex::new(0);
    let plan = move |_, ask, _: &str| {
        let mut tries = tries.lock().unwrap();
        *tries += u32::from(ask == Ask::Put);
        if ask == Ask::Put && *tries == 1 { Fault::Before } else { Fault::None }
    };
    let line = line(Faulty::new(Arc::new(InMemory::new()), plan));
    let mut writer = writer(&line, a, 0).await;
    writer.append(1, entry(a, "x")).await.unwrap_err();
    assert_eq!(writer.append(1, entry(a, "x")).await.unwrap(), Appended::Created);
    assert_eq!(line.newest_after(0).await.unwrap(), Some(at(1, entry(a, "x"))));
}
