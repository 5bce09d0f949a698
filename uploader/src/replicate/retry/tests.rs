use super::*;
use crate::replicate::default_gaps;

const MINUTE: Duration = Duration::from_secs(60);

fn error(kind: Kind) -> Error {
    Error::new(kind, "vault", "no")
}

fn gaps_of(retry: &mut Retry, kind: Kind, count: usize) -> Vec<u64> {
    let gap = |_| match retry.after(&error(kind), Duration::ZERO) {
        Next::In(gap) => gap.as_secs() / 60,
        Next::Stop => panic!("stopped"),
    };
    (0..count).map(gap).collect()
}

#[test]
fn gaps_grow_as_they_are_told_and_begin_again_after_a_success() {
    let mut retry = Retry::new(default_gaps());
    assert_eq!(gaps_of(&mut retry, Kind::Unavailable, 8), [1, 2, 4, 8, 10, 30, 30, 30]);
    retry.begin_again();
    assert_eq!(gaps_of(&mut retry, Kind::Io, 2), [1, 2]);
}

/// The whole list: a new kind of error has to be put on one side or the other.
#[test]
fn what_no_retry_can_mend_stops_and_the_rest_does_not() {
    for (kind, stops) in [
        (Kind::Io, false),
        (Kind::Unavailable, false),
        (Kind::NoSpace, false),
        (Kind::NotReady, false),
        (Kind::NotFound, true),
        (Kind::Exists, true),
        (Kind::InUse, true),
        (Kind::Corrupt, true),
        (Kind::InvalidInput, true),
        (Kind::Fenced, true),
    ] {
        let next = Retry::new(default_gaps()).after(&error(kind), Duration::ZERO);
        assert_eq!(next == Next::Stop, stops, "{kind:?}");
    }
}

#[test]
fn a_refusal_loads_credentials_again_once() {
    let mut retry = Retry::new(default_gaps());
    let denied = error(Kind::Denied);
    assert_eq!(retry.after(&denied, MINUTE), Next::In(Duration::ZERO));
    assert_eq!(retry.after(&denied, MINUTE), Next::Stop);
    retry.begin_again();
    assert_eq!(retry.after(&denied, MINUTE), Next::In(Duration::ZERO), "an operator asked");
    assert_eq!(retry.after(&denied, 10 * MINUTE), Next::Stop);
    assert_eq!(retry.after(&denied, 11 * MINUTE), Next::In(Duration::ZERO), "the next token has expired");
    // What else goes wrong in between does not buy another try.
    assert_eq!(retry.after(&error(Kind::Unavailable), 12 * MINUTE), Next::In(MINUTE));
    assert_eq!(retry.after(&denied, 13 * MINUTE), Next::Stop);
}

#[test]
fn a_store_that_asks_for_more_than_the_gap_gets_it() {
    let mut retry = Retry::new(default_gaps());
    let asks = |seconds| error(Kind::Unavailable).source(store::LeftAlone(Duration::from_secs(seconds)));
    assert_eq!(retry.after(&asks(90), Duration::ZERO), Next::In(Duration::from_secs(90)));
    assert_eq!(retry.after(&asks(90), Duration::ZERO), Next::In(2 * MINUTE), "the gap is longer");
}
