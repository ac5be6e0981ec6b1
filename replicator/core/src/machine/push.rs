//! Pushes: blocks that are bad at a peer that follows and are sent there, each at one point of the stream. A Secondary asks
//! for them when it finds them. It writes what comes as it writes what a verify sends; what gets lost on the way is found
//! and asked for again.

use super::Machine;
use super::block_read::{BlockRead, Reader};
use super::greet::Place;
use super::mend::can_answer;
use super::peer::LinkState;
use crate::dirty::{BLOCK_BYTES, WORD_BLOCKS};
use crate::units::{Instant, NodeSet};
use crate::wire::message::Message;
use crate::wire::visit::Mend;

/// Blocks that may wait to be sent.
const PUSHES_MAX: usize = 64;
/// How long one waits until nothing is on its way to it.
const PATIENCE_MS: u64 = 5000;
/// How often it is looked at.
const LOOK_MS: u64 = 20;

/// A block that a peer wants.
#[derive(Debug)]
pub(super) struct Push {
    index: usize,
    block: u64,
    since: Instant,
    is_reading: bool,
}

impl Push {
    /// Whether it goes to the peer at `index`.
    pub(super) fn is_for(&self, index: usize) -> bool {
        self.index == index
    }
}

impl Machine {
    /// Asks the Primary that this replica follows for a block that is bad here.
    pub(super) fn ask_for_block(&mut self, block: u64) {
        let follows = |place: &usize| {
            let link = self.peers[*place].link.as_ref();
            link.is_some_and(|link| link.state == LinkState::Following && link.plan.is_none())
        };
        if let Some(index) = (0..self.peers.len()).find(follows) {
            self.send(Place::Peer(index), Message::Ask { block }, false);
        }
    }

    pub(super) fn on_ask(&mut self, index: usize, block: u64) {
        if !self.has_block(block) {
            return self.close(
                Place::Peer(index),
                "it asked for a block that the volume does not have",
                true,
            );
        }
        let is_known = self.pushes.iter().any(|push| push.index == index && push.block == block);
        if self.role.is_serving() && !is_known && self.pushes.len() < PUSHES_MAX {
            self.pushes.push(Push { index, block, since: self.now, is_reading: false });
        }
    }

    /// A block is whole here again: those that did not have it when they were asked may be bad there, too.
    pub(super) fn push_to_all(&mut self, nodes: NodeSet, block: u64) {
        for node in nodes.iter() {
            if let Some(index) = self.peer_index(node) {
                self.on_ask(index, block);
            }
        }
    }

    /// Nobody has this block: to read it again and again would not change that.
    pub(super) fn drop_pushes(&mut self, block: u64) {
        self.pushes.retain(|push| push.block != block || push.is_reading);
    }

    /// Reads those to which nothing is on its way.
    pub(super) fn pump_pushes(&mut self, arena: &[u8]) {
        if self.pushes.is_empty() {
            return;
        }
        let now = self.now;
        let is_serving = self.role.is_serving();
        let late = |push: &Push| !push.is_reading && (!is_serving || now > push.since.plus_ms(PATIENCE_MS));
        self.pushes.retain(|push| !late(push));
        for at in 0..self.pushes.len() {
            let Push { index, block, is_reading, .. } = self.pushes[at];
            if is_reading || !self.may_push(index, block, arena) || !self.apply.is_between_batches() {
                continue;
            }
            let Some(buffer) = self.take_block_buffer() else { return };
            self.pushes[at].is_reading = true;
            let (word, bit) = (block / WORD_BLOCKS, block % WORD_BLOCKS);
            self.begin_block_read(BlockRead::new(Reader::Push, word, 1 << bit, buffer, self.volume_bytes()));
        }
    }

    /// Whether the block here is what it is at the end of what was sent there.
    fn may_push(&self, index: usize, block: u64, arena: &[u8]) -> bool {
        let (start, end) = (block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
        let applied = self.log.applied.position.sequence;
        let peer = &self.peers[index];
        let is_sent = peer.link.as_ref().is_some_and(|link| link.next > applied);
        can_answer(peer) && is_sent && !self.is_mending(start, end) && !self.has_unapplied(start, end, arena)
    }

    /// Sends what was read, if nothing that overlaps it has been sequenced since.
    pub(super) fn on_push_read(&mut self, read: BlockRead, arena: &[u8]) {
        self.pool.give(read.buffer);
        let bit = read.bits.trailing_zeros();
        let block = read.word * WORD_BLOCKS + u64::from(bit);
        if read.bad != 0 && self.role.is_serving() {
            self.note_bad(&read);
            self.mend(block, None);
        }
        let bytes = &arena[read.block(bit).range()];
        let point = self.log.applied.position.sequence;
        for at in (0..self.pushes.len()).rev() {
            let Push { index, block: of, is_reading, .. } = self.pushes[at];
            if of != block || !is_reading {
                continue;
            }
            if read.bad == 0 && self.role.is_serving() && self.may_push(index, block, arena) {
                self.pushes.swap_remove(at);
                let mend = Mend { point, block, bytes: bytes.into() };
                self.send(Place::Peer(index), Message::Mend(mend), false);
            } else {
                self.pushes[at].is_reading = false;
            }
        }
    }

    /// When pushes want to be looked at though nothing happened.
    pub(super) fn push_due(&self) -> Option<Instant> {
        self.pushes.iter().any(|push| !push.is_reading).then(|| self.now.plus_ms(LOOK_MS))
    }
}
