use super::*;

fn at(boot: u64, wall: u64) -> Moment {
    Moment::new(Duration::from_secs(boot), Duration::from_secs(wall))
}

#[test]
fn what_passed_is_the_larger_of_what_the_clocks_say_and_never_less_than_nothing() {
    let passed = |from: Moment, to: Moment| to.since(from).as_secs();
    assert_eq!(passed(at(10, 1000), at(12, 1002)), 2);
    assert_eq!(passed(at(10, 1000), at(12, 5000)), 4000, "the host was a machine that stood still");
    assert_eq!(passed(at(10, 5000), at(12, 1000)), 2, "the wall's clock was put back");
    assert_eq!(passed(at(10, 1000), at(4000, 1002)), 3990);
    assert_eq!(passed(at(10, 1000), at(9, 900)), 0);
}

#[test]
fn this_host_s_clock_counts_what_passes() {
    let clock = Elapsed::of_host();
    let before = clock.now();
    std::thread::sleep(Duration::from_millis(20));
    assert!(clock.now().since(before) >= Duration::from_millis(20));
}
