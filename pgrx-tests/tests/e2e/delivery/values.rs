//! Names and values of every kind arrive as they are.

use rowsync_harness::Fixture;

use crate::support::common::{deal, linked, queued, rows, run, same, table};

#[test]
fn odd_names_of_schema_table_column_and_server() {
    let fixture = Fixture::new("names");
    for server in [
        r#""a server""#,
        r#""it's ""quoted""""#,
        r#""punkt.dot""#,
        r#""Größe ✓""#,
    ] {
        fixture.link(&fixture.left, &fixture.right, server, &[]);
    }
    for (side, schema) in [
        (&fixture.left, r#"Sch "e" ma."#),
        (&fixture.right, "autre schéma's"),
    ] {
        let schema = quoted(schema);
        let user = &side.user;
        side.exec_superuser(&format!("create schema {schema} authorization {user}"));
        side.exec(&format!(
            r#"create table {schema}."my.table's ""x""" ("the key" int, "K""ey" text, "v.a'l" text,
                 "Ünï $q$ \ code" text, primary key ("K""ey", "the key"))"#
        ));
    }
    let left = r#""Sch ""e"" ma."."my.table's ""x""""#;
    let right = r#""autre schéma's"."my.table's ""x""""#;
    let mut client = fixture.left.client();
    let servers = ["a server", r#"it's "quoted""#, "punkt.dot", "Größe ✓"];
    for (at, server) in servers.iter().enumerate() {
        for mode in ["sync", "queue"] {
            run(&mut client, &format!("delete from {left}"));
            client
                .execute(
                    "select attach_sync($1::text::regclass, $2, $3, $4::text::jsonb)",
                    &[&left, server, &right, &format!(r#"{{"mode": "{mode}"}}"#)],
                )
                .unwrap_or_else(|error| panic!("{server}: {error:?}"));
            run(
                &mut client,
                &format!(
                    r#"insert into {left} values (1, 'a', 'b', 'c'), (2, 'a''b', 'c"d', 'e\f');
                       update {left} set "v.a'l" = 'new', "the key" = 3 where "the key" = 2;
                       insert into {left} values ({at}, 'x', 'y', 'z');
                       delete from {left} where "K""ey" = 'a'"#
                ),
            );
            if mode == "queue" {
                // By hand first: the text must be runnable under these names as well.
                let queries = "select dst_query from sync_err_rec order by id";
                for query in rows(&fixture.left, queries) {
                    fixture.right.exec(&query);
                }
                assert!(deal(&fixture, "100"));
            }
            let all = |name: &str| format!("select t::text from {name} t order by 1");
            let found = rows(&fixture.left, &all(left));
            assert_eq!(found, rows(&fixture.right, &all(right)), "{server}");
            assert_eq!(found.len(), 2);
            assert_eq!(queued(&fixture), 0);
            client
                .execute(
                    "select detach_sync($1::text::regclass, $2)",
                    &[&left, server],
                )
                .unwrap_or_else(|error| panic!("{server}: {error:?}"));
            fixture.right.exec(&format!("truncate {right}"));
        }
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

const TYPES: &str = "
    create type mood as enum ('sad', 'so so', 'it''s');
    create type pair as (a int, b text, d date);
    create domain positive as numeric check (value > 0);
    create domain tags as text[];
    create domain spot as pair;";

const COLUMNS: &str = "
    id int primary key, b bool, i2 int2, i8 int8, f4 float4, f8 float8, n numeric, n2 numeric(10, 3),
    c char(5), vc varchar(9), nm name, ch \"char\", t text, ba bytea, d date, tm time, tmz timetz,
    ts timestamp, tsz timestamptz, iv interval, u uuid, j json, jb jsonb, x xml, ip inet, net cidr,
    mac macaddr, bits bit(3), vb varbit, p point, r int4range, rs tstzrange, mr nummultirange,
    tsv tsvector, tsq tsquery, m money, oi oid, reg regtype, ia int[], ta text[], i2d int[], tsza timestamptz[], ja jsonb[],
    iva interval[], md mood, mds mood[], pr pair, prs pair[], dp positive, dps positive[], tg tags, sp spot";

/// Two rows of values, written under odd settings, so that a value that is sent in their style
/// would be read as another one.
const VALUES: [&str; 3] = [
    r#"1, true, -32768, 9223372036854775807, 0.1::float4 + 0.2::float4, 1/3::float8,
       12345678901234567890.123456789012345678901234567890, 1.5, 'ab', 'v''c', 'na"me', 'q',
       E'tab\t nl\n cr\r bs\\ q'' dq" $q$ {,} NULL', '\x00ff5c27', '2024-02-03', '01:02:03.000004',
       '23:59:59.5+05:30', '2024-02-03 04:05:06.789', '2024-02-03 04:05:06.789012+00',
       '-1 year 2 mons -3 days 04:05:06.7', '00000000-0000-0000-0000-00000000000a',
       '{"b": 1,  "a": [1, "x"], "b": 2}', '{"b": 1, "a": "\"\\u00e9\\\\"}', '<a b="1">x</a>',
       '10.0.0.1/8', '10.0.0.0/8', '08:00:2b:01:02:03', B'101', B'10011', '(1.1,-2.2)',
       '[1,5)', '["2024-02-03 00:00+00","2024-03-04 00:00+00")', '{[1,2),(3.5,)}',
       'a:1 cat:2A', 'a & !b', 1234.56, 4294967295, 'pg_catalog.int4', '{1,NULL,3}',
       array['a,b', 'NULL', null, '', E'q"\\', '{}'], '{{1,2},{3,4}}',
       array['2024-02-03 04:05:06+00'::timestamptz], array['{"a": "x,y"}'::jsonb, null],
       array['1 day 02:00'::interval, '-1 mon'], 'it''s', '{sad,"so so",NULL}',
       row(1, 'a,(b)"c"\', '2024-02-03'), array[row(1, 'x', '2024-02-03')::pair, null],
       0.000000000000000000000001, '{1.5,2}', '{a,"b c"}', row(2, 'y', '2024-02-03')"#,
    r#"2, false, 0, 0, 'NaN', '-Infinity', 'NaN', -0.001, '', '', '', '', '', '', '-infinity',
       '24:00', '00:00-12', 'infinity', '0001-01-01 00:00:00+00 BC', '0', null, 'null', 'null', '',
       '::1', '::/0', null, null, B'', '(Infinity,NaN)', 'empty', '(,)', '{}', '', '', -0.01,
       0, '-', '{}', '{}', '[0:1]={7,8}', '{}', '{}', '{}', null, '{}', row(null, '', null), '{}',
       null, '{}', '{}', null"#,
    "3",
];

const ODD_SETTINGS: &str = "
    set datestyle = 'SQL, DMY'; set intervalstyle = 'sql_standard'; set timezone = 'Asia/Kolkata';
    set extra_float_digits = 0; set bytea_output = 'escape'; set xmlbinary = 'hex';
    set client_encoding = 'UTF8'; set standard_conforming_strings = on;
    set lc_monetary = 'C'; set quote_all_identifiers = on";

/// A table of every type on both sides, the left one sent in this mode.
fn every_type(label: &str, mode: &str) -> Fixture {
    let fixture = linked(label);
    attach_every_type(&fixture, mode);
    fixture
}

fn attach_every_type(fixture: &Fixture, mode: &str) {
    for side in [&fixture.left, &fixture.right] {
        side.exec(TYPES);
        side.exec(&format!("create table t ({COLUMNS})"));
    }
    crate::support::common::attach(fixture, "t", &format!(r#"{{"mode": "{mode}"}}"#));
}

#[test]
fn every_type_arrives_whatever_the_sessions_settings() {
    for mode in ["sync", "queue"] {
        every_type_arrives(&linked("types"), mode);
    }
}

/// Values of every type, over a server `dst` of the left side.
pub fn every_type_arrives(fixture: &Fixture, mode: &str) {
    attach_every_type(fixture, mode);
    let mut client = fixture.left.client();
    run(&mut client, ODD_SETTINGS);
    run(&mut client, "begin");
    for values in VALUES {
        // Literals above are in ISO style: read them so, capture under the odd settings.
        run(&mut client, "set local datestyle = 'ISO, YMD'");
        run(
            &mut client,
            "create temp table v as select * from t with no data",
        );
        run(&mut client, &format!("insert into v values ({values})"));
        run(
            &mut client,
            "set local datestyle = 'SQL, DMY'; insert into t select * from v",
        );
        run(&mut client, "drop table v");
    }
    run(&mut client, "commit");
    if mode == "queue" {
        assert!(
            deal(fixture, "1"),
            "{:?}",
            rows(&fixture.left, "select message from sync_err_rec")
        );
        assert!(deal(fixture, "100"));
    }
    assert_eq!(same(fixture, "t").len(), 3);
    // Binary equality too, and the session's own settings are as they were.
    let binary =
        "select id, f4::text, encode(float8send(f8), 'hex'), scale(n), n2 from t order by 1";
    assert_eq!(rows(&fixture.left, binary), rows(&fixture.right, binary));
    let settings = "select current_setting('datestyle'), current_setting('intervalstyle'),
                      current_setting('extra_float_digits'), current_setting('bytea_output')";
    let kept = crate::support::common::query(&mut client, settings);
    assert_eq!(kept, ["SQL, DMY|sql_standard|0|escape"]);
    run(
        &mut client,
        "update t set t = 'changed', tsz = tsz + '1 hour', iv = iv * 2",
    );
    run(
        &mut client,
        "delete from t where id = 2; update t set id = 30 where id = 3",
    );
    assert!(deal(fixture, "100"));
    assert_eq!(same(fixture, "t").len(), 2);
}

/// Arrays of boxes are written with semicolons between them, alone among PostgreSQL's types.
#[test]
fn boxes_arrive_though_their_arrays_look_different() {
    let fixture =
        crate::support::common::one_way("box", "id int primary key, b box, bs box[]", "{}");
    fixture.left.exec(
        "insert into t values (1, '(1.5,2),(3,4)', '{(1,1),(0,0);(2,2),(1,1)}'), (2, null, '{}'),
           (3, '(1,1),(0,0)', null);
         update t set b = '(5,5),(0,0)' where id = 3",
    );
    assert_eq!(
        rows(&fixture.left, "select op, message from sync_err_rec"),
        [""; 0]
    );
    assert_eq!(same(&fixture, "t").len(), 3);
}

#[test]
fn every_type_can_be_run_by_hand() {
    let fixture = every_type("typehand", "queue");
    for values in VALUES {
        fixture
            .left
            .exec(&format!("insert into t values ({values})"));
    }
    fixture
        .left
        .exec("update t set id = id + 10 where id > 1; update t set t = 'x' where id = 1");
    for query in rows(
        &fixture.left,
        "select dst_query from sync_err_rec order by id",
    ) {
        fixture.right.exec(&query);
    }
    assert_eq!(same(&fixture, "t").len(), 3);
}

#[test]
fn keys_of_any_type_find_their_row() {
    let fixture = linked("keys");
    for side in [&fixture.left, &fixture.right] {
        side.exec(TYPES);
    }
    for (at, (kind, one, other)) in [
        (
            "timestamptz",
            "'2024-02-03 04:05:06.789012+00'",
            "'2024-11-12 00:00+00'",
        ),
        ("interval", "'-1 year 2 mons'", "'3 days'"),
        ("numeric", "1.10", "1.2"),
        ("float8", "0.1::float8 + 0.2", "1/3::float8"),
        ("bytea", r"'\x5c00'", "''"),
        ("char(5)", "'a'", "'b'"),
        ("jsonb", r#"'{"a": 1}'"#, "'[]'"),
        (
            "uuid",
            "'00000000-0000-0000-0000-00000000000a'",
            "gen_random_uuid()",
        ),
        ("int[]", "'{1,2}'", "'{}'"),
        ("text[]", r#"'{"a,b",NULL}'"#, "'{}'"),
        ("int4range", "'[1,5)'", "'empty'"),
        ("mood", "'it''s'", "'sad'"),
        ("pair", "row(1, 'a', '2024-02-03')", "row(2, 'b', null)"),
        ("positive", "1.5", "2"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("k{at}");
        crate::support::common::mirror(
            &fixture,
            &name,
            &format!("k {kind} primary key, v text"),
            "{}",
        );
        let mut client = fixture.left.client();
        run(&mut client, ODD_SETTINGS);
        run(&mut client, "set datestyle = 'ISO, YMD'");
        run(
            &mut client,
            &format!("insert into {name} values ({one}, 'a'), ({other}, 'b')"),
        );
        run(&mut client, "set datestyle = 'SQL, DMY'");
        run(
            &mut client,
            &format!("update {name} set v = 'c' where v = 'a'"),
        );
        run(&mut client, &format!("delete from {name} where v = 'b'"));
        assert_eq!(same(&fixture, &name).len(), 1, "{kind}");
        assert!(table(&fixture.right, &name)[0].ends_with("|c"), "{kind}");
    }
    assert_eq!(
        rows(&fixture.left, "select op, message from sync_err_rec"),
        [""; 0]
    );
}

#[test]
fn types_of_extensions_in_another_schema_arrive() {
    let fixture = linked("contrib");
    for (side, schema) in [(&fixture.left, "public"), (&fixture.right, "types")] {
        side.exec_superuser(&format!("create schema if not exists {schema}"));
        for extension in ["citext", "hstore", "ltree"] {
            side.exec_superuser(&format!("create extension {extension} schema {schema}"));
        }
        let db = &side.db;
        let user = &side.user;
        side.exec_superuser(&format!("grant usage on schema {schema} to {user}"));
        side.exec_superuser(&format!(
            "alter database {db} set search_path = \"$user\", public, types"
        ));
    }
    let columns = "c citext, h hstore, l ltree, cs citext[], hs hstore[]";
    for key in ["c", "l"] {
        let name = format!("by_{key}");
        crate::support::common::mirror(
            &fixture,
            &name,
            &format!("{columns}, v int, primary key ({key})"),
            "{}",
        );
        fixture.left.exec(&format!(
            r#"insert into {name} values
                 ('Abc', '"a b"=>"c,d", e=>NULL', 'a.b', '{{x,"Y,z"}}', array['a=>b'::hstore]),
                 ('def', '', 'a.c', null, '{{}}'), ('ghi', null, 'b', null, null);
               update {name} set v = 1 where c = 'ABC'; update {name} set h = h || 'n=>1';
               update {name} set c = 'ABC', l = 'z.z' where c = 'abc'; delete from {name} where l = 'b'"#
        ));
        assert_eq!(
            rows(&fixture.left, "select op, message from sync_err_rec"),
            [""; 0],
            "{name}"
        );
        assert_eq!(same(&fixture, &name).len(), 2);
    }
}
