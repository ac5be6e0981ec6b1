//! The network: connections between nodes, each two pipes of messages. A frame arrives in two steps, its envelope
//! and the rest; links are cut with or without a word, one way or both, and delayed.

use std::collections::VecDeque;

use replicator_core::units::{Buffer, LinkId};
use replicator_core::wire::envelope::Envelope;

/// One end of a connection.
pub struct End {
    pub node: usize,
    pub link: LinkId,
    /// The node there still has it.
    pub up: bool,
}

/// What travels one way.
#[derive(Default)]
pub struct Pipe {
    pub queue: VecDeque<(Envelope, Vec<u8>)>,
    /// A frame whose envelope has arrived, with the buffer it goes to.
    pub half: Option<(Envelope, Vec<u8>, Buffer)>,
    /// The sender has closed: nothing follows, and the receiver hears of it.
    pub closed: bool,
    /// The sender is gone without a word: nothing follows, and the receiver does not hear of it.
    pub dead: bool,
}

/// A connection; pipe `i` leads away from end `i`.
pub struct Wire {
    pub ends: [End; 2],
    pub pipes: [Pipe; 2],
}

impl Wire {
    pub fn new(a: (usize, LinkId), b: (usize, LinkId)) -> Self {
        let end = |(node, link)| End { node, link, up: true };
        Self { ends: [end(a), end(b)], pipes: [Pipe::default(), Pipe::default()] }
    }

    /// Which end is this link of this node.
    pub fn end_of(&self, node: usize, link: LinkId) -> Option<usize> {
        self.ends.iter().position(|end| end.up && end.node == node && end.link == link)
    }

    /// Whether something can happen at the end of pipe `way`, as far as the network is concerned.
    pub fn has_news(&self, way: usize) -> bool {
        let pipe = &self.pipes[way];
        self.ends[1 - way].up && !pipe.dead && (pipe.half.is_some() || !pipe.queue.is_empty() || pipe.closed)
    }
}

/// What the network does to the traffic from one node to another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Route {
    /// New connections are refused.
    pub refused: bool,
    /// Nothing passes, and nobody is told.
    pub silent: bool,
    /// Nothing arrives before this time.
    pub delayed_until: u64,
}
