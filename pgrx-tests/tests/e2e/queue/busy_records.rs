//! A failure that may pass by itself, and does not, is marked failed after a few tries: what does not depend
//! on it flows, and it comes right by itself.

use crate::support::common::{deal, mirror, one_way, records, rows, same, table};
use crate::support::reject_values;

const COLUMNS: &str = "id int primary key, v text";
const QUEUE: &str = r#"{"mode": "queue"}"#;

#[test]
fn a_record_that_stays_busy_keeps_nothing_else_waiting() {
    for state in ["55P03", "40001", "53200", "57014", "58030"] {
        let fixture = one_way("busy", COLUMNS, QUEUE);
        reject_values::build(&fixture);
        mirror(&fixture, "u", COLUMNS, QUEUE);
        reject_values::close(&fixture, "busy", state, None);
        fixture.left.exec(
            "insert into t values (1, 'a'), (2, 'busy'), (3, 'c');
             update t set v = 'later' where id = 2; insert into u values (1, 'a')",
        );
        for _ in 0..3 {
            assert!(!deal(&fixture, "100"), "{state}");
            let blamed = "select count(*) from sync_err_rec where status <> 'pending'";
            assert_eq!(
                rows(&fixture.left, blamed),
                ["0"],
                "{state}: blamed too soon"
            );
        }
        assert!(!deal(&fixture, "100"), "{state}");
        assert_eq!(table(&fixture.right, "t"), ["1|a", "3|c"], "{state}");
        assert_eq!(table(&fixture.right, "u"), ["1|a"], "{state}");
        let left = [
            format!("INSERT|{state}|1|failed"),
            "UPDATE|~|0|waiting".to_owned(),
        ];
        assert_eq!(records(&fixture), left, "{state}");
        let status = "select failed, last_sqlstate, last_error like 'change % of %.t: %', \
                      next_attempt_at is not null from sync_status";
        assert_eq!(
            rows(&fixture.left, status),
            [format!("1|{state}|t|t")],
            "{state}"
        );
        reject_values::open(&fixture, "busy");
        assert!(deal(&fixture, "100"), "{state}");
        same(&fixture, "t");
        assert_eq!(records(&fixture), [""; 0], "{state}");
    }
}
