use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use jiff::Timestamp;
use nbd_proxy::tracking::CutDisk;
use uuid::Uuid;

use super::*;
use crate::cipher::Cipher;
use crate::delta::DeltaWriter;

fn cut(bytes: u64, records: u64) -> Cut {
    let path = "/nowhere".into();
    let segments = vec![SegmentRef { path, log: Uuid::nil(), segment: 1, records, bytes }];
    let disk = CutDisk { name: "d".to_owned(), size: 0, tracking: Uuid::nil(), segments };
    Cut { id: Uuid::nil(), time: Timestamp::UNIX_EPOCH, disks: vec![disk], ..Cut::default() }
}

fn delta() -> Encoded {
    let mut writer = DeltaWriter::new(1 << 16, &Cipher::None).unwrap();
    writer.begin_disk("d");
    writer.zero(0, 4096).unwrap();
    writer.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_take_turns_and_abandoned_ones_give_theirs_back() {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for _ in 0..10 {
        let (running, most) = (Arc::clone(&running), Arc::clone(&most));
        let turn = Turn::to_copy().await.unwrap();
        let packing = Packing::<()>::start(turn, move |exit| {
            most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
            thread::sleep(Duration::from_millis(5));
            running.fetch_sub(1, SeqCst);
            // Nobody takes them: the thread ends when it finds out.
            (0..3).try_for_each(|_| exit.hand_on(delta(), ()))
        });
        drop(packing.unwrap());
    }
    assert!(most.load(SeqCst) <= 2, "{most:?} at a time");
}

#[tokio::test(flavor = "multi_thread")]
async fn small_cuts_do_not_wait_for_large_ones() {
    for large in [cut(SMALL_BYTES + 1, 1), cut(1, SMALL_RECORDS + 1)] {
        let held = Turn::to_cut(&large).await.unwrap();
        let soon = Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, Turn::to_cut(&large)).await.is_err(), "one large cut at a time");
        Turn::to_cut(&cut(SMALL_BYTES, SMALL_RECORDS)).await.unwrap();
        drop(held);
        Turn::to_cut(&large).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_packed_waits_for_room() {
    let all = ROOM.acquire_many(ROOM_KIB).await.unwrap();
    let turn = Turn::to_copy().await.unwrap();
    let mut packing = Packing::start(turn, |exit| exit.hand_on(delta(), 7)).unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(20), packing.packed.recv()).await.is_err());
    drop(all);
    assert_eq!(packing.packed.recv().await.unwrap().tag, 7);
    packing.end().await.unwrap();
}
