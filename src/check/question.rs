//! The questions to a database about itself and about relations. Each has one answer: JSON in one row's only
//! column.
//!
//! The session's search_path leads to PostgreSQL's own functions and operators; relations and types are looked
//! for among temporary ones first, and are therefore qualified. The same question is asked here and there, so
//! that both sides are compared by the same measure.

use crate::change::Relation;
use crate::sql::quote::literal;
use serde_json::json;

/// Relations that are asked about in one statement: their answer has to be kept, see
/// [`crate::delivery::answers`].
pub const RELATIONS_AT_ONCE: usize = 16;

/// A relation to be asked about. `version`: its column that decides which row is the newest, if one does.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub relation: &'a Relation,
    pub version: Option<&'a str>,
}

/// The only parameter of [`about_relations`].
pub fn parameter(asked: &[Asked<'_>]) -> String {
    let one = |asked: &Asked<'_>| {
        let Relation { schema, table } = asked.relation;
        json!({"schema": schema, "table": table, "version": asked.version})
    };
    serde_json::Value::from(asked.iter().map(one).collect::<Vec<_>>()).to_string()
}

/// The answer is an object, see [`super::facts::ServerFacts`].
pub const ABOUT_SERVER: &str = "SELECT json_build_object( \
   'role', session_user, \
   'roles', (WITH RECURSIVE m(id) AS ( \
       SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = session_user \
       UNION SELECT g.roleid FROM m JOIN pg_catalog.pg_auth_members g ON g.member = m.id) \
     SELECT json_agg(r.rolname) FROM m JOIN pg_catalog.pg_roles r ON r.oid = m.id), \
   'in_recovery', pg_is_in_recovery(), \
   'guard', COALESCE(current_setting('pg_rowsync.application_name', true), 'pg_rowsync'), \
   'encoding', getdatabaseencoding(), \
   'clock', (pg_catalog.extract('epoch', clock_timestamp()) * 1000000)::pg_catalog.int8, \
   'max_prepared_transactions', current_setting('max_prepared_transactions')::pg_catalog.int8, \
   'replication_role', current_setting('session_replication_role'), \
   'acts_as', CASE WHEN current_user <> session_user THEN current_user END, \
   'log_statement', COALESCE(current_setting('log_statement', true), ''), \
   'connection_limit', (SELECT min(l.n) FROM ( \
       SELECT r.rolconnlimit FROM pg_catalog.pg_roles r WHERE r.rolname = session_user AND NOT r.rolsuper \
       UNION ALL SELECT d.datconnlimit FROM pg_catalog.pg_database d \
         WHERE d.datname = current_database()) l(n) WHERE l.n >= 0), \
   'password_expires', (SELECT pg_catalog.extract('epoch', r.rolvaliduntil - now())::pg_catalog.int8 \
       FROM pg_catalog.pg_roles r WHERE r.rolname = session_user AND isfinite(r.rolvaliduntil)), \
   'extension', (SELECT x.extversion FROM pg_catalog.pg_extension x WHERE x.extname = 'pg_rowsync'))";

/// The answer is an array of objects in the order of the parameter's, see [`super::facts::TargetFacts`].
pub fn about_relations() -> String {
    let each_byte = literal("\\1 ");
    // Options of the wrapper first: of equal names the last counts.
    let options = "SELECT json_object_agg(o.option_name, o.option_value) FROM ( \
           SELECT o.option_name, o.option_value FROM pg_options_to_table(w.fdwoptions) o \
            WHERE NOT EXISTS (SELECT FROM pg_options_to_table(f.srvoptions) s \
                               WHERE s.option_name = o.option_name) \
           UNION ALL SELECT o.option_name, o.option_value FROM pg_options_to_table(f.srvoptions) o) o \
         WHERE o.option_name IN ('dbname', 'application_name', 'options')";
    // Arguments are parted by zero bytes; as hexadecimal digits with a space after each byte they can be told
    // apart whatever the encoding.
    let triggers = format!(
        "SELECT json_agg(json_build_object('name', t.tgname, 'enabled', t.tgenabled, 'args', a.args, \
             'server', COALESCE(({options}), '{{}}'::pg_catalog.json))) \
           FROM pg_catalog.pg_trigger t \
           JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid AND p.proname = 'sync_dml' \
           JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass \
            AND d.objid = p.oid AND d.deptype = 'e' \
           JOIN pg_catalog.pg_extension x \
             ON d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND x.oid = d.refobjid \
            AND x.extname = 'pg_rowsync' \
          CROSS JOIN LATERAL (SELECT array_agg(convert_from(decode(u.piece, 'hex'), getdatabaseencoding()) ORDER BY u.n) \
             FROM unnest(string_to_array(regexp_replace(encode(t.tgargs, 'hex'), '(..)', {each_byte}, 'g'), '00 ')) \
                  WITH ORDINALITY u(piece, n) WHERE u.n <= t.tgnargs) a(args) \
           JOIN pg_catalog.pg_foreign_server f ON f.srvname::pg_catalog.text = a.args[1] \
           JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = f.srvfdw \
          WHERE t.tgrelid = c.oid AND t.tgtype & 28 <> 0 AND t.tgnargs > 2"
    );
    // By the text of the function, in which names that are not quoted may be written in any case, or the trigger's
    // arguments for those that are written in C. A condition on who is at work lets a trigger leave what arrives
    // alone; one on the row does not. A partition may have triggers of its own.
    let sets_version = "EXISTS (SELECT FROM pg_catalog.pg_trigger b \
           JOIN pg_catalog.pg_proc p ON p.oid = b.tgfoid \
          WHERE (b.tgrelid = c.oid OR b.tgrelid IN (SELECT z.relid FROM pg_partition_tree(c.oid) z)) \
            AND b.tgenabled IN ('O', 'A') AND b.tgtype & 3 = 3 AND b.tgtype & 20 <> 0 \
            AND (b.tgqual IS NULL OR substring(pg_get_triggerdef(b.oid) FROM ' WHEN (.*)') \
               !~* 'current_setting|session_user|current_user|current_role|pg_has_role') \
            AND (strpos(lower(p.prosrc), lower(replace(q.version, '\"', '\"\"'))) > 0 \
              OR strpos(encode(b.tgargs, 'hex'), \
                   encode(convert_to(q.version, getdatabaseencoding()), 'hex')) > 0))";
    let columns = "SELECT json_agg(json_build_array(a.attname, concat( \
             CASE WHEN a.attnotnull OR y.typnotnull THEN 'n' END, \
             CASE WHEN a.atthasdef OR a.attidentity <> '' OR y.typdefault IS NOT NULL THEN 'd' END, \
             CASE WHEN a.attgenerated <> '' THEN 'g' END, \
             CASE WHEN a.attidentity = 'a' THEN 'a' END, \
             CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_collation l \
                   WHERE l.oid = a.attcollation AND NOT l.collisdeterministic) THEN 'c' END, \
             CASE WHEN has_column_privilege(c.oid, a.attnum, 'INSERT') THEN 'i' END, \
             CASE WHEN has_column_privilege(c.oid, a.attnum, 'UPDATE') THEN 'u' END, \
             CASE WHEN has_column_privilege(c.oid, a.attnum, 'SELECT') THEN 's' END), \
             a.atttypid::pg_catalog.int8, a.atttypmod, \
             format_type(a.atttypid, a.atttypmod)) ORDER BY a.attnum) \
           FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type y ON y.oid = a.atttypid \
          WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped";
    // The columns' types and all that these are made of.
    let types = "WITH RECURSIVE r(id) AS ( \
             SELECT a.atttypid FROM pg_catalog.pg_attribute a \
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
             UNION SELECT x.id FROM r JOIN pg_catalog.pg_type y ON y.oid = r.id \
              LEFT JOIN pg_catalog.pg_range g ON g.rngtypid = y.oid OR g.rngmultitypid = y.oid \
             CROSS JOIN LATERAL ( \
               SELECT y.typbasetype \
               UNION ALL SELECT y.typelem WHERE y.typcategory = 'A' \
               UNION ALL SELECT g.rngsubtype \
               UNION ALL SELECT b.atttypid FROM pg_catalog.pg_attribute b \
                 WHERE b.attrelid = y.typrelid AND b.attnum > 0 AND NOT b.attisdropped) x(id) \
             WHERE x.id <> 0) \
           SELECT json_object_agg(y.oid::pg_catalog.text, json_build_object( \
             'schema', n.nspname, 'name', y.typname, 'kind', y.typtype, \
             'base', y.typbasetype::pg_catalog.int8, 'modifier', y.typtypmod, \
             'element', CASE WHEN y.typcategory = 'A' AND y.typtype = 'b' \
                THEN y.typelem::pg_catalog.int8 ELSE 0 END, \
             'subtype', COALESCE(g.rngsubtype::pg_catalog.int8, 0), \
             'labels', COALESCE((SELECT json_agg(e.enumlabel ORDER BY e.enumsortorder) \
                FROM pg_catalog.pg_enum e WHERE e.enumtypid = y.oid), '[]'::pg_catalog.json), \
             'fields', COALESCE((SELECT json_agg(json_build_array(b.attname, \
                  b.atttypid::pg_catalog.int8, b.atttypmod) ORDER BY b.attnum) \
                FROM pg_catalog.pg_attribute b WHERE b.attrelid = y.typrelid AND y.typtype = 'c' \
                 AND b.attnum > 0 AND NOT b.attisdropped), '[]'::pg_catalog.json))) \
           FROM r JOIN pg_catalog.pg_type y ON y.oid = r.id \
           JOIN pg_catalog.pg_namespace n ON n.oid = y.typnamespace \
           LEFT JOIN pg_catalog.pg_range g ON g.rngtypid = y.oid OR g.rngmultitypid = y.oid";
    let unique = "SELECT json_agg(json_build_array((SELECT json_agg(a.attname) \
               FROM unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY k(num, ord) \
               JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num \
              WHERE k.ord <= i.indnkeyatts), i.indimmediate)) \
           FROM pg_catalog.pg_index i \
          WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indisready \
            AND i.indpred IS NULL AND i.indexprs IS NULL AND NOT i.indisexclusion";
    let exclusions = "SELECT json_agg(x.conname) FROM pg_catalog.pg_constraint x \
          WHERE x.conrelid = c.oid AND x.contype = 'x'";
    let parents = "SELECT json_agg(json_build_array(m.nspname, k.relname)) \
           FROM pg_catalog.pg_constraint x JOIN pg_catalog.pg_class k ON k.oid = x.confrelid \
           JOIN pg_catalog.pg_namespace m ON m.oid = k.relnamespace \
          WHERE x.conrelid = c.oid AND x.contype = 'f' AND x.conparentid = 0";
    let row_triggers = |enabled: &str| {
        format!(
            "SELECT json_agg(b.tgname ORDER BY b.tgname) FROM pg_catalog.pg_trigger b \
               JOIN pg_catalog.pg_proc p ON p.oid = b.tgfoid \
              WHERE b.tgrelid = c.oid AND NOT b.tgisinternal AND b.tgtype & 1 = 1 \
                AND b.tgenabled IN ({enabled}) AND p.proname <> 'sync_dml'"
        )
    };
    let (fires, replica) = (row_triggers("'O', 'A'"), row_triggers("'R'"));
    let list = |sql: &str| format!("COALESCE(({sql}), '[]'::pg_catalog.json)");
    let [columns, unique, exclusions] = [columns, unique, exclusions].map(list);
    let [parents, fires, replica, triggers] = [parents, &fires, &replica, &triggers].map(list);
    format!(
        "SELECT json_agg(json_build_object( \
           'usage', (SELECT has_schema_privilege(n.oid, 'USAGE') \
                       FROM pg_catalog.pg_namespace n WHERE n.nspname = q.schema), \
           'table', (SELECT json_build_object( \
               'kind', c.relkind, \
               'persistence', c.relpersistence, \
               'row_security', row_security_active(c.oid), \
               'delete', has_table_privilege(c.oid, 'DELETE'), \
               'truncate', has_table_privilege(c.oid, 'TRUNCATE'), \
               'changes_rows', EXISTS (SELECT FROM pg_catalog.pg_trigger b WHERE b.tgrelid = c.oid \
                  AND b.tgenabled <> 'D' AND b.tgtype & 5 = 5 AND b.tgtype & 66 <> 0), \
               'sets_version', COALESCE({sets_version}, false), \
               'rules', c.relkind IN ('r', 'p') AND EXISTS (SELECT FROM pg_catalog.pg_rewrite z \
                  WHERE z.ev_class = c.oid AND z.ev_enabled IN ('O', 'A')), \
               'no_default_partition', COALESCE((SELECT z.partdefid = 0 \
                  FROM pg_catalog.pg_partitioned_table z \
                  WHERE z.partrelid = c.oid AND z.partstrat <> 'h'), false), \
               'has_children', c.relkind = 'r' AND EXISTS (SELECT FROM pg_catalog.pg_inherits z \
                  WHERE z.inhparent = c.oid), \
               'unchecked_foreign_keys', EXISTS (SELECT FROM pg_catalog.pg_trigger b \
                  JOIN pg_catalog.pg_constraint x ON x.oid = b.tgconstraint AND x.contype = 'f' \
                  WHERE b.tgrelid = c.oid AND b.tgisinternal AND b.tgenabled NOT IN ('O', 'A')), \
               'columns', {columns}, \
               'types', COALESCE(({types}), '{{}}'::pg_catalog.json), \
               'unique', {unique}, \
               'exclusions', {exclusions}, \
               'parents', {parents}, \
               'row_triggers', {fires}, \
               'replica_triggers', {replica}, \
               'triggers', {triggers}) \
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
            WHERE n.nspname = q.schema AND c.relname = q.relation)) ORDER BY q.at) \
         FROM (SELECT e.at, (e.one->>'schema')::pg_catalog.name, (e.one->>'table')::pg_catalog.name, \
                 e.one->>'version' \
               FROM json_array_elements($1::pg_catalog.json) WITH ORDINALITY e(one, at)) \
              q(at, schema, relation, version)"
    )
}
