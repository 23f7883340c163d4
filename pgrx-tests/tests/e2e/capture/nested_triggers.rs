//! Other AFTER ROW triggers that change the rows being captured.

use rowsync_harness::fixture::{Fixture, fails};

use crate::support::common::run;
use crate::support::one_way::{assert_equal, one_way, queued};

/// An AFTER ROW trigger of the left table that runs this for each new row.
fn with_trigger(fixture: &Fixture, name: &str, body: &str) {
    fixture.left.exec(&format!(
        "create function {name}() returns trigger language plpgsql as \
           $f$ begin if pg_trigger_depth() = 1 then {body} end if; return null; end $f$; \
         create trigger {name} after insert or update on t for each row execute function {name}()"
    ));
}

const AGAIN: &str = "update t set v = v || '!' where id = new.id;";

#[test]
fn a_row_that_another_trigger_changes_again_arrives_as_it_ends() {
    let fixture = one_way("again", None, "{}");
    with_trigger(&fixture, "a_first", AGAIN);
    fixture
        .left
        .exec("insert into t values (7, 'x'), (8, 'y'); update t set v = 'z' where id < 3");
    assert_equal(&fixture);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn a_change_that_would_be_captured_after_a_later_one_is_refused() {
    let fixture = one_way("late", None, "{}");
    let before = fixture.checksum(&fixture.left, "t");
    // One that sorts first changes its own row; one that sorts last changes a row still to come.
    for (name, body, rename) in [
        ("a_first", AGAIN, Some("z_last")),
        (
            "b_next",
            "update t set v = v || '!' where id = new.id + 1;",
            None,
        ),
    ] {
        with_trigger(&fixture, name, body);
        if let Some(rename) = rename {
            fixture.left.exec(&format!(
                "alter trigger \"00_pg_rowsync_dst_dml\" on t rename to {rename}"
            ));
        }
        let error = fails(
            fixture
                .left
                .client()
                .batch_execute("insert into t values (7, 'x'), (8, 'y')"),
        );
        assert_eq!(error.code().code(), "27000", "{name}");
        assert!(
            error.hint().is_some_and(|h| h.contains("sorts before")),
            "{name}"
        );
        assert_eq!(fixture.checksum(&fixture.left, "t"), before, "{name}");
        assert_equal(&fixture);
        fixture.left.exec(&format!("drop trigger {name} on t"));
        if let Some(rename) = rename {
            fixture.left.exec(&format!(
                "alter trigger {rename} on t rename to \"00_pg_rowsync_dst_dml\""
            ));
        }
    }
}

#[test]
fn a_change_that_the_other_trigger_undid_does_not_count() {
    let fixture = one_way("undone", None, "{}");
    fixture
        .left
        .exec("alter trigger \"00_pg_rowsync_dst_dml\" on t rename to z_last");
    let undone =
        format!("begin {AGAIN} raise exception 'no'; exception when others then null; end;");
    with_trigger(&fixture, "a_first", &undone);
    fixture
        .left
        .exec("insert into t values (7, 'x'); update t set v = 'z' where id < 3");
    assert_equal(&fixture);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn a_key_share_lock_hides_no_later_change() {
    for lock in ["for key share", "for share", "for no key update"] {
        let fixture = one_way("shared", None, "{}");
        fixture
            .left
            .exec("alter trigger \"00_pg_rowsync_dst_dml\" on t rename to z_last");
        // Another session's lock goes on to the new row version, the trigger's change makes the two of them
        // one.
        let mut other = fixture.left.client();
        let key_share_only = lock == "for key share";
        let own = if key_share_only {
            String::new()
        } else {
            format!("perform from t where id = 1 {lock};")
        };
        with_trigger(&fixture, "a_first", &format!("{own} {AGAIN}"));
        if key_share_only {
            run(
                &mut other,
                &format!("begin; select from t where id = 1 {lock}"),
            );
        }
        let sql = "update t set v = 'z' where id = 1";
        let error = fails(fixture.left.client().batch_execute(sql));
        assert_eq!(error.code().code(), "27000", "{lock}");
        drop(other);
        assert_equal(&fixture);
        assert_eq!(queued(&fixture), 0);
    }
}

#[test]
fn a_lock_alone_is_no_change() {
    let fixture = one_way("locked", None, "{}");
    fixture
        .left
        .exec("alter trigger \"00_pg_rowsync_dst_dml\" on t rename to z_last");
    let undone = "begin update t set v = v || '!' where id = new.id; raise exception 'no';
        exception when others then perform from t where id = new.id for no key update; end;";
    with_trigger(&fixture, "a_first", undone);
    let mut other = fixture.left.client();
    run(
        &mut other,
        "begin; select from t where id = 1 for key share",
    );
    fixture.left.exec("update t set v = 'z' where id = 1");
    drop(other);
    assert_equal(&fixture);
    assert_eq!(queued(&fixture), 0);
}
