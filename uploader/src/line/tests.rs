use std::sync::Arc;

use nbd_proxy::Error;
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

#[tokio::test]
async fn of_two_writers_one_wins_and_the_other_learns_who() {
    let line = line(Arc::new(InMemory::new()));
    let (a, b) = (owner(1), owner(2));
    let (first, second) = tokio::join!(line.append(1, a, entry(a, "a")), line.append(1, b, entry(b, "b")));
    match (first.unwrap(), second.unwrap()) {
        (Appended::Created, Appended::Foreign(won)) => assert_eq!(won, entry(a, "a")),
        (Appended::Foreign(won), Appended::Created) => assert_eq!(won, entry(b, "b")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_writer_that_stalled_between_deciding_and_writing_loses() {
    let line = line(Arc::new(InMemory::new()));
    let (stalled, quick) = (owner(1), owner(2));
    assert_eq!(line.append(1, stalled, entry(stalled, "1")).await.unwrap(), Appended::Created);
    // It decides to write entry 2, and stalls; the line goes on without it.
    let late = entry(stalled, "2");
    for number in 2..5 {
        assert_eq!(line.append(number, quick, entry(quick, "q")).await.unwrap(), Appended::Created);
    }
    assert_eq!(line.append(2, stalled, late).await.unwrap(), Appended::Foreign(entry(quick, "q")));
    assert_eq!(line.find_head().await.unwrap(), 4);
}

#[tokio::test]
async fn a_lost_reply_is_found_to_be_ours() {
    let memory = Arc::new(InMemory::new());
    let a = owner(1);
    let lossy =
        line(Faulty::new(memory, |number, _, _| if number == 0 { Fault::After } else { Fault::None }));
    assert_eq!(lossy.append(1, a, entry(a, "first")).await.unwrap_err().kind, Kind::Unavailable);
    assert_eq!(lossy.append(1, a, entry(a, "second")).await.unwrap(), Appended::Ours(entry(a, "first")));
    assert_eq!(lossy.probe(1, a).await.unwrap(), Some(Appended::Ours(entry(a, "first"))));
    assert_eq!(lossy.probe(2, a).await.unwrap(), None);
}

#[tokio::test]
async fn the_same_writer_in_another_generation_is_foreign() {
    let line = line(Arc::new(InMemory::new()));
    let old = owner(1);
    let new = Owner { generation: 2, ..old };
    line.append(1, new, entry(new, "new")).await.unwrap();
    assert!(matches!(line.append(1, old, entry(old, "old")).await.unwrap(), Appended::Foreign(_)));
}

#[tokio::test]
async fn a_put_that_failed_before_it_happened_can_be_repeated() {
    let a = owner(1);
    let plan =
        |number, ask, _: &str| if number == 0 && ask == Ask::Put { Fault::Before } else { Fault::None };
    let line = line(Faulty::new(Arc::new(InMemory::new()), plan));
    line.append(1, a, entry(a, "x")).await.unwrap_err();
    assert_eq!(line.append(1, a, entry(a, "x")).await.unwrap(), Appended::Created);
    assert_eq!(line.find_head().await.unwrap(), 1);
}
