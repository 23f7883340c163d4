//! A change that can never be applied: what depends on it waits behind it, everything else flows,
//! and an operator has two ways out.

use std::time::Instant;

use postgres::Client;
use rowsync_harness::Testbed;

use crate::common::{
    attach, deal, mirror, one_way, outage, queued, records, recover, rows, run, same, table,
};
use crate::gate;
use crate::set_aside::{
    counts, discard, failed, goes_directly, ids, retry, standing, the_failed, waits_behind,
};

const COLUMNS: &str = "id int primary key, v text";
const QUEUE: &str = r#"{"mode": "queue"}"#;

/// A gated table `t` with rows 1 to 9 on both sides, whose changes are delivered at commit.
fn gated(label: &str) -> (Testbed, Client) {
    let bed = one_way(label, COLUMNS, "{}");
    gate::build(&bed);
    let mut client = bed.left.client();
    run(&mut client, "insert into t select i, 'old' from generate_series(1, 9) i");
    gate::passed(&bed);
    (bed, client)
}

/// Refuses a value there, writes it here, and sets the change aside.
fn poison(bed: &Testbed, client: &mut Client, value: &str, sql: &str) -> i64 {
    gate::close(bed, value, "23514", Some("is_sound"));
    let before = failed(bed);
    run(client, sql);
    assert!(!deal(bed, "1000"));
    let new: Vec<_> = failed(bed).into_iter().filter(|id| !before.contains(id)).collect();
    assert_eq!(new.len(), 1, "{:?}", standing(bed));
    new[0]
}

#[test]
fn one_change_among_ten_thousand_keeps_only_its_own_row_waiting() {
    let bed = one_way("poison", COLUMNS, "{}");
    bed.right.exec("alter table t add constraint is_sound check (v <> 'bad')");
    let mut client = bed.left.client();
    outage(&bed.right);
    run(
        &mut client,
        "insert into t select i, case i when 5000 then 'bad' else 'v' || i end
           from generate_series(1, 10000) i",
    );
    recover(&bed.right);
    let start = Instant::now();
    assert!(!deal(&bed, "20000"));
    println!("10,000 records with one poison: {:?}", start.elapsed());
    assert_eq!(
        bed.right.query_one::<i64>(&format!("select count(*) from {}.t", bed.right.user)),
        9_999
    );
    let poison = the_failed(&bed);
    let why = rows(
        &bed.left,
        "select op, status, sqlstate, constraint_name, waits_for, dst_query like '%bad%', message
           from sync_err_rec",
    );
    assert_eq!(why.len(), 1, "{why:?}");
    assert!(why[0].starts_with("INSERT|failed|23514|is_sound|~|t|"), "{why:?}");
    assert!(why[0].contains("violates check constraint \"is_sound\""), "{why:?}");

    // What touches the row, under whatever key it goes by, waits; also in transactions of others.
    waits_behind(&bed, &mut client, "update t set v = 'good' where id = 5000", poison);
    waits_behind(&bed, &mut client, "update t set id = 20001 where id = 5000", poison);
    let mut other = bed.left.client();
    waits_behind(&bed, &mut other, "update t set v = 'moved' where id = 20001", poison);
    waits_behind(&bed, &mut other, "insert into t values (5000, 'again')", poison);
    waits_behind(&bed, &mut client, "delete from t where id = 5000", poison);
    waits_behind(&bed, &mut client, "update t set id = 20002 where id = 20001", poison);
    waits_behind(&bed, &mut client, "insert into t values (20001, 'new')", poison);
    assert_eq!(counts(&bed), (0, 1, 7));
    // All the rest goes straight through.
    for sql in [
        "update t set v = 'direct' where id between 4990 and 4999",
        "delete from t where id = 5001",
        "insert into t values (30000, 'direct')",
        "update t set id = 5001 where id = 30000",
    ] {
        goes_directly(&bed, &mut client, sql);
    }
    let differ = |side| rows(side, "select id, v from t where id > 20000 or id = 5000 order by id");
    assert_eq!(differ(&bed.right), [""; 0], "something passed the poison");
    assert_eq!(differ(&bed.left), ["20001|new", "20002|moved"]);
    let others = "select md5(string_agg(t::text, ',' order by id)) from t
                   where id <= 20000 and id <> 5000";
    assert_eq!(rows(&bed.left, others), rows(&bed.right, others));

    bed.right.exec("alter table t drop constraint is_sound");
    assert!(retry(&bed, poison));
    assert_eq!(queued(&bed), 0);
    same(&bed, "t");
    goes_directly(&bed, &mut client, "update t set v = 'direct' where id = 20001");
    same(&bed, "t");
}

#[test]
fn what_waited_arrives_in_its_order() {
    let (bed, mut client) = gated("inorder");
    let poison = poison(&bed, &mut client, "bad", "update t set v = 'bad' where id = 5");
    for sql in [
        "update t set v = 'second' where id = 5",
        "delete from t where id = 5",
        "insert into t values (5, 'third')",
        "update t set id = 50, v = 'fourth' where id = 5",
        "update t set v = 'fifth' where id = 50",
    ] {
        waits_behind(&bed, &mut client, sql, poison);
    }
    goes_directly(&bed, &mut client, "update t set v = 'direct' where id = 6");
    assert_eq!(gate::passed(&bed), ["6:direct"]);
    gate::open(&bed, "bad");
    assert!(retry(&bed, poison));
    let expected = ["5:bad", "5:second", "-5", "5:third", "50:fourth", "50:fifth"];
    assert_eq!(gate::passed(&bed), expected);
    same(&bed, "t");
}

#[test]
fn a_retry_that_fails_again_lets_nothing_pass() {
    let (bed, mut client) = gated("again");
    let poison = poison(&bed, &mut client, "bad", "update t set v = 'bad' where id = 5");
    waits_behind(&bed, &mut client, "update t set v = 'next' where id = 5", poison);
    let attempts = || rows(&bed.left, "select attempts, status from sync_err_rec order by id");
    let before: i32 = attempts()[0].split('|').next().expect("a number").parse().expect("a number");
    for n in 1..=2 {
        assert!(!retry(&bed, poison));
        assert_eq!(attempts(), [format!("{}|failed", before + n), "0|waiting".to_owned()]);
    }
    // A drain that has nothing else to do tries it as well.
    assert!(!deal(&bed, "100"));
    assert_eq!(attempts(), [format!("{}|failed", before + 3), "0|waiting".to_owned()]);
    assert_eq!(gate::passed(&bed), [""; 0]);
    gate::open(&bed, "bad");
    assert!(deal(&bed, "100"));
    assert_eq!(gate::passed(&bed), ["5:bad", "5:next"]);
    same(&bed, "t");
}

#[test]
fn a_discarded_change_releases_what_waits_behind_it() {
    let (bed, mut client) = gated("released");
    let poison = poison(&bed, &mut client, "bad", "update t set v = 'bad' where id = 5");
    waits_behind(&bed, &mut client, "update t set v = 'next' where id = 5", poison);
    waits_behind(&bed, &mut client, "update t set id = 50 where id = 5", poison);
    discard(&bed, poison);
    // Not delivered yet, so what is newer still must not pass it.
    run(&mut client, "update t set v = 'last' where id = 50");
    assert_eq!(gate::passed(&bed), [""; 0]);
    assert_eq!(queued(&bed), 3);
    assert!(deal(&bed, "100"), "{:?}", standing(&bed));
    assert_eq!(gate::passed(&bed), ["5:next", "50:next", "50:last"]);
    same(&bed, "t");
    assert_eq!(queued(&bed), 0);
    goes_directly(&bed, &mut client, "update t set v = 'direct' where id = 50");
    same(&bed, "t");
}

#[test]
fn discarding_one_that_waits_leaves_the_others_waiting() {
    let (bed, mut client) = gated("middle");
    let poison = poison(&bed, &mut client, "bad", "update t set v = 'bad' where id = 5");
    waits_behind(&bed, &mut client, "update t set v = 'next' where id = 5", poison);
    waits_behind(&bed, &mut client, "update t set id = 50 where id = 5", poison);
    discard(&bed, ids(&bed, "status = 'waiting'")[0]);
    waits_behind(&bed, &mut client, "update t set v = 'last' where id = 50", poison);
    assert!(!deal(&bed, "100"));
    assert_eq!(gate::passed(&bed), [""; 0]);
    gate::open(&bed, "bad");
    assert!(retry(&bed, poison));
    same(&bed, "t");
}

#[test]
fn what_waits_behind_two_waits_for_both() {
    for discards in [false, true] {
        let (bed, mut client) = gated("both");
        let a = poison(&bed, &mut client, "bad a", "update t set v = 'bad a' where id = 1");
        let b = poison(&bed, &mut client, "bad b", "update t set v = 'bad b' where id = 2");
        waits_behind(&bed, &mut client, "update t set v = 'a2' where id = 1", a);
        waits_behind(&bed, &mut client, "delete from t where id = 2", b);
        // Of both: it leaves the one key and takes the other.
        let before = crate::set_aside::ever_queued(&bed);
        run(&mut client, "update t set id = 2 where id = 1");
        run(&mut client, "update t set v = 'a3' where id = 2");
        run(&mut client, "insert into t values (1, 'new')");
        assert_eq!(ids(&bed, &format!("id > {before} and status = 'waiting'")).len(), 3);
        if discards {
            discard(&bed, a);
            assert!(!deal(&bed, "100"));
        } else {
            gate::open(&bed, "bad a");
            retry(&bed, a);
        }
        let first: &[&str] = if discards { &["1:a2"] } else { &["1:bad a", "1:a2"] };
        assert_eq!(gate::passed(&bed), first, "{:?}", standing(&bed));
        assert_eq!(the_failed(&bed), b);
        let behind = |op: &str| format!("{op}|waiting|{b}");
        let expected = [
            "UPDATE|failed|~".to_owned(),
            behind("DELETE"),
            behind("UPDATE"),
            behind("UPDATE"),
            behind("INSERT"),
        ];
        assert_eq!(standing(&bed), expected);
        gate::open(&bed, "bad b");
        assert!(retry(&bed, b));
        same(&bed, "t");
        assert_eq!(queued(&bed), 0);
    }
}

#[test]
fn a_second_poison_on_the_same_row_is_met_when_its_turn_comes() {
    let (bed, mut client) = gated("second");
    let a = poison(&bed, &mut client, "bad a", "update t set v = 'bad a' where id = 1");
    gate::close(&bed, "bad b", "22001", None);
    waits_behind(&bed, &mut client, "update t set v = 'bad b' where id = 1", a);
    waits_behind(&bed, &mut client, "update t set v = 'last' where id = 1", a);
    gate::open(&bed, "bad a");
    assert!(!retry(&bed, a), "the second one fails");
    assert_eq!(gate::passed(&bed), ["1:bad a"]);
    let b = the_failed(&bed);
    assert_eq!(records(&bed)[0], "UPDATE|22001|1|failed");
    assert_eq!(standing(&bed), ["UPDATE|failed|~".to_owned(), format!("UPDATE|waiting|{b}")]);
    waits_behind(&bed, &mut client, "delete from t where id = 1", b);
    gate::open(&bed, "bad b");
    assert!(retry(&bed, b));
    assert_eq!(gate::passed(&bed), ["1:bad b", "1:last", "-1"]);
    same(&bed, "t");
}

#[test]
fn a_transaction_that_waits_in_part_overtakes_nothing() {
    let (bed, mut client) = gated("part");
    let poison = poison(&bed, &mut client, "bad", "update t set v = 'bad' where id = 5");
    run(
        &mut client,
        "begin; update t set v = 'first' where id = 4; update t set v = 'next' where id = 5;
         insert into t values (10, 'first'); commit",
    );
    // Whether or not the other rows' changes had to be queued, nothing of the row may be there.
    run(&mut client, "update t set v = 'second' where id in (4, 10)");
    deal(&bed, "100");
    let first: Vec<_> =
        gate::passed(&bed).into_iter().filter(|change| !change.starts_with("5:")).collect();
    assert_eq!(first, ["4:first", "10:first", "4:second", "10:second"]);
    assert_eq!(standing(&bed), ["UPDATE|failed|~".to_owned(), format!("UPDATE|waiting|{poison}")]);
    gate::open(&bed, "bad");
    assert!(retry(&bed, poison));
    same(&bed, "t");
}

#[test]
fn sync_fails_for_a_row_that_waits_and_for_no_other() {
    let bed = one_way("syncwait", COLUMNS, QUEUE);
    gate::build(&bed);
    let mut client = bed.left.client();
    run(&mut client, "insert into t values (1, 'a'), (2, 'b')");
    assert!(deal(&bed, "100"));
    let poison = poison(&bed, &mut client, "bad", "update t set v = 'bad' where id = 1");
    bed.left.exec("select detach_sync('t', 'dst')");
    attach(&bed, "t", r#"{"mode": "sync"}"#);
    for sql in [
        "update t set v = 'x' where id = 1",
        "delete from t where id = 1",
        "update t set id = 7 where id = 1",
        "update t set v = 'x'",
        "truncate t",
        "begin; insert into t values (8, 'h'); delete from t where id = 1; commit",
    ] {
        let before = table(&bed.left, "t");
        crate::common::refused(&mut client, sql, "55000");
        let _ = client.batch_execute("rollback");
        assert_eq!(table(&bed.left, "t"), before, "{sql}");
    }
    goes_directly(&bed, &mut client, "update t set v = 'sync' where id = 2");
    goes_directly(&bed, &mut client, "insert into t values (3, 'sync')");
    assert_eq!(table(&bed.right, "t"), ["1|a", "2|sync", "3|sync"]);
    assert_eq!(standing(&bed), ["UPDATE|failed|~"]);
    gate::open(&bed, "bad");
    assert!(retry(&bed, poison));
    same(&bed, "t");
    goes_directly(&bed, &mut client, "update t set v = 'sync' where id = 1");
    same(&bed, "t");
}

#[test]
fn a_prepared_transaction_waits_like_any_other() {
    let (bed, mut client) = gated("prepared");
    let poison = poison(&bed, &mut client, "bad", "update t set v = 'bad' where id = 5");
    let gid = bed.left.db.clone();
    run(
        &mut client,
        &format!(
            "begin; update t set v = 'prepared' where id = 5; update t set v = 'prepared' where id = 6;
             prepare transaction '{gid}'"
        ),
    );
    run(&mut client, &format!("commit prepared '{gid}'"));
    run(&mut client, "update t set v = 'last' where id in (5, 6)");
    deal(&bed, "100");
    assert_eq!(gate::passed(&bed), ["6:prepared", "6:last"]);
    let waiting = format!("UPDATE|waiting|{poison}");
    assert_eq!(standing(&bed), ["UPDATE|failed|~", &waiting, &waiting]);
    gate::open(&bed, "bad");
    assert!(retry(&bed, poison));
    assert_eq!(gate::passed(&bed), ["5:bad", "5:prepared", "5:last"]);
    same(&bed, "t");
}

#[test]
fn three_hundred_poisons_among_a_thousand_keep_no_other_waiting() {
    let bed = one_way("many", COLUMNS, QUEUE);
    bed.right.exec("alter table t add constraint is_sound check (v <> 'bad')");
    bed.left.exec(
        "insert into t select i, case when i % 10 < 3 then 'bad' else 'v' end
           from generate_series(1, 1000) i",
    );
    let start = Instant::now();
    let mut calls = 0;
    while counts(&bed).0 > 0 {
        assert!(!deal(&bed, "1000"));
        calls += 1;
        assert!(calls <= 20, "{:?} after {calls} calls", counts(&bed));
    }
    let elapsed = start.elapsed();
    println!("300 poisons among 1,000 records: {calls} calls, {elapsed:?}");
    assert!(elapsed.as_secs() < 60, "{elapsed:?}");
    assert_eq!(counts(&bed), (0, 300, 0));
    assert_eq!(table(&bed.right, "t").len(), 700);
    bed.right.exec("alter table t drop constraint is_sound");
    while queued(&bed) > 0 {
        assert!(deal(&bed, "1000"), "{:?}", standing(&bed));
        calls += 1;
        assert!(calls <= 40, "{:?} after {calls} calls", counts(&bed));
    }
    same(&bed, "t");
}

#[test]
fn another_table_of_the_same_server_is_not_concerned() {
    let (bed, mut client) = gated("another");
    mirror(&bed, "u", COLUMNS, "{}");
    let poison = poison(&bed, &mut client, "bad", "update t set v = 'bad' where id = 5");
    // The same key, but of another table.
    goes_directly(&bed, &mut client, "insert into u values (5, 'a')");
    goes_directly(
        &bed,
        &mut client,
        "update u set v = 'b'; truncate u; insert into u values (5, 'c')",
    );
    assert_eq!(same(&bed, "u"), ["5|c"]);
    discard(&bed, poison);
    assert_eq!(queued(&bed), 0);
}
