//! The scenario of the recipe, both directions, at full size.

use rowsync_harness::fixture::Fixture;
use rowsync_harness::scenario::Scenario;

#[test]
fn both_sides_are_equal_after_every_step_and_after_an_outage() {
    let fixture = Fixture::new("recipe");
    fixture.recipe_tables();
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    fixture.link(&fixture.right, &fixture.left, "dst", &[]);
    fixture.recipe_triggers("dst");
    let scenario = Scenario {
        left: &fixture.left,
        right: &fixture.right,
        rows: 10_000,
    };
    scenario
        .run(&mut |_| ())
        .unwrap_or_else(|error| panic!("{error:#}"));
}

/// The demonstration's last part: rows that were there before, copied while they are written.
#[test]
fn a_table_with_rows_is_copied_while_it_is_written() {
    let fixture = Fixture::new("recipe_copy");
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    let scenario = Scenario {
        left: &fixture.left,
        right: &fixture.right,
        rows: 10_000,
    };
    scenario
        .copy(20_000, &mut |_| ())
        .unwrap_or_else(|error| panic!("{error:#}"));
}
