//! A gate before a remote table `t`: it refuses the values that a test names, with the SQLSTATE the
//! test wants, and keeps a list of the changes it let through, in their order.

use rowsync_harness::Fixture;

use crate::support::common::rows;

/// The value that stands for every value.
pub const ANY: &str = "*";

/// Puts a gate, open, before the right table `t`, which has the columns `id` and `v`.
pub fn build(fixture: &Fixture) {
    let schema = &fixture.right.user;
    fixture.right.exec(&format!(
        "create table gate (value text primary key, state text not null, rule text);
         create table passed (n bigserial, change text);
         create function guard() returns trigger language plpgsql as $$
         declare
           closed {schema}.gate;
         begin
           select * into closed from {schema}.gate
             where value in (coalesce(new.v, old.v), '{ANY}') limit 1;
           if closed.rule is not null then
             raise exception 'the gate is closed'
               using errcode = closed.state, constraint = closed.rule;
           elsif closed.state is not null then
             raise exception 'the gate is closed' using errcode = closed.state;
           end if;
           return coalesce(new, old);
         end $$;
         create function note() returns trigger language plpgsql as $$
         begin
           insert into {schema}.passed (change) values (
             case tg_op when 'TRUNCATE' then '-*' when 'DELETE' then '-' || old.id::text
               else new.id::text || ':' || new.v end);
           return null;
         end $$;
         create trigger guard before insert or update or delete on t
           for each row execute function guard();
         create trigger note after insert or update or delete on t
           for each row execute function note();
         create trigger note_all after truncate on t execute function note()"
    ));
}

/// From now on this value (or [`ANY`]) is refused with this SQLSTATE, and as a violation of this
/// constraint.
pub fn close(fixture: &Fixture, value: &str, state: &str, constraint: Option<&str>) {
    let sql = "insert into gate values ($1, $2, $3)";
    fixture
        .right
        .client()
        .execute(sql, &[&value, &state, &constraint])
        .expect("a gate");
}

/// The value passes again.
pub fn open(fixture: &Fixture, value: &str) {
    fixture
        .right
        .client()
        .execute("delete from gate where value = $1", &[&value])
        .expect("a gate");
}

/// Takes out what has passed: `id:v` for a row written, `-id` for one deleted, `-*` for TRUNCATE.
pub fn passed(fixture: &Fixture) -> Vec<String> {
    let changes = rows(&fixture.right, "select change from passed order by n");
    fixture.right.exec("truncate passed");
    changes
}
