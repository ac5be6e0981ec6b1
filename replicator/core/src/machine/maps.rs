//! The dirty maps while the machine runs: what is applied is noted for every peer that is not known to hold it and for
//! every bookmark, and a checkpoint saves what changed. The order is: disk synced, images written to the copy that does not count, journal
//! synced, superblock.

use alloc::vec::Vec;

use super::bookmark::SavedBookmarks;
use super::peer::Peer;
use super::replicas::Presence;
use super::{Io, Machine};
use crate::command::Command;
use crate::disk::layout::MAP_PEERS;
use crate::disk::superblock::Maps;
use crate::event::IoResult;
use crate::tracker::Base;
use crate::units::{Buffer, PAGE_BYTES, Sequence, Span};

/// Bytes of an image written at a time.
const PIECE_BYTES: usize = 64 << 10;

/// Images on their way to the journal device.
#[derive(Debug)]
pub(super) struct Saving {
    /// What the superblock will say.
    pub(super) maps: Maps,
    /// What it will say of the bookmarks.
    pub(super) bookmarks: SavedBookmarks,
    /// (where on the device, the bytes), not written yet.
    images: Vec<(u64, Vec<u8>)>,
    /// Bytes of the last one that are written.
    written: usize,
    buffer: Option<Buffer>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The next piece can be written.
    Idle,
    /// So many bytes of the image are being written.
    Writing(usize),
    /// All are written; the journal device is being synced.
    Syncing,
    /// All are durable.
    Done,
}

/// The peers whose maps are saved.
fn tracked(peers: &[Peer]) -> impl Iterator<Item = &Peer> {
    peers.iter().filter(|peer| peer.presence != Presence::Gone).take(MAP_PEERS)
}

impl Machine {
    /// Learns what peers hold durably, from whom that can be learnt: a Primary from acknowledgements; a Secondary from
    /// `stable`, which every member holds.
    pub(super) fn track_held(&mut self) {
        let stable = self.stable.min(self.log.last());
        if self.role.is_sequencing() {
            for peer in &mut self.peers {
                // What a peer gathers it does not hold.
                let counts = peer.streaming().filter(|link| !link.stages());
                if let Some(durable) = counts.map(|link| link.ack.durable) {
                    peer.tracker.hold(durable.min(stable));
                }
            }
            return;
        }
        let follows = |peer: &super::peer::Peer| {
            peer.link.as_ref().is_some_and(|link| link.state == super::peer::LinkState::Following)
        };
        if self.peers.iter().any(follows) {
            let members = self.meta.current.record.in_sync;
            for peer in self.peers.iter_mut().filter(|peer| members.contains(peer.config.node)) {
                peer.tracker.hold(stable);
            }
        }
    }

    /// Notes the batch that was just applied, up to `last`.
    pub(super) fn track_applied(&mut self, last: Sequence) {
        let applied = Base { position: self.log.applied.position, chain: self.log.applied.chain };
        let Self { peers, apply, bookmarks, .. } = self;
        if !bookmarks.is_empty() {
            apply.each_applied(|extent| bookmarks.note(extent.sequence, extent.start, extent.len));
        }
        for peer in peers {
            if peer.presence == Presence::Gone {
                continue;
            }
            if peer.tracker.held() < last {
                apply.each_applied(|extent| peer.tracker.note(extent.sequence, extent.start, extent.len));
            }
            peer.tracker.applied(applied);
        }
    }

    /// What the superblock says of the maps, if none has to be written.
    fn map_heads(&self, maps: &Maps) -> Maps {
        let mut maps = *maps;
        let old = maps.slots;
        maps.slots = Default::default();
        for (slot, peer) in maps.slots.iter_mut().zip(tracked(&self.peers)) {
            let node = peer.config.node;
            let image_bytes = old.iter().find(|old| old.node == Some(node)).map_or(0, |old| old.image_bytes);
            *slot = peer.tracker.head(node, image_bytes);
        }
        maps
    }

    /// Forgets the saved maps: this replica's own copy is another one.
    pub(super) fn forget_maps(&mut self) {
        self.meta.current.maps.slots = Default::default();
        self.meta.current.maps = self.map_heads(&self.meta.current.maps);
        self.peers.iter_mut().for_each(|peer| peer.tracker.changed = false);
    }

    /// Begins to save the maps, if one changed; says whether something has to be written.
    pub(super) fn begin_saving_maps(&mut self) -> bool {
        self.peers.iter_mut().for_each(|peer| peer.tracker.fold_recent());
        let is_saved = tracked(&self.peers)
            .zip(&self.meta.current.maps.slots)
            .all(|(peer, slot)| !peer.tracker.changed && slot.node == Some(peer.config.node));
        if is_saved && !self.bookmarks.changed && !self.want_bookmarks_saved() {
            self.meta.current.maps = self.map_heads(&self.meta.current.maps);
            return false;
        }
        let old = &self.meta.current.maps;
        let mut maps = Maps { copy: 1 - old.copy, generation: old.generation + 1, ..Maps::default() };
        let mut images = Vec::new();
        let stays = |peer: &&mut Peer| peer.presence != Presence::Gone;
        for (slot, peer) in self.peers.iter_mut().filter(stays).take(MAP_PEERS).enumerate() {
            let map = peer.tracker.map();
            let image = if map.is_empty() { Vec::new() } else { map.encode(maps.generation) };
            maps.slots[slot] = peer.tracker.head(peer.config.node, image.len() as u64);
            peer.tracker.changed = false;
            if !image.is_empty() {
                images.push((self.log.layout.map_at(maps.copy, slot), image));
            }
        }
        let bookmarks = self.begin_saving_bookmarks(&maps, &mut images);
        let (written, buffer, stage) = (0, None, Stage::Idle);
        self.saving = Some(Saving { maps, bookmarks, images, written, buffer, stage });
        true
    }

    /// Writes the next piece, or syncs when there is none.
    pub(super) fn pump_saving(&mut self, arena: &mut [u8]) {
        let Some(saving) = self.saving.as_mut().filter(|saving| saving.stage == Stage::Idle) else { return };
        let Some((at, image)) = saving.images.last() else {
            if let Some(buffer) = saving.buffer.take() {
                self.pool.give(buffer);
            }
            saving.stage = Stage::Syncing;
            self.push(Command::SyncJournal { token: Io::MapSync.token(0) });
            return;
        };
        if saving.buffer.is_none() {
            saving.buffer = self.pool.take(PIECE_BYTES);
        }
        let Some(buffer) = saving.buffer else { return };
        let piece = &image[saving.written..image.len().min(saving.written + PIECE_BYTES)];
        let len = piece.len().next_multiple_of(PAGE_BYTES);
        let bytes = &mut arena[buffer.start()..buffer.start() + len];
        bytes[..piece.len()].copy_from_slice(piece);
        bytes[piece.len()..].fill(0);
        let device_offset = at + saving.written as u64;
        saving.stage = Stage::Writing(piece.len());
        let span = Span { start: buffer.start(), len };
        self.push(Command::WriteJournal { token: Io::MapWrite.token(0), device_offset, span });
    }

    pub(super) fn on_map_written(&mut self, result: IoResult) {
        if !self.device_ok("writing a dirty map", result) {
            return;
        }
        let saving = self.saving.as_mut().expect("maps are being written");
        let Stage::Writing(bytes) = saving.stage else { unreachable!("one write was under way") };
        saving.stage = Stage::Idle;
        saving.written += bytes;
        if saving.images.last().is_some_and(|(_, image)| saving.written == image.len()) {
            saving.images.pop();
            saving.written = 0;
        }
    }

    pub(super) fn on_map_synced(&mut self, result: IoResult) {
        if self.device_ok("syncing the dirty maps", result) {
            self.saving.as_mut().expect("maps were being synced").stage = Stage::Done;
        }
    }

    /// Has the superblock say what is saved, once all images are durable; says whether they are.
    pub(super) fn take_saved_maps(&mut self) -> bool {
        let Some(saving) = self.saving.take_if(|saving| saving.stage == Stage::Done) else { return false };
        self.meta.current.maps = saving.maps;
        self.end_saving_bookmarks(saving.bookmarks);
        true
    }
}
