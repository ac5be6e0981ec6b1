//! What the log says of peers that are refused: each reason once, however often the peer is met again.

use replicator_core::units::NodeId;

/// Reasons kept for one peer; further ones are logged each time.
const REASONS_MAX: usize = 8;

/// What was logged of peers that are StandAlone.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    logged: Vec<(NodeId, String)>,
}

impl Refusals {
    /// Whether to log `text` of the machine about a peer that is StandAlone, or is not.
    pub(crate) fn is_news(&mut self, node: NodeId, text: &str, is_standalone: bool) -> bool {
        if !is_standalone {
            // The two have come to terms meanwhile: what comes later is news again.
            self.logged.retain(|(logged, _)| *logged != node);
            return true;
        }
        let entry = (node, kind(text));
        if self.logged.contains(&entry) {
            return false;
        }
        if self.logged.iter().filter(|(logged, _)| *logged == node).count() < REASONS_MAX {
            self.logged.push(entry);
        }
        true
    }
}

/// What a reason says apart from positions, which may move all the time, and from which side says it.
pub(crate) fn kind(text: &str) -> String {
    let prefixes = ["StandAlone: ", "disconnected: ", "the peer refuses: "];
    let bare = prefixes.iter().fold(text, |text, prefix| text.strip_prefix(prefix).unwrap_or(text));
    bare.chars().filter(|c| !c.is_ascii_digit()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_news_once_until_the_peer_is_met_in_peace() {
        let mut refusals = Refusals::default();
        let (peer, other) = (NodeId(1), NodeId(2));
        let mut is_news = |node, text, is_standalone| refusals.is_news(node, text, is_standalone);
        assert!(is_news(peer, "StandAlone: split brain: after entry 7", true));
        assert!(!is_news(peer, "disconnected: split brain: after entry 7", true));
        assert!(!is_news(peer, "StandAlone: the peer refuses: split brain: after entry 8", true));
        assert!(is_news(peer, "StandAlone: it needs a resync", true));
        assert!(!is_news(peer, "StandAlone: split brain: after entry 7", true));
        assert!(is_news(other, "StandAlone: split brain: after entry 7", true));
        assert!(is_news(peer, "disconnected: end of stream", false));
        assert!(is_news(peer, "disconnected: end of stream", false));
        assert!(is_news(peer, "StandAlone: split brain: after entry 7", true));
        assert!(!is_news(other, "disconnected: split brain: after entry 9", true));
    }
}
