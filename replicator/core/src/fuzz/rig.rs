//! A whole replica with its disks in memory, driven by hand: its I/O completes when and in the order it is told to.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::journal::Pages;
use super::{Choices, VOLUME, VOLUME_BYTES};
use crate::command::Command;
use crate::config::{Config, OnPeerLoss, PeerConfig, Protocol};
use crate::disk::superblock::{Record, Superblock};
use crate::event::{AdminAction, Event, ZeroKind};
use crate::limits::MESSAGE_BODY_BYTES_MAX;
use crate::machine::Machine;
use crate::recovery::Recovered;
use crate::units::{
    AdminId, Buffer, Incarnation, Instant, LinkId, NodeId, RequestId, SECTOR_BYTES, Span, Token,
};
use crate::wire::envelope::{Envelope, MessageKind};
use crate::wire::message::{Hello, Message, Seal};

const ARENA_BYTES: usize = 8 << 20;

/// A connection as the peer at its other end sees it.
#[derive(Clone, Copy)]
pub(super) struct HostileLink {
    pub(super) id: LinkId,
    pub(super) node: NodeId,
    /// The number of the hello that this end sent last.
    pub(super) session: u64,
    /// The record that it claims to serve.
    pub(super) record: Record,
}

/// A replica with its disks in memory, and what it waits for.
pub(super) struct Rig {
    pub(super) machine: Machine,
    arena: Vec<u8>,
    journal: Pages,
    now: Instant,
    pub(super) ios: Vec<Command>,
    pub(super) links: Vec<HostileLink>,
    pub(super) closing: Vec<LinkId>,
    /// What the replica last said of itself.
    pub(super) hello: Option<Box<Hello>>,
    /// What a promotion last asked.
    pub(super) seal: Option<Seal>,
    next_id: u64,
    pub(super) stopped: bool,
}

impl Rig {
    pub(super) fn new(recovered: Recovered, journal: Pages) -> Self {
        let peer = |node| PeerConfig { node: NodeId(node), protocol: Protocol::C };
        let config = Config {
            node: NodeId(0),
            peers: vec![peer(1), peer(2)],
            volume: VOLUME,
            incarnation: Incarnation(1),
            on_peer_loss: OnPeerLoss::Continue,
            managed: false,
            disk_bytes: 2 * VOLUME_BYTES,
            arena_bytes: ARENA_BYTES,
            frames_in_flight_max: 2,
            sync_interval_ms: 10,
            ping_interval_ms: 500,
            peer_timeout_ms: 3000,
            disk_timeout_ms: 30_000,
            checkpoint_bytes: 64 << 10,
            sum_pages_max: 64,
            scrub_interval_ms: 0,
            apply_delay_ms: 0,
            send_window_bytes: 2 << 20,
        };
        let now = Instant(1);
        let mut rig = Self {
            machine: Machine::new(config, recovered, now),
            arena: vec![0; ARENA_BYTES],
            journal,
            now,
            ios: Vec::new(),
            links: Vec::new(),
            closing: Vec::new(),
            hello: None,
            seal: None,
            next_id: 1,
            stopped: false,
        };
        rig.take_commands();
        rig
    }

    pub(super) fn handle(&mut self, event: Event<'_>) {
        self.machine.handle(self.now, event, &mut self.arena);
        self.take_commands();
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn take_commands(&mut self) {
        while let Some(command) = self.machine.poll_command() {
            match command {
                Command::Send { message, .. } => match *message {
                    Message::Hello(hello) => self.hello = Some(Box::new(hello)),
                    Message::Seal(seal) => self.seal = Some(seal),
                    _ => {}
                },
                Command::CloseLink { link, .. } => self.closing.push(link),
                Command::Stopped => self.stopped = true,
                Command::SendBare { .. }
                | Command::SendAck { .. }
                | Command::Complete { .. }
                | Command::Answer { .. }
                | Command::Serve { .. }
                | Command::ServeFrozen { .. }
                | Command::Report(_) => {}
                io => self.ios.push(io),
            }
        }
    }

    /// Completes one I/O; frames of one link leave in order.
    pub(super) fn finish(&mut self, index: usize) {
        let first_of = |link: LinkId| {
            self.ios.iter().position(|io| matches!(io, Command::SendFrame { link: of, .. } if *of == link))
        };
        let index = match self.ios[index] {
            Command::SendFrame { link, .. } => first_of(link).unwrap_or(index),
            _ => index,
        };
        let result = Ok(());
        let event = match self.ios.remove(index) {
            Command::WriteJournal { token, device_offset, span } => {
                self.journal.write(device_offset, &self.arena[span.range()]);
                Event::JournalWritten { token, result }
            }
            Command::SyncJournal { token } => Event::JournalSynced { token, result },
            Command::ReadJournal { token, device_offset, span } => {
                self.journal.read(device_offset, &mut self.arena[span.range()]);
                Event::JournalRead { token, result }
            }
            Command::ReadDisk { token, .. } => Event::DiskRead { token, result },
            Command::WriteDisk { token, offset, span } => Self::disk_written(token, offset, span.len as u64),
            Command::ZeroDisk { token, offset, length, .. } => Self::disk_written(token, offset, length),
            Command::SyncDisk { token } => Event::DiskSynced { token, result },
            Command::WriteSuperblock { token, superblock } => {
                let bytes = superblock.encode();
                assert_eq!(Superblock::decode(&bytes), Ok(*superblock), "what is stored can be started from");
                Event::SuperblockWritten { token, result }
            }
            Command::SendFrame { link, token, .. } => Event::FrameSent { link, token },
            Command::KeepBranch { token, .. } => Event::BranchKept { token, result: Ok(()) },
            other => unreachable!("no I/O: {other:?}"),
        };
        self.handle(event);
    }

    fn disk_written<'e>(token: Token, offset: u64, length: u64) -> Event<'e> {
        assert!(offset + length <= VOLUME_BYTES, "nothing is written outside the volume");
        Event::DiskWritten { token, result: Ok(()) }
    }

    /// Lets everything happen that needs no peer.
    pub(super) fn settle(&mut self) {
        for _ in 0..64 {
            self.handle(Event::TurnEnd);
            if self.ios.is_empty() {
                break;
            }
            while !self.ios.is_empty() {
                self.finish(0);
            }
        }
        while let Some(id) = self.closing.pop() {
            self.link_down(id);
        }
    }

    pub(super) fn pass_time(&mut self, ms: u64) {
        let due = self.machine.next_timeout().unwrap_or_default();
        self.now = self.now.plus_ms(ms).max(due.min(self.now.plus_ms(50)));
        self.handle(Event::Timeout);
    }

    pub(super) fn admin(&mut self, action: AdminAction) {
        let id = AdminId(self.id());
        self.handle(Event::Admin { id, action });
    }

    pub(super) fn link_up(&mut self, node: NodeId, known: bool) {
        let id = LinkId(self.id());
        self.links.push(HostileLink { id, node, session: 0, record: Record::default() });
        self.handle(Event::LinkUp { link: id, peer: known.then_some(node) });
    }

    pub(super) fn link_down(&mut self, id: LinkId) {
        self.links.retain(|link| link.id != id);
        self.closing.retain(|link| *link != id);
        self.ios.retain(|io| !matches!(io, Command::SendFrame { link, .. } if *link == id));
        self.handle(Event::LinkDown { link: id, reason: String::from("gone") });
    }

    pub(super) fn envelope(&self, link: &HostileLink, kind: MessageKind) -> Envelope {
        let status = self.machine.status();
        Envelope {
            kind,
            sync: false,
            body_bytes: 0,
            body_crc: 0,
            incarnation: Incarnation(1),
            volume: VOLUME,
            session: link.session,
            epoch: link.record.epoch,
            reign: link.record.reign,
            committed: status.head.sequence,
            stable: status.durable,
        }
    }

    /// Sends a message through its bytes, as on a real wire.
    pub(super) fn say(&mut self, link: &HostileLink, message: &Message, choices: &mut Choices<'_>) {
        let mut body = [0; MESSAGE_BODY_BYTES_MAX];
        let length = message.encode(&mut body);
        let mut envelope = self.envelope(link, message.kind());
        twist(&mut envelope, choices);
        self.deliver(link.id, envelope, &body[..length]);
    }

    pub(super) fn say_plainly(&mut self, link: &HostileLink, message: &Message, sync: bool) {
        let mut body = [0; MESSAGE_BODY_BYTES_MAX];
        let length = message.encode(&mut body);
        let envelope = Envelope { sync, ..self.envelope(link, message.kind()) };
        self.deliver(link.id, envelope, &body[..length]);
    }

    pub(super) fn deliver(&mut self, link: LinkId, mut envelope: Envelope, body: &[u8]) {
        envelope.body_bytes = u32::try_from(body.len()).expect("bounded");
        let Ok(envelope) = Envelope::decode(&envelope.encode()) else { return };
        self.handle(Event::Message { link, envelope, body });
    }

    pub(super) fn deliver_frame(&mut self, link: &HostileLink, bytes: &[u8], choices: &mut Choices<'_>) {
        let mut envelope = self.envelope(link, MessageKind::Frame);
        twist(&mut envelope, choices);
        envelope.body_bytes = u32::try_from(bytes.len()).expect("bounded");
        let Ok(envelope) = Envelope::decode(&envelope.encode()) else { return };
        let Some(buffer) = self.machine.place_frame(link.id, &envelope) else { return };
        if choices.one_in(32) {
            return self.handle(Event::FrameAbandoned { buffer });
        }
        self.fill(buffer, bytes);
        self.handle(Event::Frame { link: link.id, envelope, buffer });
    }

    pub(super) fn deliver_frame_plainly(&mut self, link: &HostileLink, bytes: &[u8]) {
        let body_bytes = u32::try_from(bytes.len()).expect("bounded");
        let envelope = Envelope { body_bytes, ..self.envelope(link, MessageKind::Frame) };
        let Some(buffer) = self.machine.place_frame(link.id, &envelope) else { return };
        self.fill(buffer, bytes);
        self.handle(Event::Frame { link: link.id, envelope, buffer });
    }

    fn fill(&mut self, buffer: Buffer, bytes: &[u8]) {
        self.arena[buffer.start()..buffer.start() + bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn client(&mut self, choices: &mut Choices<'_>) {
        let request = RequestId(self.id());
        let (offset, sectors) = (choices.below(200) as u64 * SECTOR_BYTES, 1 + choices.below(9));
        let length = sectors * SECTOR_BYTES as usize;
        match choices.below(4) {
            0 => self.handle(Event::Flush { request }),
            1 => {
                let (length, fua) = (length as u64, choices.one_in(2));
                self.handle(Event::Zero { request, offset, length, kind: ZeroKind::Trim, fua });
            }
            2 => {
                let Some(buffer) = self.machine.take_buffer(length) else { return };
                let destination = Span { start: buffer.start(), len: length };
                self.handle(Event::Read { request, offset, destination });
            }
            _ => {
                let Some(payload) = self.machine.place_write(length) else { return };
                self.arena[payload.range()].fill(choices.byte());
                self.handle(Event::Write { request, offset, payload, fua: choices.one_in(4) });
            }
        }
    }
}

fn twist(envelope: &mut Envelope, choices: &mut Choices<'_>) {
    envelope.sync = choices.one_in(4);
    envelope.committed = choices.sequence(envelope.committed);
    envelope.stable = choices.sequence(envelope.stable);
    if !choices.one_in(8) {
        return;
    }
    envelope.session = choices.number(envelope.session);
    envelope.epoch = choices.epoch(envelope.epoch);
    envelope.reign.0 ^= u128::from(choices.one_in(4));
    envelope.volume.0 ^= u128::from(choices.one_in(16));
    envelope.incarnation.0 ^= u64::from(choices.one_in(16));
}
