//! Objects planted in a schema where somebody hopes that others' SQL finds them. Each writes down who called
//! it.

use postgres::Client;
use rowsync_harness::Side;

use crate::support::common::{query, run};

/// Operators, functions, types and relations under the names of PostgreSQL's own and of the extension's, in
/// the schema `planted`, which belongs to a role of the same name with the side's as prefix.
pub struct TrojanObjects {
    pub role: String,
    side: Side,
}

/// A search_path that leads to them first.
pub const PATH: &str = "pg_temp, planted, public, pg_catalog";

impl TrojanObjects {
    pub fn new(side: &Side) -> TrojanObjects {
        let role = format!("{}_planter", side.user);
        side.exec_superuser(&format!(
            "create role {role} login password 'x';
             create schema planted authorization {role}; grant usage on schema planted to public;
             create schema seen; grant usage on schema seen to public;
             create table seen.calls (who name, what text); grant insert on seen.calls to public;
             grant create on schema public to {role}; grant usage on schema {0} to {role}",
            side.user
        ));
        let trojans = TrojanObjects {
            role,
            side: side.clone(),
        };
        let mut planter = trojans.planter();
        run(&mut planter, SPY);
        run(&mut planter, OPERATORS);
        run(&mut planter, FUNCTIONS);
        run(&mut planter, &named_like_ours("planted"));
        trojans
    }

    /// A session of the role.
    pub fn planter(&self) -> Client {
        let Side { cluster, db, .. } = &self.side;
        let mut client = cluster
            .connect(db, &self.role, "x")
            .expect("the planter's session");
        run(&mut client, "set search_path = pg_catalog");
        client
    }

    /// Who has called which, and forgets them.
    pub fn calls(&self) -> Vec<String> {
        let mut client = self.side.superuser();
        let calls = query(
            &mut client,
            "select distinct who, what from seen.calls order by 1, 2",
        );
        run(&mut client, "truncate seen.calls");
        calls
    }

    /// Sets a search_path that leads to them, and sees that they are called: without this a test would show
    /// nothing.
    pub fn expose(&self, client: &mut Client, path: &str) {
        run(client, &format!("set search_path = {path}"));
        run(client, "select 'a'::varchar(3) = 'b'::varchar(3)");
        assert_eq!(self.calls().len(), 1, "{path}");
    }
}

/// Makes the session's own temporary tables and types of the names.
pub fn disguise(client: &mut Client) {
    run(client, &named_like_ours("pg_temp"));
}

impl Drop for TrojanObjects {
    fn drop(&mut self) {
        if let Ok(mut client) = self.side.connect_superuser() {
            let _ = client.batch_execute(&format!(
                "drop owned by {0} cascade; drop role {0}; drop schema seen cascade",
                self.role
            ));
        }
    }
}

const SPY: &str = "
    create function planted.spy(what text) returns boolean language plpgsql as $f$
    begin insert into seen.calls values (current_user, what); return null; end $f$";

/// Of every name that the extension's SQL uses, for the types that it compares, and those that fit better
/// than PostgreSQL's own.
const OPERATORS: &str = "
    do $do$ declare t text; o text; n int := 0; r text; begin
      foreach t in array array['text', 'varchar', 'name', 'oid', 'int8', 'int4', 'timestamptz', 'xid8',
                               'bool', 'bytea', '\"char\"', 'bpchar', 'regproc', 'regclass', 'int8[]',
                               'name,text', 'text,name', 'int8,int4', 'int4,int8', 'varchar,text'] loop
        foreach o in array array['=', '<>', '<', '>', '<=', '>=', '||', '+', '-', '&&', '~', '->>'] loop
          n := n + 1;
          r := case when o in ('||', '+', '-', '->>') then 'text' else 'bool' end;
          execute format('create function planted.op%s(%s, %s) returns %s language plpgsql as %L', n,
            split_part(t, ',', 1), case when t like '%,%' then split_part(t, ',', 2) else t end, r,
            format('begin perform planted.spy(%L); return null; end', o || ' ' || t));
          execute format('create operator planted.%s (function = planted.op%s, leftarg = %s, rightarg = %s)',
            o, n, split_part(t, ',', 1), case when t like '%,%' then split_part(t, ',', 2) else t end);
        end loop;
      end loop;
    end $do$";

const FUNCTIONS: &str = "
    do $do$ declare f text; begin
      foreach f in array array['md5(text)', 'count()', 'now()', 'clock_timestamp()', 'unnest(text[])',
        'current_database()', 'pg_notify(text, text)', 'concat(text)', 'quote_ident(text)', 'max(int8)',
        'substring(bytea, int, int)', 'octet_length(text)', 'convert_to(text, name)', 'decode(text, text)',
        'set_config(text, text, bool)', 'getdatabaseencoding()', 'parse_ident(text)', 'pg_typeof(text)',
        'pg_current_xact_id()', 'json_build_object(text, text)', 'extract(text, timestamptz)',
        'pg_backend_pid()', 'pg_try_advisory_xact_lock_shared(int8)', 'json_agg(text)',
        'current_setting(text, bool)', 'pg_has_role(oid, text)', 'pg_terminate_backend(int4, int8)',
        'sync_worker_state()', 'hash_record_extended(record, int8)',
        'adopt_sync()', 'check_sync(regclass, text)', 'sync_is_copy()', 'sync_has_crashed()', 'regexp_replace(text, text, text)', 'right(text, int4)',
        'obj_description(oid, name)', 'sync_change_sql(text, text)',
        'sync_attachments()', 'pg_partition_tree(regclass)', 'format(text, text, text)',
        'has_table_privilege(oid, text)', 'has_function_privilege(oid, text, text)', 'sum(int8)',
        'pg_has_role(oid, oid, text)', 'pg_get_userbyid(oid)',
        'sync_connections()', 'sync_counters()', 'sync_conflict_counters()', 'sync_comparisons()',
        'deal_sync_err_rec(int4)', 'retry_sync_err_rec(int4)', 'sync_queue_discarded()',
        'resolve_sync_prepared(text)', 'starts_with(text, text)',
        'sync_compare_versions(regclass, int8, regtype, text, int8, text)',
        'sync_deleted_later(regclass, int8, regtype, text, int8)',
        'sync_keep_version(regclass, record, regtype, text, int8, bool, bool, text)',
        'sync_row_has_come(regclass, record)', 'sync_holds(text, regtype, int4)'] loop
        execute format('create function planted.%s returns text language plpgsql as %L', f,
          format('begin perform planted.spy(%L); return null; end', f));
      end loop;
    end $do$";

/// Tables and types of the names of PostgreSQL's and of the extension's.
fn named_like_ours(schema: &str) -> String {
    let mut sql = String::new();
    for table in [
        "sync_queue",
        "sync_queue_floor",
        "sync_drain",
        "sync_route",
        "sync_err_rec",
        "sync_status",
        "sync_owner_state",
        "sync_server_state",
        "sync_lost_session",
        "sync_prepared_transaction",
        "sync_prepared",
        "pg_prepared_xacts",
        "sync_row_version",
        "sync_conflict_log",
        "sync_conflicts",
        "sync_copy",
        "sync_progress_log",
        "sync_progress",
        "sync_home",
        "sync_node",
        "sync_pause",
        "sync_alive",
        "sync_crash",
        "sync_tables",
        "pg_description",
        "pg_class",
        "pg_trigger",
        "pg_extension",
        "pg_namespace",
        "pg_proc",
        "pg_foreign_server",
        "pg_user_mapping",
        "pg_attribute",
        "pg_type",
        "pg_index",
        "pg_roles",
        "pg_depend",
        "v",
        "u",
        "p",
        "t",
        "base",
    ] {
        sql.push_str(&format!(
            "create table {schema}.{table} (planted pg_catalog.int4);"
        ));
    }
    for kind in [
        "text", "int8", "int4", "bool", "name", "oid", "json", "regclass", "bytea", "xid8",
    ] {
        sql.push_str(&format!(
            "create domain {schema}.\"{kind}\" as pg_catalog.{kind}
               check (planted.spy('type {kind}') is not null);"
        ));
    }
    sql
}
