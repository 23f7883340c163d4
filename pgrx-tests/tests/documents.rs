//! The documents: links that lead somewhere, a README that is read to its end, lines that fit.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use rowsync_harness::setup;

/// Those that people write line by line. Others have parts that a program has written.
const WRITTEN: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    "doc/append-only.md",
    "doc/attach.md",
    "doc/atomic.md",
    "doc/check.md",
    "doc/commit.md",
    "doc/comparison.md",
    "doc/conflicts.md",
    "doc/connections.md",
    "doc/copy.md",
    "doc/development.md",
    "doc/failures.md",
    "doc/glossary.md",
    "doc/install.md",
    "doc/limits.md",
    "doc/monitoring.md",
    "doc/operations.md",
    "doc/queue.md",
    "doc/reference.md",
    "doc/security.md",
    "doc/targets.md",
    "doc/tutorial-multi-master.md",
    "doc/tutorial-one-way.md",
    "doc/types-and-tables.md",
    "doc/verify.md",
];

/// The Markdown files of the top, of `doc/` and of the benchmark, with their texts.
fn documents() -> HashMap<PathBuf, String> {
    let root = setup::root().canonicalize().expect("the root");
    let folders = [
        root.clone(),
        root.join("doc"),
        root.join("pgrx-tests/bench"),
    ];
    let entries = folders
        .iter()
        .flat_map(|folder| fs::read_dir(folder).expect("a folder"));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .map(|path| (path.clone(), fs::read_to_string(&path).expect("a document")))
        .collect()
}

/// The files below a directory of sources, relative to it.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            let name = PathBuf::from(path.file_name().expect("a name"));
            found.extend(sources(&path).into_iter().map(|below| name.join(below)));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(PathBuf::from(path.file_name().expect("a name")));
        }
    }
    found
}

/// The files and folders that the last chapter of ARCHITECTURE.md names, relative to `src/`.
fn named_in_the_picture() -> Vec<PathBuf> {
    let text = fs::read_to_string(setup::root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let (_, rooms) = text.split_once("\n## The rooms\n").expect("a chapter");
    let mut named = Vec::new();
    for section in rooms.split("\n### ").skip(1) {
        let heading = section.lines().next().unwrap_or_default();
        let mut folder = match heading.split_once(": ") {
            Some((room, _)) if room.ends_with('/') => PathBuf::from(room),
            _ => PathBuf::new(),
        };
        let room = folder.clone();
        for line in section.lines().skip(1) {
            folder.clone_from(&room);
            for name in line.split('`').skip(1).step_by(2) {
                let path = if heading.starts_with("pg/") {
                    folder.join(format!("{name}.rs"))
                } else {
                    folder.join(name)
                };
                // The names that follow in the same line are of the same folder.
                if name.contains('/') && path.extension().is_some() {
                    folder = path.parent().map(Path::to_owned).unwrap_or_default();
                }
                named.push(path);
            }
        }
    }
    named
}

#[test]
fn every_file_has_its_place_in_the_picture() {
    let named = named_in_the_picture();
    let root = setup::root().join("src");
    let missing: Vec<PathBuf> = sources(&root)
        .into_iter()
        // A parent declares what is in the room that has its name.
        .filter(|file| file != Path::new("lib.rs") && !root.join(file).with_extension("").is_dir())
        .filter(|file| !named.iter().any(|name| file.starts_with(name)))
        .collect();
    assert!(
        missing.is_empty(),
        "ARCHITECTURE.md does not name {missing:?}"
    );
    let harness = setup::root().join("pgrx-tests");
    let exists = |name: &Path| {
        // A parent stands beside its room.
        let beside = name
            .parent()
            .and_then(Path::parent)
            .unwrap_or(Path::new(""));
        let parent = beside.join(name.file_name().unwrap_or_default());
        root.join(name).exists() || root.join(parent).exists() || harness.join(name).exists()
    };
    let gone: Vec<&PathBuf> = named
        .iter()
        .filter(|name| name.extension().is_some_and(|extension| extension == "rs"))
        .filter(|name| !exists(name))
        .collect();
    assert!(gone.is_empty(), "there is no {gone:?}");
}

/// The lines of a document, each with whether it is code.
fn lines(text: &str) -> impl Iterator<Item = (&str, bool)> {
    let mut in_code = false;
    text.lines().map(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        (line, in_code || is_fence)
    })
}

/// The names under which the headings of a document can be linked to, as GitHub makes them.
fn anchors(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for (line, is_code) in lines(text) {
        let title = line.trim_start_matches('#');
        if is_code || title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let kept = |c: &char| c.is_alphanumeric() || [' ', '-', '_'].contains(c);
        let name: String = title.trim().to_lowercase().chars().filter(kept).collect();
        let name = name.replace(' ', "-");
        let before = found.iter().filter(|other| **other == name).count();
        found.push(if before == 0 {
            name
        } else {
            format!("{name}-{before}")
        });
    }
    found
}

/// Where the links of a document lead.
fn links(text: &str) -> Vec<String> {
    let prose: Vec<&str> = lines(text)
        .filter(|(_, is_code)| !is_code)
        .map(|(line, _)| line)
        .collect();
    let prose = prose.join("\n");
    let targets = prose
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).collect()
}

/// What is wrong with a link, if anything.
fn flaw(from: &Path, link: &str, documents: &HashMap<PathBuf, String>) -> Option<String> {
    if link.starts_with("https://") {
        return None;
    }
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let Some(target) = target(from, file) else {
        return Some("no such file".to_owned());
    };
    let is_there = anchor.is_empty()
        || documents
            .get(&target)
            .is_some_and(|text| anchors(text).iter().any(|a| a == anchor));
    (!is_there).then(|| format!("no heading \"{anchor}\""))
}

/// The file that a link names, if it is there.
fn target(from: &Path, file: &str) -> Option<PathBuf> {
    match file {
        "" => Some(from.to_owned()),
        file => from.parent()?.join(file).canonicalize().ok(),
    }
}

#[test]
fn every_link_between_documents_leads_to_a_file_and_a_heading() {
    let documents = documents();
    let all: Vec<(&PathBuf, String)> = documents
        .iter()
        .flat_map(|(path, text)| links(text).into_iter().map(move |link| (path, link)))
        .collect();
    assert!(all.len() > 100, "only {} links were found", all.len());
    let broken: Vec<String> = all
        .iter()
        .filter_map(|(path, link)| {
            let flaw = flaw(path, link, &documents)?;
            Some(format!("{}: {link}: {flaw}", path.display()))
        })
        .collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_chapter_can_be_reached_from_the_readme() {
    let documents = documents();
    let root = setup::root().canonicalize().expect("the root");
    let mut seen = vec![root.join("README.md")];
    let mut at = 0;
    while let Some(path) = seen.get(at).cloned() {
        at += 1;
        for link in documents
            .get(&path)
            .map(|text| links(text))
            .unwrap_or_default()
        {
            let file = link.split('#').next().unwrap_or_default();
            seen.extend(target(&path, file).filter(|target| !seen.contains(target)));
        }
    }
    let lost: Vec<_> = WRITTEN
        .iter()
        .filter(|name| !seen.contains(&root.join(name)))
        .collect();
    assert!(lost.is_empty(), "{lost:?}");
}

#[test]
fn the_readme_is_short_and_begins_with_the_two_commands() {
    let readme = fs::read_to_string(setup::root().join("README.md")).expect("the README");
    assert!(
        readme.lines().count() <= 150,
        "{} lines",
        readme.lines().count()
    );
    let first_screen: Vec<&str> = readme.lines().take(25).collect();
    for command in ["cargo demo", "cargo test-all"] {
        assert!(
            first_screen.iter().any(|line| line.starts_with(command)),
            "{command}"
        );
    }
}

#[test]
fn lines_and_cells_are_short() {
    let mut long = Vec::new();
    for name in WRITTEN {
        let text = fs::read_to_string(setup::root().join(name)).expect(name);
        for (number, (line, is_code)) in lines(&text).enumerate() {
            let is_row = !is_code && line.trim_start().starts_with('|');
            // A cell is what is shown: of a link, its text.
            let shown = |cell: &str| {
                let parts = cell.split("](").enumerate();
                let texts = parts.map(|(at, part)| match (at, part.split_once(')')) {
                    (1.., Some((_, after))) => after,
                    _ => part,
                });
                texts.map(|text| text.chars().count()).sum::<usize>()
            };
            let is_long = if is_row {
                line.split('|').any(|cell| shown(cell) > 120)
            } else {
                line.chars().count() > 100
            };
            long.extend(is_long.then(|| format!("{name}:{}: {line}", number + 1)));
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}
