//! When to dial which peer: of each pair the node with the lower id dials, soon at first, then less and less often.

use std::net::SocketAddr;

use replicator_core::units::{Instant, NodeId};

use super::refusals;
use crate::options::PeerAddress;

/// The first pause.
const PAUSE_MS_MIN: u64 = 10;
/// The longest pause between attempts that fail.
const PAUSE_MS_MAX: u64 = 500;
/// The first pause after the machine said that trying soon makes no sense.
const REFUSED_MS_MIN: u64 = 1_000;
/// The longest such pause: how long an operator may wait after having settled the matter on the other side.
const REFUSED_MS_MAX: u64 = 30_000;
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
    is_refused: bool,
    /// The pause after the next refusal for the same reason.
    refused_ms: u64,
    /// The kind of the reason it was last refused for.
    refusal: Option<String>,
    /// When to dial; `None` while a link is there.
    pub(crate) due: Option<Instant>,
    /// The last failure that was logged, so that a peer that is away is not logged twice a second.
    pub(crate) logged: Option<String>,
}

impl Dial {
    fn new(peer: &PeerAddress, now: Instant) -> Self {
        let PeerAddress { node, name, address } = peer.clone();
        Self {
            node,
            name,
            address,
            pause_ms: PAUSE_MS_MIN,
            is_refused: false,
            refused_ms: REFUSED_MS_MIN,
            refusal: None,
            due: Some(now),
            logged: None,
        }
    }

    /// The peers that `node` dials.
    pub(crate) fn of(node: NodeId, peers: &[PeerAddress], now: Instant) -> Vec<Self> {
        peers.iter().filter(|peer| node < peer.node).map(|peer| Self::new(peer, now)).collect()
    }

    /// The machine ends the link and says that trying again soon makes no sense.
    pub(crate) fn refused(&mut self, reason: &str) {
        let kind = refusals::kind(reason);
        if self.refusal.as_deref() != Some(&kind) {
            self.refused_ms = REFUSED_MS_MIN;
            self.refusal = Some(kind);
        }
        self.is_refused = true;
    }

    /// The reason of a refusal may be gone: dials at once if it waits because of one.
    pub(crate) fn retry_refused(&mut self, now: Instant) {
        if self.refusal.take().is_some() && self.due.is_some() {
            self.due = Some(now);
        }
    }

    /// The link is gone, `up_ms` after it was proven; says when the next is due.
    pub(crate) fn failed(&mut self, now: Instant, up_ms: Option<u64>) {
        if up_ms.is_some_and(|up_ms| up_ms >= GOOD_MS) {
            self.pause_ms = PAUSE_MS_MIN;
            self.logged = None;
        }
        let pause_ms = if std::mem::take(&mut self.is_refused) {
            let next = (self.refused_ms * 2).min(REFUSED_MS_MAX);
            std::mem::replace(&mut self.refused_ms, next)
        } else {
            self.refusal = None;
            let next = (self.pause_ms * 2).min(PAUSE_MS_MAX);
            std::mem::replace(&mut self.pause_ms, next)
        };
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
        let mut pause = |up_ms, refusal: Option<&str>| {
            if let Some(reason) = refusal {
                dial.refused(reason);
            }
            dial.failed(now, up_ms);
            dial.due.unwrap().0 / 1_000_000
        };
        let pauses: Vec<u64> = (0..8).map(|_| pause(None, None)).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 500, 500]);
        assert_eq!(pause(Some(5), None), 500);
        let pauses: Vec<u64> = (1..8).map(|n| pause(Some(5), Some(&format!("behind by {n}")))).collect();
        assert_eq!(pauses, [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
        assert_eq!(pause(Some(5), Some("split brain")), 1_000, "another reason begins anew");
        assert_eq!(pause(None, None), 500, "the peer is restarted");
        assert_eq!(pause(Some(5), Some("split brain")), 1_000);
        assert_eq!(pause(Some(2_000), None), 10);
        dial.refused("split brain");
        dial.failed(now, Some(5));
        dial.retry_refused(Instant(7));
        assert_eq!(dial.due, Some(Instant(7)), "an operator did something");
    }
}
