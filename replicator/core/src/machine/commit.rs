//! Commitment: `committed` and `stable` are minima over everyone who may be a member, the Primary's own journal
//! included. Answers to clients follow from them and from nothing else.

use super::{Machine, Pending};
use crate::command::RequestError;
use crate::config::Protocol;
use crate::event::ZeroKind;
use crate::extents::{Content, Extent};
use crate::frame::{self, EntryKind};
use crate::units::{Buffer, NodeSet, Sequence};

impl Machine {
    /// Everyone who may be a member: the saved record, one that is being saved, and pending additions.
    pub(super) fn counted(&self) -> NodeSet {
        let both = self.meta.saved.record.in_sync.0 | self.meta.current.record.in_sync.0;
        NodeSet(both | self.pending_nodes().0)
    }

    pub(super) fn pending_nodes(&self) -> NodeSet {
        let pending = self.peers.iter().filter(|peer| peer.pending);
        pending.fold(NodeSet(0), |set, peer| set.with(peer.config.node))
    }

    /// What `node` has: (counts for answers, durable).
    fn held_by(&self, node: crate::units::NodeId) -> (Sequence, Sequence) {
        if node == self.config.node {
            return (self.log.journaled(), self.log.durable());
        }
        let Some(peer) = self.peers.iter().find(|peer| peer.config.node == node) else {
            return (Sequence(0), Sequence(0));
        };
        let ack = peer.ack();
        match peer.config.protocol {
            Protocol::A | Protocol::C => (ack.journaled, ack.durable),
            Protocol::B => (ack.received, ack.durable),
        }
    }

    /// Recomputes both minima and answers what they allow. Only a Primary does; a Secondary is told.
    pub(super) fn advance_commit(&mut self) {
        if !self.role.is_sequencing() {
            return;
        }
        self.admit_zeros();
        let (mut committed, mut stable) = (self.log.journaled(), self.log.durable());
        for node in self.counted().iter() {
            let (has, durable) = self.held_by(node);
            committed = committed.min(has);
            stable = stable.min(durable);
        }
        // Neither goes back within a reign, though a member that reconnects starts counting from nothing.
        self.committed = self.committed.max(committed);
        self.stable = self.stable.max(stable.min(self.committed));
        if let Some((_, since)) = self.probe.take_if(|(last, _)| *last <= self.committed) {
            self.pace.note_latency(self.now.0 - since.0);
        }
        self.answer_committed();
        self.answer_stable();
    }

    /// Adds what has become committed to the view that reads take. Done when a read comes: what is applied before
    /// anybody reads needs no place in the view.
    pub(super) fn cover_committed(&mut self, arena: &[u8]) {
        self.overlay_through = self.overlay_through.max(self.log.applied.position.sequence);
        while self.overlay_through < self.committed {
            let number =
                self.log.find(self.overlay_through.next()).expect("unapplied entries are in the log");
            let frame = *self.log.frame(number).expect("found");
            if frame.last() > self.committed {
                break;
            }
            let buffer = frame.buffer.expect("a serving Primary has its unapplied frames in memory");
            let overlay = &mut self.overlay;
            each_extent(buffer, frame.first, arena, |extent| overlay.insert(extent));
            self.overlay_through = frame.last();
        }
    }

    fn answer_committed(&mut self) {
        while let Some(pending) = self.pending.front().copied() {
            if pending.sequence > self.committed {
                break;
            }
            self.pending.pop_front();
            if pending.fua && pending.sequence > self.stable {
                let at = self.flushes.partition_point(|other| other.sequence <= pending.sequence);
                self.flushes.insert(at, pending);
            } else {
                self.counters.writes += 1;
                self.answer(pending, self.committed);
            }
        }
    }

    fn answer_stable(&mut self) {
        while let Some(pending) = self.flushes.front().copied() {
            if pending.sequence > self.stable {
                break;
            }
            self.flushes.pop_front();
            if pending.fua {
                self.counters.writes += 1;
            } else {
                self.counters.flushes += 1;
            }
            self.answer(pending, self.stable);
        }
    }

    fn answer(&mut self, pending: Pending, reached: Sequence) {
        assert!(pending.sequence <= reached, "an answer follows its position");
        assert!(self.role.is_sequencing(), "only a Primary answers");
        self.complete(pending.request, Ok(()));
    }

    /// Tells every client that waits that nobody serves here any more. Whether their writes took effect they
    /// cannot know.
    pub(super) fn fail_waiting(&mut self) {
        self.drop_gathered();
        for pending in
            core::mem::take(&mut self.pending).into_iter().chain(core::mem::take(&mut self.flushes))
        {
            self.complete(pending.request, Err(RequestError::NotServing));
        }
        for (_, request) in core::mem::take(&mut self.zeros_waiting) {
            self.complete(request, Err(RequestError::NotServing));
        }
    }
}

/// Calls `visit` with what each entry of the frame in `buffer` covers.
pub(super) fn each_extent(buffer: Buffer, first: Sequence, arena: &[u8], mut visit: impl FnMut(Extent)) {
    let bytes = &arena[buffer.span().range()];
    let header = frame::decode_trusted(bytes);
    for (sequence, entry) in (first.0..).zip(frame::entries(bytes, &header)) {
        let entry = entry.expect("a frame is checked before it enters the log");
        let content = match entry.kind {
            EntryKind::Write => Content::Bytes { at: buffer.start() + entry.payload_at as usize },
            EntryKind::Trim | EntryKind::Resize => Content::Zero(ZeroKind::Trim),
            EntryKind::Zeroes => Content::Zero(ZeroKind::Zeroes),
            EntryKind::EpochStart => continue,
        };
        visit(Extent { start: entry.offset, len: entry.length, sequence: Sequence(sequence), content });
    }
}
