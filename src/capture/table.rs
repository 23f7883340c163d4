//! A local table as the catalogs describe it.

use crate::change::{Carrier, OwnType, Relation};
use crate::error::{Error, Result, SqlState};
use crate::pg::Oid;
use crate::pg::invalidation::{self, Epoch};
use crate::pg::output::OutputNeeds;
use crate::pg::slot::Attribute;
use crate::pg::spi::{self, Extension};

/// A column that can be sent.
#[derive(Clone, Debug)]
pub struct TableColumn {
    pub name: String,
    pub attribute: Attribute,
    /// GENERATED ALWAYS AS (...): computed on the other side too, never sent.
    pub generated: bool,
    /// GENERATED ALWAYS AS IDENTITY.
    pub identity_always: bool,
    /// The type's equality operator is not one of PostgreSQL's own.
    pub own_equality: bool,
    pub carrier: Carrier,
    /// Two values are equal exactly if their texts are, whatever the session's settings.
    pub exact: bool,
    /// What the type's output depends on beyond date, interval and float style.
    pub output: OutputNeeds,
    /// Its values have a collation.
    pub collated: bool,
    /// What it is of, if that is one of PostgreSQL's own types.
    pub own_type: Option<OwnType>,
}

/// A table and what matters of it here.
#[derive(Clone, Debug)]
pub struct Table {
    pub oid: Oid,
    /// When the catalogs were read.
    pub epoch: Epoch,
    pub name: Relation,
    /// The table whose changes its own are: itself, or of a partition the one that is attached.
    pub captured_as: Relation,
    pub owner: Oid,
    /// Itself, or of a partition the topmost table.
    pub root: Oid,
    pub partitioned: bool,
    pub columns: Vec<TableColumn>,
    /// The primary key's columns, else those of the replica identity index, in index order.
    pub key: Vec<String>,
    /// There is a key WITHOUT OVERLAPS, which is none of those.
    pub has_period_key: bool,
    /// The key's constraint is deferrable: for a while two rows may hold the same key.
    pub key_deferrable: bool,
    /// Tables, and their partitions, that foreign keys of this one refer to with CASCADE.
    pub cascades_from: Vec<Relation>,
}

/// What joins, to the columns `a`, the type of PostgreSQL's own that each is of, also where it is a domain, and its
/// modifier: `own`.
macro_rules! own_type {
    () => {
        "LEFT JOIN LATERAL (WITH RECURSIVE base(id, modifier) AS ( \
             SELECT a.atttypid, a.atttypmod \
             UNION ALL SELECT d.typbasetype, d.typtypmod FROM base JOIN pg_type d \
               ON d.oid = base.id WHERE d.typtype = 'd') \
           SELECT d.typname, base.modifier FROM base JOIN pg_type d ON d.oid = base.id \
             AND d.typtype = 'b' AND d.typnamespace = 'pg_catalog'::regnamespace) \
         AS own(name, modifier) ON true"
    };
}
pub(super) use own_type;

impl Table {
    /// Reads the catalogs.
    ///
    /// # Errors
    /// 42P01 when there is no such relation, 0A000 when it is not a table or one of the extension's own.
    pub fn read(extension: &Extension, table: Oid) -> Result<Self> {
        let epoch = invalidation::now();
        let relation = table.to_u32().to_string();
        let args = [Some(relation.as_str())];
        let found = spi::select_first::<(String, String, Oid, String, Oid, bool, bool)>(
            extension,
            "SELECT n.nspname, c.relname, c.relowner, c.relkind, \
                COALESCE(pg_partition_root(c.oid)::oid, c.oid), \
                EXISTS (SELECT FROM pg_depend d \
                  JOIN pg_extension e ON e.oid = d.refobjid \
                  WHERE d.classid = 'pg_class'::regclass \
                    AND d.objid = c.oid \
                    AND d.refclassid = \
                        'pg_extension'::regclass \
                    AND d.deptype = 'e' \
                    AND e.extname = 'pg_rowsync'), \
                EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid \
                    AND (i.indisprimary OR i.indisreplident) AND i.indisexclusion) \
             FROM pg_class c \
             JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.oid = $1::oid",
            &args,
        )?;
        let Some((schema, name, owner, kind, root, is_ours, has_period_key)) = found else {
            return Err(Error::local(
                SqlState::UNDEFINED_TABLE,
                "relation does not exist",
            ));
        };
        let name = Relation {
            schema,
            table: name,
        };
        if kind != "r" && kind != "p" {
            return Err(Error::local(
                SqlState::FEATURE_NOT_SUPPORTED,
                format!("\"{}\" is not a table", name.table),
            )
            .with_hint("sync_dml works on ordinary and partitioned tables."));
        }
        if is_ours {
            return Err(Error::local(
                SqlState::FEATURE_NOT_SUPPORTED,
                format!("\"{}\" belongs to the extension \"pg_rowsync\"", name.table),
            )
            .with_hint("Its own tables are each database's own and are never sent."));
        }
        let (key, immediate): (Vec<String>, Vec<bool>) =
            Self::key(extension, &args)?.into_iter().unzip();
        Ok(Self {
            oid: table,
            epoch,
            columns: Self::columns(extension, &args)?,
            cascades_from: Self::cascades_from(extension, &args)?,
            key_deferrable: immediate.contains(&false),
            has_period_key,
            key,
            partitioned: kind == "p",
            captured_as: name.clone(),
            name,
            owner,
            root,
        })
    }

    fn columns(extension: &Extension, args: &[Option<&str>]) -> Result<Vec<TableColumn>> {
        // Carrier: composites (and domains over them) go through the row type; true arrays by the
        // name of their type where it is PostgreSQL's own; box, whose arrays are written with
        // semicolons, like composites; everything else as array elements.
        // Exact: only types of which this is certain; numeric where its scale is fixed.
        let rows: Vec<Columns> = spi::select(
            extension,
            concat!(
                "SELECT a.attname, a.attnum, a.atttypid, \
                    a.attgenerated <> '', \
                    CASE WHEN t.typcategory = 'C' \
                              AND t.typtype = ANY ('{c,d}') THEN 'record' \
                         WHEN t.typtype <> 'd' \
                              AND t.typsubscript = \
                                  'array_subscript_handler'::regproc THEN \
                              CASE WHEN t.typnamespace = \
                                        'pg_catalog'::regnamespace \
                                   THEN 'array' ELSE 'record' END \
                         WHEN t.typdelim <> ',' THEN 'record' \
                         ELSE 'element' END, \
                    t.typname, \
                    CASE WHEN t.typtype <> 'e' AND \
                              (t.oid >= 16384::oid \
                               OR t.typname::text \
                                  ~ '^_?(reg|money)') THEN 'anything' \
                         WHEN t.typname::text \
                              ~ '^(_timestamptz|_?tstz)' THEN 'time zone' \
                         WHEN t.typname::text \
                              ~ '^_?bytea$' THEN 'bytea' \
                         ELSE '' END, \
                    a.attidentity = 'a', \
                    EXISTS (SELECT FROM pg_opclass c \
                     JOIN pg_am m ON m.oid = c.opcmethod \
                      AND m.amname = 'btree' \
                     JOIN pg_amop p ON p.amopfamily = c.opcfamily \
                      AND p.amopstrategy = 3 \
                      AND p.amoplefttype = c.opcintype \
                      AND p.amoprighttype = c.opcintype \
                     JOIN pg_operator o ON o.oid = p.amopopr \
                     JOIN pg_namespace n ON n.oid = o.oprnamespace \
                     WHERE c.opcdefault AND c.opcintype = ANY ( \
                           WITH RECURSIVE base(id) AS (SELECT t.oid \
                             UNION ALL SELECT d.typbasetype FROM base JOIN pg_type d \
                               ON d.oid = base.id \
                               WHERE d.typbasetype <> 0::oid) \
                           SELECT id FROM base) \
                       AND n.nspname <> 'pg_catalog'), \
                    t.typtype = 'e' \
                    OR t.oid = ANY ('{bool,int2, \
                       int4,int8,oid,uuid, \
                       date,time,timestamp,name, \
                       timestamptz,timetz,bytea,inet, \
                       cidr,macaddr,macaddr8,bit, \
                       varbit,int4range,int8range, \
                       daterange,tsrange,tstzrange, \
                       text,varchar}'::regtype[]) \
                       AND (a.attcollation = 0::oid \
                            OR EXISTS (SELECT FROM pg_collation l \
                               WHERE l.oid = a.attcollation \
                                 AND l.collisdeterministic)) \
                    OR a.atttypmod <> -1 \
                       AND t.oid = 'numeric'::regtype, \
                    a.attcollation <> 0::oid, \
                    own.name, own.modifier \
             FROM pg_attribute a ",
                own_type!(),
                " JOIN pg_type t ON t.oid = a.atttypid \
             WHERE a.attrelid = $1::oid \
               AND a.attnum > 0 AND NOT a.attisdropped \
             ORDER BY a.attnum"
            ),
            args,
        )?;
        Ok(rows.into_iter().map(column).collect())
    }

    /// Lets the changes of a partition be those of the table by whose trigger its own, this one, was made: they go
    /// the same way. Not where rows are told apart by their places, which mean something in one table only.
    ///
    /// # Errors
    /// What the catalogs report.
    pub fn capture_as_attached(&mut self, extension: &Extension, trigger: Oid) -> Result<()> {
        if self.root == self.oid || self.key_deferrable {
            return Ok(());
        }
        // For its name.
        invalidation::watch(self.root);
        let attached = spi::select_first(
            extension,
            "WITH RECURSIVE made AS ( \
               SELECT t.tgparentid, t.tgrelid FROM pg_trigger t \
                 WHERE t.oid = $1::oid \
               UNION ALL SELECT t.tgparentid, t.tgrelid FROM pg_trigger t \
                 JOIN made m ON t.oid = m.tgparentid) \
             SELECT n.nspname, c.relname FROM made m \
             JOIN pg_class c ON c.oid = m.tgrelid \
             JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE m.tgparentid = 0",
            &[Some(&trigger.to_u32().to_string())],
        )?;
        if let Some((schema, table)) = attached {
            self.captured_as = Relation { schema, table };
        }
        Ok(())
    }

    fn cascades_from(extension: &Extension, args: &[Option<&str>]) -> Result<Vec<Relation>> {
        let rows: Vec<(String, String)> = spi::select(
            extension,
            "SELECT DISTINCT n.nspname, c.relname FROM pg_constraint f \
             CROSS JOIN LATERAL (SELECT f.confrelid UNION SELECT p.relid::oid \
               FROM pg_partition_tree(f.confrelid::regclass) p) AS t(id) \
             JOIN pg_class c ON c.oid = t.id \
             JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE f.conrelid = $1::oid \
               AND f.contype = 'f' \
               AND (f.confdeltype = 'c' OR f.confupdtype = 'c') \
             ORDER BY 1, 2",
            args,
        )?;
        let relations = rows
            .into_iter()
            .map(|(schema, table)| Relation { schema, table });
        Ok(relations.collect())
    }

    /// The names of the key's columns.
    ///
    /// # Errors
    /// What the catalogs report.
    pub fn key_columns(extension: &Extension, args: &[Option<&str>]) -> Result<Vec<String>> {
        let key = Self::key(extension, args)?;
        Ok(key.into_iter().map(|(name, _)| name).collect())
    }

    /// The key's columns, each with whether the index is checked at once. Not those of a key WITHOUT
    /// OVERLAPS, which newer majors have: no ON CONFLICT can rely on it.
    fn key(extension: &Extension, args: &[Option<&str>]) -> Result<Vec<(String, bool)>> {
        spi::select(
            extension,
            "SELECT a.attname, i.indimmediate FROM ( \
               SELECT i.indrelid, i.indkey, i.indnkeyatts, i.indimmediate FROM pg_index i \
               WHERE i.indrelid = $1::oid AND i.indisvalid \
                 AND (i.indisprimary OR i.indisreplident) AND NOT i.indisexclusion \
               ORDER BY i.indisprimary DESC LIMIT 1) i, \
             LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(num, ord) \
             JOIN pg_attribute a ON a.attnum = k.num \
              AND a.attrelid = $1::oid \
             WHERE k.ord <= i.indnkeyatts ORDER BY k.ord",
            args,
        )
    }
}

/// What is selected of a column: name, number and type; whether it is generated; how it is carried; the name of
/// its type; what the type's output depends on; whether it is GENERATED ALWAYS AS IDENTITY, has an equality of
/// its own, is exact, has a collation; the type of PostgreSQL's own that it is of, and its modifier.
type Columns = (
    String,
    i16,
    Oid,
    bool,
    String,
    String,
    String,
    bool,
    bool,
    bool,
    bool,
    Option<String>,
    Option<i32>,
);

fn column(
    (
        name,
        number,
        type_oid,
        generated,
        carrier,
        type_name,
        needs,
        identity_always,
        own_equality,
        exact,
        collated,
        own_name,
        modifier,
    ): Columns,
) -> TableColumn {
    TableColumn {
        name,
        attribute: Attribute { number, type_oid },
        generated,
        identity_always,
        own_equality,
        carrier: match carrier.as_str() {
            "record" => Carrier::Record,
            "array" => Carrier::Array(type_name),
            _ => Carrier::Element,
        },
        exact,
        output: OutputNeeds {
            anything: needs == "anything",
            time_zone: needs == "time zone",
            bytea: needs == "bytea",
        },
        collated,
        own_type: own_name
            .zip(modifier)
            .map(|(name, modifier)| OwnType { name, modifier }),
    }
}
