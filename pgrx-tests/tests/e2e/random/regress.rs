//! `cargo faults regress` over files of our own: what it carries to the other side, and that it can
//! fail.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rowsync_harness::faults::regress::{self, Plan, Tally};
use rowsync_harness::faults::rig::Mode;
use rowsync_harness::reaper;

/// What psql's input may consist of; every part of it writes, defines, or is only psql's.
const FILE: &str = r#"
\set value 'it''s'
create table keyed (id int primary key, v text);
create table keyless (a int, b text default 'x');
insert into keyed values (1, :'value'), (2, 'two');
insert into keyless values (1), (1, 'y');
copy keyless from stdin;
3	three
3	three
\.
update keyless set b = b || '!' where a = 3;
select count(*) as n from keyless \gset
\echo :n
begin;
create table inside as select * from keyed;
insert into inside values (3, 'three');
savepoint a;
create table gone (id int primary key);
insert into gone values (1);
alter table keyed add column w int default 5;
rollback to a;
alter table keyed add column z numeric(5,1) default 1.5;
update keyed set z = id;
commit;
alter table keyless rename to renamed;
delete from renamed where a = 1;
insert into renamed values (4, 'four');
create table measured (id int, at date, v text) partition by range (at);
create table measured_1 partition of measured for values from ('2024-01-01') to ('2025-01-01');
create table measured_2 partition of measured for values from ('2025-01-01') to ('2026-01-01');
insert into measured values (1, '2024-07-01', 'a'), (2, '2025-07-01', 'b');
update measured set at = '2025-08-01' where id = 1;
create type mood as enum ('sad', 'ok');
create table parent (id int primary key, m mood);
create table child (id int references parent on delete cascade, n int) inherits (parent);
insert into parent values (1, 'sad'), (2, 'ok');
insert into child values (1, 'ok', 1);
delete from only parent where id = 2;
create schema other
  create table inner_one (id int primary key);
do $$ begin create table other.made (id int primary key); insert into other.made values (7); end $$;
insert into other.inner_one select generate_series(1, 50);
truncate other.inner_one;
create role regress_somebody;
grant all on schema public to regress_somebody;
set role regress_somebody;
create table theirs (v text unique not null);
insert into theirs values ('a'), ('b');
insert into theirs values ('a');
reset role;
drop owned by regress_somebody;
drop role regress_somebody;
\d keyed
drop table inside;
"#;

/// Rows that the extension does not see, once for a reason that is known, an output that tells whether it is
/// there, and what is right again.
const PLANTED: &str = "
create table t (id int primary key);
insert into t values (1);
alter table t disable trigger rowsync_dml;
insert into t values (2);
alter table t enable trigger rowsync_dml;
insert into t values (3);
create table measured (id int, at int) partition by range (at);
create table measured_1 partition of measured for values from (1) to (10);
alter table measured_1 disable trigger rowsync_dml;
insert into measured values (1, 1);
begin;
set local session_replication_role = replica;
insert into t values (4);
commit;
insert into t values (5);
select count(*) from pg_extension where extname = 'pg_rowsync';
";

fn tallies(label: &str, sql: &str, modes: &[Mode]) -> Vec<Tally> {
    let files = reaper::base().expect("a directory").join(label);
    fs::create_dir_all(files.join("sql")).expect("a directory");
    // The servers read and write below.
    fs::set_permissions(&files, fs::Permissions::from_mode(0o755)).expect("rights");
    fs::write(files.join("sql/one.sql"), sql).expect("a file");
    let results: PathBuf = files.join("results");
    let plan = Plan {
        files,
        only: Vec::new(),
        modes: modes.to_vec(),
        results,
        keeps: false,
    };
    let run = regress::run(&plan, &mut |line| println!("{line}"));
    run.unwrap_or_else(|error| panic!("{error:#}"))
        .into_iter()
        .map(|(_, tally)| tally)
        .collect()
}

#[test]
fn what_a_file_writes_and_defines_is_on_both_sides_and_its_output_is_the_same() {
    for tally in tallies("rightfile", FILE, &[Mode::Sync, Mode::Async, Mode::Queue]) {
        assert!(tally.is_clean(), "{tally}\n{tally:?}");
        assert_eq!(tally.same_outputs, 1);
        assert!(tally.refused.is_empty(), "{:?}", tally.refused);
        assert!(tally.attached.len() >= 10, "{:?}", tally.attached);
        assert!(tally.equal >= 16, "{tally}");
    }
}

#[test]
fn a_row_that_is_missing_and_an_output_that_differs_fail() {
    let [tally] = tallies("planted", PLANTED, &[Mode::Sync])
        .try_into()
        .expect("one");
    assert!(!tally.is_clean());
    let [different, of_partition] = tally.different.as_slice() else {
        panic!("{:?}", tally.different)
    };
    assert_eq!(
        of_partition.statement,
        "insert into measured values (1, 1);"
    );
    assert!(
        different.what.starts_with("2 rows here, 1 there"),
        "{different}"
    );
    assert_eq!(different.statement, "insert into t values (2);");
    // What comes after is compared as if it had not been.
    assert_eq!((tally.equal, tally.explained.values().sum::<u64>()), (3, 1));
    let [hunk] = tally.hunks.as_slice() else {
        panic!("{:?}", tally.hunks)
    };
    assert!(
        hunk.lines.contains("-     0") && hunk.lines.contains("+     1"),
        "{}",
        hunk.lines
    );
}
