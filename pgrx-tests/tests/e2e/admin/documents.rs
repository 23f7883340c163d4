//! What the README and the tutorials tell people to type, typed into psql as it stands. Hosts and ports are
//! the throwaway clusters', passwords those of the documents.

use rowsync_harness::Cluster;
use rowsync_harness::document::Document;
use rowsync_harness::setup::Postgres;

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Passwords as psql looks them up; gone when dropped.
struct PasswordFile(PathBuf);

impl PasswordFile {
    fn new(label: &str, clusters: &[&Cluster], roles: &[(&str, &str)]) -> PasswordFile {
        let name = format!("pg_rowsync-{label}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let mut file = fs::OpenOptions::new();
        let mut file = file
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .expect("a file");
        for cluster in clusters {
            let password = cluster.superuser_password();
            writeln!(file, "*:{}:*:postgres:{password}", cluster.port()).expect("a line");
        }
        for (role, password) in roles {
            writeln!(file, "*:*:*:{role}:{password}").expect("a line");
        }
        PasswordFile(path)
    }

    /// What psql prints for a script, connected as the superuser first. It must say nothing else.
    fn psql(&self, cluster: &Cluster, script: &str) -> String {
        let program = Postgres::find().expect("a PostgreSQL").program("psql");
        let mut child = Command::new(program)
            .args([
                "-X",
                "-q",
                "-v",
                "ON_ERROR_STOP=1",
                "-h",
                "127.0.0.1",
                "-U",
                "postgres",
            ])
            .args(["-p", &cluster.port().to_string(), "-d", "postgres"])
            .env_remove("PGPASSWORD")
            .env("PGPASSFILE", &self.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("psql");
        child
            .stdin
            .take()
            .expect("stdin")
            .write_all(script.as_bytes())
            .expect("a script");
        let output = child.wait_with_output().expect("psql");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && said.is_empty(),
            "{said}\n{script}"
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for PasswordFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The script with the host of a document where a cluster listens.
fn at(script: &str, host: &str, cluster: &Cluster) -> String {
    let port = cluster.port();
    script
        .replace(
            &format!("host={host} port=5432"),
            &format!("host=127.0.0.1 port={port}"),
        )
        .replace(
            &format!("host '{host}', port '5432'"),
            &format!("host '127.0.0.1', port '{port}'"),
        )
}

/// Whether what was printed ends with what the document shows.
#[track_caller]
fn ends_with(printed: &str, shown: &str) {
    let trimmed = |text: &str| {
        let lines: Vec<&str> = text.trim_end().lines().map(str::trim_end).collect();
        lines.join("\n")
    };
    let printed = trimmed(printed);
    let shown = trimmed(shown);
    assert!(
        printed.ends_with(&shown),
        "{shown}\nwas expected at the end of\n{printed}"
    );
}

#[test]
fn the_quick_start_of_the_readme_runs_as_it_stands() {
    let document = Document::read("README.md").expect("README.md");
    let cluster = Cluster::start("quick_start").expect("a cluster");
    let file = PasswordFile::new("quick-start", &[&cluster], &[]);
    let printed = file.psql(&cluster, &document.blocks("sql").concat());
    ends_with(&printed, document.blocks("text")[0]);
}

#[test]
fn the_tutorial_for_one_way_runs_as_it_stands() {
    let document = Document::read("doc/tutorial-one-way.md").expect("doc/tutorial-one-way.md");
    let source = Cluster::start("tutorial_app").expect("a cluster");
    let target = Cluster::start("tutorial_report").expect("a cluster");
    let file = PasswordFile::new("one-way", &[&source, &target], &document.passwords());
    let script = document.blocks("sql").concat();
    let script = at(
        &at(&script, "app.example", &source),
        "report.example",
        &target,
    );
    assert!(!script.contains(".example"), "{script}");
    ends_with(&file.psql(&source, &script), document.blocks("text")[0]);
}

#[test]
fn the_tutorial_for_several_masters_runs_as_it_stands() {
    let document =
        Document::read("doc/tutorial-multi-master.md").expect("doc/tutorial-multi-master.md");
    let a = Cluster::start("tutorial_a").expect("a cluster");
    let b = Cluster::start("tutorial_b").expect("a cluster");
    let roles = [document.passwords(), vec![("clerk", "secret")]].concat();
    let file = PasswordFile::new("masters", &[&a, &b], &roles);
    let blocks = document.blocks("sql");
    let [set_up, write, guard_role] = blocks[..] else {
        panic!("{} blocks", blocks.len())
    };
    let database = "CREATE DATABASE shop;\n\\connect shop\n";
    file.psql(&a, &format!("{database}{}", at(set_up, "b.example", &b)));
    let there = set_up.replace("'b.example'", "'a.example'");
    file.psql(&b, &format!("{database}{}", at(&there, "a.example", &a)));
    let script = at(&at(write, "a.example", &a), "b.example", &b);
    ends_with(&file.psql(&a, &script), document.blocks("text")[0]);

    // And with the guard that is believed of some roles only: another one's session is not.
    let anew = "\\connect shop
        DROP TRIGGER stock_version ON stock;
        DROP TRIGGER stock_sync_dml ON stock;\n";
    file.psql(&a, &format!("{anew}{guard_role}"));
    file.psql(&b, &format!("{anew}{guard_role}"));
    let posing = format!(
        "\\connect shop
        CREATE ROLE clerk LOGIN PASSWORD 'secret';
        GRANT INSERT ON stock TO clerk;
        \\connect \"host=127.0.0.1 port={} dbname=shop user=clerk\"
        SET application_name = 'pg_rowsync';
        INSERT INTO stock (site, sku, qty) VALUES ('west', 'bolt', 1);\n",
        a.port()
    );
    file.psql(&a, &posing);
    let look = "\\connect shop\n\\pset tuples_only on
        SELECT site, qty FROM stock WHERE site = 'west';\n";
    ends_with(&file.psql(&b, look), " west |   1");
}

/// What the SQL of the chapters presupposes: servers and tables of these names.
const FOUND: &str = "
    CREATE SERVER report FOREIGN DATA WRAPPER pg_rowsync
        OPTIONS (host '127.0.0.1', port :'PORT', dbname 'there');
    CREATE SERVER dst FOREIGN DATA WRAPPER pg_rowsync
        OPTIONS (host '127.0.0.1', port :'PORT', dbname 'there');
    CREATE USER MAPPING FOR postgres SERVER report OPTIONS (user 'sync_in', password 'change-me');
    CREATE USER MAPPING FOR postgres SERVER dst OPTIONS (user 'sync_in', password 'change-me');
    CREATE TABLE t (id int PRIMARY KEY, secret text);
    CREATE TABLE orders (id int PRIMARY KEY) PARTITION BY RANGE (id);
    CREATE TABLE old_orders (id int PRIMARY KEY);
    SELECT attach_sync('t', 'dst', options => '{\"exclude\": [\"secret\"]}');
    SELECT attach_sync('orders', 'dst');
    SELECT attach_sync('old_orders', 'dst');\n";

#[test]
fn the_sql_of_the_chapters_runs() {
    let cluster = Cluster::start("chapters").expect("a cluster");
    let file = PasswordFile::new("chapters", &[&cluster], &[]);
    let mut script = "CREATE DATABASE there;
        \\connect there
        CREATE TABLE t (id int PRIMARY KEY);
        CREATE TABLE new_name (id int PRIMARY KEY);
        CREATE TABLE orders (id int PRIMARY KEY);
        CREATE TABLE old_orders (id int PRIMARY KEY);
        CREATE TABLE member (id bigint, region text, body text, PRIMARY KEY (id, region));
        CREATE ROLE sync_in LOGIN PASSWORD 'change-me';
        GRANT ALL ON ALL TABLES IN SCHEMA public TO sync_in;
        \\connect postgres\n"
        .to_owned();
    let chapters = [
        "install",
        "reference",
        "conflicts",
        "monitoring",
        "types-and-tables",
        "queue",
        "operations",
        "security",
    ];
    for chapter in chapters {
        let document = Document::read(&format!("doc/{chapter}.md")).expect(chapter);
        let blocks = document.blocks("sql");
        assert!(!blocks.is_empty(), "{chapter}");
        script.push_str(&blocks.concat());
        if chapter == "install" {
            script.push_str(FOUND);
        }
    }
    file.psql(&cluster, &script);
}
