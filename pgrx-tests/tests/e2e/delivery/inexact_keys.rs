//! Keys that are equal though their texts are not: what moves from one to the other arrives as it
//! does where the text tells.

use crate::support::common::{deal, one_way, run, same};

#[test]
fn rows_move_to_keys_that_others_have_left_under_another_spelling() {
    for mode in ["sync", "queue"] {
        for key in ["primary key", "primary key deferrable"] {
            let options = format!(r#"{{"mode": "{mode}"}}"#);
            let fixture = one_way("loose", &format!("id numeric {key}, v text"), &options);
            let mut client = fixture.left.client();
            run(
                &mut client,
                "insert into t values (9, 'a'), (10, 'b'), (11.0, 'c')",
            );
            assert!(deal(&fixture, "100"));
            for sql in [
                // Each takes the place of the one before: what becomes 10.0 that of 10.
                "update t set id = id - 1",
                "update t set id = id - 1, v = v || '!'",
                "begin; update t set id = 20.0 where id = 9; update t set id = 9.000 where id = 8; commit",
                "update t set id = 9.00 where id = 9",
                "begin; update t set id = 9.0, v = 'd' where id = 9; update t set v = 'e' where id = 9; commit",
                "begin; delete from t where id = 9; insert into t values (9, 'f'); commit",
            ] {
                run(&mut client, sql);
                assert!(deal(&fixture, "100"));
                assert_eq!(same(&fixture, "t").len(), 3, "{mode}, {key}: {sql}");
            }
        }
    }
}
