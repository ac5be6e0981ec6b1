//! Resolving a fork: an operator names the copy whose entries past the common point may go. They are not lost: the
//! blocks that either side changed since are first kept as a branch, with what the loser holds there.
//!
//! ```text
//!          stored            a Primary said       nothing under way,      branch complete       stored
//! Asking ----------> Waiting ---------------> Draining --------> Keeping ---------------> Saving -------> (resync)
//!                       ^     what it changed     all applied       |        and synced
//!                       |                                           | it could not be kept
//!                       +-------- an operator asks again <----------+  (nothing was overwritten)
//! ```
//!
//! Until the branch is complete nothing is overwritten, and a restart begins anew at Waiting. From Saving on the copy is
//! Inconsistent, complete for the common point but for the blocks it changed alone, which it names to whoever brings
//! it level.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::apply::give_back;
use super::commit::each_extent;
use super::greet::Place;
use super::peer::LinkState;
use super::role::RoleState;
use super::{Io, Machine};
use crate::command::{BranchPlan, Command, Report};
use crate::compare::common_base;
use crate::dirty::DirtyMap;
use crate::disk::superblock::{DiskState, Record};
use crate::history::History;
use crate::status::Branching;
use crate::tracker::Base;
use crate::units::{AdminId, Sequence, Token};
use crate::wire::message::{CHANGED_WORDS_MAX, Changed, Message};

/// A map with more words than these is told as "everything".
const WORDS_TOLD_MAX: usize = 1 << 16;

/// Giving up what is here past a common point.
#[derive(Debug)]
pub(super) struct Resolve {
    stage: Stage,
    /// What the Primary said that changed at its side.
    lent: Told,
}

#[derive(Debug)]
enum Stage {
    /// The superblock with this sequence says that this copy yields.
    Asking { id: AdminId, saved: u64 },
    /// For a Primary to say what changed at its side.
    Waiting,
    /// Nothing comes any more; what the log has is applied.
    Draining(Parting),
    /// The branch is being written.
    Keeping(Parting),
    /// The superblock with this sequence says that the copy begins anew at the common point.
    Saving(u64),
}

/// Where the logs parted, and what changed since.
#[derive(Clone, Debug)]
struct Parting {
    common: Base,
    /// Which peer's tracker has what changed here.
    peer: usize,
    copy: crate::tracker::CopyId,
}

/// Blocks that a peer names, message by message.
#[derive(Debug)]
pub(super) struct Told {
    map: DirtyMap,
    everything: bool,
    is_whole: bool,
}

impl Told {
    pub(super) fn new(map: DirtyMap) -> Self {
        Self { map, everything: false, is_whole: false }
    }

    fn take(&mut self, changed: &Changed) {
        self.everything |= changed.everything;
        self.is_whole |= changed.is_last;
        for (word, bits) in &changed.words {
            self.map.set_blocks(*word, *bits);
        }
    }

    /// The blocks, once all were named.
    pub(super) fn whole(&self) -> Option<&DirtyMap> {
        (self.is_whole && !self.everything).then_some(&self.map)
    }
}

impl Resolve {
    pub(super) fn waiting(map: DirtyMap) -> Self {
        Self { stage: Stage::Waiting, lent: Told::new(map) }
    }

    pub(super) fn branching(&self) -> Branching {
        match self.stage {
            Stage::Asking { .. } | Stage::Waiting => Branching::WaitsForPrimary,
            Stage::Draining(_) | Stage::Keeping(_) => Branching::Keeping,
            Stage::Saving(_) => Branching::Kept,
        }
    }
}

impl Machine {
    pub(super) fn on_resolve(&mut self, id: AdminId, node: crate::units::NodeId) {
        if node == self.config.node {
            return self.yield_here(Some(id));
        }
        let current = &self.meta.current;
        let reason = if self.peer_index(node).is_none() {
            format!("{node} is no replica of this volume")
        } else if self.fork_with(node).is_none() {
            format!("no fork between this replica and {node} is known here")
        } else if self.config.managed && self.fork_with(node).is_some_and(|fork| fork.is_later) {
            format!(
                "{node} knows a later reign than this replica, and the configuration manager counts on it: give up the \
                 data here, or promote this replica with --force first"
            )
        } else if current.disk_state != DiskState::UpToDate || current.suspect || current.yields {
            String::from(
                "the copy here is not one that could stay: it is not UpToDate, or gives up its own data",
            )
        } else {
            self.discards_of = Some(node);
            self.report(Report::Branch(format!(
                "{node} is asked to give up what it has past the common point"
            )));
            let text = format!(
                "{node} will be asked, when it is connected, to keep what it has past the common point as a branch and to \
                 follow; `holdfast status` shows how far it is"
            );
            return self.answer_admin(id, Ok(text));
        };
        self.refuse_admin(id, reason);
    }

    /// What lies here past the common point is given up, by an operator's word: here, or passed on by a peer.
    pub(super) fn yield_here(&mut self, id: Option<AdminId>) {
        let reason = if self.meta.current.yields {
            Some("it gives up its data already; see `holdfast status`")
        } else if !matches!(self.role, RoleState::Secondary | RoleState::Opening { .. } | RoleState::Primary)
        {
            Some("another change of role is under way; try again")
        } else if !self.peers.iter().any(|peer| peer.fork.as_ref().is_some_and(|fork| fork.is_usable)) {
            Some(
                "no other UpToDate copy is known here that parted from this one: this may be the only one; connect the other replica first",
            )
        } else if self.is_counted_on() {
            Some(
                "the configuration manager counts on this copy, and on no other that is connected: give up the data of \
                 the other side, or promote that one with --force first",
            )
        } else if self.meta.current.disk_state != DiskState::UpToDate
            || self.has_failed
            || self.discard.is_some()
        {
            Some(
                "the copy here is not UpToDate: there is no branch to keep; `holdfast invalidate` has it written anew",
            )
        } else {
            None
        };
        if let Some(reason) = reason {
            if let Some(id) = id {
                self.refuse_admin(id, reason);
            }
            return;
        }
        self.thaw("the copy here is given up");
        self.leave_primary();
        self.meta.current.yields = true;
        let (saved, map) = (self.meta.change(), self.empty_map());
        let id = id.unwrap_or(AdminId(0));
        self.resolve = Some(Box::new(Resolve { stage: Stage::Asking { id, saved }, lent: Told::new(map) }));
        self.report(Report::Branch(String::from(
            "an operator gives up what this copy has past the common point: it is kept as a branch first",
        )));
    }

    /// Whether a configuration manager has this copy in its newest set, as far as anybody here knows. It makes nobody else
    /// Primary: were this one given up, nobody would ever serve again.
    fn is_counted_on(&self) -> bool {
        let is_member = self.meta.current.record.in_sync.contains(self.config.node);
        let is_later = |fork: &super::fork::Fork| fork.is_usable && fork.is_later;
        let is_old = self.peers.iter().filter_map(|peer| peer.fork.as_ref()).any(is_later);
        self.config.managed && is_member && !is_old
    }

    pub(super) fn empty_map(&self) -> DirtyMap {
        DirtyMap::new(self.volume_bytes(), self.log.layout.map_bytes)
    }

    /// Whether new connections would only be in the way: what a hello says is about to be no longer so.
    pub(super) fn is_branching(&self) -> bool {
        let stage = self.resolve.as_ref().map(|resolve| &resolve.stage);
        matches!(stage, Some(Stage::Draining(_) | Stage::Keeping(_) | Stage::Saving(_)))
    }

    /// Whether the log here must come to rest soon.
    pub(super) fn resolve_hurries(&self) -> bool {
        matches!(self.resolve.as_ref().map(|resolve| &resolve.stage), Some(Stage::Draining(_)))
    }

    /// A peer names blocks that it changed: a Primary to the loser of a fork, or the loser to its source.
    pub(super) fn on_changed(&mut self, index: usize, changed: &Changed) {
        let state = self.link_mut(Place::Peer(index)).state;
        match (&mut self.resolve, state) {
            (Some(resolve), LinkState::Idle) if matches!(resolve.stage, Stage::Waiting) => {
                resolve.lent.take(changed);
                if changed.is_last {
                    self.begin_draining(index);
                }
            }
            (_, LinkState::Starting) => {
                let empty = self.empty_map();
                let link = self.link_mut(Place::Peer(index));
                link.diverged.get_or_insert_with(|| Box::new(Told::new(empty))).take(changed);
            }
            _ => self.close(Place::Peer(index), "it named changed blocks out of order", true),
        }
    }

    /// A new session of the loser with a Primary begins.
    pub(super) fn forget_lent(&mut self) {
        let map = self.empty_map();
        if let Some(resolve) = self.resolve.as_mut().filter(|resolve| matches!(resolve.stage, Stage::Waiting))
        {
            resolve.lent = Told::new(map);
        }
    }

    fn begin_draining(&mut self, index: usize) {
        let mine = self.hello();
        let theirs = self.link_mut(Place::Peer(index)).hello.clone().expect("both said hello");
        let Ok(common) = crate::compare::common_point(&mine, &theirs) else {
            return self.close(Place::Peer(index), "the histories have nothing in common any more", true);
        };
        let genesis = Base { position: Default::default(), chain: crate::chain::genesis(self.config.volume) };
        let base = common_base(&mine, &theirs, common).or((common == Sequence(0)).then_some(genesis));
        let Some(common) = base else {
            return self.close(Place::Peer(index), "the common point is not known exactly", true);
        };
        self.close_all("a branch of the data here is being kept");
        let parting = Parting { common, peer: index, copy: theirs.copy() };
        self.resolve.as_mut().expect("the caller looked").stage = Stage::Draining(parting);
    }

    /// Moves what is under way.
    pub(super) fn advance_resolve(&mut self) {
        let Some(resolve) = self.resolve.as_ref() else { return };
        match &resolve.stage {
            Stage::Asking { id, saved } if self.meta.is_saved(*saved) => {
                let id = *id;
                self.resolve.as_mut().expect("looked at").stage = Stage::Waiting;
                self.greet_all();
                if id != AdminId(0) {
                    let text = "what this copy has past the common point is given up: as soon as a Primary is connected it \
                                is kept as a branch, and the copy follows";
                    self.answer_admin(id, Ok(String::from(text)));
                }
            }
            Stage::Draining(parting) if matches!(self.role, RoleState::Secondary) => {
                let parting = parting.clone();
                self.drain_branch(parting);
            }
            Stage::Saving(saved) if self.meta.is_saved(*saved) => {
                self.resolve = None;
                self.report(Report::Branch(String::from("the branch is kept; the copy here follows again")));
            }
            _ => {}
        }
    }

    /// Whether the log is being applied to its end before the branch is kept.
    pub(super) fn is_draining(&self) -> bool {
        self.resolve.as_ref().is_some_and(|resolve| matches!(resolve.stage, Stage::Draining(_)))
    }

    /// Applies the whole log: an operator gave it up, so that nobody's word is missing any more; then the disk is what
    /// this side held.
    fn drain_branch(&mut self, parting: Parting) {
        if self.is_failed() {
            self.resolve = None;
            return;
        }
        self.persist.want_sync(self.log.last());
        if self.log.has_unwritten() || self.log.has_undurable() {
            return;
        }
        let last = self.log.last();
        (self.committed, self.stable) = (self.committed.max(last), self.stable.max(last));
        // Synced, too: where the copy begins anew, its journal has nothing of this any more.
        if self.log.applied.position.sequence < last || !self.is_at_rest() || !self.is_checkpointed() {
            return;
        }
        let map = self.divergence(&parting);
        let head = self.log.head;
        let plan = BranchPlan {
            common: parting.common,
            head: Base { position: head.position, chain: head.chain },
            blocks: map.0,
            is_everything: map.1,
        };
        self.resolve.as_mut().expect("it drains").stage = Stage::Keeping(parting);
        self.push(Command::KeepBranch { token: Io::Branch.token(0), plan: Box::new(plan) });
    }

    /// What either side changed since the common point; all blocks if one of them cannot tell.
    fn divergence(&mut self, parting: &Parting) -> (DirtyMap, bool) {
        let mut map = self.empty_map();
        let tracker = &mut self.peers[parting.peer].tracker;
        tracker.fold_recent();
        let here = tracker.changed_since(parting.copy, parting.common.position.sequence);
        let resolve = self.resolve.as_ref().expect("it drains");
        match (here, resolve.lent.whole()) {
            (Some(here), Some(there)) => {
                map.add(here);
                map.add(there);
                (map, false)
            }
            _ => {
                map.set_all();
                (map, true)
            }
        }
    }

    /// The branch is complete and durable, or could not be kept.
    pub(super) fn on_branch_kept(&mut self, token: Token, result: Result<(), String>) {
        assert!(Io::Branch.is(token));
        let resolve = self.resolve.take_if(|resolve| matches!(resolve.stage, Stage::Keeping(_)));
        let Some(Resolve { stage: Stage::Keeping(parting), lent }) = resolve.map(|resolve| *resolve) else {
            return;
        };
        if !matches!(self.role, RoleState::Secondary) || self.is_failed() {
            return;
        }
        if let Err(why) = result {
            self.meta.current.yields = false;
            self.meta.change();
            let text = format!(
                "the branch could not be kept ({why}); nothing was overwritten, and both sides stay as they are: see to it, \
                 then resolve the fork again"
            );
            self.branch_failure = Some(text.clone());
            return self.report(Report::Branch(text));
        }
        self.branch_failure = None;
        self.resolve = Some(Box::new(Resolve { stage: Stage::Keeping(parting.clone()), lent }));
        let (blocks, is_everything) = self.divergence(&parting);
        self.begin_anew(parting.common, (!is_everything).then_some(blocks));
    }

    /// The copy begins anew at the common point, but for the blocks that differ. From here on it is Inconsistent.
    fn begin_anew(&mut self, common: Base, diverged: Option<DirtyMap>) {
        let head = self.log.head;
        let mut history: History = self.persist.history;
        history.truncate(common.position.sequence);
        let Self { log, pool, apply, .. } = self;
        log.forget(|buffer| give_back(pool, apply, buffer));
        self.restart_log(common);
        self.persist.history = history;
        let current = &mut self.meta.current;
        current.disk_state = DiskState::Inconsistent;
        current.data_base = diverged.as_ref().map(|_| common.position);
        current.discards += 1;
        current.record = Record { in_sync: current.record.in_sync, ..Record::default() };
        (current.yields, current.diverges) = (false, diverged.is_some());
        current.branch = Base { position: head.position, chain: head.chain };
        self.diverged = diverged.map(Box::new);
        let saved = self.meta.change();
        self.report(Report::Cut { common: common.position, was: head.position });
        self.resolve.as_mut().expect("the caller keeps it").stage = Stage::Saving(saved);
    }

    /// The log of a peer parted from this one, and it gave that up: it is told what changed here since.
    pub(super) fn lend(&mut self, index: usize, arena: &[u8]) {
        let Some(common) = self.peers[index].link.as_mut().and_then(|link| link.lends.take()) else { return };
        let place = Place::Peer(index);
        let link = self.link_mut(place);
        if link.state != LinkState::Idle {
            return;
        }
        if !self.role.is_serving() {
            // It says so again when it serves.
            self.link_mut(place).lends = Some(common);
            return;
        }
        let copy = self.link_mut(place).hello.as_ref().expect("both said hello").copy();
        let map = self.changed_here(index, copy, common, arena);
        self.tell_changed(index, map.as_ref());
    }

    /// The blocks that entries past `common` change, applied or not; `None` if that cannot be told.
    fn changed_here(
        &mut self,
        index: usize,
        copy: crate::tracker::CopyId,
        common: Sequence,
        arena: &[u8],
    ) -> Option<DirtyMap> {
        let tracker = &mut self.peers[index].tracker;
        tracker.fold_recent();
        let mut map = tracker.changed_since(copy, common)?.clone();
        for number in self.log.first_unapplied()..self.log.next_number() {
            let frame = self.log.frame(number).expect("counted");
            if frame.entries > 0 {
                each_extent(frame.buffer?, frame.first, arena, |extent| {
                    map.set_bytes(extent.start, extent.len);
                });
            }
        }
        Some(map)
    }

    /// Names blocks to a peer; `None` is "all of them, for all I know".
    pub(super) fn tell_changed(&mut self, index: usize, map: Option<&DirtyMap>) {
        let place = Place::Peer(index);
        let mut words: Vec<(u64, u64)> = Vec::new();
        let mut from = 0;
        while let Some(word) =
            map.and_then(|map| map.next_word(from)).filter(|_| words.len() <= WORDS_TOLD_MAX)
        {
            words.push((word, map.expect("it has a word").word(word)));
            from = word + 1;
        }
        let everything = map.is_none() || words.len() > WORDS_TOLD_MAX;
        if everything {
            words.clear();
        }
        for words in words.chunks(CHANGED_WORDS_MAX) {
            let changed = Changed { everything, is_last: false, words: words.to_vec() };
            self.send(place, Message::Changed(changed), false);
        }
        self.send(place, Message::Changed(Changed { everything, is_last: true, words: Vec::new() }), false);
    }

    /// This copy is about to be brought level: its source is told which blocks it changed alone.
    pub(super) fn tell_diverged(&mut self, index: usize) {
        if let Some(map) = self.diverged.take() {
            self.tell_changed(index, Some(&map));
            self.diverged = Some(map);
        }
    }

    /// Why the last branch could not be kept, if it could not.
    pub(super) fn branch_failure(&self) -> Option<String> {
        self.branch_failure.as_ref().map(ToString::to_string)
    }
}
