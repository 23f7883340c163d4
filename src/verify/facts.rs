//! What a side's catalogs say of its table: the question, and the shape of its answer.

use serde::Deserialize;

/// What one side's catalogs say of its table.
#[derive(Debug, Default, Deserialize)]
pub struct Facts {
    /// The database's encoding.
    pub encoding: String,
    /// By what the database's default collation sorts.
    pub default_collation: String,
    /// Hashes of a few texts.
    pub probe: Vec<String>,
    /// `pg_class.relkind`; `None` without such a relation.
    pub kind: Option<String>,
    pub columns: Vec<ColumnFacts>,
    /// Columns of each btree index that covers all rows.
    pub indexes: Vec<Vec<String>>,
}

/// A column; of a domain, the type is the one beneath it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ColumnFacts {
    pub name: String,
    /// As `format_type` writes it, with its modifier.
    pub declared: String,
    /// `pg_type.typname`.
    pub base: String,
    /// `atttypmod`.
    pub modifier: i32,
    /// The type is one of PostgreSQL's own.
    pub own: bool,
    /// By what its values sort; empty for types without a collation.
    pub collation: String,
    /// Equal values of its collation have equal texts.
    pub deterministic: bool,
    /// It may be NULL, as far as the table itself says.
    pub nullable: bool,
}

impl Facts {
    /// The column of that name.
    pub fn column(&self, name: &str) -> Option<&ColumnFacts> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Whether rows can be found in the order of these columns.
    pub fn has_index_on(&self, columns: &[&str]) -> bool {
        self.indexes.iter().any(|index| {
            index.len() >= columns.len() && index.iter().zip(columns).all(|(own, name)| own == name)
        })
    }
}

/// The question about a relation, given as an expression of type regclass.
pub fn about(relation: &str) -> String {
    const EQ: &str = "OPERATOR(pg_catalog.=)";
    let base = format!(
        "(WITH RECURSIVE d(id, modifier, depth) AS ( \
             SELECT a.atttypid, a.atttypmod, 0 \
             UNION ALL SELECT y.typbasetype, \
               CASE WHEN d.modifier {EQ} (-1) THEN y.typtypmod ELSE d.modifier END, \
               d.depth OPERATOR(pg_catalog.+) 1 \
             FROM d JOIN pg_catalog.pg_type y ON y.oid {EQ} d.id WHERE y.typtype {EQ} 'd') \
           SELECT d.id, d.modifier FROM d ORDER BY d.depth DESC LIMIT 1)"
    );
    let collation = format!(
        "CASE WHEN l.oid IS NULL THEN '' WHEN l.collprovider {EQ} 'd' THEN 'default' \
              ELSE pg_catalog.concat(l.collprovider, ' ', \
                 pg_catalog.to_jsonb(l) OPERATOR(pg_catalog.->>) 'collcollate', ' ', \
                 pg_catalog.to_jsonb(l) OPERATOR(pg_catalog.->>) 'colliculocale', ' ', \
                 pg_catalog.to_jsonb(l) OPERATOR(pg_catalog.->>) 'colllocale') END"
    );
    let columns = format!(
        "SELECT pg_catalog.json_agg(pg_catalog.json_build_object('name', a.attname, \
             'declared', pg_catalog.format_type(b.id, b.modifier), 'base', y.typname, \
             'modifier', b.modifier, 'own', n.nspname {EQ} 'pg_catalog', \
             'collation', {collation}, 'deterministic', COALESCE(l.collisdeterministic, true), \
             'nullable', NOT a.attnotnull) \
             ORDER BY a.attnum) \
         FROM pg_catalog.pg_attribute a CROSS JOIN LATERAL {base} b \
         JOIN pg_catalog.pg_type y ON y.oid {EQ} b.id \
         JOIN pg_catalog.pg_namespace n ON n.oid {EQ} y.typnamespace \
         LEFT JOIN pg_catalog.pg_collation l ON l.oid {EQ} a.attcollation \
         WHERE a.attrelid {EQ} c.oid AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped"
    );
    let indexes = format!(
        "SELECT pg_catalog.json_agg((SELECT pg_catalog.json_agg(a.attname ORDER BY k.ord) \
             FROM pg_catalog.unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY k(num, ord) \
             JOIN pg_catalog.pg_attribute a ON a.attrelid {EQ} i.indrelid AND a.attnum {EQ} k.num \
            WHERE k.ord OPERATOR(pg_catalog.<=) i.indnkeyatts)) \
         FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid {EQ} i.indexrelid \
         JOIN pg_catalog.pg_am m ON m.oid {EQ} x.relam AND m.amname {EQ} 'btree' \
         WHERE i.indrelid {EQ} c.oid AND i.indisvalid AND i.indisready \
           AND i.indpred IS NULL AND i.indexprs IS NULL"
    );
    let probe = |text: &str| format!("pg_catalog.hashtextextended({text}, 0)::pg_catalog.text");
    let probes = ["''", "'a'", "pg_catalog.repeat('pg_rowsync', 50)"]
        .map(probe)
        .join(", ");
    format!(
        "SELECT pg_catalog.json_build_object( \
           'encoding', pg_catalog.getdatabaseencoding(), \
           'default_collation', (SELECT pg_catalog.concat( \
               pg_catalog.to_jsonb(d) OPERATOR(pg_catalog.->>) 'datlocprovider', ' ', d.datcollate, ' ', \
               pg_catalog.to_jsonb(d) OPERATOR(pg_catalog.->>) 'daticulocale', ' ', \
               pg_catalog.to_jsonb(d) OPERATOR(pg_catalog.->>) 'datlocale') \
             FROM pg_catalog.pg_database d WHERE d.datname {EQ} pg_catalog.current_database()), \
           'probe', pg_catalog.json_build_array({probes}), \
           'kind', c.relkind, \
           'columns', COALESCE(({columns}), '[]'), \
           'indexes', COALESCE(({indexes}), '[]')) \
         FROM (SELECT {relation}::pg_catalog.oid AS oid) q LEFT JOIN pg_catalog.pg_class c ON c.oid {EQ} q.oid"
    )
}
