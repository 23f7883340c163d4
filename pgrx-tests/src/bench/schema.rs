//! What each contender needs on the two sides: tables, triggers, servers, a publication.
//!
//! All tables are in schema `bench` on both sides, so that no contender has to translate names.

use std::fmt::Write;

use anyhow::{Context, Result};

use super::contender::{Contender, FDW_GUARD, RECIPE_GUARD};
use super::shape::Shape;
use crate::side::Side;

/// Also the name of the standby that commits of [`Contender::Native`] wait for.
pub const SUBSCRIPTION: &str = "bench_native";

/// The recipe's trigger: one statement over dblink a row, built from the table, with the guard
/// looked up in pg_stat_activity; what fails, and what comes after something that failed, is kept
/// in a table.
const RECIPE: &str = r#"
create table bench.recipe_queue (
  id bigserial primary key, server text, query text, created timestamptz default clock_timestamp());
create index on bench.recipe_queue (server, created);

create function bench.recipe_sync() returns trigger language plpgsql as $f$
declare
  conn constant text := tg_argv[0];
  here constant text := format('%I.%I', tg_table_schema, tg_table_name);
  app text;
  old_key text[];
  new_key text[];
  query text;
begin
  select application_name into app from pg_stat_activity where pid = pg_backend_pid();
  if app = 'recipe_guard' then
    return null;
  end if;
  if tg_op <> 'INSERT' then old_key := array[old.pk1::text, old.pk2]; end if;
  if tg_op <> 'DELETE' then new_key := array[new.pk1::text, new.pk2]; end if;
  if tg_op = 'INSERT' then
    query := dblink_build_sql_insert(here, '1 2', 2, new_key, new_key);
  else
    query := dblink_build_sql_delete(here, '1 2', 2, old_key);
    if tg_op = 'UPDATE' then
      query := query || ';' || dblink_build_sql_insert(here, '1 2', 2, new_key, new_key);
    end if;
  end if;
  query := replace(query, here, tg_argv[1]);
  if exists (select from bench.recipe_queue where server = conn) then
    insert into bench.recipe_queue (server, query) values (conn, query);
    return null;
  end if;
  if not coalesce(dblink_get_connections() @> array[conn], false) then
    perform dblink_connect(conn, conn);
  end if;
  if dblink_exec(conn, query, false) = 'ERROR' then
    insert into bench.recipe_queue (server, query) values (conn, query);
  end if;
  return null;
exception when others then
  insert into bench.recipe_queue (server, query) values (conn, query);
  return null;
end $f$;

create function bench.recipe_drain(conn text) returns void language plpgsql as $f$
declare
  ids bigint[];
  batch text;
begin
  perform dblink_connect(conn, conn);
  loop
    select array_agg(id), string_agg(query, ';' order by created, id) into ids, batch
      from (select * from bench.recipe_queue where server = conn order by created, id limit 1000) q;
    exit when ids is null;
    perform dblink_exec(conn, batch, true);
    delete from bench.recipe_queue where id = any (ids);
  end loop;
  perform dblink_disconnect(conn);
end $f$;
"#;

pub fn table(shape: Shape, contender: Contender) -> String {
    format!("bench.{}_{contender}", shape.name())
}

/// Both sides, for these contenders.
pub fn create(local: &Side, remote: &Side, contenders: &[Contender]) -> Result<()> {
    for side in [local, remote] {
        let owner = &side.user;
        side.connect_superuser()?.batch_execute(&format!(
            "create extension dblink; create extension postgres_fdw;
             grant usage on foreign data wrapper dblink_fdw, postgres_fdw to {owner};
             create schema bench authorization {owner}"
        ))?;
        let mut sql = format!("{RECIPE}; create sequence bench.key;");
        for (shape, contender) in each(contenders) {
            let (name, columns) = (table(shape, contender), shape.definition());
            write!(
                sql,
                "create table {name} ({columns}, primary key (pk1, pk2));"
            )?;
            write!(sql, "{};", shape.adjust(&name))?;
        }
        side.connect()?.batch_execute(&sql)?;
    }
    for (from, to) in [(local, remote), (remote, local)] {
        from.connect()?
            .batch_execute(&servers(to)?)
            .context("could not create the servers")?;
        let mut client = from.connect()?;
        for (shape, contender) in each(contenders) {
            client
                .batch_execute(&triggers(shape, contender))
                .with_context(|| {
                    format!(
                        "could not create the triggers of \"{}\"",
                        table(shape, contender)
                    )
                })?;
        }
    }
    if contenders.contains(&Contender::Native) {
        let tables = Shape::ALL
            .map(|shape| table(shape, Contender::Native))
            .join(", ");
        local.connect_superuser()?.batch_execute(&format!(
            "create publication bench for table {tables} with (publish = 'insert, update, delete')"
        ))?;
    }
    Ok(())
}

fn each(contenders: &[Contender]) -> impl Iterator<Item = (Shape, Contender)> {
    let of = |shape| contenders.iter().map(move |contender| (shape, *contender));
    Shape::ALL.into_iter().flat_map(of)
}

/// One server for each wrapper, by the names that [`reach`] alters.
fn servers(to: &Side) -> Result<String> {
    let (port, db) = (to.cluster.port(), &to.db);
    let mut sql = String::new();
    for (server, wrapper, more) in [
        // As the other sessions of the rig, in which nobody waits for a standby.
        (
            "dst",
            "pg_rowsync",
            "options '-c synchronous_commit=local'".to_owned(),
        ),
        (
            "recipe_dst",
            "dblink_fdw",
            format!("options '-c application_name={RECIPE_GUARD}'"),
        ),
        (
            "fdw_dst",
            "postgres_fdw",
            format!("application_name '{FDW_GUARD}'"),
        ),
    ] {
        write!(
            sql,
            "create server {server} foreign data wrapper {wrapper}
               options (host '127.0.0.1', port '{port}', dbname '{db}', {more});
             create user mapping for current_user server {server}
               options (user '{}', password '{}');",
            to.user, to.password
        )?;
    }
    Ok(sql)
}

/// Lets all servers of a side lead to another port.
pub fn reach(port: u16) -> String {
    ["dst", "recipe_dst", "fdw_dst"]
        .map(|server| format!("alter server {server} options (set port '{port}');"))
        .concat()
}

fn triggers(shape: Shape, contender: Contender) -> String {
    let table = table(shape, contender);
    match contender {
        Contender::None | Contender::Native | Contender::Bucardo => String::new(),
        Contender::Recipe => format!(
            "create trigger recipe after insert or update or delete on {table} for each row
               execute function bench.recipe_sync('recipe_dst', '{table}')"
        ),
        Contender::Fdw => foreign_table(shape, &table),
        Contender::Async | Contender::Sync | Contender::Atomic | Contender::Queue => {
            format!(
                r#"select attach_sync('{table}', 'dst', '{table}', '{{"mode": "{contender}"}}')"#
            )
        }
    }
}

/// A foreign table for the table over there, and a trigger of its own that writes each row to it.
fn foreign_table(shape: Shape, table: &str) -> String {
    let name = shape.name();
    let columns = shape.columns();
    let names: Vec<_> = columns.iter().map(|(name, ..)| name.as_str()).collect();
    let values: Vec<_> = names.iter().map(|name| format!("new.{name}")).collect();
    let sets: Vec<_> = names
        .iter()
        .map(|name| format!("{name} = new.{name}"))
        .collect();
    format!(
        "create foreign table bench.there_{name} ({definition}) server fdw_dst
           options (schema_name 'bench', table_name '{name}_fdw');
         create function bench.fdw_{name}() returns trigger language plpgsql as $f$
         begin
           if tg_op = 'INSERT' then
             insert into bench.there_{name} ({list}) values ({values});
           elsif tg_op = 'UPDATE' then
             update bench.there_{name} set {sets} where pk1 = old.pk1 and pk2 = old.pk2;
           else
             delete from bench.there_{name} where pk1 = old.pk1 and pk2 = old.pk2;
           end if;
           return null;
         end $f$;
         create trigger fdw after insert or update or delete on {table} for each row
           when (current_setting('application_name') <> '{FDW_GUARD}')
           execute function bench.fdw_{name}()",
        definition = shape.definition(),
        list = names.join(", "),
        values = values.join(", "),
        sets = sets.join(", "),
    )
}
