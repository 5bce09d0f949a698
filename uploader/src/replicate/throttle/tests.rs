use super::*;

#[test]
fn the_limit_is_kept_over_any_second() {
    let throttle = Throttle::new(Some(10 << 20));
    let start = Instant::now();
    let (mut now, mut read) = (start, Vec::new());
    for _ in 0..100 {
        now = throttle.due(1 << 20, now).unwrap_or(now);
        read.push(now);
    }
    let took = read[99].duration_since(start).as_millis();
    assert!((9890..=9900).contains(&took), "100 MiB at 10 MiB/s, the last of them overdrawn: {took} ms");
    for window in read.windows(12) {
        assert!(window[11] - window[0] >= Duration::from_secs(1), "11 MiB within a second");
    }
    // An idle hour saves up a tenth of a second.
    now += Duration::from_secs(3600);
    assert_eq!(throttle.due(1 << 20, now), None);
    assert_eq!(throttle.due(1 << 20, now), None);
    assert!(throttle.due(1 << 20, now).is_some());
}

#[test]
fn without_a_limit_nobody_waits() {
    let throttle = Throttle::new(None);
    assert_eq!(throttle.due(u64::MAX, Instant::now()), None);
}
