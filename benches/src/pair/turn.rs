//! The driver of a pair: a turn of one node, its commands, its messages.

use std::time::Instant as Clock;

use replicator_core::command::Command;
use replicator_core::event::Event;
use replicator_core::limits::MESSAGE_BODY_BYTES_MAX;
use replicator_core::units::{Instant, Span, Token};
use replicator_core::wire::envelope::{Envelope, MessageKind};
use replicator_core::wire::message::Message;

use super::node::{Done, SHORT_BYTES, Sent};
use super::tally::Stage;
use super::{LINK, Pair};
use crate::counting;

impl Pair {
    /// A turn of one node, if there is anything to do: completions, messages, time, the end, commands.
    pub(super) fn turn(&mut self, index: usize, has_requests: bool) -> bool {
        let mut busy = has_requests;
        while let Some(done) = self.nodes[index].done.pop_front() {
            busy = true;
            self.complete(index, done);
        }
        while self.receive(index) {
            busy = true;
        }
        let began = self.begin();
        let is_due = self.nodes[index].machine.next_timeout().is_some_and(|due| due.0 <= self.now);
        self.end(index, Stage::Timeout, began);
        if is_due {
            busy = true;
            self.handle(index, Stage::Timeout, Event::Timeout);
        }
        if busy {
            let rare = (self.tally.superblocks, self.tally.timed_messages);
            self.handle(index, Stage::TurnEnd, Event::TurnEnd);
            self.perform_all(index);
            self.count_allocations(rare != (self.tally.superblocks, self.tally.timed_messages));
        }
        busy
    }

    /// Puts down what was allocated since the last turn ended.
    fn count_allocations(&mut self, is_rare: bool) {
        let seen = counting::count_so_far();
        let new = seen - self.allocations_seen;
        self.allocations_seen = seen;
        if is_rare {
            self.tally.allocations_rare += new;
        } else {
            self.tally.allocations += new;
        }
    }

    fn complete(&mut self, index: usize, done: Done) {
        let result = Ok(());
        let (stage, event) = match done {
            Done::JournalWritten(token) => (Stage::JournalWritten, Event::JournalWritten { token, result }),
            Done::JournalSynced(token) => (Stage::JournalSynced, Event::JournalSynced { token, result }),
            Done::DiskRead(token) => (Stage::DiskRead, Event::DiskRead { token, result }),
            Done::DiskWritten(token) => (Stage::DiskWritten, Event::DiskWritten { token, result }),
            Done::DiskSynced(token) => (Stage::DiskSynced, Event::DiskSynced { token, result }),
            Done::SuperblockWritten(token) => {
                (Stage::SuperblockWritten, Event::SuperblockWritten { token, result })
            }
            Done::FrameSent(token) => (Stage::FrameSent, Event::FrameSent { link: LINK, token }),
        };
        self.handle(index, stage, event);
    }

    /// Gives the node the next message that is on its way to it, if there is one and it has room.
    fn receive(&mut self, index: usize) -> bool {
        let Some(sent) = self.nodes[1 - index].sent.pop_front() else { return false };
        match sent {
            Sent::Short { envelope, body } => {
                let body = &body[..envelope.body_bytes as usize];
                self.handle(index, Stage::Message, Event::Message { link: LINK, envelope, body });
            }
            Sent::Long { envelope, body } => {
                self.handle(index, Stage::Message, Event::Message { link: LINK, envelope, body: &body });
            }
            Sent::Frame { envelope, token, span } => return self.receive_frame(index, envelope, token, span),
        }
        true
    }

    fn receive_frame(&mut self, index: usize, envelope: Envelope, token: Token, span: Span) -> bool {
        let Some(buffer) = self.nodes[index].machine.place_frame(LINK, &envelope) else {
            self.nodes[1 - index].sent.push_front(Sent::Frame { envelope, token, span });
            return false;
        };
        let began = self.begin();
        let [first, second] = &mut self.nodes;
        let (from, to) = if index == 1 { (first, second) } else { (second, first) };
        to.arena[buffer.start()..buffer.start() + span.len].copy_from_slice(&from.arena[span.range()]);
        from.done.push_back(Done::FrameSent(token));
        self.end(index, Stage::DriverCopies, began);
        self.handle(index, Stage::Frame, Event::Frame { link: LINK, envelope, buffer });
        true
    }

    pub(super) fn handle(&mut self, index: usize, stage: Stage, event: Event<'_>) {
        self.tally.events += 1;
        let began = self.begin();
        let node = &mut self.nodes[index];
        node.machine.handle(Instant(self.now), event, &mut node.arena);
        self.end(index, stage, began);
    }

    pub(super) fn begin(&self) -> Option<Clock> {
        self.is_timed.then(Clock::now)
    }

    pub(super) fn end(&mut self, index: usize, stage: Stage, began: Option<Clock>) {
        if let Some(began) = began {
            let spent = &mut self.nodes[index].spent[stage as usize];
            spent.calls += 1;
            spent.ns += u64::try_from(began.elapsed().as_nanos()).expect("a run takes seconds");
        }
    }

    fn perform_all(&mut self, index: usize) {
        let mut commands = std::mem::take(&mut self.commands);
        let began = self.begin();
        let machine = &mut self.nodes[index].machine;
        commands.extend(std::iter::from_fn(|| machine.poll_command()));
        self.end(index, Stage::Commands, began);
        for command in commands.drain(..) {
            self.perform(index, command);
        }
        self.commands = commands;
    }

    fn perform(&mut self, index: usize, command: Command) {
        let node = &mut self.nodes[index];
        match command {
            Command::WriteJournal { token, .. } => node.done.push_back(Done::JournalWritten(token)),
            Command::SyncJournal { token } => node.done.push_back(Done::JournalSynced(token)),
            Command::SyncDisk { token } => node.done.push_back(Done::DiskSynced(token)),
            Command::ReadDisk { token, offset, span } => {
                self.copy(index, offset, span, Done::DiskRead(token));
            }
            Command::WriteDisk { token, offset, span } => {
                self.copy(index, offset, span, Done::DiskWritten(token));
            }
            Command::ZeroDisk { token, offset, length, .. } => {
                let (at, length) = (usize::try_from(offset), usize::try_from(length));
                let (at, length) = (at.expect("fits in memory"), length.expect("fits in memory"));
                node.disk[at..at + length].fill(0);
                node.done.push_back(Done::DiskWritten(token));
            }
            Command::WriteSuperblock { token, .. } => {
                self.tally.superblocks += 1;
                node.done.push_back(Done::SuperblockWritten(token));
            }
            Command::SendFrame { token, envelope, span, .. } => {
                node.sent.push_back(Sent::Frame { envelope, token, span });
            }
            Command::SendBare { envelope, .. } => self.send(index, envelope, &Message::Ping),
            Command::SendAck { envelope, ack, .. } => self.send(index, envelope, &Message::Ack(ack)),
            Command::Send { envelope, message, .. } => {
                let is_timed = match envelope.kind {
                    MessageKind::Ping => true,
                    MessageKind::Mark => !envelope.sync,
                    _ => false,
                };
                self.tally.timed_messages += u64::from(is_timed);
                self.send(index, envelope, &message);
            }
            Command::Complete { request, result } => {
                assert!(result.is_ok(), "a sound request is carried out");
                self.answered(request);
            }
            Command::Serve { open } => node.is_serving = open,
            Command::Answer { result, .. } => assert!(result.is_ok(), "{result:?}"),
            Command::Report(_) => {}
            Command::ReadJournal { .. }
            | Command::CloseLink { .. }
            | Command::ServeFrozen { .. }
            | Command::KeepBranch { .. }
            | Command::GrowDisk { .. }
            | Command::Replicas
            | Command::VolumeSize { .. }
            | Command::Stopped => {
                unreachable!("not in a pair that is level and at peace: {command:?}")
            }
        }
    }

    /// Moves bytes between a disk and the arena, at once.
    fn copy(&mut self, index: usize, offset: u64, span: Span, done: Done) {
        let began = self.begin();
        let node = &mut self.nodes[index];
        let at = usize::try_from(offset).expect("fits in memory");
        let on_disk = &mut node.disk[at..at + span.len];
        match done {
            Done::DiskRead(_) => node.arena[span.range()].copy_from_slice(on_disk),
            _ => on_disk.copy_from_slice(&node.arena[span.range()]),
        }
        node.done.push_back(done);
        self.end(index, Stage::DriverCopies, began);
    }

    fn send(&mut self, index: usize, mut envelope: Envelope, message: &Message) {
        let mut bytes = [0; MESSAGE_BODY_BYTES_MAX];
        let length = message.encode(&mut bytes);
        envelope.body_bytes = u32::try_from(length).expect("a message is short");
        assert!(envelope.kind != MessageKind::Frame);
        let body = &bytes[..length];
        let sent = if length <= SHORT_BYTES {
            let mut short = [0; SHORT_BYTES];
            short[..length].copy_from_slice(body);
            Sent::Short { envelope, body: short }
        } else {
            Sent::Long { envelope, body: body.to_vec() }
        };
        self.nodes[index].sent.push_back(sent);
    }
}
