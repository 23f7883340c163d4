//! The question to a server, and the shape of its answer: one JSON object.
//!
//! The session's search_path leads to PostgreSQL's own functions and operators; relations and types are looked
//! for among temporary ones first, and are therefore qualified.

use crate::change::Relation;
use crate::options::MAX_NAME;
use crate::sql::quote::literal;
use serde::Deserialize;
use std::collections::HashMap;

/// What a server says of itself and of the target.
#[derive(Debug, Default, Deserialize)]
pub struct Facts {
    /// Whom the session was authenticated as.
    pub role: String,
    /// That role and those it is a member of.
    pub roles: Vec<String>,
    pub in_recovery: bool,
    /// What the other side's triggers go by where they name nothing themselves, in a session like this one.
    pub guard: String,
    /// Whether the schema may be used; `None` if there is none.
    pub usage: Option<bool>,
    pub table: Option<Target>,
}

/// The target.
#[derive(Debug, Default, Deserialize)]
pub struct Target {
    /// `pg_class.relkind`.
    pub kind: String,
    /// A policy hides rows from the role.
    pub row_security: bool,
    pub delete: bool,
    pub truncate: bool,
    /// BEFORE or INSTEAD OF triggers for each row see what is inserted.
    pub changes_rows: bool,
    /// BEFORE triggers for each row, without a condition, speak of the version column.
    #[serde(default)]
    pub sets_version: bool,
    /// Names, each with its [`Flags`].
    pub columns: Vec<(String, Flags)>,
    /// Unique indexes that ON CONFLICT may rely on: columns, and whether each is checked at once.
    pub unique: Vec<(Vec<String>, bool)>,
    /// Triggers of the extension that send the target's rows.
    pub triggers: Vec<Trigger>,
}

/// Letters of what holds for a column: `n` NOT NULL, `d` has a default, `g` generated; `i`, `u`, `s`: the role may
/// insert, update, select.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct Flags(String);

impl Flags {
    /// Whether it holds.
    pub fn has(&self, letter: char) -> bool {
        self.0.contains(letter)
    }
}

impl Facts {
    /// Whether names are as long as names are: the server may be anyone's, and they are told and logged.
    pub fn is_sound(&self) -> bool {
        let is_name = |name: &String| name.chars().count() <= MAX_NAME;
        let of_trigger = |trigger: &Trigger| trigger.args.iter().take(3).all(is_name);
        let of_target = |target: &Target| {
            target.triggers.iter().all(of_trigger)
                && target.columns.iter().all(|(name, _)| is_name(name))
        };
        is_name(&self.role) && is_name(&self.guard) && self.table.iter().all(of_target)
    }
}

/// A trigger of the other side's extension.
#[derive(Debug, Default, Deserialize)]
pub struct Trigger {
    /// Server, schema, table and, if there are any, options.
    pub args: Vec<String>,
    /// Options of wrapper and server that matter here.
    pub server: HashMap<String, String>,
}

/// The question about a relation. `version`: its column that decides which row is the newest, if one does.
pub fn about(target: &Relation, version: Option<&str>) -> String {
    let [schema, table, each_byte] =
        [&target.schema, &target.table, &"\\1 ".to_owned()].map(|text| literal(text));
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
        "SELECT json_agg(json_build_object('args', a.args, 'server', COALESCE(({options}), '{{}}'::pg_catalog.json))) \
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
          WHERE t.tgrelid = c.oid AND t.tgenabled IN ('O', 'A') AND t.tgtype & 28 <> 0 AND t.tgnargs > 2"
    );
    // By the text of the function, or the trigger's arguments for those that are written in C.
    let sets_version = version.map_or("false".to_owned(), |version| {
        let version = literal(version);
        format!(
            "EXISTS (SELECT FROM pg_catalog.pg_trigger b JOIN pg_catalog.pg_proc p ON p.oid = b.tgfoid \
               WHERE b.tgrelid = c.oid AND b.tgenabled IN ('O', 'A') AND b.tgtype & 3 = 3 \
                 AND b.tgtype & 20 <> 0 AND b.tgqual IS NULL \
                 AND (strpos(p.prosrc, {version}) > 0 OR strpos(encode(b.tgargs, 'escape'), {version}) > 0))"
        )
    });
    let columns = "SELECT json_agg(json_build_array(a.attname, concat( \
             CASE WHEN a.attnotnull OR y.typnotnull THEN 'n' END, \
             CASE WHEN a.atthasdef OR a.attidentity <> '' OR y.typdefault IS NOT NULL THEN 'd' END, \
             CASE WHEN a.attgenerated <> '' THEN 'g' END, \
             CASE WHEN has_column_privilege(c.oid, a.attnum, 'INSERT') THEN 'i' END, \
             CASE WHEN has_column_privilege(c.oid, a.attnum, 'UPDATE') THEN 'u' END, \
             CASE WHEN has_column_privilege(c.oid, a.attnum, 'SELECT') THEN 's' END))) \
           FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type y ON y.oid = a.atttypid \
          WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped";
    let unique = "SELECT json_agg(json_build_array((SELECT json_agg(a.attname) \
               FROM unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY k(num, ord) \
               JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num \
              WHERE k.ord <= i.indnkeyatts), i.indimmediate)) \
           FROM pg_catalog.pg_index i \
          WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indisready \
            AND i.indpred IS NULL AND i.indexprs IS NULL";
    format!(
        "SELECT json_build_object( \
           'role', session_user, \
           'roles', (WITH RECURSIVE m(id) AS ( \
               SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = session_user \
               UNION SELECT g.roleid FROM m JOIN pg_catalog.pg_auth_members g ON g.member = m.id) \
             SELECT json_agg(r.rolname) FROM m JOIN pg_catalog.pg_roles r ON r.oid = m.id), \
           'in_recovery', pg_is_in_recovery(), \
           'guard', COALESCE(current_setting('pg_rowsync.application_name', true), 'pg_rowsync'), \
           'usage', (SELECT has_schema_privilege(n.oid, 'USAGE') \
                       FROM pg_catalog.pg_namespace n WHERE n.nspname = {schema}), \
           'table', (SELECT json_build_object( \
               'kind', c.relkind, \
               'row_security', row_security_active(c.oid), \
               'delete', has_table_privilege(c.oid, 'DELETE'), \
               'truncate', has_table_privilege(c.oid, 'TRUNCATE'), \
               'changes_rows', EXISTS (SELECT FROM pg_catalog.pg_trigger b WHERE b.tgrelid = c.oid \
                  AND b.tgenabled <> 'D' AND b.tgtype & 5 = 5 AND b.tgtype & 66 <> 0), \
               'sets_version', {sets_version}, \
               'columns', COALESCE(({columns}), '[]'::pg_catalog.json), \
               'unique', COALESCE(({unique}), '[]'::pg_catalog.json), \
               'triggers', COALESCE(({triggers}), '[]'::pg_catalog.json)) \
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
            WHERE n.nspname = {schema} AND c.relname = {table}))"
    )
}
