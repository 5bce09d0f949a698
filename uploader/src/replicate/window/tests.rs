use super::*;

fn at(text: &str) -> ZonedDateTime {
    text.parse().unwrap()
}

fn window(from: &str, to: &str) -> ResyncWindow {
    ResyncWindow::Daily { from: from.parse().unwrap(), to: to.parse().unwrap() }
}

#[test]
fn a_window_over_midnight_is_open_in_the_evening_and_at_night() {
    let night = window("18:30", "06:00");
    for open in ["18:30:00", "23:59:59", "00:00:00", "05:59:59"] {
        assert_eq!(night.opens(&at(&format!("2026-03-01T{open}+01:00[Europe/Stockholm]"))), None, "{open}");
    }
    let noon = at("2026-03-01T12:00:00+01:00[Europe/Stockholm]");
    assert_eq!(night.opens(&noon), Some(at("2026-03-01T18:30:00+01:00[Europe/Stockholm]")));
    let six = at("2026-03-01T06:00:00+01:00[Europe/Stockholm]");
    assert_eq!(night.opens(&six), Some(at("2026-03-01T18:30:00+01:00[Europe/Stockholm]")));
}

#[test]
fn a_window_within_a_day_opens_tomorrow_when_it_is_over() {
    let noon = window("12:00", "13:00");
    let after = at("2026-12-31T13:00:00+01:00[Europe/Stockholm]");
    assert_eq!(noon.opens(&after), Some(at("2027-01-01T12:00:00+01:00[Europe/Stockholm]")));
    assert_eq!(noon.opens(&at("2026-12-31T12:59:59+01:00[Europe/Stockholm]")), None);
    assert_eq!(ResyncWindow::Always.opens(&after), None);
}

#[test]
fn a_window_that_opens_in_the_hour_that_is_left_out_opens_after_it() {
    // On this day the clock goes from 02:00 to 03:00.
    let window = window("02:30", "02:45");
    let opens = window.opens(&at("2026-03-29T01:00:00+01:00[Europe/Stockholm]")).unwrap();
    assert_eq!(opens, at("2026-03-29T03:30:00+02:00[Europe/Stockholm]"));
}
