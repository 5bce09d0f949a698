use super::*;

#[test]
fn names_sort_as_numbers_do_and_parse_back() {
    let folder = line_folder("web1");
    assert_eq!(line_entry(&folder, 7), "machines/web1/line/00000000000000000007");
    assert!(line_entry(&folder, 9) < line_entry(&folder, 10));
    assert_eq!(parse_line_entry(&line_entry(&folder, u64::MAX)), Some(u64::MAX));
    assert_eq!(parse_line_entry("machines/web1/line/7"), None);
    assert_eq!(parse_line_entry("machines/web1/line/99999999999999999999"), None);
    assert_eq!(parse_line_entry("machines/web1/line/0000000000000000000x"), None);
}

#[test]
fn a_delta_is_never_named_twice() {
    assert_ne!(new_delta(3, None), new_delta(3, None));
    assert!(new_delta(3, None).starts_with("00000000000000000003-"));
}

#[test]
fn point_ids_parse_back_and_have_one_spelling() {
    let id = PointId { generation: 2, number: 41 };
    assert_eq!(id.to_string(), "g2-41");
    assert_eq!("g2-41".parse::<PointId>().unwrap(), id);
    for wrong in ["", "g", "g2", "2-41", "g02-41", "g2-+1", "g2-41 ", "g2--1", "g99999999999999999999-1"] {
        assert_eq!(wrong.parse::<PointId>().unwrap_err().kind, Kind::InvalidInput, "{wrong}");
    }
}

#[test]
fn names_that_no_store_could_hold_are_refused() {
    for fine in ["web1", "db-2.example_org"] {
        check_name("machine", fine).unwrap();
    }
    for wrong in ["", ".hidden", "a/b", "a b", "ä", "..", &"x".repeat(129)] {
        assert_eq!(check_name("machine", wrong).unwrap_err().kind, Kind::InvalidInput, "{wrong}");
    }
}

#[test]
fn a_deltas_name_says_for_which_entry_it_was_made() {
    assert_eq!(parse_delta(&new_delta(17, None)), Some(17));
    for wrong in
        ["", "17", "00000000000000000017", "00000000000000000017-", "17-0123456789abcdef0123456789abcdef"]
    {
        assert_eq!(parse_delta(wrong), None, "{wrong}");
    }
    let key = catalogue("m", 3);
    assert_eq!(
        (key.as_str(), parse_line_entry(&key)),
        ("machines/m/catalogue/00000000000000000003", Some(3))
    );
}

#[test]
fn branches_have_names_of_their_own() {
    let writer = Uuid::from_u128(0xab);
    let folder = branch_folder("m", 3, writer);
    assert_eq!(folder, "machines/m/branches/00000000000000000003-000000000000000000000000000000ab");
    assert_eq!(parse_branch(folder.rsplit('/').next().unwrap()), Some((3, writer)));
    for wrong in ["", "3-000000000000000000000000000000ab", "00000000000000000003-ab", "00000000000000000003"]
    {
        assert_eq!(parse_branch(wrong), None, "{wrong}");
    }
    assert!(
        new_branch_delta(PointId { generation: 3, number: 7 }, None).starts_with("g3-00000000000000000007-")
    );
}
