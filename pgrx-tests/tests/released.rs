//! Scripts of released versions stay as they were, and lead to the current one.

use std::fs;
use std::process::Command;

use rowsync_harness::setup;

#[test]
fn released_scripts_are_as_they_were() {
    let folder = setup::released_scripts();
    let versions = setup::released_versions().expect("the released scripts");
    if versions.is_empty() {
        return;
    }
    let check = Command::new("sha256sum")
        .args(["--check", "--strict", "--quiet", setup::SUMS])
        .current_dir(&folder)
        .output()
        .expect("sha256sum");
    let said = String::from_utf8_lossy(&check.stdout);
    assert!(
        check.status.success(),
        "a released script was changed: {said}"
    );
    let sums = fs::read_to_string(folder.join(setup::SUMS)).expect("the sums");
    for version in &versions {
        assert!(
            sums.contains(&format!("  pg_rowsync--{version}.sql\n")),
            "no sum of {version}"
        );
    }
    // Each leads to the next, up to the current one, which is not released.
    let current = env!("CARGO_PKG_VERSION").to_owned();
    assert!(
        !versions.contains(&current),
        "{current} is released: cargo freeze names a next one"
    );
    for (from, to) in versions.iter().zip(versions[1..].iter().chain([&current])) {
        let script = format!("sql/pg_rowsync--{from}--{to}.sql");
        assert!(setup::root().join(&script).exists(), "{script} is missing");
        let released = *to != current;
        let summed = sums.contains(&format!("  ../pg_rowsync--{from}--{to}.sql\n"));
        assert_eq!(summed, released, "{script}");
    }
}

#[test]
fn the_changelog_tells_of_every_release() {
    let text = fs::read_to_string(setup::root().join("CHANGELOG.md")).expect("the changelog");
    let sections: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("## ["))
        .filter_map(|line| line.split_once(']'))
        .map(|(version, _)| version)
        .collect();
    let mut expected = setup::released_versions().expect("the released scripts");
    expected.push("Unreleased".to_owned());
    expected.reverse();
    assert_eq!(sections, expected);
}

/// What the specification of PGXN's META.json asks for, and that it tells of the current version.
#[test]
fn pgxn_is_told_of_the_current_version() {
    let text = fs::read_to_string(setup::root().join("META.json")).expect("META.json");
    let meta: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let current = env!("CARGO_PKG_VERSION");
    assert_eq!(meta["version"], current);
    let provided = &meta["provides"]["pg_rowsync"];
    assert_eq!(provided["version"], current);
    for file in [&provided["file"], &provided["docfile"]] {
        let file = file.as_str().expect("a file");
        assert!(setup::root().join(file).exists(), "{file}");
    }
    for name in ["name", "abstract", "maintainer"] {
        assert!(
            meta[name].as_str().is_some_and(|text| !text.is_empty()),
            "{name}"
        );
    }
    assert_eq!(meta["license"], "postgresql");
    assert_eq!(meta["meta-spec"]["version"], "1.0.0");
    assert!(
        ["stable", "testing", "unstable"]
            .map(Into::into)
            .contains(&meta["release_status"])
    );
}
