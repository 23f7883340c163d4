//! The way that a change has come by: the databases that have captured it, each named by its cluster's system
//! identifier and its oid, `7435901023746529901.16384`, the first of them its origin.
//!
//! Every connection to a server carries the own name as the setting `pg_rowsync.path`, and changes that have
//! come from elsewhere all names before it. Whoever captures a change keeps the path that its session has;
//! whoever delivers it leaves out those servers that are on it.

use serde::{Deserialize, Serialize};

/// More nodes than this no honest path has.
const MOST_NODES: usize = 64;

/// Names parted by commas; empty for what originates here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Path(String);

impl Path {
    /// A session's path. Anyone may set anything: what is no path counts as none.
    pub fn parse(text: &str) -> Self {
        let mut names = text.split(',');
        let sound = names.by_ref().take(MOST_NODES).all(is_name) && names.next().is_none();
        Self(if sound {
            text.to_owned()
        } else {
            String::new()
        })
    }

    /// Whether the change originates here.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the change has been at a node.
    pub fn contains(&self, name: &str) -> bool {
        self.0.split(',').any(|on_it| on_it == name)
    }

    /// The path as the next node is to see it.
    pub fn onward(&self, own_name: &str) -> String {
        if self.is_empty() {
            own_name.to_owned()
        } else {
            format!("{},{own_name}", self.0)
        }
    }
}

/// A 64-bit and a 32-bit number.
fn is_name(text: &str) -> bool {
    let is_number = |text: &str, digits: usize| {
        (1..=digits).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
    };
    text.split_once('.')
        .is_some_and(|(one, two)| is_number(one, 20) && is_number(two, 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_grows_by_the_name_of_each_node() {
        let path = Path::parse(&Path::default().onward("71.5"));
        assert!(path.contains("71.5") && !path.contains("1.5") && !path.contains("71.55"));
        let path = Path::parse(&path.onward("72.5"));
        assert!(path.contains("71.5") && path.contains("72.5") && !path.is_empty());
        assert_eq!(path.onward("9.1"), "71.5,72.5,9.1");
    }

    #[test]
    fn what_is_no_path_counts_as_none() {
        let long = vec!["1.2"; MOST_NODES + 1].join(",");
        for text in [
            "", ",", "1.2,", "1", "1.", ".1", "1.2.3", "-1.2", "1.2, 3.4", "x.1", &long,
        ] {
            assert!(Path::parse(text).is_empty(), "{text}");
        }
        assert!(!Path::parse(&vec!["1.2"; MOST_NODES].join(",")).is_empty());
        assert!(Path::parse(&"1".repeat(21)).is_empty());
    }
}
