//! The scenario of the recipe, both directions, at full size.

use rowsync_harness::scenario::Scenario;
use rowsync_harness::testbed::Testbed;

#[test]
fn both_sides_are_equal_after_every_step_and_after_an_outage() {
    let bed = Testbed::new("recipe");
    bed.recipe_tables();
    bed.link(&bed.left, &bed.right, "dst", &[]);
    bed.link(&bed.right, &bed.left, "dst", &[]);
    bed.recipe_triggers("dst");
    let scenario = Scenario { left: &bed.left, right: &bed.right, rows: 10_000 };
    scenario.run(&mut |_| ()).unwrap_or_else(|error| panic!("{error:#}"));
}
