//! Verify: a Primary compares the other copies with its own, word by word, while clients go on. Each word is read
//! when nothing unapplied overlaps it, and its hashes leave as an item of the stream: a Secondary compares at just
//! that point of its own order. So a difference is one, whatever clients write meanwhile.
//!
//! ```text
//!   Comparing --all words--> Proving --ring read--> Pulling --mended here--> Pushing --> Syncing --> Ended
//!      | nothing differs        | without --repair                              ^ |
//!      +------------------------+------------------> Ended                      +-+ what differs still, again
//! ```
//!
//! What is written anew is sent with its hashes right behind it, so that the answer says whether it helped.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use xxhash_rust::xxh3::xxh3_128;

use super::block_read::{BlockRead, Reader, each_bit, valid_bits};
use super::greet::Place;
use super::mend::can_answer;
use super::peer::Peer;
use super::proof::{Clue, Search};
use super::source::HOLD_AFTER_MS;
use super::{Io, Machine};
use crate::command::{Command, Report};
use crate::dirty::{BLOCK_BYTES, DirtyMap, WORD_BLOCKS, WORD_BYTES};
use crate::event::IoResult;
use crate::limits::VERIFY_WORDS_MAX;
use crate::status::{Difference, Progress, Proof, VerifiedPeer, VerifyPhase, VerifyStatus};
use crate::units::{AdminId, Buffer, Instant, LinkId, NodeId, Sequence};
use crate::wire::message::Message;
use crate::wire::visit::{Check, Checked, Mend};

/// Words that are written anew at one time.
const REPAIRS_MAX: usize = 2;
/// Blocks whose proof is looked for.
const CLUES_MAX: usize = 256;
/// Runs of differences that `status` lists for one copy.
const LISTED_MAX: usize = 1000;
/// How often what differs is written anew.
const ROUNDS_MAX: u32 = 3;
/// Reads of one word of which some block could not be mended.
const TRIES_MAX: u32 = 2;
/// How long a word waits for memory at the other end.
const BUSY_MS: u64 = 20;

/// Another copy.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) node: NodeId,
    index: usize,
    link: LinkId,
    session: u64,
    differs: DirtyMap,
    /// Blocks that were found and are equal now.
    settled: u64,
    unreadable: u64,
    lost: Option<String>,
}

impl Part {
    fn sets(&mut self, word: u64, differs: u64, equal: u64) {
        self.settled += u64::from((self.differs.word(word) & equal).count_ones());
        self.differs.clear_word(word, equal);
        for bit in each_bit(differs) {
            self.differs.set_bytes(word * WORD_BYTES + u64::from(bit) * BLOCK_BYTES, 1);
        }
    }
}

/// One word on its way.
#[derive(Debug)]
struct Item {
    word: u64,
    bits: u64,
    stage: Stage,
    since: Instant,
    not_before: Instant,
    /// What overlaps it is not sequenced. Its memory is taken before that.
    held: Option<Buffer>,
    /// Copies that are still to be asked.
    parts: Vec<usize>,
    /// Its blocks are sent first, and written there.
    mends: bool,
    /// Questions under way: (copy, number).
    asked: Vec<(usize, u64)>,
    point: Sequence,
    hashes: Box<[u128; WORD_BLOCKS as usize]>,
    tries: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Reading,
    Sent,
}

#[derive(Debug)]
enum Phase {
    Comparing,
    Proving,
    Pulling,
    Pushing,
    Syncing,
    Ended(VerifyPhase, Instant),
}

/// A verify, under way or ended.
#[derive(Debug)]
pub(super) struct Verify {
    pub(super) run: u64,
    repair: bool,
    trust: NodeId,
    /// An operator named the copy to trust: no proof is asked.
    is_told: bool,
    phase: Phase,
    pub(super) parts: Vec<Part>,
    items: Vec<Item>,
    cursor: u64,
    checked_blocks: u64,
    number: u64,
    began: Instant,
    pub(super) clues: Vec<Clue>,
    pub(super) search: Option<Search>,
    /// Blocks to fetch from another copy: (block, whose).
    pulls: Vec<(u64, NodeId)>,
    pulled: Vec<u64>,
    round: u32,
    unreadable: u64,
}

impl Verify {
    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Ended(..))
    }
}

/// One that applies late would compare when its time has come, and a verify would wait for that.
fn can_compare(peer: &Peer) -> bool {
    can_answer(peer) && !peer.is_delayed()
}

impl Machine {
    fn verify_mut(&mut self) -> &mut Verify {
        self.verify.as_deref_mut().expect("the caller looked")
    }

    pub(super) fn is_verifying(&self) -> bool {
        self.verify.as_ref().is_some_and(|verify| !verify.is_over())
    }

    pub(super) fn on_verify(&mut self, id: AdminId, repair: bool, trust: Option<NodeId>) {
        let me = self.config.node;
        let trusted = trust.unwrap_or(me);
        if !self.role.is_serving() {
            return self.refuse_admin(id, "a verify runs on the Primary, and this node does not serve");
        }
        if self.is_verifying() {
            return self
                .refuse_admin(id, "a verify is under way; see `holdfast status`, or end it with --stop");
        }
        if self.is_growing() {
            return self.refuse_admin(id, "the volume is growing just now; ask again in a moment");
        }
        let parts: Vec<usize> =
            (0..self.peers.len()).filter(|index| can_compare(&self.peers[*index])).collect();
        if parts.is_empty() {
            let text = "no other copy is connected and UpToDate: there is nothing to compare with";
            return self.refuse_admin(id, text);
        }
        let is_part = parts.iter().any(|index| self.peers[*index].config.node == trusted);
        if trusted != me && !is_part {
            let text = format!("{trusted} is not connected and UpToDate: its copy cannot be trusted now");
            return self.refuse_admin(id, text);
        }
        self.verifies += 1;
        let run = self.meta.saved.record.epoch.0 << 32 | self.verifies;
        let (volume_bytes, map_bytes) = (self.volume_bytes(), self.log.layout.map_bytes);
        let parts = parts.into_iter().map(|index| {
            let peer = &self.peers[index];
            let link = peer.streaming().expect("it can answer");
            let differs = DirtyMap::new(volume_bytes, 2 * map_bytes);
            let (node, link, session) = (peer.config.node, link.id, link.session);
            Part { node, index, link, session, differs, settled: 0, unreadable: 0, lost: None }
        });
        let parts: Vec<Part> = parts.collect();
        let names: Vec<String> = parts.iter().map(|part| part.node.to_string()).collect();
        let text = format!("verify begins: {} against {me}", names.join(", "));
        self.report(Report::Verify(text.clone()));
        self.verify = Some(Box::new(Verify {
            run,
            repair,
            trust: trusted,
            is_told: trust.is_some(),
            phase: Phase::Comparing,
            parts,
            items: Vec::new(),
            cursor: 0,
            checked_blocks: 0,
            number: 0,
            began: self.now,
            clues: Vec::new(),
            search: None,
            pulls: Vec::new(),
            pulled: Vec::new(),
            round: 0,
            unreadable: 0,
        }));
        self.answer_admin(id, Ok(text));
    }

    pub(super) fn on_stop_verify(&mut self, id: AdminId) {
        if !self.is_verifying() {
            return self.refuse_admin(id, "no verify is under way");
        }
        self.end_verify(VerifyPhase::Stopped);
        self.answer_admin(
            id,
            Ok(String::from("the verify is ended; what it found stays in `holdfast status`")),
        );
    }

    /// A verify cannot go on.
    pub(super) fn interrupt_verify(&mut self, reason: &str) {
        if self.is_verifying() {
            self.end_verify(VerifyPhase::Interrupted(reason.to_string()));
        }
    }

    fn end_verify(&mut self, how: VerifyPhase) {
        let now = self.now;
        let verify = self.verify.as_deref_mut().expect("the caller looked");
        let items = core::mem::take(&mut verify.items);
        verify.search = None;
        verify.phase = Phase::Ended(how.clone(), now);
        for item in items.into_iter().filter(|item| item.stage == Stage::Waiting) {
            item.held.into_iter().for_each(|buffer| self.pool.give(buffer));
        }
        let verify = self.verify.as_deref().expect("as above");
        let of = |part: &Part| match (part.differs.dirty_blocks(), part.settled, &part.lost) {
            (0, 0, None) => format!("{} is equal", part.node),
            (0, settled, None) => {
                format!("{} is equal, {settled} blocks of it had differed", part.node)
            }
            (blocks, _, None) => format!("{} differs in {blocks} blocks", part.node),
            (blocks, _, Some(lost)) => {
                format!("{} was not compared to the end ({lost}); {blocks} blocks differ so far", part.node)
            }
        };
        let of: Vec<String> = verify.parts.iter().map(of).collect();
        let how = match how {
            VerifyPhase::Interrupted(reason) => format!("was interrupted ({reason})"),
            VerifyPhase::Stopped => "was stopped".to_string(),
            _ => "is done".to_string(),
        };
        self.report(Report::Verify(format!("verify {how}: {}", of.join("; "))));
    }

    /// Moves the verify.
    pub(super) fn pump_verify(&mut self, arena: &[u8]) {
        if !self.is_verifying() || !self.role.is_serving() {
            return;
        }
        self.lose_parts();
        if !self.is_verifying() {
            return;
        }
        match self.verify_mut().phase {
            Phase::Comparing => self.compare(),
            Phase::Proving => self.search_ring(),
            Phase::Pulling => self.pull(),
            Phase::Pushing => self.push_repairs(),
            Phase::Syncing | Phase::Ended(..) => {}
        }
        let Some(verify) = self.verify.as_deref() else { return };
        let now = self.now;
        let waits = |item: &&Item| item.stage == Stage::Waiting && now >= item.not_before;
        let words: Vec<u64> = verify.items.iter().filter(waits).map(|item| item.word).collect();
        for word in words {
            self.read_for_verify(word, arena);
        }
    }

    /// Notes which copies are gone, or are being brought level.
    fn lose_parts(&mut self) {
        let Self { verify, peers, .. } = self;
        let verify = verify.as_deref_mut().expect("the caller looked");
        for (at, part) in verify.parts.iter_mut().enumerate().filter(|(_, part)| part.lost.is_none()) {
            let peer = &peers[part.index];
            let goes_on = |link: &super::peer::Link| link.id == part.link && link.session == part.session;
            if peer.streaming().is_some_and(goes_on) && can_compare(peer) {
                continue;
            }
            part.lost = Some("its connection ended".to_string());
            for item in &mut verify.items {
                item.parts.retain(|other| *other != at);
                item.asked.retain(|(other, _)| *other != at);
            }
        }
        let all_lost = verify.parts.iter().all(|part| part.lost.is_some());
        let done =
            |item: &mut Item| item.stage == Stage::Sent && item.asked.is_empty() && item.parts.is_empty();
        verify.items.retain_mut(|item| !done(item));
        if all_lost {
            self.interrupt_verify("no copy is left to compare with");
        }
    }

    fn new_item(&self, word: u64, bits: u64, parts: Vec<usize>, mends: bool) -> Item {
        let (since, not_before, hashes) = (self.now, self.now, Box::new([0; WORD_BLOCKS as usize]));
        let (stage, held, asked, point, tries) = (Stage::Waiting, None, Vec::new(), Sequence(0), 0);
        Item { word, bits, stage, since, not_before, held, parts, mends, asked, point, hashes, tries }
    }

    fn live_parts(&self) -> Vec<usize> {
        let parts = &self.verify.as_ref().expect("the caller looked").parts;
        (0..parts.len()).filter(|at| parts[*at].lost.is_none()).collect()
    }

    fn compare(&mut self) {
        let (now, volume_bytes) = (self.now, self.volume_bytes());
        let words = volume_bytes.div_ceil(WORD_BYTES);
        let plenty = self.pool.free_pages() > self.pool.pages() / 4;
        loop {
            let verify = self.verify_mut();
            let (word, count) = (verify.cursor, verify.items.len());
            if word == words {
                if count == 0 {
                    self.after_comparing();
                }
                return;
            }
            if count >= VERIFY_WORDS_MAX || (count > 0 && !plenty) || !self.pace.may_start(now) {
                return;
            }
            let item = self.new_item(word, valid_bits(word, volume_bytes), self.live_parts(), false);
            let verify = self.verify_mut();
            verify.cursor += 1;
            verify.items.push(item);
        }
    }

    fn after_comparing(&mut self) {
        let verify = self.verify_mut();
        if verify.parts.iter().all(|part| part.differs.is_empty()) {
            return self.end_verify(VerifyPhase::Done);
        }
        verify.phase = Phase::Proving;
        self.begin_search();
    }

    /// The ring says what it says of who is right.
    pub(super) fn after_proving(&mut self) {
        let verify = self.verify_mut();
        verify.search = None;
        if !verify.repair {
            return self.end_verify(VerifyPhase::Done);
        }
        for part in &verify.parts {
            let node = part.node;
            if verify.trust == node {
                let words =
                    core::iter::successors(part.differs.next_word(0), |w| part.differs.next_word(w + 1));
                for word in words {
                    let blocks =
                        each_bit(part.differs.word(word)).map(|bit| word * WORD_BLOCKS + u64::from(bit));
                    verify.pulls.extend(blocks.map(|block| (block, node)));
                }
            } else if !verify.is_told {
                let proven =
                    verify.clues.iter().filter(|clue| clue.node == node && clue.verdict() == Proof::Peer);
                verify.pulls.extend(proven.map(|clue| (clue.block, node)));
            }
        }
        verify.phase = Phase::Pulling;
    }

    /// Fetches the blocks that others have right, then compares them again.
    fn pull(&mut self) {
        while self.mends_left() < 8 {
            let Some((block, node)) = self.verify_mut().pulls.pop() else { break };
            self.mend(block, Some(node));
            self.verify_mut().pulled.push(block);
        }
        if self.mends_left() > 0 || !self.verify_mut().pulls.is_empty() {
            return;
        }
        let parts = self.live_parts();
        let room = VERIFY_WORDS_MAX - self.verify_mut().items.len();
        for _ in 0..room {
            let Some(block) = self.verify_mut().pulled.pop() else { break };
            let word = block / WORD_BLOCKS;
            let of_word = |other: &mut u64| *other / WORD_BLOCKS == word;
            let mut bits = 1 << (block % WORD_BLOCKS);
            for other in self.verify_mut().pulled.extract_if(.., of_word) {
                bits |= 1 << (other % WORD_BLOCKS);
            }
            if self.verify_mut().items.iter().any(|item| item.word == word) {
                self.verify_mut()
                    .pulled
                    .extend(each_bit(bits).map(|bit| word * WORD_BLOCKS + u64::from(bit)));
                return;
            }
            let item = self.new_item(word, bits, parts.clone(), false);
            self.verify_mut().items.push(item);
        }
        let verify = self.verify_mut();
        if verify.items.is_empty() && verify.pulled.is_empty() {
            (verify.phase, verify.cursor) = (Phase::Pushing, 0);
        }
    }

    /// Sends what differs to whoever is not trusted.
    fn push_repairs(&mut self) {
        let verify = self.verify_mut();
        let trust = verify.trust;
        while verify.items.len() < REPAIRS_MAX {
            let targets = || {
                verify.parts.iter().enumerate().filter(|(_, part)| part.lost.is_none() && part.node != trust)
            };
            let next =
                targets().filter_map(|(at, part)| Some((part.differs.next_word(verify.cursor)?, at))).min();
            let Some((word, at)) = next else {
                let left = targets().any(|(_, part)| !part.differs.is_empty());
                if !verify.items.is_empty() {
                    return;
                }
                verify.round += 1;
                if left && verify.round < ROUNDS_MAX {
                    verify.cursor = 0;
                    continue;
                }
                verify.phase = Phase::Syncing;
                return self.push(Command::SyncDisk { token: Io::VerifySync.token(0) });
            };
            if verify.items.iter().any(|item| item.word == word) {
                return;
            }
            let bits = verify.parts[at].differs.word(word);
            // Where another copy differs in the same word, it is seen to when this one is done.
            verify.cursor =
                word + u64::from(targets().all(|(other, part)| other <= at || part.differs.word(word) == 0));
            let is_last = verify.cursor > word;
            let item = self.new_item(word, bits, alloc::vec![at], true);
            let verify = self.verify_mut();
            verify.items.push(item);
            if !is_last {
                return;
            }
            return self.push_repairs();
        }
    }

    pub(super) fn on_verify_synced(&mut self, result: IoResult) {
        if self.device_ok("syncing the disk", result)
            && self.verify.as_ref().is_some_and(|verify| matches!(verify.phase, Phase::Syncing))
        {
            self.end_verify(VerifyPhase::Done);
        }
    }

    /// Reads a word if nothing is on its way to it, and every copy has been sent what came before.
    fn read_for_verify(&mut self, word: u64, arena: &[u8]) {
        let (now, applied) = (self.now, self.log.applied.position.sequence);
        let (start, end) = (word * WORD_BYTES, (word + 1) * WORD_BYTES);
        if self.is_mending(start, end) {
            return;
        }
        let verify = self.verify.as_deref().expect("the caller looked");
        let item = verify.items.iter().find(|item| item.word == word).expect("the caller has it");
        let is_sent = |part: &usize| {
            let link = self.peers[verify.parts[*part].index].link.as_ref();
            link.is_some_and(|link| link.next > applied)
        };
        let is_level = item.parts.iter().all(is_sent);
        let (bits, held, late) = (item.bits, item.held, now >= item.since.plus_ms(HOLD_AFTER_MS));
        let overlapped = self.has_unapplied(start, end, arena);
        if !is_level || (overlapped && (held.is_some() || !late)) {
            return;
        }
        let Some(buffer) = held.or_else(|| self.take_block_buffer()) else { return };
        let item = self.verify_mut().items.iter_mut().find(|item| item.word == word).expect("as above");
        if overlapped {
            item.held = Some(buffer);
            return;
        }
        item.stage = Stage::Reading;
        self.begin_block_read(BlockRead::new(Reader::Verify, word, bits, buffer, self.volume_bytes()));
    }

    /// Sends what was read to be compared, if nothing that overlaps it has been sequenced since.
    pub(super) fn send_check(&mut self, read: BlockRead, arena: &[u8]) {
        let (now, point) = (self.now, self.log.applied.position.sequence);
        let is_it = |item: &Item| item.word == read.word && item.stage == Stage::Reading;
        let found = self.verify.as_ref().and_then(|verify| verify.items.iter().position(is_it));
        let Some(at) = found else { return self.pool.give(read.buffer) };
        let start = read.word * WORD_BYTES;
        let overlapped = self.has_unapplied(start, start + WORD_BYTES, arena);
        let verify = self.verify.as_deref_mut().expect("looked at");
        let item = &mut verify.items[at];
        let is_sent = |part: &usize| {
            let link = self.peers[verify.parts[*part].index].link.as_ref();
            link.is_some_and(|link| link.next > point)
        };
        let is_level = item.parts.iter().all(is_sent);
        if read.bad != 0 || overlapped || !is_level || !self.role.is_serving() {
            item.stage = Stage::Waiting;
            if item.held.is_none() {
                self.pool.give(read.buffer);
            }
            if read.bad != 0 {
                self.mend_for_verify(at, &read);
            }
            return;
        }
        (item.stage, item.held, item.point, item.not_before) = (Stage::Sent, None, point, now);
        let spans: Vec<_> = each_bit(read.bits).map(|bit| (bit, read.block(bit))).collect();
        for (hash, (_, span)) in item.hashes.iter_mut().zip(&spans) {
            *hash = xxh3_128(&arena[span.range()]);
        }
        let (run, hashes, mends) = (verify.run, *item.hashes, item.mends);
        let mut questions = Vec::new();
        for part in core::mem::take(&mut item.parts) {
            verify.number += 1;
            item.asked.push((part, verify.number));
            questions.push((verify.parts[part].index, verify.number));
        }
        for (index, number) in questions {
            for (bit, span) in spans.iter().filter(|_| mends) {
                let block = read.word * WORD_BLOCKS + u64::from(*bit);
                let mend = Mend { point, block, bytes: Box::from(&arena[span.range()]) };
                self.send(Place::Peer(index), Message::Mend(mend), false);
            }
            let check = Check { run, number, point, word: read.word, bits: read.bits, hashes };
            self.send(Place::Peer(index), Message::Check(Box::new(check)), false);
        }
        self.pool.give(read.buffer);
    }

    /// What cannot be read here is mended, and read again; in the end it is left out.
    fn mend_for_verify(&mut self, at: usize, read: &BlockRead) {
        let able = self.can_mend(None);
        self.note_bad(read);
        let verify = self.verify_mut();
        let item = &mut verify.items[at];
        item.tries += 1;
        if able && item.tries <= TRIES_MAX {
            each_bit(read.bad).for_each(|bit| self.mend(read.word * WORD_BLOCKS + u64::from(bit), None));
            return;
        }
        verify.unreadable += u64::from(read.bad.count_ones());
        item.bits &= !read.bad;
        if item.bits == 0 {
            let item = verify.items.swap_remove(at);
            item.held.into_iter().for_each(|buffer| self.pool.give(buffer));
        }
    }

    pub(super) fn on_checked(&mut self, index: usize, checked: &Checked) {
        let now = self.now;
        let Some(verify) = self.verify.as_deref_mut().filter(|verify| !verify.is_over()) else { return };
        let Some(part) = verify.parts.iter().position(|part| part.index == index && part.lost.is_none())
        else {
            return;
        };
        let asked = (part, checked.number);
        let Some(at) = verify.items.iter().position(|item| item.asked.contains(&asked)) else { return };
        let item = &mut verify.items[at];
        if checked.differs & !item.bits != 0 {
            return self.close(Place::Peer(index), "it found what it was not asked for", true);
        }
        item.asked.retain(|other| *other != asked);
        if checked.is_busy {
            item.parts.push(part);
            item.not_before = now.plus_ms(BUSY_MS);
        } else {
            verify.parts[part].unreadable += u64::from(checked.unreadable.count_ones());
            verify.parts[part].sets(item.word, checked.differs, item.bits & !checked.differs);
            let node = verify.parts[part].node;
            let readable = each_bit(checked.differs & !checked.unreadable);
            for (bit, theirs) in readable.zip(&checked.hashes) {
                if verify.clues.len() < CLUES_MAX && matches!(verify.phase, Phase::Comparing) {
                    let rank = (item.bits & ((1 << bit) - 1)).count_ones() as usize;
                    let block = item.word * WORD_BLOCKS + u64::from(bit);
                    verify.clues.push(Clue::new(node, block, item.point, item.hashes[rank], *theirs));
                }
            }
        }
        if !item.asked.is_empty() {
            return;
        }
        if item.parts.is_empty() {
            if matches!(verify.phase, Phase::Comparing) {
                verify.checked_blocks += u64::from(item.bits.count_ones());
            }
            verify.items.swap_remove(at);
        } else {
            (item.stage, item.since) = (Stage::Waiting, now);
        }
    }

    /// Whether a range is held back from clients for the verify.
    pub(super) fn holds_for_verify(&self) -> bool {
        self.verify.as_ref().is_some_and(|verify| verify.items.iter().any(|item| item.held.is_some()))
    }

    pub(super) fn words_held_for_verify(&self) -> impl Iterator<Item = u64> {
        let items = self.verify.iter().flat_map(|verify| &verify.items);
        items.filter(|item| item.held.is_some()).map(|item| item.word)
    }

    /// When the verify wants to be looked at though nothing happened.
    pub(super) fn verify_due(&self) -> Option<Instant> {
        let verify = self.verify.as_deref().filter(|verify| !verify.is_over())?;
        let waits = verify.items.iter().filter(|item| item.stage == Stage::Waiting && item.held.is_none());
        let holds = waits.map(|item| item.not_before.max(item.since.plus_ms(HOLD_AFTER_MS))).min();
        let busy = verify.items.iter().filter(|item| item.stage == Stage::Waiting);
        let busy = busy.map(|item| item.not_before).filter(|at| *at > self.now).min();
        let more = matches!(verify.phase, Phase::Comparing) && verify.items.len() < VERIFY_WORDS_MAX;
        let starts = more.then(|| self.pace.due());
        let first = holds.into_iter().chain(busy).chain(starts).min()?;
        Some(first.max(self.now.plus_ms(1)))
    }

    pub(super) fn verify_status(&self) -> Option<VerifyStatus> {
        let verify = self.verify.as_deref()?;
        let blocks = self.volume_bytes().div_ceil(BLOCK_BYTES);
        let (phase, until) = match &verify.phase {
            Phase::Comparing => (VerifyPhase::Comparing, self.now),
            Phase::Proving => (VerifyPhase::Proving, self.now),
            Phase::Pulling | Phase::Pushing | Phase::Syncing => (VerifyPhase::Repairing, self.now),
            Phase::Ended(how, at) => (how.clone(), *at),
        };
        let peers = verify.parts.iter().map(|part| VerifiedPeer {
            node: part.node,
            lost: part.lost.clone(),
            differing_blocks: part.differs.dirty_blocks(),
            settled_blocks: part.settled,
            unreadable_blocks: part.unreadable,
            differences: list(part, &verify.clues),
        });
        Some(VerifyStatus {
            phase,
            repair: verify.repair,
            trust: verify.trust,
            progress: Progress {
                blocks,
                left_blocks: blocks.saturating_sub(verify.checked_blocks + verify.unreadable),
                elapsed_ms: until.0.saturating_sub(verify.began.0) / 1_000_000,
                allowed_rate: self.pace.rate(),
                is_staged: false,
            },
            unreadable_blocks: verify.unreadable,
            peers: peers.collect(),
        })
    }
}

/// The blocks of a copy that differ, in runs of those of which the same is known.
fn list(part: &Part, clues: &[Clue]) -> Vec<Difference> {
    let mut runs: Vec<Difference> = Vec::new();
    let words = core::iter::successors(part.differs.next_word(0), |word| part.differs.next_word(word + 1));
    for word in words {
        for bit in each_bit(part.differs.word(word)) {
            let block = word * WORD_BLOCKS + u64::from(bit);
            let clue = clues.iter().find(|clue| clue.node == part.node && clue.block == block);
            let proof = clue.map_or(Proof::None, Clue::verdict);
            let continues = |last: &&mut Difference| last.block + last.blocks == block && last.proof == proof;
            if let Some(last) = runs.last_mut().filter(continues) {
                last.blocks += 1;
            } else if runs.len() < LISTED_MAX {
                runs.push(Difference { block, blocks: 1, proof });
            } else {
                return runs;
            }
        }
    }
    runs
}
