//! A local table as the catalogs describe it.

use crate::change::{Carrier, OwnType, Relation};
use crate::connect::account::oid;
use crate::error::{Error, Result, SqlState};
use crate::pg::Oid;
use crate::pg::invalidation::{self, Epoch};
use crate::pg::output::OutputNeeds;
use crate::pg::slot::Attribute;
use crate::pg::spi::{self, Extension, required};

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
    pub owner: Oid,
    /// Itself, or of a partition the topmost table.
    pub root: Oid,
    pub partitioned: bool,
    pub columns: Vec<TableColumn>,
    /// The primary key's columns, else those of the replica identity index, in index order.
    pub key: Vec<String>,
    /// The key's constraint is deferrable: for a while two rows may hold the same key.
    pub key_deferrable: bool,
    /// Tables, and their partitions, that foreign keys of this one refer to with CASCADE.
    pub cascades_from: Vec<Relation>,
}

impl Table {
    /// Reads the catalogs.
    ///
    /// # Errors
    /// 42P01 when there is no such relation, 0A000 when it is not a table or one of the extension's own.
    pub fn read(extension: &Extension, table: Oid) -> Result<Self> {
        let epoch = invalidation::now();
        let relation = table.to_u32().to_string();
        let args = [Some(relation.as_str())];
        let rows = spi::read(
            extension,
            "SELECT n.nspname, c.relname, c.relowner, c.relkind, \
                COALESCE(pg_catalog.pg_partition_root(c.oid)::pg_catalog.oid, c.oid), \
                EXISTS (SELECT FROM pg_catalog.pg_depend d \
                  JOIN pg_catalog.pg_extension e ON e.oid OPERATOR(pg_catalog.=) d.refobjid \
                  WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass \
                    AND d.objid OPERATOR(pg_catalog.=) c.oid \
                    AND d.refclassid OPERATOR(pg_catalog.=) \
                        'pg_catalog.pg_extension'::pg_catalog.regclass \
                    AND d.deptype OPERATOR(pg_catalog.=) 'e' \
                    AND e.extname OPERATOR(pg_catalog.=) 'pg_rowsync') \
             FROM pg_catalog.pg_class c \
             JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
             WHERE c.oid OPERATOR(pg_catalog.=) $1::pg_catalog.oid",
            &args,
        )?;
        let Some(mut row) = rows.into_iter().next() else {
            return Err(Error::local(
                SqlState::UNDEFINED_TABLE,
                "relation does not exist",
            ));
        };
        let name = Relation {
            schema: required(&mut row, 0)?,
            table: required(&mut row, 1)?,
        };
        let owner = oid(&required(&mut row, 2)?)?;
        let kind = required(&mut row, 3)?;
        let root = oid(&required(&mut row, 4)?)?;
        if kind != "r" && kind != "p" {
            return Err(Error::local(
                SqlState::FEATURE_NOT_SUPPORTED,
                format!("\"{}\" is not a table", name.table),
            )
            .with_hint("sync_dml works on ordinary and partitioned tables."));
        }
        if required(&mut row, 5)? == "t" {
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
            key,
            partitioned: kind == "p",
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
        spi::read(
            extension,
            "SELECT a.attname, a.attnum, a.atttypid, \
                    a.attgenerated OPERATOR(pg_catalog.<>) '', \
                    CASE WHEN t.typcategory OPERATOR(pg_catalog.=) 'C' \
                              AND t.typtype OPERATOR(pg_catalog.=) ANY ('{c,d}') THEN 'record' \
                         WHEN t.typtype OPERATOR(pg_catalog.<>) 'd' \
                              AND t.typsubscript OPERATOR(pg_catalog.=) \
                                  'pg_catalog.array_subscript_handler'::pg_catalog.regproc THEN \
                              CASE WHEN t.typnamespace OPERATOR(pg_catalog.=) \
                                        'pg_catalog'::pg_catalog.regnamespace \
                                   THEN 'array' ELSE 'record' END \
                         WHEN t.typdelim OPERATOR(pg_catalog.<>) ',' THEN 'record' \
                         ELSE 'element' END, \
                    t.typname, \
                    CASE WHEN t.typtype OPERATOR(pg_catalog.<>) 'e' AND \
                              (t.oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid \
                               OR t.typname::pg_catalog.text \
                                  OPERATOR(pg_catalog.~) '^_?(reg|money)') THEN 'anything' \
                         WHEN t.typname::pg_catalog.text \
                              OPERATOR(pg_catalog.~) '^(_timestamptz|_?tstz)' THEN 'time zone' \
                         WHEN t.typname::pg_catalog.text \
                              OPERATOR(pg_catalog.~) '^_?bytea$' THEN 'bytea' \
                         ELSE '' END, \
                    a.attidentity OPERATOR(pg_catalog.=) 'a', \
                    EXISTS (SELECT FROM pg_catalog.pg_opclass c \
                     JOIN pg_catalog.pg_am m ON m.oid OPERATOR(pg_catalog.=) c.opcmethod \
                      AND m.amname OPERATOR(pg_catalog.=) 'btree' \
                     JOIN pg_catalog.pg_amop p ON p.amopfamily OPERATOR(pg_catalog.=) c.opcfamily \
                      AND p.amopstrategy OPERATOR(pg_catalog.=) 3 \
                      AND p.amoplefttype OPERATOR(pg_catalog.=) c.opcintype \
                      AND p.amoprighttype OPERATOR(pg_catalog.=) c.opcintype \
                     JOIN pg_catalog.pg_operator o ON o.oid OPERATOR(pg_catalog.=) p.amopopr \
                     JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) o.oprnamespace \
                     WHERE c.opcdefault AND c.opcintype OPERATOR(pg_catalog.=) ANY ( \
                           WITH RECURSIVE base(id) AS (SELECT t.oid \
                             UNION ALL SELECT d.typbasetype FROM base JOIN pg_catalog.pg_type d \
                               ON d.oid OPERATOR(pg_catalog.=) base.id \
                               WHERE d.typbasetype OPERATOR(pg_catalog.<>) 0::pg_catalog.oid) \
                           SELECT id FROM base) \
                       AND n.nspname OPERATOR(pg_catalog.<>) 'pg_catalog'), \
                    t.typtype OPERATOR(pg_catalog.=) 'e' \
                    OR t.oid OPERATOR(pg_catalog.=) ANY ('{pg_catalog.bool,pg_catalog.int2, \
                       pg_catalog.int4,pg_catalog.int8,pg_catalog.oid,pg_catalog.uuid, \
                       pg_catalog.date,pg_catalog.time,pg_catalog.timestamp,pg_catalog.name, \
                       pg_catalog.timestamptz,pg_catalog.timetz,pg_catalog.bytea,pg_catalog.inet, \
                       pg_catalog.cidr,pg_catalog.macaddr,pg_catalog.macaddr8,pg_catalog.bit, \
                       pg_catalog.varbit,pg_catalog.int4range,pg_catalog.int8range, \
                       pg_catalog.daterange,pg_catalog.tsrange,pg_catalog.tstzrange, \
                       pg_catalog.text,pg_catalog.varchar}'::pg_catalog.regtype[]) \
                       AND (a.attcollation OPERATOR(pg_catalog.=) 0::pg_catalog.oid \
                            OR EXISTS (SELECT FROM pg_catalog.pg_collation l \
                               WHERE l.oid OPERATOR(pg_catalog.=) a.attcollation \
                                 AND l.collisdeterministic)) \
                    OR a.atttypmod OPERATOR(pg_catalog.<>) -1 \
                       AND t.oid OPERATOR(pg_catalog.=) 'pg_catalog.numeric'::pg_catalog.regtype, \
                    a.attcollation OPERATOR(pg_catalog.<>) 0::pg_catalog.oid, \
                    own.name, own.modifier \
             FROM pg_catalog.pg_attribute a \
             LEFT JOIN LATERAL (WITH RECURSIVE base(id, modifier) AS ( \
                   SELECT a.atttypid, a.atttypmod \
                   UNION ALL SELECT d.typbasetype, d.typtypmod FROM base JOIN pg_catalog.pg_type d \
                     ON d.oid OPERATOR(pg_catalog.=) base.id \
                     WHERE d.typtype OPERATOR(pg_catalog.=) 'd') \
                 SELECT d.typname, base.modifier FROM base JOIN pg_catalog.pg_type d \
                   ON d.oid OPERATOR(pg_catalog.=) base.id \
                  AND d.typtype OPERATOR(pg_catalog.=) 'b' \
                  AND d.typnamespace OPERATOR(pg_catalog.=) 'pg_catalog'::pg_catalog.regnamespace) \
               AS own(name, modifier) ON true \
             JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) a.atttypid \
             WHERE a.attrelid OPERATOR(pg_catalog.=) $1::pg_catalog.oid \
               AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped \
             ORDER BY a.attnum",
            args,
        )?
        .into_iter()
        .map(|mut row| {
            let number = required(&mut row, 1)?;
            let type_name = required(&mut row, 5)?;
            let needs = required(&mut row, 6)?;
            Ok(TableColumn {
                name: required(&mut row, 0)?,
                attribute: Attribute {
                    number: number
                        .parse()
                        .map_err(|_| Error::internal("malformed attnum"))?,
                    type_oid: oid(&required(&mut row, 2)?)?,
                },
                generated: required(&mut row, 3)? == "t",
                identity_always: required(&mut row, 7)? == "t",
                own_equality: required(&mut row, 8)? == "t",
                exact: required(&mut row, 9)? == "t",
                carrier: match required(&mut row, 4)?.as_str() {
                    "record" => Carrier::Record,
                    "array" => Carrier::Array(type_name),
                    _ => Carrier::Element,
                },
                output: OutputNeeds {
                    anything: needs == "anything",
                    time_zone: needs == "time zone",
                    bytea: needs == "bytea",
                },
                collated: required(&mut row, 10)? == "t",
                own_type: row[11]
                    .take()
                    .zip(row[12].take())
                    .and_then(|(name, modifier)| {
                        let modifier = modifier.parse().ok()?;
                        Some(OwnType { name, modifier })
                    }),
            })
        })
        .collect()
    }

    fn cascades_from(extension: &Extension, args: &[Option<&str>]) -> Result<Vec<Relation>> {
        spi::read(
            extension,
            "SELECT DISTINCT n.nspname, c.relname FROM pg_catalog.pg_constraint f \
             CROSS JOIN LATERAL (SELECT f.confrelid UNION SELECT p.relid::pg_catalog.oid \
               FROM pg_catalog.pg_partition_tree(f.confrelid::pg_catalog.regclass) p) AS t(id) \
             JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.id \
             JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
             WHERE f.conrelid OPERATOR(pg_catalog.=) $1::pg_catalog.oid \
               AND f.contype OPERATOR(pg_catalog.=) 'f' \
               AND (f.confdeltype OPERATOR(pg_catalog.=) 'c' OR f.confupdtype OPERATOR(pg_catalog.=) 'c') \
             ORDER BY 1, 2",
            args,
        )?
        .into_iter()
        .map(|mut row| Ok(Relation { schema: required(&mut row, 0)?, table: required(&mut row, 1)? }))
        .collect()
    }

    /// The key's columns, each with whether the index is checked at once. Not those of a key WITHOUT
    /// OVERLAPS, which newer majors have: no ON CONFLICT can rely on it.
    fn key(extension: &Extension, args: &[Option<&str>]) -> Result<Vec<(String, bool)>> {
        spi::read(
            extension,
            "SELECT a.attname, i.indimmediate FROM ( \
               SELECT i.indrelid, i.indkey, i.indnkeyatts, i.indimmediate FROM pg_catalog.pg_index i \
               WHERE i.indrelid OPERATOR(pg_catalog.=) $1::pg_catalog.oid AND i.indisvalid \
                 AND (i.indisprimary OR i.indisreplident) AND NOT i.indisexclusion \
               ORDER BY i.indisprimary DESC LIMIT 1) i, \
             LATERAL pg_catalog.unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY AS k(num, ord) \
             JOIN pg_catalog.pg_attribute a ON a.attnum OPERATOR(pg_catalog.=) k.num \
              AND a.attrelid OPERATOR(pg_catalog.=) $1::pg_catalog.oid \
             WHERE k.ord OPERATOR(pg_catalog.<=) i.indnkeyatts ORDER BY k.ord",
            args,
        )?
        .into_iter()
        .map(|mut row| Ok((required(&mut row, 0)?, required(&mut row, 1)? == "t")))
        .collect()
    }
}
