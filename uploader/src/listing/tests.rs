use nbd_proxy::tracking::GroupCut;
use uuid::Uuid;

use super::*;
use crate::commit::{self, Outcome};
use crate::elapsed::Elapsed;
use crate::line::{Line, Writer};
use crate::point::PointDisk;
use crate::testing::memory_vault;

fn id(generation: u64, number: u64) -> PointId {
    PointId { generation, number }
}

async fn append_entry(line: &Line, header: Header) {
    let mut writer = Writer::new(line.clone(), header.owner(), Elapsed::of_host());
    let outcome = commit::append(&mut writer, header, &[], None).await.unwrap();
    assert!(matches!(outcome, Outcome::Committed(_)));
}

/// Appends an entry; entry `number` is of second `number`.
async fn append(vault: &Vault, generation: u64, number: u64, kind: EntryKind, parent: Option<PointId>) {
    let disk = PointDisk {
        name: "root".to_owned(),
        size: 4096,
        tracking: Uuid::nil(),
        whole: true,
        unreadable: Vec::new(),
    };
    let header = Header {
        machine: "m".to_owned(),
        number,
        generation,
        writer: Uuid::from_u128(generation.into()),
        host: "here".to_owned(),
        kind,
        parent,
        parent_mark: None,
        time: Timestamp::from_second(i64::try_from(number).unwrap()).unwrap(),
        disks: if kind == EntryKind::Claim { Vec::new() } else { vec![disk] },
        bytes: 0,
        logical: 0,
        group: None,
    };
    append_entry(&commit::line(vault, "m"), header).await;
}

/// Claim, points 2 to 4; a second generation forks from 3: claim 5, points 6 and 7; a third claim, from 6, without points.
async fn forked() -> Vault {
    let vault = memory_vault().await;
    append(&vault, 1, 1, EntryKind::Claim, None).await;
    for number in 2..5 {
        append(&vault, 1, number, EntryKind::Crash, (number > 2).then(|| id(1, number - 1))).await;
    }
    append(&vault, 2, 5, EntryKind::Claim, Some(id(1, 3))).await;
    append(&vault, 2, 6, EntryKind::Crash, Some(id(1, 3))).await;
    append(&vault, 2, 7, EntryKind::Crash, Some(id(2, 6))).await;
    vault
}

async fn resolved(vault: &Vault, name: &str) -> Result<String> {
    resolve(vault, "m", &name.parse().unwrap()).await.map(|point| point.id.to_string())
}

#[tokio::test]
async fn points_are_listed_oldest_first_and_claims_are_not() {
    let vault = forked().await;
    assert_eq!(machines(&vault).await.unwrap(), ["m"]);
    let points = points(&vault, "m").await.unwrap();
    let ids: Vec<_> = points.iter().map(|point| point.id.to_string()).collect();
    assert_eq!(ids, ["g1-2", "g1-3", "g1-4", "g2-6", "g2-7"]);
    assert_eq!((points[0].sequence, points[0].disks[0].size), (2, 4096));
    let json = serde_json::to_value(&points[3]).unwrap();
    assert_eq!((json["id"].as_str(), json["kind"].as_str()), (Some("g2-6"), Some("crash")));
    let lost: Vec<_> = points.iter().filter(|point| point.branch).map(|point| point.sequence).collect();
    assert_eq!(lost, [4], "what lies between a claim and the point that it forks from");
}

#[tokio::test]
async fn a_point_is_found_by_id_by_time_and_as_the_latest() {
    let vault = forked().await;
    assert_eq!(resolved(&vault, "latest").await.unwrap(), "g2-7");
    assert_eq!(resolved(&vault, "g1-4").await.unwrap(), "g1-4", "a point of a lost branch has its id");
    assert_eq!(resolved(&vault, "1970-01-01T00:00:06Z").await.unwrap(), "g2-6");
    assert_eq!(
        resolved(&vault, "1970-01-01T00:00:05Z").await.unwrap(),
        "g1-3",
        "4 is on the branch that lost"
    );
    assert_eq!(resolved(&vault, "1970-01-01T00:00:02Z").await.unwrap(), "g1-2");
    append(&vault, 3, 8, EntryKind::Claim, Some(id(2, 6))).await;
    assert_eq!(
        resolved(&vault, "latest").await.unwrap(),
        "g2-6",
        "the fork point, until there is a newer one"
    );
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let vault = forked().await;
    for missing in ["g1-99", "g2-4", "g1-5", "1970-01-01T00:00:01Z"] {
        let error = resolved(&vault, missing).await.unwrap_err();
        assert_eq!((error.kind, error.object.as_str()), (Kind::NotFound, "m"), "{missing}: {error}");
        assert!(error.message.contains("point"), "{error}");
    }
    let unknown = resolve(&vault, "x", &PointName::Id(id(1, 2))).await.unwrap_err();
    assert!(unknown.message.contains("no such machine"), "{unknown}");
    assert_eq!(points(&vault, "x").await.unwrap_err().kind, Kind::NotFound);
    assert_eq!(points(&vault, "../x").await.unwrap_err().kind, Kind::InvalidInput);
    assert_eq!("soon".parse::<PointName>().unwrap_err().kind, Kind::InvalidInput);
}

/// Appends point `number` of `machine`, its share of the cut `cut` of a and b.
async fn append_share(vault: &Vault, machine: &str, number: u64, kind: EntryKind, cut: u128) {
    let members = ["a", "b"].map(str::to_owned).to_vec();
    let header = Header {
        machine: machine.to_owned(),
        number,
        generation: 1,
        writer: Uuid::nil(),
        host: "here".to_owned(),
        kind,
        parent: (number > 1).then(|| id(1, number - 1)),
        parent_mark: None,
        time: Timestamp::UNIX_EPOCH,
        disks: Vec::new(),
        bytes: 0,
        logical: 0,
        group: Some(GroupCut { name: "shop".to_owned(), cut: Uuid::from_u128(cut), members }),
    };
    append_entry(&commit::line(vault, machine), header).await;
}

#[tokio::test]
async fn points_of_a_group_say_whether_the_group_has_the_whole_cut() {
    let vault = memory_vault().await;
    append_share(&vault, "a", 1, EntryKind::Crash, 11).await;
    let complete = async |machine: &str| -> Vec<_> {
        let points = points(&vault, machine).await.unwrap();
        points.into_iter().map(|point| point.group.unwrap().complete.unwrap()).collect()
    };
    assert_eq!(complete("a").await, [false], "the other has no line yet");
    append_share(&vault, "b", 1, EntryKind::Crash, 12).await;
    append_share(&vault, "a", 2, EntryKind::Crash, 12).await;
    append_share(&vault, "a", 3, EntryKind::Crash, 13).await;
    assert_eq!(complete("a").await, [false, true, false]);
    assert_eq!(complete("b").await, [true]);
}

#[tokio::test]
async fn the_newest_application_consistent_point_has_a_name() {
    let vault = memory_vault().await;
    append_share(&vault, "m", 1, EntryKind::Crash, 1).await;
    let none = resolved(&vault, "latest-app-consistent").await.unwrap_err();
    assert_eq!(none.kind, Kind::NotFound);
    append_share(&vault, "m", 2, EntryKind::Application, 2).await;
    append_share(&vault, "m", 3, EntryKind::Application, 3).await;
    append_share(&vault, "m", 4, EntryKind::Crash, 4).await;
    assert_eq!(resolved(&vault, "latest-app-consistent").await.unwrap(), "g1-3");
    assert_eq!(resolved(&vault, "latest").await.unwrap(), "g1-4");
}

#[tokio::test]
async fn a_header_larger_than_the_first_read_is_read_whole() {
    let vault = memory_vault().await;
    let disk = |n: u32| PointDisk {
        name: format!("disk{n}"),
        size: 1,
        tracking: Uuid::nil(),
        whole: true,
        unreadable: Vec::new(),
    };
    let header = Header {
        machine: "m".to_owned(),
        number: 1,
        generation: 1,
        writer: Uuid::nil(),
        host: "here".to_owned(),
        kind: EntryKind::Crash,
        parent: None,
        parent_mark: None,
        time: Timestamp::UNIX_EPOCH,
        disks: (0..500).map(disk).collect(),
        bytes: 0,
        logical: 0,
        group: None,
    };
    append_entry(&commit::line(&vault, "m"), header).await;
    assert_eq!(points(&vault, "m").await.unwrap()[0].disks.len(), 500);
}
