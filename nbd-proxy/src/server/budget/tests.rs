use super::*;

#[test]
fn full_shares_last_as_long_as_the_budget_and_come_back() {
    let budget = Budget::new(2 * FULL.total() + 1);
    let first = budget.share();
    let second = budget.share();
    assert_eq!((first.sizes, second.sizes), (FULL, FULL));
    assert_eq!(budget.share().sizes, SMALL);
    drop(first);
    assert_eq!(budget.share().sizes, FULL);
}
