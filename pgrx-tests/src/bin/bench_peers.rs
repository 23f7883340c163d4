//! `cargo bench-peers`: one table without synchronisation, one with the per-row dblink recipe, one
//! with pg_rowsync, on the same two clusters (fsync on, default settings), in turn, so that what
//! else the machine does cancels out. Prints medians and ratios; both sides are compared each time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postgres::Client;
use rowsync_harness::{Cluster, Side, setup};

const ROUNDS: usize = 5;
const CONTENDERS: [&str; 3] = ["none", "recipe", "rowsync"];

/// One dblink call a row, with the guard looked up in pg_stat_activity and failures kept in a
/// table, as the recipe does it.
const RECIPE: &str = r#"
create extension dblink;
create table recipe_err (id bigserial primary key, dst_query text, create_time timestamptz);
create function recipe_sync() returns trigger language plpgsql as $f$
declare
  conn constant text := 'recipe';
  app text;
  old_key text[];
  new_key text[];
  q text;
  here constant text := format('%I.%I', tg_table_schema, tg_table_name);
begin
  select application_name into app from pg_stat_activity where pid = pg_backend_pid();
  if app = 'recipe_guard' then
    return null;
  end if;
  if tg_op <> 'INSERT' then old_key := array[old.pk1::text, old.pk2]; end if;
  if tg_op <> 'DELETE' then new_key := array[new.pk1::text, new.pk2]; end if;
  if tg_op = 'INSERT' then
    q := dblink_build_sql_insert(here, '1 2', 2, new_key, new_key);
  else
    q := dblink_build_sql_delete(here, '1 2', 2, old_key);
    if tg_op = 'UPDATE' then
      q := q || ';' || dblink_build_sql_insert(here, '1 2', 2, new_key, new_key);
    end if;
  end if;
  q := replace(q, tg_table_name, tg_argv[0]);
  if not coalesce(dblink_get_connections() @> array[conn], false) then
    perform dblink_connect(conn, tg_argv[1]);
  end if;
  if dblink_exec(conn, q, false) = 'ERROR' then
    insert into recipe_err (dst_query, create_time) values (q, clock_timestamp());
  end if;
  return null;
end $f$;
"#;

const WORK: [(&str, &str); 3] = [
    (
        "insert 10,000 rows",
        "insert into T select g, 'digoal' || g, 'test' || g, now(), clock_timestamp() \
         from generate_series(1, 10000) g",
    ),
    ("update 10,000 rows", "update T set info = pk2"),
    ("delete 999 rows", "delete from T where pk1 < 1000"),
];

fn main() -> Result<()> {
    setup::prepare()?;
    let cluster = |name| Cluster::start_with(name, &[]).map(Arc::new);
    let local = Side::create(&cluster("local")?, "local")?;
    let remote = Side::create(&cluster("remote")?, "remote")?;
    local.link(&remote, remote.cluster.port(), "dst", &[])?;
    remote.link(&local, local.cluster.port(), "dst", &[])?;
    create(&local, &remote)?;

    let mut times = vec![vec![Vec::new(); WORK.len()]; CONTENDERS.len()];
    let mut clients: Vec<Client> =
        CONTENDERS.iter().map(|_| local.connect()).collect::<Result<_, _>>()?;
    for round in 0..=ROUNDS {
        for (at, contender) in CONTENDERS.iter().enumerate() {
            for (step, (_, sql)) in WORK.iter().enumerate() {
                let sql = sql.replace('T', &format!("t_{contender}"));
                let start = Instant::now();
                clients[at].batch_execute(&sql)?;
                // The first round warms connections and caches up.
                if round > 0 {
                    times[at][step].push(start.elapsed());
                }
            }
            let table = format!("t_{contender}");
            ensure!(
                *contender == "none" || local.checksum(&table)? == remote.checksum(&table)?,
                "{contender}: the two sides differ"
            );
            for side in [&local, &remote] {
                side.connect_superuser()?.batch_execute(&format!(
                    "set session_replication_role = replica; truncate {}.{table}",
                    side.user
                ))?;
            }
        }
    }
    print(&times);
    Ok(())
}

/// Both sides are masters, as in the recipe: triggers on either, a guard against the echo.
fn create(local: &Side, remote: &Side) -> Result<()> {
    for side in [local, remote] {
        side.connect_superuser()?.batch_execute(RECIPE)?;
        for contender in CONTENDERS {
            side.connect()?.batch_execute(&format!(
                "create table t_{contender} (pk1 int, pk2 text, info text, crt_time timestamp, \
                 mod_time timestamp, primary key (pk1, pk2))"
            ))?;
        }
        side.connect_superuser()?.batch_execute(&format!(
            "grant insert on recipe_err to {0}; grant usage on sequence recipe_err_id_seq to {0}",
            side.user
        ))?;
    }
    for (from, to) in [(local, remote), (remote, local)] {
        let conninfo = format!(
            "host=127.0.0.1 port={} dbname={} user={} password={} \
             options=-capplication_name=recipe_guard",
            to.cluster.port(),
            to.db,
            to.user,
            to.password,
        );
        from.connect()?.batch_execute(&format!(
            "create trigger t after insert or update or delete on t_recipe for each row \
               execute function recipe_sync('t_recipe', '{conninfo}'); \
             select attach_sync('t_rowsync', 'dst', '{0}.t_rowsync')",
            to.user
        ))?;
        // The recipe sends the names it has here: there they lead to the table by way of a view.
        to.connect_superuser()?.batch_execute(&format!(
            "create schema {0}; grant usage on schema {0} to {1}; \
             create view {0}.t_recipe as select * from {1}.t_recipe; \
             alter view {0}.t_recipe owner to {1}",
            from.user, to.user
        ))?;
    }
    Ok(())
}

fn print(times: &[Vec<Vec<Duration>>]) {
    println!(
        "\n{:<20} {:>10} {:>24} {:>12} {:>10} {:>10}",
        "work", "contender", "median ms (min..max)", "of no sync", "of recipe", ""
    );
    for (step, (work, _)) in WORK.iter().enumerate() {
        let medians: Vec<f64> = times.iter().map(|t| median(&t[step])).collect();
        for (at, contender) in CONTENDERS.iter().enumerate() {
            let runs = &times[at][step];
            let ms = |d: Option<&Duration>| d.map_or(0.0, |d| d.as_secs_f64() * 1e3);
            println!(
                "{work:<20} {contender:>10} {:>24} {:>11.2}x {:>9.1}x faster",
                format!(
                    "{:.1} ({:.1}..{:.1})",
                    medians[at],
                    ms(runs.iter().min()),
                    ms(runs.iter().max())
                ),
                medians[at] / medians[0],
                medians[1] / medians[at]
            );
        }
    }
}

fn median(runs: &[Duration]) -> f64 {
    let mut sorted: Vec<f64> = runs.iter().map(|d| d.as_secs_f64() * 1e3).collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
