//! Names for numbers. The core knows nodes by number and writes them so (`n0`); whatever reaches an operator calls
//! them as the configuration does.

use replicator_core::units::{NodeId, NodeSet};

/// The names of the nodes that are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeNames(Vec<(NodeId, String)>);

impl FromIterator<(NodeId, String)> for NodeNames {
    fn from_iter<I: IntoIterator<Item = (NodeId, String)>>(names: I) -> Self {
        Self(names.into_iter().collect())
    }
}

impl NodeNames {
    /// The name of `node`, or its number if it has none.
    #[must_use]
    pub fn of(&self, node: NodeId) -> String {
        self.find(node).map_or_else(|| format!("id {}", node.0), str::to_owned)
    }

    /// The names of `nodes`.
    #[must_use]
    pub fn of_set(&self, nodes: NodeSet) -> Vec<String> {
        nodes.iter().map(|node| self.of(node)).collect()
    }

    /// `text` of the core with the numbers of nodes replaced by their names.
    #[must_use]
    pub fn in_text(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find(|c: char| c.is_ascii_alphanumeric()) {
            let (before, word_on) = rest.split_at(at);
            let is_inner = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            let end = word_on.find(|c| !is_inner(c)).unwrap_or(word_on.len());
            let (word, after) = word_on.split_at(end);
            out.push_str(before);
            out.push_str(self.numbered(word).unwrap_or(word));
            rest = after;
        }
        out.push_str(rest);
        out
    }

    fn find(&self, node: NodeId) -> Option<&str> {
        self.0.iter().find(|(id, _)| *id == node).map(|(_, name)| name.as_str())
    }

    fn numbered(&self, word: &str) -> Option<&str> {
        self.find(NodeId(word.strip_prefix('n')?.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_names() {
        let names: NodeNames =
            [(NodeId(0), "alpha".to_owned()), (NodeId(1), "beta".to_owned())].into_iter().collect();
        for (text, named) in [
            ("n1 is gone", "beta is gone"),
            ("waiting for n0, n1.", "waiting for alpha, beta."),
            ("n7 n n12x dn1 n1-x (n1)", "n7 n n12x dn1 n1-x (beta)"),
            ("", ""),
            ("é n1 é", "é beta é"),
        ] {
            assert_eq!(names.in_text(text), named);
        }
        assert_eq!(names.of(NodeId(1)), "beta");
        assert_eq!(names.of(NodeId(7)), "id 7");
    }
}
