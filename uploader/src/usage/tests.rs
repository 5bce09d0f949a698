use super::*;

#[test]
fn days_add_up_are_kept_over_restarts_and_forgotten_after_a_year() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Usage::load(dir.path(), "m").unwrap(), Usage::default());
    let day: Date = "2026-11-23".parse().unwrap();
    let some = Counts { puts: 2, bytes_up: 1_000, ..Counts::default() };
    let mut usage = Usage::default();
    usage.add(day, some);
    usage.add(day, some);
    usage.add(day.tomorrow().unwrap(), some);
    usage.save(dir.path(), "m").unwrap();
    let mut usage = Usage::load(dir.path(), "m").unwrap();
    assert_eq!((usage.days[&day].puts, usage.days[&day].bytes_up), (4, 2_000));
    assert_eq!(usage.days.len(), 2);
    day.series(jiff::Span::new().days(1)).take(500).for_each(|day| usage.add(day, some));
    assert!(usage.days.len() == DAYS && !usage.days.contains_key(&day));

    std::fs::write(dir.path().join("m.usage.json"), "{ torn").unwrap();
    assert_eq!(Usage::load(dir.path(), "m").unwrap(), Usage::default());
}
