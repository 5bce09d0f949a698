use std::sync::Arc;

use nbd_proxy::Kind;
use object_store::memory::InMemory;

use super::*;
use crate::testing::{Lie, Lying};

fn verdict_of(report: &Report, name: &str) -> Verdict {
    report.rows.iter().find(|row| row.name == name).unwrap().verdict
}

#[tokio::test]
async fn a_store_that_keeps_its_word_passes_every_row_and_is_left_clean() {
    let store = Store::new(Arc::new(InMemory::new()), "memory://test");
    let report = check(&store).await;
    assert_eq!(report.verdict(), Verdict::Pass, "{:#?}", report.rows);
    assert!(report.refusal().is_none() && report.left == 0);
    assert!(store.list("check").await.unwrap().is_empty());
    assert!(report.requests > 1_000);
}

/// Each lie, the row that must find it, and the verdict there. All rows that say nothing of it must pass.
#[tokio::test]
async fn each_way_not_to_keep_it_is_found_by_its_row() {
    let lies = [
        (Lie::IgnoresCondition, "create if absent", Verdict::Fail),
        (Lie::ChecksBeforeItWrites, "race for one name", Verdict::Fail),
        (Lie::ShortensRanges, "ranges", Verdict::Fail),
        (Lie::RefusesLarge, "large objects", Verdict::Fail),
        (Lie::ListsLate, "listing", Verdict::Fail),
        (Lie::SaysForbiddenForMissing, "missing objects", Verdict::Fail),
        (Lie::ClockOff(100), "clock", Verdict::Warn),
        (Lie::ClockOff(1_000), "clock", Verdict::Fail),
        (Lie::ClockOff(-1_000), "clock", Verdict::Fail),
        (Lie::RefusesDeletions, "deletion", Verdict::Warn),
        (Lie::KeepsVersions, "deletion", Verdict::Note),
        (Lie::Archives, "storage class", Verdict::Fail),
        (Lie::PutsOff, "many requests at once", Verdict::Warn),
    ];
    for (lie, row, verdict) in lies {
        let report = check(&Store::new(Lying::new(lie), "memory://test")).await;
        assert_eq!(verdict_of(&report, row), verdict, "{lie:?}: {:#?}", report.rows);
        assert!(report.rows.iter().all(|row| row.verdict == Verdict::Pass || !row.means.is_empty()));
        let refused = report.refusal().map(|error| error.kind);
        assert_eq!(refused, (verdict == Verdict::Fail).then_some(Kind::InvalidInput), "{lie:?}");
        if matches!(lie, Lie::RefusesDeletions) {
            assert!(report.left > 1_000, "{} objects stay", report.left);
        }
    }
}

#[tokio::test]
async fn what_cannot_be_tried_is_said_not_to_be() {
    let report = check(&Store::new(Lying::new(Lie::RefusesWrites), "memory://test")).await;
    assert_eq!(verdict_of(&report, "write and read back"), Verdict::Fail);
    let rest: Vec<_> = report.rows.iter().skip(1).map(|row| row.verdict).collect();
    assert!(rest.len() == 11 && rest.iter().all(|verdict| *verdict == Verdict::Unknown));
}
