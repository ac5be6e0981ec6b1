//! Growing the volume. The Primary asks every replica whether its disk is large enough, and has it made so where that is
//! a file; then the new size is an entry of the stream, whose range reads as zeros. What lies on the disks behind the
//! old end is overwritten when the entry is applied, as with any other, so that all copies are equal there.
//!
//! ```text
//!         grow                  every disk is large enough             applied and stored here
//! (none) ------> Asking ----------------------------------> Sequenced -----------------------> (answered)
//!    ^             | a disk is too small, a replica is gone, late
//!    +-------------+
//! ```
//!
//! Clients are served the new range when the Primary has applied the entry and its superblock says so: then it is
//! stable, and no promotion takes it back.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::gather::Gathered;
use super::greet::Place;
use super::peer::{LinkState, Peer};
use super::{Io, Machine, index_of};
use crate::command::{Command, Report};
use crate::disk::layout::map_fits;
use crate::event::Errno;
use crate::frame::{Entry, EntryKind};
use crate::limits::{FRAME_HEADER_BYTES, VOLUME_BYTES_MAX};
use crate::units::{AdminId, Instant, LinkId, NodeSet, Sequence, Token};
use crate::wire::message::Message;

/// How long the replicas have to look at their disks.
const PATIENCE_MS: u64 = 15_000;

/// What is known of sizes, and a growth under way.
#[derive(Debug)]
pub(super) struct Grow {
    /// The entries of the log that are not applied and change the size, and to what.
    sizes: Vec<(Sequence, u64)>,
    /// Bytes that the backing disk holds.
    disk_bytes: u64,
    attempt: Option<Attempt>,
    /// Primaries that asked for room, and for how much.
    asked: Vec<(LinkId, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    id: AdminId,
    bytes: u64,
    stage: Stage,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Until `deadline`; so many have room.
    Asking { ready: NodeSet, deadline: Instant },
    /// The entry is in the log.
    Sequenced,
}

impl Grow {
    pub(super) fn new(sizes: Vec<(Sequence, u64)>, disk_bytes: u64) -> Self {
        Self { sizes, disk_bytes, attempt: None, asked: Vec::new() }
    }

    /// The log has such an entry at `sequence`.
    pub(super) fn note(&mut self, sequence: Sequence, bytes: u64) {
        self.sizes.push((sequence, bytes));
    }

    /// The log ends at `last` now.
    pub(super) fn cut(&mut self, last: Sequence) {
        self.sizes.retain(|(sequence, _)| *sequence <= last);
    }

    pub(super) fn due(&self) -> Option<Instant> {
        match self.attempt?.stage {
            Stage::Asking { deadline, .. } => Some(deadline),
            Stage::Sequenced => None,
        }
    }
}

impl Machine {
    /// Bytes that the volume has at the end of the log.
    pub(super) fn volume_bytes(&self) -> u64 {
        self.grow.sizes.last().map_or(self.meta.current.volume_bytes, |(_, bytes)| *bytes)
    }

    /// Whether the size of the volume is about to change.
    pub(super) fn is_growing(&self) -> bool {
        !self.grow.sizes.is_empty()
            || self.grow.attempt.is_some()
            || self.meta.saved.volume_bytes != self.meta.current.volume_bytes
    }

    pub(super) fn on_grow(&mut self, id: AdminId, bytes: u64) {
        if let Some(reason) = self.why_not_grow(bytes) {
            return self.refuse_admin(id, reason);
        }
        let deadline = self.now.plus_ms(PATIENCE_MS);
        let stage = Stage::Asking { ready: NodeSet(0), deadline };
        self.grow.attempt = Some(Attempt { id, bytes, stage });
        self.push(Command::GrowDisk { token: Io::Grow.token(0), bytes });
        for index in 0..self.peers.len() {
            if self.peers[index].link.is_some() {
                self.send(Place::Peer(index), Message::Grow { bytes }, false);
            }
        }
    }

    fn why_not_grow(&self, bytes: u64) -> Option<String> {
        let (has, block_bytes) = (self.volume_bytes(), u64::from(self.meta.saved.block_bytes));
        Some(if !self.role.is_serving() {
            String::from("a volume is grown where it is Primary, and this node does not serve it")
        } else if self.is_growing() {
            format!("the volume is growing already, to {has} bytes or more")
        } else if bytes == has {
            format!("the volume has {has} bytes already")
        } else if bytes < has {
            format!(
                "the volume has {has} bytes and cannot shrink: what lies behind the new end would be lost. Create a \
                 smaller volume and copy what is needed"
            )
        } else if bytes > VOLUME_BYTES_MAX || !bytes.is_multiple_of(block_bytes) {
            format!("a volume has at most 1 PiB, in whole blocks of {block_bytes} bytes")
        } else if let Some(reason) = self.no_room_in_journal(bytes) {
            reason
        } else if self.is_verifying() {
            String::from("a verify is under way: wait for its end, or end it with `holdfast verify --stop`")
        } else {
            let absent = self.present().find(|peer| !can_grow(peer))?;
            format!(
                "{} is not connected and level: every replica must be, so that its disk is known to be large enough",
                absent.config.node
            )
        })
    }

    fn no_room_in_journal(&self, bytes: u64) -> Option<String> {
        let has = self.meta.current.volume_bytes;
        if self.at_rest.is_some() && bytes > has {
            return Some(format!(
                "the journal of {} keeps checksums of the blocks at rest, and room for those of {has} bytes of volume, \
                 not of {bytes}: make that replica anew without checksums (holdfast create --force), and let it be \
                 resynced",
                self.config.node
            ));
        }
        let map_bytes = self.log.layout.map_bytes;
        (!map_fits(bytes, map_bytes)).then(|| {
            format!(
                "the journal keeps {map_bytes} bytes for each dirty map, too few for {bytes} bytes of volume: it was \
                 made for a much smaller one and must be created anew"
            )
        })
    }

    /// A Primary asks for room.
    pub(super) fn on_grow_asked(&mut self, index: usize, bytes: u64) {
        let place = Place::Peer(index);
        if self.link_mut(place).state != LinkState::Following || bytes > VOLUME_BYTES_MAX {
            return self.close(place, "it asked for room that it may not ask for", true);
        }
        if let Some(reason) = self.no_room_in_journal(bytes) {
            return self.send(place, Message::Grown { bytes, reason }, false);
        }
        let id = self.link_mut(place).id;
        self.grow.asked.push((id, bytes));
        self.push(Command::GrowDisk { token: Io::Grow.token(id.0 + 1), bytes });
    }

    /// The disk was looked at, and made larger if it is a file: it holds so many bytes.
    pub(super) fn on_disk_grown(&mut self, token: Token, result: Result<u64, Errno>) {
        if let Ok(bytes) = result {
            self.grow.disk_bytes = self.grow.disk_bytes.max(bytes);
        }
        let reason = |wanted: u64| match result {
            Ok(bytes) if bytes >= wanted => String::new(),
            Ok(bytes) => format!("its disk has {bytes} bytes; enlarge it to {wanted} first"),
            Err(errno) => format!("its disk cannot be enlarged to {wanted} bytes (error {})", errno.0),
        };
        if index_of(token) == 0 {
            if let Some(Attempt { bytes, .. }) = self.grow.attempt {
                let (me, reason) = (self.config.node, reason(bytes));
                self.note_room(me, bytes, &reason);
            }
            return;
        }
        let of = |(id, _): &(LinkId, u64)| id.0 + 1 == index_of(token);
        let Some(at) = self.grow.asked.iter().position(of) else { return };
        let (id, bytes) = self.grow.asked.swap_remove(at);
        if let Some(place) = self.find_link(id)
            && self.link_mut(place).state == LinkState::Following
        {
            self.send(place, Message::Grown { bytes, reason: reason(bytes) }, false);
        }
    }

    /// A replica has room, or says why not.
    pub(super) fn note_room(&mut self, node: crate::units::NodeId, bytes: u64, reason: &str) {
        let Some(attempt) = self.grow.attempt.as_mut().filter(|attempt| attempt.bytes == bytes) else {
            return;
        };
        let Stage::Asking { ready, .. } = &mut attempt.stage else { return };
        if reason.is_empty() {
            *ready = ready.with(node);
        } else {
            let reason = format!("the volume stays as it is. {node}: {reason}");
            self.end_growing(&reason);
        }
    }

    /// Whether the disk here is large enough for a volume of `bytes`, and the journal's maps.
    ///
    /// # Errors
    /// What is too small, and what to do.
    pub(super) fn check_room(&self, bytes: u64) -> Result<(), String> {
        let disk_bytes = self.grow.disk_bytes;
        if bytes > disk_bytes {
            return Err(format!(
                "the volume has {bytes} bytes now, the disk of {} only {disk_bytes}: enlarge it and start that node's \
                 replicator again",
                self.config.node
            ));
        }
        self.no_room_in_journal(bytes).map_or(Ok(()), Err)
    }

    /// Ends an attempt that did not come to its end.
    pub(super) fn end_growing(&mut self, reason: &str) {
        if let Some(attempt) = self.grow.attempt.take() {
            self.refuse_admin(attempt.id, reason.to_string());
        }
    }

    /// Moves a growth that is under way.
    pub(super) fn advance_grow(&mut self, arena: &mut [u8]) {
        let Some(Attempt { id, bytes, stage }) = self.grow.attempt else { return };
        match stage {
            Stage::Asking { ready, deadline } => {
                let absent = self.present().find(|peer| !can_grow(peer)).map(|peer| peer.config.node);
                let late = self.present().map(|peer| peer.config.node).chain([self.config.node]);
                let late = late.into_iter().find(|node| !ready.contains(*node));
                if let Some(node) = absent {
                    self.end_growing(&format!("the volume stays as it is: the connection to {node} is gone"));
                } else if let (Some(node), true) = (late, self.now >= deadline) {
                    self.end_growing(&format!(
                        "the volume stays as it is: {node} did not say whether it has room"
                    ));
                } else if late.is_none() && self.sequence_growth(bytes, arena) {
                    self.grow.attempt = Some(Attempt { id, bytes, stage: Stage::Sequenced });
                }
            }
            Stage::Sequenced if self.meta.saved.volume_bytes >= bytes => {
                self.grow.attempt = None;
                self.answer_admin(id, Ok(format!("the volume has {bytes} bytes now")));
            }
            Stage::Sequenced => {}
        }
    }

    /// Appends the entry, if there is room for it now.
    fn sequence_growth(&mut self, bytes: u64, arena: &mut [u8]) -> bool {
        let tail = self.meta.saved.tail.ring_offset;
        if self.log.place(tail, FRAME_HEADER_BYTES as u64, false).is_none() {
            return false;
        }
        let Some(buffer) = self.pool.take(FRAME_HEADER_BYTES) else { return false };
        let offset = self.volume_bytes();
        let (kind, fua, length) = (EntryKind::Resize, true, bytes - offset);
        let entry = Entry { kind, fua, payload_crc: 0, offset, length, payload_at: 0 };
        self.append(buffer, &[Gathered { entry, request: None }], false, arena);
        self.grow.note(self.log.last(), bytes);
        true
    }

    /// Everything up to `last` is applied, growth included.
    pub(super) fn grow_through(&mut self, last: Sequence) {
        while let Some((sequence, bytes)) = self.grow.sizes.first().copied()
            && sequence <= last
        {
            self.grow.sizes.remove(0);
            self.set_volume_bytes(bytes);
        }
    }

    /// The copy here has so many bytes from now on, if it had fewer.
    pub(super) fn set_volume_bytes(&mut self, bytes: u64) {
        if bytes <= self.meta.current.volume_bytes {
            return;
        }
        self.meta.current.volume_bytes = bytes;
        self.meta.change();
        self.peers.iter_mut().for_each(|peer| peer.tracker.grow(bytes));
        self.bookmarks.grow(bytes);
        if let Some(diverged) = &mut self.diverged {
            diverged.grow(bytes);
        }
        self.report(Report::Grown { bytes });
    }
}

/// Whether the peer follows, and with nothing but entries.
fn can_grow(peer: &Peer) -> bool {
    let is_level = |link: &super::peer::Link| link.resync.is_none();
    peer.streaming().is_some_and(is_level)
}
