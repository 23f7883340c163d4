//! What the reference lists is what there is: settings with their defaults and ranges, functions, columns of
//! views, options.

use rowsync_harness::Fixture;

use crate::support::common::{fails_with, query, rows, run};

const REFERENCE: &str = include_str!("../../../../doc/reference.md");

/// The items of the lists under a heading, up to the next one, each in one line.
fn items(heading: &str) -> Vec<String> {
    let (_, section) = REFERENCE
        .split_once(&format!("\n## {heading}\n"))
        .expect("a section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut items: Vec<String> = Vec::new();
    let mut in_list = false;
    for line in section.lines() {
        if let Some(first) = line.strip_prefix("- ") {
            items.push(first.to_owned());
            in_list = true;
        } else if let (true, Some(more), Some(item)) =
            (in_list, line.strip_prefix("  "), items.last_mut())
        {
            item.push(' ');
            item.push_str(more);
        } else {
            in_list = false;
        }
    }
    assert!(items.len() > 5, "{heading}: {items:?}");
    items
}

/// What stands between backticks before the first colon that is outside of them.
fn names(item: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut parts = item.split('`');
    while let Some(outside) = parts.next() {
        if outside.contains(':') {
            break;
        }
        names.extend(parts.next());
    }
    names
}

/// `5000 ms`, `16 MB`, `10000`, in the unit in which PostgreSQL keeps such a setting.
fn amount(text: &str, unit: &str) -> i64 {
    let (number, own) = text.split_once(' ').unwrap_or((text, ""));
    let number: i64 = number
        .parse()
        .unwrap_or_else(|_| panic!("no number: {text}"));
    let factors = [("ms", 1), ("s", 1_000), ("h", 3_600_000), ("d", 86_400_000)];
    let sizes = [("kB", 1), ("MB", 1_024), ("GB", 1_024 * 1_024)];
    let known = factors.iter().chain(&sizes).find(|(name, _)| *name == own);
    let kept = factors.iter().chain(&sizes).find(|(name, _)| *name == unit);
    number * known.map_or(1, |(_, factor)| *factor) / kept.map_or(1, |(_, factor)| *factor)
}

#[test]
fn settings_have_the_defaults_ranges_and_contexts_that_the_reference_tells() {
    let fixture = Fixture::new("reference_settings");
    let mut client = fixture.left.superuser();
    run(&mut client, "load 'pg_rowsync'");
    let items = items("Settings");
    let reported: Vec<&str> = items.iter().map(|item| names(item)[0]).collect();
    for name in query(
        &mut client,
        "select name from pg_settings where name like 'pg\\_rowsync.%'",
    ) {
        assert!(reported.contains(&&*name), "the reference lacks {name}");
    }
    for item in items {
        let name = names(&item)[0].to_owned();
        let facts = item
            .split_once('(')
            .and_then(|(_, rest)| rest.split_once("): "));
        let facts: Vec<&str> = facts
            .unwrap_or_else(|| panic!("{item}"))
            .0
            .split("; ")
            .collect();
        let [default, range, context] = facts[..] else {
            panic!("{item}")
        };
        let found = query(
            &mut client,
            &format!(
                "select context, coalesce(unit, ''), coalesce(min_val, ''), coalesce(max_val, ''),
                    coalesce(boot_val, '') from pg_settings where name = '{name}'"
            ),
        );
        let Some(found) = found.first() else {
            // One that is not for people to set is not listed.
            assert_eq!(
                (query(&mut client, &format!("show {name}")), default),
                (vec!["".into()], "empty")
            );
            continue;
        };
        let found: Vec<&str> = found.split('|').collect();
        let reported = match context {
            // As long as the library is not preloaded, nothing needs a restart.
            "reload" | "restart" => "sighup",
            context => context,
        };
        assert_eq!(found[0], reported, "{name}");
        if found[2].is_empty() {
            let empty = if found[4].is_empty() {
                "empty".to_owned()
            } else {
                format!("`{}`", found[4])
            };
            assert_eq!(default, empty, "{name}");
            continue;
        }
        assert_eq!(amount(default, found[1]).to_string(), found[4], "{name}");
        let (least, most) = match range.split_once(" to ") {
            Some((least, most)) => (least, amount(most, found[1]).to_string()),
            None => (
                range.strip_suffix(" and more").expect(range),
                i32::MAX.to_string(),
            ),
        };
        assert_eq!(amount(least, found[1]).to_string(), found[2], "{name}");
        assert_eq!(most, found[3], "{name}");
    }
}

#[test]
fn functions_and_columns_of_the_reference_exist() {
    let fixture = Fixture::new("reference_objects");
    let parts = rows(
        &fixture.left,
        "select p.proname from pg_depend d join pg_proc p on p.oid = d.objid
           join pg_extension e on e.oid = d.refobjid and e.extname = 'pg_rowsync'
          where d.classid = 'pg_proc'::regclass and d.deptype = 'e'",
    );
    for part in &parts {
        assert!(
            REFERENCE.contains(&format!("`{part}(")),
            "the reference lacks {part}()"
        );
    }
    for item in items("Functions") {
        for name in names(&item).iter().filter(|name| name.contains('(')) {
            let name = name.split('(').next().unwrap_or_default();
            assert!(
                parts.iter().any(|part| part == name),
                "there is no {name}()"
            );
        }
    }
    // The columns of both views, whose lists follow each other.
    let columns = rows(
        &fixture.left,
        "select a.attname, format_type(a.atttypid, null) from pg_attribute a
          where a.attrelid in ('sync_err_rec'::regclass, 'sync_status'::regclass) and a.attnum > 0",
    );
    let mut reported: Vec<String> = Vec::new();
    for item in items("Views and tables") {
        let types = item
            .split_once(" (")
            .and_then(|(_, rest)| rest.split_once("):"));
        let types = types.unwrap_or_else(|| panic!("{item}")).0;
        let types = types.replace("timestamptz", "timestamp with time zone");
        reported.extend(names(&item).iter().map(|name| format!("{name}|{types}")));
    }
    let unknown: Vec<_> = reported
        .iter()
        .filter(|one| !columns.contains(one))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?} of {columns:?}");
}

#[test]
fn options_of_the_reference_are_known() {
    let fixture = Fixture::new("reference_options");
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    fixture.left.exec("create table t (id int primary key)");
    let attach = |options: &str| format!("select attach_sync('t', 'dst', null, '{options}')");
    let sql = format!(
        "set search_path = {}, public; {}",
        fixture.left.user,
        attach("{\"moed\": 1}")
    );
    let hint = fails_with(&fixture.left, &sql, "22023")
        .hint()
        .unwrap_or_default()
        .to_owned();
    let known = hint
        .strip_prefix("Options are a JSON object with ")
        .and_then(|names| names.strip_suffix('.'))
        .expect(&hint);
    let items = items("Trigger arguments and options");
    let mut reported: Vec<&str> = items.iter().map(|item| names(item)[0]).collect();
    let mut known: Vec<&str> = known.split(", ").collect();
    reported.sort_unstable();
    known.sort_unstable();
    assert_eq!(reported, known);
}
