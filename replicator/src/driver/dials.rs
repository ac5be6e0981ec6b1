//! When to dial which peer: of each pair the node with the lower id dials, soon at first, then less and less often.

use std::net::SocketAddr;

use replicator_core::units::{Instant, NodeId};

use crate::options::PeerAddress;

/// The first pause.
const PAUSE_MS_MIN: u64 = 10;
/// The longest pause between attempts that fail.
const PAUSE_MS_MAX: u64 = 500;
/// The pause after the machine said that trying soon makes no sense.
const PAUSE_MS_REFUSED: u64 = 5_000;
/// A link that lasted so long was a good one: the pauses begin anew.
const GOOD_MS: u64 = 1_000;

/// One peer that this node dials.
#[derive(Debug)]
pub(crate) struct Dial {
    pub(crate) node: NodeId,
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pause_ms: u64,
    /// The machine said that trying again soon makes no sense.
    pub(crate) is_refused: bool,
    /// When to dial; `None` while a link is there.
    pub(crate) due: Option<Instant>,
    /// The last failure that was logged, so that a peer that is away is not logged twice a second.
    pub(crate) logged: Option<String>,
}

impl Dial {
    fn new(peer: &PeerAddress, now: Instant) -> Self {
        let PeerAddress { node, name, address } = peer.clone();
        Self { node, name, address, pause_ms: PAUSE_MS_MIN, is_refused: false, due: Some(now), logged: None }
    }

    /// The peers that `node` dials.
    pub(crate) fn of(node: NodeId, peers: &[PeerAddress], now: Instant) -> Vec<Self> {
        peers.iter().filter(|peer| node < peer.node).map(|peer| Self::new(peer, now)).collect()
    }

    /// The link is gone, `up_ms` after it was proven; says when the next is due.
    pub(crate) fn failed(&mut self, now: Instant, up_ms: Option<u64>) {
        if up_ms.is_some_and(|up_ms| up_ms >= GOOD_MS) {
            self.pause_ms = PAUSE_MS_MIN;
        }
        let refused = std::mem::take(&mut self.is_refused);
        let pause_ms = if refused { PAUSE_MS_REFUSED } else { self.pause_ms };
        self.pause_ms = (self.pause_ms * 2).min(PAUSE_MS_MAX);
        self.due = Some(now.plus_ms(pause_ms));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_begin_anew_after_a_good_link() {
        let peer = |node| PeerAddress {
            node: NodeId(node),
            name: String::new(),
            address: "127.0.0.1:1".parse().unwrap(),
        };
        let now = Instant(0);
        let mut dials = Dial::of(NodeId(1), &[peer(0), peer(2)], now);
        assert_eq!(dials.len(), 1, "the lower id dials");
        let dial = &mut dials[0];
        let mut pause = |up_ms, refused| {
            dial.is_refused = refused;
            dial.failed(now, up_ms);
            dial.due.unwrap().0 / 1_000_000
        };
        let pauses: Vec<u64> = (0..8).map(|_| pause(None, false)).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 500, 500]);
        assert_eq!(pause(Some(5), false), 500);
        assert_eq!(pause(Some(5), true), 5_000);
        assert_eq!(pause(Some(2_000), false), 10);
    }
}
