//! What replicas say of themselves: acknowledgements and seals must be true when they are sent.

use replicator_core::wire::envelope::Envelope;
use replicator_core::wire::message::{Ack, Sealed};

use super::{Ledger, Level};
use crate::rule::broken;

impl Ledger {
    pub(super) fn acked(&mut self, x: usize, envelope: &Envelope, ack: &Ack) {
        let replica = &self.replicas[x];
        if replica.saved.promised != envelope.epoch || replica.saved.record.epoch != envelope.epoch {
            broken(
                "ack-before-promise",
                format!(
                    "node {x} acknowledges in epoch {}, promised {}",
                    envelope.epoch, replica.saved.promised
                ),
            );
        }
        let end = self.end_of(x).1;
        if ack.received.0 > end {
            broken("ack-untrue", format!("node {x} says received {}, its log ends at {end}", ack.received));
        }
        let (journaled, durable) = replica.acked;
        self.holds(x, journaled, ack.journaled.0, Level::Written);
        self.holds(x, durable, ack.durable.0, Level::Durable);
        self.replicas[x].acked = (ack.journaled.0.max(journaled), ack.durable.0.max(durable));
    }

    pub(super) fn holds(&self, x: usize, from: u64, to: u64, level: Level) {
        let replica = &self.replicas[x];
        let at = replica.log.partition_point(|frame| self.frames[*frame].last <= from);
        for frame in &replica.log[at..] {
            let last = self.frames[*frame].last;
            if last > to {
                break;
            }
            if replica.has[*frame] < level && !replica.void {
                broken("ack-untrue", format!("node {x} says it has entry {last} {level:?}; it has not"));
            }
        }
    }

    pub(super) fn sealed(&self, x: usize, sealed: &Sealed) {
        if !sealed.granted {
            return;
        }
        let (replica, epoch) = (&self.replicas[x], sealed.attempt >> 8);
        if replica.saved.promised.0 < epoch {
            broken("seal-before-promise", format!("node {x} grants epoch {epoch} that it has not stored"));
        }
        let end = self.end_of(x);
        if (sealed.head.chain, sealed.head.position.sequence.0) != end {
            broken("seal-untrue", format!("node {x} seals at {:?}, its log ends at {end:?}", sealed.head));
        }
        for frame in replica.log.iter().rev().take(64) {
            if replica.has[*frame] < Level::Durable && !replica.void {
                let last = self.frames[*frame].last;
                broken("seal-undurable", format!("node {x} seals with entry {last} not durable"));
            }
        }
    }
}
