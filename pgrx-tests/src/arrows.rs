//! Which file of a crate uses which, and the circles among them: files of which none can be understood,
//! tested or moved without the others.
//!
//! A file uses another if it names something that is defined there, wherever it is re-exported; what only
//! tests name does not count, nor does a parent that declares its modules or re-exports from them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Attribute, Item, UseTree, Visibility};

/// A path of modules below the crate's root; the root itself is empty.
type Module = Vec<String>;

/// What a file says.
#[derive(Default)]
struct Contents {
    /// The paths that are named in it, as they are written.
    paths: Vec<Vec<String>>,
    /// What it re-exports, by name.
    re_exports: BTreeMap<String, Vec<String>>,
}

/// The circles among the files below a directory of sources: each a list of modules, sorted.
///
/// # Errors
/// A file that cannot be read or parsed.
pub fn circles(sources: &Path) -> Result<Vec<Vec<String>>> {
    let mut files = BTreeMap::new();
    read_into(&mut files, sources, &[])?;
    let arrows: BTreeMap<Module, BTreeSet<Module>> = files
        .keys()
        .map(|from| (from.clone(), arrows_of(&files, from)))
        .collect();
    let mut found = BTreeSet::new();
    for start in arrows.keys() {
        let reached = reached_from(&arrows, start);
        if reached.contains(start) {
            let circle = reached
                .iter()
                .filter(|to| reached_from(&arrows, to).contains(start));
            found.insert(circle.map(|module| module.join("::")).collect::<Vec<_>>());
        }
    }
    Ok(found.into_iter().collect())
}

fn read_into(
    files: &mut BTreeMap<Module, Contents>,
    directory: &Path,
    above: &[String],
) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let stem = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let module: Module = match stem.as_str() {
            "lib" => Vec::new(),
            _ => above.iter().cloned().chain([stem]).collect(),
        };
        if path.is_dir() {
            read_into(files, &path, &module)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path)?;
            let file = syn::parse_file(&text).with_context(|| path.display().to_string())?;
            let mut contents = Contents::default();
            file.items.iter().for_each(|item| contents.read(item));
            files.insert(module, contents);
        }
    }
    Ok(())
}

impl Contents {
    fn read(&mut self, item: &Item) {
        match item {
            Item::Use(item) if !is_for_tests(&item.attrs) => {
                let is_public = !matches!(item.vis, Visibility::Inherited);
                self.read_use(&item.tree, &mut Vec::new(), is_public);
            }
            Item::Mod(item) if !is_for_tests(&item.attrs) => {
                let items = item.content.iter().flat_map(|(_, items)| items);
                items.for_each(|item| self.read(item));
            }
            Item::Use(_) | Item::Mod(_) => {}
            Item::Fn(item) if is_for_tests(&item.attrs) => {}
            item => self.read_tokens(item.to_token_stream()),
        }
    }

    fn read_use(&mut self, tree: &UseTree, before: &mut Vec<String>, is_public: bool) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.read_use(&path.tree, before, is_public);
                before.pop();
            }
            UseTree::Group(group) => {
                group
                    .items
                    .iter()
                    .for_each(|tree| self.read_use(tree, before, is_public));
            }
            UseTree::Name(name) => self.add(before, name.ident.to_string(), None, is_public),
            UseTree::Rename(name) => {
                let alias = Some(name.rename.to_string());
                self.add(before, name.ident.to_string(), alias, is_public);
            }
            UseTree::Glob(_) => self.paths.push(before.clone()),
        }
    }

    fn add(&mut self, before: &[String], name: String, alias: Option<String>, is_public: bool) {
        let mut path = before.to_vec();
        if name != "self" {
            path.push(name);
        }
        if is_public && let Some(last) = alias.or_else(|| path.last().cloned()) {
            self.re_exports.insert(last, path);
        } else {
            self.paths.push(path);
        }
    }

    /// Paths of two names and more, wherever they stand: macros are not parsed.
    fn read_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(name) if colons == 2 => path.push(name.to_string()),
                TokenTree::Ident(name) => self.end_path(&mut path, Some(name.to_string())),
                TokenTree::Punct(mark) if mark.as_char() == ':' => {
                    colons += 1;
                    continue;
                }
                TokenTree::Group(group) => {
                    self.end_path(&mut path, None);
                    self.read_tokens(group.stream());
                }
                _ => self.end_path(&mut path, None),
            }
            colons = 0;
        }
        self.end_path(&mut path, None);
    }

    fn end_path(&mut self, path: &mut Vec<String>, next: Option<String>) {
        let ended = std::mem::replace(path, next.into_iter().collect());
        if ended.len() > 1 {
            self.paths.push(ended);
        }
    }
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let text = attribute.to_token_stream().to_string();
        text.contains("test") && (text.contains("cfg") || text == "# [test]")
    })
}

/// The files that one uses.
fn arrows_of(files: &BTreeMap<Module, Contents>, from: &Module) -> BTreeSet<Module> {
    let Some(contents) = files.get(from).filter(|_| !from.is_empty()) else {
        return BTreeSet::new();
    };
    let used = contents
        .paths
        .iter()
        .filter_map(|path| defined_in(files, from, path, 0));
    used.filter(|to| to != from && !to.is_empty()).collect()
}

/// The file in which what a path names is defined.
fn defined_in(
    files: &BTreeMap<Module, Contents>,
    from: &Module,
    path: &[String],
    depth: usize,
) -> Option<Module> {
    let first = path.first()?.as_str();
    let mut base = from.clone();
    let rest = match first {
        "crate" => {
            base.clear();
            &path[1..]
        }
        "self" => &path[1..],
        "super" => {
            let ups = path.iter().take_while(|name| *name == "super").count();
            base.truncate(base.len().checked_sub(ups)?);
            &path[ups..]
        }
        name => {
            let child: Module = base.iter().cloned().chain([name.to_owned()]).collect();
            files.get(&child)?;
            path
        }
    };
    let full: Module = base.iter().chain(rest).cloned().collect();
    let length = (0..=full.len())
        .rev()
        .find(|length| files.contains_key(&full[..*length]))?;
    let (module, names) = full.split_at(length);
    let re_export = names
        .first()
        .and_then(|name| files.get(module)?.re_exports.get(name));
    match re_export {
        // No circle of re-exports is followed for ever.
        Some(path) if depth < 8 => defined_in(files, &module.to_vec(), path, depth + 1),
        _ => Some(module.to_vec()),
    }
}

fn reached_from(arrows: &BTreeMap<Module, BTreeSet<Module>>, start: &Module) -> BTreeSet<Module> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&Module> = vec![start];
    while let Some(module) = next.pop() {
        for to in arrows.get(module).into_iter().flatten() {
            if reached.insert(to.clone()) {
                next.push(to);
            }
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup;

    fn circles_of(sources: &str) -> Vec<Vec<String>> {
        circles(&setup::root().join(sources)).unwrap()
    }

    #[test]
    fn no_files_of_the_extension_use_each_other_in_a_circle() {
        assert_eq!(circles_of("src"), Vec::<Vec<String>>::new());
    }

    #[test]
    fn no_files_of_the_harness_use_each_other_in_a_circle() {
        assert_eq!(circles_of("pgrx-tests/src"), Vec::<Vec<String>>::new());
    }

    #[test]
    fn a_circle_is_found_through_re_exports_and_macros_but_not_through_tests() {
        let directory = std::env::temp_dir().join(format!("rowsync-arrows-{}", std::process::id()));
        fs::create_dir_all(directory.join("room")).unwrap();
        let write = |name: &str, text: &str| fs::write(directory.join(name), text).unwrap();
        write("lib.rs", "mod room; mod other;");
        write("room.rs", "mod one; mod two; pub use one::f;");
        write(
            "room/one.rs",
            "pub fn f() { println!(\"{}\", super::two::g()); }",
        );
        write("room/two.rs", "use super::f; pub fn g() -> u32 { f(); 1 }");
        write(
            "other.rs",
            "pub fn h() { crate::room::f() } #[cfg(test)] mod tests { use crate::x; }",
        );
        let found = circles(&directory);
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(found.unwrap(), [["room::one", "room::two"]]);
    }

    /// The lines of the picture in ARCHITECTURE.md, from the bottom: rooms, and files where a room lies on two.
    const LEVELS: &[&[&str]] = &[
        &[
            "change",
            "options",
            "path",
            "sql",
            "canonical",
            "timestamp",
            "local",
            "error",
            "conflict::kind",
            "conflict::tally",
            "fault",
        ],
        &["pg", "pq"],
        &[
            "capture",
            "transaction",
            "queue",
            "connect",
            "conflict",
            "stats",
            "identity",
            "loops",
            "crash",
            "guc",
            "fdw",
            "attached",
            "worker::control",
        ],
        &[
            "admin", "arrival", "drain", "delivery", "atomic", "copy", "check", "verify",
        ],
        &["api", "trigger", "worker", "fuzz"],
    ];

    /// Those that ARCHITECTURE.md names below the picture.
    const UPWARDS: &[&str] = &[
        "fault",
        "pg::entry",
        "pg::shmem",
        "queue::admission",
        "sql::key_types",
        "sql::session",
    ];

    fn level(module: &Module) -> usize {
        let name = module.join("::");
        let of = |wanted: &str| LEVELS.iter().position(|level| level.contains(&wanted));
        of(&name)
            .or_else(|| of(&module[0]))
            .unwrap_or_else(|| panic!("{name} is not in the picture"))
    }

    #[test]
    fn rooms_use_those_below_them_but_for_the_files_that_are_named() {
        let mut files = BTreeMap::new();
        read_into(&mut files, &setup::root().join("src"), &[]).unwrap();
        let mut upwards = BTreeSet::new();
        for from in files.keys().filter(|module| !module.is_empty()) {
            for to in arrows_of(&files, from) {
                // What the parents of rooms on two lines re-export is of the lower one.
                let is_parent = [["conflict"], ["worker"]].contains(&[&*to[0]]) && to.len() == 1;
                if level(&to) > level(from) && !is_parent {
                    upwards.insert(from.join("::"));
                }
            }
        }
        assert_eq!(upwards.into_iter().collect::<Vec<_>>(), UPWARDS);
    }

    /// The steps of a table of ARCHITECTURE.md: the files of each.
    fn steps(heading: &str) -> Vec<Vec<Module>> {
        let text = fs::read_to_string(setup::root().join("ARCHITECTURE.md")).unwrap();
        let (_, section) = text.split_once(&format!("\n## {heading}\n")).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let mut room = Module::new();
        let rows = section
            .lines()
            .filter(|line| line.starts_with("| ") && line.contains(".rs`"));
        rows.map(|row| {
            let names = row.split('`').skip(1).step_by(2);
            let files = names.filter_map(|name| {
                let name = name.strip_suffix(".rs")?;
                let path: Vec<&str> = name.split('/').collect();
                let (file, rooms) = path.split_last()?;
                match rooms {
                    ["src", rooms @ ..] => {
                        room = rooms.iter().map(|room| (*room).to_owned()).collect();
                        Some(room.iter().cloned().chain([(*file).to_owned()]).collect())
                    }
                    rooms => {
                        let rooms = rooms.iter().chain([file]).map(|name| (*name).to_owned());
                        Some(room.iter().cloned().chain(rooms).collect())
                    }
                }
            });
            files.collect()
        })
        .collect()
    }

    #[test]
    fn the_ways_of_a_change_and_of_a_record_lead_downwards() {
        let mut files = BTreeMap::new();
        read_into(&mut files, &setup::root().join("src"), &[]).unwrap();
        let arrows: BTreeMap<Module, BTreeSet<Module>> = files
            .keys()
            .map(|from| (from.clone(), arrows_of(&files, from)))
            .collect();
        let mut upwards = Vec::new();
        for heading in ["The way of a change", "The way of a record"] {
            let steps = steps(heading);
            assert!(steps.len() >= 10, "{heading}");
            for (at, later) in steps.iter().enumerate() {
                for file in later {
                    assert!(files.contains_key(file), "{heading}: {}", file.join("/"));
                    let reached = reached_from(&arrows, file);
                    let earlier = steps[..at].iter().flatten();
                    let above = earlier.filter(|other| *other != file && reached.contains(*other));
                    upwards.extend(above.map(|other| (file.join("/"), other.join("/"))));
                }
            }
        }
        assert_eq!(upwards, []);
    }
}
