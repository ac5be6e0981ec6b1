//! What every part of the driver needs at hand: the ring, the machine, the time of this turn, the log.

use replicator_core::event::Event;
use replicator_core::machine::Machine;
use replicator_core::units::{Buffer, Instant, LinkId, Span};
use replicator_core::wire::envelope::Envelope;

use super::Op;
use super::log::Log;
use super::waiters::Waiters;
use crate::latency::Latencies;
use crate::ring::{MemoryId, Ring};

/// The middle of the driver.
pub(crate) struct Context {
    pub(crate) ring: Ring<Op>,
    pub(crate) machine: Machine,
    /// When this turn began.
    pub(crate) now: Instant,
    pub(crate) log: Log,
    pub(crate) waiters: Waiters,
    /// How long clients' requests took.
    pub(crate) latencies: Latencies,
    /// Buffers were given back after those who wait for some had been asked: ask them again before waiting.
    pub(crate) freed: bool,
    /// Something happened that the machine must draw conclusions from.
    pub(crate) has_news: bool,
}

impl Context {
    /// Tells the machine what happened.
    pub(crate) fn give(&mut self, event: Event<'_>) {
        self.has_news = true;
        self.machine.handle(self.now, event, self.ring.arena_mut());
    }

    /// Tells the machine of a message whose body lies in a link's memory.
    pub(crate) fn give_message(&mut self, link: LinkId, envelope: Envelope, body: (MemoryId, Span)) {
        let (memory, span) = body;
        self.has_news = true;
        let (arena, bytes) = self.ring.arena_and_memory(memory);
        let event = Event::Message { link, envelope, body: &bytes[span.range()] };
        self.machine.handle(self.now, event, arena);
    }

    /// Gives a buffer back to the machine.
    pub(crate) fn give_buffer(&mut self, buffer: Buffer) {
        self.machine.give_buffer(buffer);
        self.freed = true;
        self.has_news = true;
    }
}
