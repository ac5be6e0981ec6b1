//! The ledger: what every replica was seen to do, and the rules of replication held against it. It sees bytes that
//! reach disks and words that reach others, never a machine's own state, and so knows who has which entry, written
//! or durable, what was promised to clients, and what a start must find.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use replicator_core::disk::superblock::{DiskState, LogPoint, Superblock};
use replicator_core::frame::{self, EntryKind, FrameHeader};
use replicator_core::units::{Chain, NodeId, NodeSet, ReignId};
use replicator_core::wire::envelope::Envelope;
use replicator_core::wire::message::{Ack, Sealed};

use crate::checker::sector_id;
use crate::disk::{SECTOR, SimDisk};
use crate::node::{Node, Seen};
use crate::rule::broken;

/// How far a replica has come with a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    #[default]
    None,
    Received,
    Asked,
    Written,
    Durable,
}

/// A frame of some log; logs are paths through these.
struct Frame {
    parent: Chain,
    chain: Chain,
    first: u64,
    last: u64,
    reign: usize,
    /// What it does: sectors, and the write that fills them (0 for zeros).
    effects: Vec<(Range<usize>, u64)>,
}

/// A reign: the frames one promotion sequenced.
struct Reign {
    id: ReignId,
    epoch: u64,
    opener: usize,
    /// The opener's process; a restarted one is another.
    process: u64,
    forced: bool,
    start: usize,
    /// Acknowledged frames that it lawfully does without.
    excused: HashSet<usize>,
}

/// Where a frame lies in a ring.
struct Place {
    len: u64,
    ring_offset: u64,
    /// `None` for a mark.
    frame: Option<usize>,
    chain: Chain,
    last: u64,
    cuts: u64,
}

/// One replica as far as it was seen.
struct Replica {
    /// Its log, oldest frame first.
    log: Vec<usize>,
    has: Vec<Level>,
    /// The most it ever had, since it was last cut.
    ever: Vec<Level>,
    /// What it had of the frames that it cut, when it did.
    before_cut: HashMap<usize, Level>,
    places: BTreeMap<u64, Place>,
    /// What was to be overwritten, which a crash may have prevented.
    ghosts: Vec<(u64, Place)>,
    /// Where each frame was written last.
    place_of: HashMap<usize, u64>,
    last_offset: u64,
    /// Both copies of its superblock say this.
    saved: Superblock,
    /// Its log began anew and its blocks are not all there yet: its disk is no state of any log.
    is_mixed: bool,
    /// The sectors as of entry `base_at`: who wrote them.
    base: Vec<u64>,
    base_at: u64,
    process: u64,
    acked: (u64, u64),
    /// The epoch of the envelope a frame came in.
    envelopes: HashMap<usize, u64>,
    /// Its devices lied or were tampered with: what it promised counts no more; that it must notice does.
    pub void: bool,
    force: bool,
}

/// What a client was promised, or shown.
struct Obligation {
    frame: usize,
    write: u64,
    holders: NodeSet,
    flushed: bool,
    told_at: u64,
    node: usize,
}

/// Everything seen in one run.
pub struct Ledger {
    frames: Vec<Frame>,
    by_chain: HashMap<Chain, usize>,
    genesis: Chain,
    ring_bytes: u64,
    replicas: Vec<Replica>,
    reigns: Vec<Reign>,
    /// Newest stored members of each reign, as its Primary stored them.
    members: HashMap<ReignId, (u64, NodeSet)>,
    /// Reigns that some record names, and whether they were begun by force.
    recorded: HashMap<ReignId, bool>,
    writes: HashMap<u64, usize>,
    /// Zeroing requests that are not seen in a log yet: node, write, sectors.
    zeroings: Vec<(usize, u64, Range<usize>)>,
    obligations: Vec<Obligation>,
    obliged: HashSet<u64>,
    /// Rare things that happened.
    pub marks: Vec<&'static str>,
}

fn id_of(node: usize) -> NodeId {
    NodeId(u8::try_from(node).unwrap())
}

fn nodes_of(set: NodeSet) -> impl Iterator<Item = usize> {
    set.iter().map(|node| usize::from(node.0))
}

fn sectors_of(offset: u64, length: u64) -> Range<usize> {
    let start = usize::try_from(offset).unwrap() / SECTOR;
    start..start + usize::try_from(length).unwrap() / SECTOR
}

impl Replica {
    fn new(superblock: &Superblock, sectors: usize) -> Self {
        Self {
            log: Vec::new(),
            has: Vec::new(),
            ever: Vec::new(),
            before_cut: HashMap::new(),
            places: BTreeMap::new(),
            ghosts: Vec::new(),
            place_of: HashMap::new(),
            last_offset: 0,
            saved: *superblock,
            is_mixed: false,
            base: vec![0; sectors],
            base_at: 0,
            process: 0,
            acked: (0, 0),
            envelopes: HashMap::new(),
            void: false,
            force: false,
        }
    }
}

impl Ledger {
    /// Fresh replicas of a volume of `sectors`, each beginning with its superblock.
    pub fn new(sectors: usize, ring_bytes: u64, superblocks: &[Superblock]) -> Self {
        Self {
            frames: Vec::new(),
            by_chain: HashMap::new(),
            genesis: superblocks[0].tail.chain,
            ring_bytes,
            replicas: superblocks.iter().map(|superblock| Replica::new(superblock, sectors)).collect(),
            reigns: Vec::new(),
            members: HashMap::new(),
            recorded: HashMap::new(),
            writes: HashMap::new(),
            zeroings: Vec::new(),
            obligations: Vec::new(),
            obliged: HashSet::new(),
            marks: Vec::new(),
        }
    }

    /// The superblock that both copies of `x` hold.
    pub fn saved(&self, x: usize) -> &Superblock {
        &self.replicas[x].saved
    }

    /// From now on nothing that `x` promised counts.
    pub fn distrust(&mut self, x: usize) {
        self.replicas[x].void = true;
    }

    /// The disks of `x` are gone; it was made anew.
    pub fn recreated(&mut self, x: usize, superblock: &Superblock) {
        let process = self.replicas[x].process;
        let sectors = self.replicas[x].base.len();
        self.replicas[x] = Replica { process, ..Replica::new(superblock, sectors) };
        self.let_go(x);
    }

    /// Nobody counts on what `x` held: an operator gave it up.
    fn let_go(&mut self, x: usize) {
        for promised in &mut self.obligations {
            promised.holders = NodeSet(promised.holders.0 & !NodeSet(0).with(id_of(x)).0);
        }
    }

    pub fn is_void(&self, x: usize) -> bool {
        self.replicas[x].void
    }

    /// Whether the operator of the promotion under way at `x` uses force.
    pub fn promoting(&mut self, x: usize, force: bool) {
        self.replicas[x].force = force;
    }

    /// A client of `x` zeroes `sectors`.
    pub fn zeroing(&mut self, x: usize, write: u64, sectors: Range<usize>) {
        self.zeroings.push((x, write, sectors));
    }

    fn contains(&self, x: usize, frame: usize) -> bool {
        let first = self.frames[frame].first;
        let log = &self.replicas[x].log;
        let at = log.partition_point(|other| self.frames[*other].first < first);
        log.get(at) == Some(&frame)
    }

    fn end_of(&self, x: usize) -> (Chain, u64) {
        self.replicas[x].log.last().map_or((self.genesis, 0), |frame| {
            let frame = &self.frames[*frame];
            (frame.chain, frame.last)
        })
    }

    fn ever(&self, x: usize, frame: usize) -> Level {
        self.replicas[x].ever.get(frame).copied().unwrap_or_default()
    }

    /// What Primary `p` may go by: the most that `r` ever had, or, if it left the reign of `p` for a later one, had when
    /// it did. What it said before may reach `p` after.
    fn told(&self, p: usize, r: usize, frame: usize) -> Level {
        let (mine, theirs) = (self.replicas[p].saved.record.epoch, self.replicas[r].saved.promised);
        let had = self.replicas[r].before_cut.get(&frame).copied().filter(|_| theirs > mine);
        self.ever(r, frame).max(had.unwrap_or_default())
    }

    fn raise(&mut self, x: usize, frame: usize, level: Level) {
        let replica = &mut self.replicas[x];
        if replica.has.len() <= frame {
            replica.has.resize(frame + 1, Level::None);
            replica.ever.resize(frame + 1, Level::None);
        }
        replica.has[frame] = replica.has[frame].max(level);
        replica.ever[frame] = replica.ever[frame].max(level);
    }

    fn drop_beyond(&mut self, x: usize, first: u64) {
        let replica = &mut self.replicas[x];
        while let Some(frame) = replica.log.pop_if(|frame| self.frames[*frame].last >= first) {
            replica.before_cut.insert(frame, replica.ever[frame]);
            replica.has[frame] = Level::None;
            replica.ever[frame] = Level::None;
        }
        let end = self.end_of(x).1;
        let replica = &mut self.replicas[x];
        replica.acked = (replica.acked.0.min(end), replica.acked.1.min(end));
    }

    /// Takes in one thing that `x` was seen to do. `node` is for its disks only.
    pub fn see(&mut self, x: usize, seen: &Seen, node: &Node) {
        match seen {
            Seen::JournalAsked { offset, bytes } => self.journal_asked(x, *offset, bytes),
            Seen::JournalWritten { offset } => {
                if let Some(frame) = self.replicas[x].places.get(offset).and_then(|place| place.frame) {
                    self.raise(x, frame, Level::Written);
                }
            }
            Seen::JournalDurable(ranges) => {
                for (offset, _) in ranges {
                    if let Some(frame) = self.replicas[x].places.get(offset).and_then(|place| place.frame) {
                        self.raise(x, frame, Level::Durable);
                    }
                }
            }
            Seen::DiskAsked { offset, bytes } => self.disk_asked(x, *offset, bytes),
            Seen::SuperblockSaved(superblock) => self.superblock_saved(x, superblock, &node.disk),
            Seen::Acked(envelope, ack) => self.acked(x, envelope, ack),
            Seen::Sealed(sealed) => self.sealed(x, sealed),
            Seen::JournalRead { into_reserve: true } => self.marks.push("reserve buffer used"),
            Seen::JournalRead { .. } => self.marks.push("ring read back"),
            Seen::SuperblockCopy | Seen::Refused(_) | Seen::Serve(_) => {}
        }
    }

    /// A frame arrived at `x`.
    pub fn received(&mut self, x: usize, envelope: &Envelope, bytes: &[u8]) {
        let Ok(header) = frame::decode(bytes) else { return };
        if let Some(frame) = self.by_chain.get(&header.chain_after).copied().filter(|_| header.entries > 0) {
            self.raise(x, frame, Level::Received);
            self.replicas[x].envelopes.insert(frame, envelope.epoch.0);
        }
    }

    fn journal_asked(&mut self, x: usize, offset: u64, bytes: &[u8]) {
        let Ok(header) = frame::decode(bytes) else {
            broken("frame-undecodable", format!("node {x} writes what is no frame to its ring"));
        };
        let local = frame::decode_local(bytes).expect("the local part is written with the frame");
        self.reuse(x, offset, bytes.len() as u64);
        if offset < self.replicas[x].last_offset {
            self.marks.push("ring wrapped");
        }
        self.replicas[x].last_offset = offset;
        let frame = if header.entries == 0 { None } else { Some(self.frame(x, &header, bytes)) };
        let place = Place {
            len: bytes.len() as u64,
            ring_offset: local.ring_offset.0,
            frame,
            chain: header.chain_after,
            last: header.last().0,
            cuts: local.cuts,
        };
        self.replicas[x].places.insert(offset, place);
        let Some(frame) = frame else { return };
        let end = self.end_of(x);
        if end != (header.chain_before, header.first.0 - 1) {
            broken(
                "cut-before-stored",
                format!(
                    "node {x} writes entries from {} on, though its log ends at {} by all it stored",
                    header.first, end.1
                ),
            );
        }
        self.replicas[x].log.push(frame);
        self.replicas[x].place_of.insert(frame, offset);
        self.raise(x, frame, Level::Asked);
        let (saved, replica) = (self.replicas[x].saved.promised.0, &self.replicas[x]);
        if replica.envelopes.get(&frame).is_some_and(|epoch| *epoch < saved) {
            broken("fenced-frame-taken", format!("node {x} promised epoch {saved} and took a frame of less"));
        }
    }

    /// Ring space is used again only when nothing needs what lies there.
    fn reuse(&mut self, x: usize, offset: u64, len: u64) {
        let from = offset.saturating_sub(2 << 20);
        let overlaps = |(at, place): &(&u64, &Place)| **at + place.len > offset;
        let replica = &self.replicas[x];
        let gone: Vec<u64> =
            replica.places.range(from..offset + len).filter(overlaps).map(|(at, _)| *at).collect();
        for at in gone {
            let place = self.replicas[x].places.remove(&at).expect("just found");
            let frame = place.frame;
            self.replicas[x].ghosts.push((at, place));
            let lives =
                |frame: &usize| self.contains(x, *frame) && self.replicas[x].place_of.get(frame) == Some(&at);
            let Some(frame) = frame.filter(lives) else { continue };
            self.marks.push("ring space used again");
            let (last, saved) = (self.frames[frame].last, &self.replicas[x].saved);
            if last > saved.applied_through.position.sequence.0 || last > saved.tail.position.sequence.0 {
                broken(
                    "ring-reused-early",
                    format!(
                        "node {x} overwrites entry {last}; its superblock says applied {}, tail {}",
                        saved.applied_through.position.sequence, saved.tail.position.sequence
                    ),
                );
            }
        }
    }

    /// The frame with this header, made if it is new.
    fn frame(&mut self, x: usize, header: &FrameHeader, bytes: &[u8]) -> usize {
        let (first, last) = (header.first.0, header.last().0);
        if let Some(known) = self.by_chain.get(&header.chain_after).copied() {
            let frame = &self.frames[known];
            let reign = &self.reigns[frame.reign];
            let same = (frame.first, frame.last, frame.parent) == (first, last, header.chain_before)
                && (reign.epoch, reign.id) == (header.epoch.0, header.reign);
            if !same {
                broken("equal-chain-unequal-log", format!("two frames end in one chain value, at {last}"));
            }
            return known;
        }
        let parent_end = match self.by_chain.get(&header.chain_before) {
            Some(parent) => self.frames[*parent].last,
            None if header.chain_before == self.genesis => 0,
            None => broken("unknown-parent", format!("node {x} continues a log that nobody wrote")),
        };
        if parent_end + 1 != first {
            broken("unknown-parent", format!("node {x} writes entry {first} behind entry {parent_end}"));
        }
        let index = self.frames.len();
        let effects = self.effects(x, index, header, bytes);
        let entries = frame::entries(bytes, header);
        let opens = entries.flatten().any(|entry| entry.kind == EntryKind::EpochStart);
        let reign = if opens { self.open_reign(x, header, index) } else { self.reign_of(x, header) };
        self.frames.push(Frame {
            parent: header.chain_before,
            chain: header.chain_after,
            first,
            last,
            reign,
            effects,
        });
        self.by_chain.insert(header.chain_after, index);
        index
    }

    fn effects(
        &mut self,
        x: usize,
        index: usize,
        header: &FrameHeader,
        bytes: &[u8],
    ) -> Vec<(Range<usize>, u64)> {
        let mut effects = Vec::new();
        for entry in frame::entries(bytes, header) {
            let entry = entry.unwrap_or_else(|error| broken("frame-undecodable", format!("{error}")));
            let sectors = sectors_of(entry.offset, entry.length);
            match entry.kind {
                EntryKind::Write => {
                    let payload = &bytes[entry.payload_at as usize..][..entry.payload_bytes()];
                    let id = u64::from_le_bytes(payload[..8].try_into().unwrap());
                    for (sector, part) in sectors.clone().zip(payload.chunks(SECTOR)) {
                        if sector_id(part, sector) != Some(id) {
                            broken("journal-payload", format!("write {id} is not in its entry as it came"));
                        }
                    }
                    self.sequenced(x, id, index);
                    effects.push((sectors, id));
                }
                EntryKind::Zeroes | EntryKind::Trim => {
                    let of = |(node, _, range): &(usize, u64, Range<usize>)| *node == x && *range == sectors;
                    if let Some(at) = self.zeroings.iter().position(of) {
                        let (_, id, _) = self.zeroings.remove(at);
                        self.sequenced(x, id, index);
                    }
                    effects.push((sectors, 0));
                }
                EntryKind::EpochStart | EntryKind::Resize => {}
            }
        }
        effects
    }

    fn sequenced(&mut self, x: usize, id: u64, index: usize) {
        if self.writes.insert(id, index).is_some_and(|before| before != index) {
            broken("sequenced-twice", format!("write {id} is in two frames, the second by node {x}"));
        }
    }

    fn open_reign(&mut self, x: usize, header: &FrameHeader, start: usize) -> usize {
        let replica = &self.replicas[x];
        let (epoch, id) = (header.epoch.0, header.reign);
        let stored = &replica.saved;
        if (stored.record.epoch.0, stored.record.reign) != (epoch, id) || stored.promised.0 > epoch {
            broken("reign-not-stored", format!("node {x} opens epoch {epoch}, which its superblock lacks"));
        }
        for other in &self.reigns {
            let forks = || {
                let (x, y) = self.parting(header.chain_before, self.frames[other.start].chain);
                [x, y].into_iter().flatten().any(|reign| self.reigns[reign].forced)
            };
            let void = self.replicas.iter().any(|replica| replica.void);
            let forced = other.forced || self.recorded.get(&id) == Some(&true);
            if other.epoch == epoch && !(forced || void || forks()) {
                broken(
                    "one-primary-per-epoch",
                    format!("epoch {epoch} is opened by {x} and by {}, neither by force", other.opener),
                );
            }
        }
        let (process, forced) = (replica.process, self.recorded.get(&id).copied().unwrap_or_default());
        let excused = self.lost_with_power(x, forced);
        self.reigns.push(Reign { id, epoch, opener: x, process, forced, start, excused });
        self.reigns.len() - 1
    }

    /// What was promised and went with the power of `x` (or with a process that only had it in memory): a reign that
    /// begins there does without it, lawfully if no flush covered it and no member that was asked has it.
    fn lost_with_power(&mut self, x: usize, forced: bool) -> HashSet<usize> {
        let gone = |obligation: &&Obligation| {
            let frame = obligation.frame;
            let was_volatile = !obligation.flushed && self.ever(x, frame) < Level::Durable;
            let has = |r: usize| {
                self.contains(r, frame) && self.replicas[r].saved.disk_state == DiskState::UpToDate
            };
            let asked = NodeSet(obligation.holders.0 & self.replicas[x].saved.record.in_sync.0);
            let elsewhere = nodes_of(asked).any(has);
            !self.contains(x, frame)
                && was_volatile
                && obligation.holders.contains(id_of(x))
                && (forced || !elsewhere)
        };
        let excused: HashSet<usize> = self.obligations.iter().filter(gone).map(|gone| gone.frame).collect();
        if !excused.is_empty() {
            self.marks.push("unflushed, and lost with the power");
        }
        excused
    }

    fn reign_of(&self, x: usize, header: &FrameHeader) -> usize {
        let found = self.reigns.iter().position(|reign| reign.id == header.reign);
        let Some(index) = found else {
            broken("foreign-entries", format!("node {x} writes entries of a reign that never began"));
        };
        let (reign, replica) = (&self.reigns[index], &self.replicas[x]);
        if reign.opener != x || reign.process != replica.process || reign.epoch != header.epoch.0 {
            broken(
                "one-incarnation-per-epoch",
                format!("node {x} sequences in epoch {}, begun by another process", header.epoch),
            );
        }
        index
    }

    /// What is applied anywhere, every member has durably.
    fn disk_asked(&mut self, x: usize, offset: u64, bytes: &[u8]) {
        let start = usize::try_from(offset).unwrap() / SECTOR;
        let mut before = 0;
        for (sector, part) in (start..).zip(bytes.chunks(SECTOR)) {
            let Some(id) = sector_id(part, sector) else {
                broken("applied-garbage", format!("node {x} writes to sector {sector} what nobody wrote"));
            };
            // Blocks of a resync may hold zeros, too.
            if id == before || (id == 0 && self.replicas[x].is_mixed) {
                continue;
            }
            before = id;
            let Some(frame) = self.writes.get(&id).copied().filter(|frame| self.contains(x, *frame)) else {
                broken("applied-foreign", format!("node {x} applies write {id}, which its log lacks"));
            };
            // Of the reign it follows, or of the one its log ends in, if it left that since.
            let end = self.replicas[x].log.last().expect("the frame is there");
            let reigns = [self.replicas[x].saved.record.reign, self.reigns[self.frames[*end].reign].id];
            let lacking = reigns.map(|reign| {
                let members = self.members.get(&reign).map(|(_, set)| *set);
                let mut members = nodes_of(members.unwrap_or_default().with(id_of(x)));
                members.find(|r| self.ever(*r, frame) < Level::Durable && !self.replicas[*r].void)
            });
            if let [Some(r), Some(_)] = lacking {
                broken(
                    "applied-before-durable",
                    format!(
                        "node {x} applies write {id} (entry {}), which member {r} does not have durably",
                        self.frames[frame].last
                    ),
                );
            }
        }
    }

    fn superblock_saved(&mut self, x: usize, superblock: &Superblock, disk: &SimDisk) {
        let old = self.replicas[x].saved;
        let discards = superblock.discards > old.discards;
        let sound = superblock.sequence > old.sequence
            && superblock.promised >= old.promised
            && (superblock.record.order() >= old.record.order() || discards)
            && superblock.applied_through.ring_offset >= old.applied_through.ring_offset
            && superblock.tail.ring_offset >= old.tail.ring_offset
            && (superblock.stable >= old.stable || discards)
            && superblock.cut.count >= old.cut.count;
        if !sound {
            broken("superblock-went-back", format!("node {x}: {old:?} became {superblock:?}"));
        }
        self.note_cut(x, &old, superblock);
        self.replicas[x].saved = *superblock;
        self.note_reign(x, &old, superblock);
        self.note_members(x, superblock);
        self.checkpointed(x, disk);
        if self.replicas[x].is_mixed && superblock.disk_state == DiskState::UpToDate {
            self.replicas[x].is_mixed = false;
            self.check_whole(x, disk);
        }
    }

    fn note_cut(&mut self, x: usize, old: &Superblock, new: &Superblock) {
        if new.discards > old.discards {
            self.let_go(x);
        }
        if new.cut.count == old.cut.count {
            return;
        }
        let first = new.cut.first.0;
        if first == 0 {
            self.marks.push("log begun anew");
            let log = self.log_to(new.tail.chain);
            let kept: HashSet<usize> = log.iter().copied().collect();
            let cut = self.replicas[x].log.iter().filter(|frame| !kept.contains(frame)).copied().collect();
            self.check_cut(x, new, &cut);
            self.restart_log(x, log, &new.tail);
        } else {
            self.marks.push("tail cut");
            let log = &self.replicas[x].log;
            let from = log.partition_point(|frame| self.frames[*frame].last < first);
            let cut = log[from..].iter().copied().collect();
            self.check_cut(x, new, &cut);
            self.drop_beyond(x, first);
        }
    }

    /// The log of `x` begins anew behind `point`. What its source has up to there counts as held: it is in the blocks
    /// of `x`, or it will be before they count.
    fn restart_log(&mut self, x: usize, log: Vec<usize>, point: &LogPoint) {
        let through = point.position.sequence.0;
        let replica = &mut self.replicas[x];
        replica.has.fill(Level::None);
        replica.ever.fill(Level::None);
        replica.acked = (replica.acked.0.min(through), replica.acked.1.min(through));
        (replica.is_mixed, replica.base_at) = (true, 0);
        replica.base.fill(0);
        replica.log.clone_from(&log);
        for frame in log {
            self.raise(x, frame, Level::Durable);
        }
        self.advance_base(x, through);
    }

    /// What clients were promised is never cut, but where the Primary that is followed lawfully does without it.
    fn check_cut(&mut self, x: usize, new: &Superblock, cut: &HashSet<usize>) {
        let promised = self
            .obligations
            .iter()
            .find(|promised| cut.contains(&promised.frame))
            .map(|promised| promised.frame);
        let (Some(_), Some(primary)) = (promised, new.record.primary) else { return };
        let primary = usize::from(primary.0);
        let mut excused = self.lost_with_power(primary, true);
        for reign in self.path(self.end_of(primary).0) {
            excused.extend(&self.reigns[reign].excused);
        }
        let void = self.replicas[x].void || self.replicas[primary].void;
        // Others count on who holds it; who only happened to have it may let go.
        let lets_go = |lost: &&Obligation| {
            cut.contains(&lost.frame) && !excused.contains(&lost.frame) && lost.holders.contains(id_of(x))
        };
        let lost = self.obligations.iter().find(lets_go);
        if let Some(lost) = lost.filter(|_| !void) {
            broken(
                "promised-cut",
                format!(
                    "node {x} cuts its log from entry {} on to follow {primary} in epoch {}; write {} (entry {}) was \
                     answered or shown at node {} with members {:?}",
                    new.cut.first,
                    new.record.epoch,
                    lost.write,
                    self.frames[lost.frame].last,
                    lost.node,
                    lost.holders
                ),
            );
        }
    }

    /// A promotion is stored. It inherits the force of one before it that was stored and never began.
    fn note_reign(&mut self, x: usize, old: &Superblock, new: &Superblock) {
        let own = new.record.primary == Some(id_of(x)) && new.record.reign != old.record.reign;
        if own && !self.recorded.contains_key(&new.record.reign) {
            let began = self.reigns.iter().any(|reign| reign.id == old.record.reign);
            let inherited = !began && self.recorded.get(&old.record.reign).copied().unwrap_or_default();
            self.recorded.insert(new.record.reign, self.replicas[x].force || inherited);
        }
    }

    fn note_members(&mut self, x: usize, superblock: &Superblock) {
        let record = &superblock.record;
        let reign = self.reigns.iter().find(|reign| reign.id == record.reign);
        let owner = record.primary == Some(id_of(x)) || reign.is_some_and(|reign| reign.opener == x);
        if owner {
            let known = self.members.entry(record.reign).or_insert((0, record.in_sync));
            let joined = NodeSet(record.in_sync.0 & !known.1.0);
            if record.version >= known.0 {
                *known = (record.version, record.in_sync);
            }
            // Who joins holds what was promised before, too.
            if !joined.is_empty() {
                let log: HashSet<usize> = self.replicas[x].log.iter().copied().collect();
                for promised in self.obligations.iter_mut().filter(|promised| log.contains(&promised.frame)) {
                    promised.holders = NodeSet(promised.holders.0 | joined.0);
                }
            }
        }
    }

    /// Everything up to `applied_through` is on the medium.
    fn checkpointed(&mut self, x: usize, disk: &SimDisk) {
        let through = self.replicas[x].saved.applied_through.position.sequence.0;
        if through <= self.replicas[x].base_at {
            return;
        }
        let touched = self.advance_base(x, through);
        if !self.replicas[x].is_mixed {
            self.check_medium(x, disk, touched);
        }
    }

    /// All blocks of a copy that says it is whole are on the medium.
    fn check_whole(&mut self, x: usize, disk: &SimDisk) {
        self.check_medium(x, disk, (0..self.replicas[x].base.len()).collect());
    }

    /// The medium holds these sectors as of the checkpoint, or as some entry behind it left them.
    fn check_medium(&mut self, x: usize, disk: &SimDisk, touched: Vec<usize>) {
        let through = self.replicas[x].base_at;
        let later = self.written_after(x, through);
        let mut bytes = [0; SECTOR];
        for sector in touched {
            disk.read_durable((sector * SECTOR) as u64, &mut bytes);
            let id = sector_id(&bytes, sector);
            let fits =
                id.is_some_and(|id| id == self.replicas[x].base[sector] || later.contains(&(sector, id)));
            if !fits && !self.replicas[x].void {
                broken(
                    "checkpoint-before-sync",
                    format!(
                        "node {x} stored that {through} is applied; the medium has sector {sector} of {id:?}"
                    ),
                );
            }
        }
    }

    /// Moves the image of `x` up to entry `through`; returns the sectors that changed.
    fn advance_base(&mut self, x: usize, through: u64) -> Vec<usize> {
        let replica = &mut self.replicas[x];
        let from = replica.log.partition_point(|frame| self.frames[*frame].last <= replica.base_at);
        let mut touched = Vec::new();
        for frame in &replica.log[from..] {
            let frame = &self.frames[*frame];
            if frame.last > through {
                break;
            }
            for (sectors, id) in &frame.effects {
                replica.base[sectors.clone()].fill(*id);
                touched.extend(sectors.clone());
            }
        }
        replica.base_at = through;
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    fn written_after(&self, x: usize, through: u64) -> HashSet<(usize, u64)> {
        let log = &self.replicas[x].log;
        let from = log.partition_point(|frame| self.frames[*frame].last <= through);
        let effects = log[from..].iter().flat_map(|frame| &self.frames[*frame].effects);
        effects.flat_map(|(sectors, id)| sectors.clone().map(|sector| (sector, *id))).collect()
    }

    /// The disk of `x` shows, sector by sector, what its log says up to the checkpoint or some entry behind it.
    pub fn check_disk(&mut self, x: usize, disk: &SimDisk) {
        if self.replicas[x].void || self.replicas[x].is_mixed {
            return;
        }
        let later = self.written_after(x, self.replicas[x].base_at);
        let mut bytes = vec![0; self.replicas[x].base.len() * SECTOR];
        disk.read(0, &mut bytes);
        for (sector, bytes) in bytes.chunks(SECTOR).enumerate() {
            let id = sector_id(bytes, sector);
            let fits =
                id.is_some_and(|id| id == self.replicas[x].base[sector] || later.contains(&(sector, id)));
            if !fits {
                broken(
                    "disk-is-no-state-of-the-log",
                    format!(
                        "node {x}, sector {sector}: the disk has {id:?}, the log {} at entry {} and nothing such after",
                        self.replicas[x].base[sector], self.replicas[x].base_at
                    ),
                );
            }
        }
    }

    fn acked(&mut self, x: usize, envelope: &Envelope, ack: &Ack) {
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

    fn holds(&self, x: usize, from: u64, to: u64, level: Level) {
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

    fn sealed(&self, x: usize, sealed: &Sealed) {
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

    /// The process of `x` is gone, and with the power what was not synced.
    pub fn died(&mut self, x: usize, power: bool) {
        let replica = &mut self.replicas[x];
        // What is durable behind a gap is out of reach.
        let reach = replica.log.iter().position(|frame| replica.has[*frame] < Level::Durable);
        for frame in &replica.log[reach.unwrap_or(replica.log.len())..] {
            replica.has[*frame] = replica.has[*frame].min(Level::Written);
            replica.ever[*frame] = replica.ever[*frame].min(Level::Written);
        }
        for level in &mut replica.has {
            let keep = match *level {
                Level::Received | Level::Asked => false,
                Level::Written => !power,
                Level::None | Level::Durable => true,
            };
            if !keep {
                *level = Level::None;
            }
        }
        self.zeroings.retain(|(node, _, _)| *node != x);
    }

    /// A process of `x` started on these disks, with this superblock, and found a log that ends so.
    pub fn started(&mut self, x: usize, node: &Node, superblock: &Superblock, head: (Chain, u64)) {
        let old = self.replicas[x].saved;
        if !self.replicas[x].void {
            self.note_cut(x, &old, superblock);
        }
        self.replicas[x].saved = *superblock;
        self.replicas[x].is_mixed &= superblock.disk_state != DiskState::UpToDate;
        self.note_reign(x, &old, superblock);
        self.replicas[x].process += 1;
        (self.replicas[x].acked, self.replicas[x].envelopes) = ((0, 0), HashMap::new());
        if self.replicas[x].void {
            self.adopt(x, head);
            return;
        }
        let expected = self.recoverable(x, node, superblock);
        if expected != head {
            broken(
                "recovery-differs",
                format!(
                    "node {x} recovers a log that ends at {}; its ring holds one up to {}",
                    head.1, expected.1
                ),
            );
        }
        self.adopt(x, head);
        let stale = superblock.applied_through.ring_offset.0;
        self.replicas[x]
            .ghosts
            .retain(|(offset, place)| place.ring_offset >= stale && lies_there(node, *offset, place));
        let through = superblock.applied_through.position.sequence.0;
        self.checkpointed(x, &node.disk);
        if through >= self.replicas[x].base_at {
            self.check_disk(x, &node.disk);
        }
    }

    /// The end of the log that lies in the ring of `x`.
    fn recoverable(&self, x: usize, node: &Node, superblock: &Superblock) -> (Chain, u64) {
        let start = superblock.applied_through;
        let (mut at, mut end) = (start.ring_offset.0, (start.chain, start.position.sequence.0));
        let replica = &self.replicas[x];
        let ghosts = replica.ghosts.iter().map(|(offset, place)| (*offset, place));
        let mut places: BTreeMap<u64, Vec<(u64, &Place)>> = BTreeMap::new();
        for (offset, place) in replica.places.iter().map(|(offset, place)| (*offset, place)).chain(ghosts) {
            places.entry(place.ring_offset).or_default().push((offset, place));
        }
        loop {
            let lap = at.next_multiple_of(self.ring_bytes);
            let candidates = [at, lap].into_iter().flat_map(|at| places.get(&at).into_iter().flatten());
            let found = candidates.copied().find(|(offset, place)| {
                let cut = place.cuts < superblock.cut.count && place.last >= superblock.cut.first.0;
                !cut && is_whole(node, *offset, place, end)
            });
            let found = found.map(|(_, place)| (place.ring_offset, place));
            let Some((place_at, place)) = found else { return end };
            end = (place.chain, place.last);
            at = place_at + place.len;
        }
    }

    /// The whole log that ends at `chain`, oldest frame first.
    fn log_to(&self, mut chain: Chain) -> Vec<usize> {
        let mut log = Vec::new();
        while let Some(frame) = self.by_chain.get(&chain).copied() {
            log.push(frame);
            chain = self.frames[frame].parent;
        }
        log.reverse();
        log
    }

    /// The log of `x` is the one that ends at `head`.
    fn adopt(&mut self, x: usize, head: (Chain, u64)) {
        let log = self.log_to(head.0);
        let replica = &mut self.replicas[x];
        replica.has.fill(Level::None);
        if replica.void {
            (replica.base_at, replica.places, replica.ghosts) = (0, BTreeMap::new(), Vec::new());
            replica.base.fill(0);
        }
        replica.log = log.clone();
        for frame in log {
            self.raise(x, frame, Level::Durable);
        }
    }

    fn members_at(&self, p: usize) -> NodeSet {
        let reign = self.replicas[p].saved.record.reign;
        self.members.get(&reign).map_or(NodeSet(0), |(_, set)| *set)
    }

    fn holds_for_answer(&self, p: usize, node: &Node, frame: usize, durable: bool, rule: &'static str) {
        for r in nodes_of(self.members_at(p).with(id_of(p))) {
            let volatile =
                node.config.peers.iter().any(|peer| {
                    peer.node == id_of(r) && peer.protocol == replicator_core::config::Protocol::B
                });
            let need = match (durable, volatile) {
                (true, _) => Level::Durable,
                (false, true) => Level::Received,
                (false, false) => Level::Written,
            };
            let has = self.told(p, r, frame);
            if has < need && !self.replicas[r].void && !self.replicas[p].void {
                let last = self.frames[frame].last;
                broken(
                    rule,
                    format!("node {p} answers for entry {last}; member {r} has it {has:?}, not {need:?}"),
                );
            }
        }
    }

    fn oblige(&mut self, p: usize, write: u64, flushed: bool, now: u64) {
        let frame = self.writes[&write];
        let holders = self.members_at(p).with(id_of(p));
        if self.obliged.insert(write) {
            self.obligations.push(Obligation { frame, write, holders, flushed, told_at: now, node: p });
        } else if flushed {
            let known = self.obligations.iter_mut().rev().find(|other| other.write == write);
            known.expect("it is obliged").flushed = true;
        }
    }

    /// A write was answered by `p`.
    pub fn answered(&mut self, p: usize, node: &Node, write: u64, fua: bool, now: u64) {
        let Some(frame) = self.writes.get(&write).copied().filter(|frame| self.contains(p, *frame)) else {
            broken("answer-not-in-log", format!("node {p} answers write {write}, which its log lacks"));
        };
        self.holds_for_answer(p, node, frame, false, "answer-before-members");
        if fua {
            self.holds_for_answer(p, node, frame, true, "flush-before-durable");
        }
        self.oblige(p, write, fua, now);
    }

    /// A flush that began at `began` was answered by `p`: what was answered before is durable.
    pub fn flushed(&mut self, p: usize, node: &Node, began: u64) {
        for index in (0..self.obligations.len()).rev() {
            let obligation = &self.obligations[index];
            if obligation.node != p || obligation.told_at >= began {
                continue;
            }
            if obligation.flushed {
                // Older ones were covered before, except around writes with FUA.
                if index + 64 < self.obligations.len() {
                    break;
                }
                continue;
            }
            if self.contains(p, obligation.frame) {
                self.holds_for_answer(p, node, obligation.frame, true, "flush-before-durable");
                self.obligations[index].flushed = true;
            }
        }
    }

    /// A read at `p` showed write `write`: from now on it must stay, like an answered one.
    pub fn shown(&mut self, p: usize, node: &Node, write: u64, now: u64) {
        if self.obliged.contains(&write) {
            return;
        }
        let Some(frame) = self.writes.get(&write).copied() else { return };
        if self.contains(p, frame) {
            self.holds_for_answer(p, node, frame, false, "read-uncommitted");
            self.oblige(p, write, false, now);
        }
    }

    /// `p` opened its export: everything ever promised is there, or its loss is lawful. Returns who wrote each sector.
    pub fn opened(&mut self, p: usize) -> Vec<u64> {
        self.zeroings.retain(|(node, _, _)| *node != p);
        let id = self.replicas[p].saved.record.reign;
        let Some(reign) = self.reigns.iter().position(|reign| reign.id == id && reign.opener == p) else {
            broken("served-without-reign", format!("node {p} serves and never opened its epoch"));
        };
        let start = self.reigns[reign].start;
        for r in nodes_of(self.members_at(p)) {
            let has = self.told(p, r, start);
            if has < Level::Durable && !self.replicas[r].void {
                broken(
                    "served-before-stable",
                    format!("node {p} serves; member {r} has the epoch's start {has:?}"),
                );
            }
        }
        for index in 0..self.obligations.len() {
            let frame = self.obligations[index].frame;
            if !self.contains(p, frame) {
                self.excuse(p, reign, index);
            }
        }
        let mut image = self.replicas[p].base.clone();
        let log = &self.replicas[p].log;
        let from = log.partition_point(|frame| self.frames[*frame].last <= self.replicas[p].base_at);
        for frame in &log[from..] {
            for (sectors, id) in &self.frames[*frame].effects {
                image[sectors.clone()].fill(*id);
            }
        }
        image
    }

    /// Something promised is not in the log of the new Primary `p`.
    fn excuse(&mut self, p: usize, reign: usize, index: usize) {
        let obligation = &self.obligations[index];
        let (frame, flushed, holders) = (obligation.frame, obligation.flushed, obligation.holders);
        // The reign that first went on without it, and the one in which it went its own way, if it did. Where a later
        // reign went on from this one, which does not know it yet, only the later one parted from anybody.
        let (here, there) = self.parting(self.end_of(p).0, self.frames[frame].chain);
        let lost_by = here.unwrap_or(reign);
        let opener = self.reigns[lost_by].opener;
        let forced = [here, there].into_iter().flatten().any(|reign| self.reigns[reign].forced);
        let not_held = !holders.contains(id_of(opener));
        let media = self.replicas[opener].void || nodes_of(holders).any(|r| self.replicas[r].void);
        if (forced && not_held) || self.reigns[lost_by].excused.contains(&frame) || media {
            self.marks.push("promised, and lost by force");
            return;
        }
        let obligation = &self.obligations[index];
        let what = if flushed { "flushed" } else { "answered or shown" };
        broken(
            if flushed { "flushed-lost" } else { "acknowledged-lost" },
            format!(
                "write {} (entry {}, {what} at node {} with members {holders:?}) is not in the log of node {p}, which \
                 serves epoch {}; lost by the promotion of {opener} to {}, forced: {forced}",
                obligation.write,
                self.frames[frame].last,
                obligation.node,
                self.reigns[reign].epoch,
                self.reigns[lost_by].epoch
            ),
        );
    }

    /// The reigns of the log that ends at `chain`, oldest first.
    fn path(&self, chain: Chain) -> Vec<usize> {
        let (mut path, mut chain) = (Vec::new(), chain);
        while let Some(frame) = self.by_chain.get(&chain) {
            let reign = self.frames[*frame].reign;
            path.push(reign);
            chain = self.frames[self.reigns[reign].start].parent;
        }
        path.reverse();
        path
    }

    /// Two logs end at `a` and `b`: the reigns in which each leaves the other.
    fn parting(&self, a: Chain, b: Chain) -> (Option<usize>, Option<usize>) {
        let (x, y) = (self.path(a), self.path(b));
        let shared = x.iter().zip(&y).take_while(|(x, y)| x == y).count();
        (x.get(shared).copied(), y.get(shared).copied())
    }

    /// Whether the log of `b` goes on somewhere without that of `a`.
    pub fn goes_apart(&self, a: usize, b: usize) -> bool {
        let (x, y) = (&self.replicas[a].log, &self.replicas[b].log);
        let shared = x.iter().zip(y).take_while(|(x, y)| x == y).count();
        y.len() > shared
    }

    /// Whether the reign in which the log of `p` leaves that of `t`, or the other way round, was begun by force.
    pub fn parted_by_force(&self, p: usize, t: usize) -> bool {
        let (x, y) = self.parting(self.end_of(p).0, self.end_of(t).0);
        [x, y].into_iter().flatten().any(|reign| self.reigns[reign].forced)
    }

    /// Whether `p` and `t` know different reigns of one epoch, and force was used.
    pub fn named_twice_by_force(&self, p: usize, t: usize) -> bool {
        let (a, b) = (&self.replicas[p].saved.record, &self.replicas[t].saved.record);
        let forced = |reign: ReignId| self.recorded.get(&reign).copied().unwrap_or_default();
        a.epoch == b.epoch && a.reign != b.reign && (forced(a.reign) || forced(b.reign))
    }

    pub fn reigns(&self) -> usize {
        self.reigns.len()
    }
}

/// Whether the frame of `place` lies at `offset` in full and continues a log that ends at `end`.
fn is_whole(node: &Node, offset: u64, place: &Place, end: (Chain, u64)) -> bool {
    let mut bytes = vec![0; usize::try_from(place.len).unwrap()];
    node.journal.read(offset, &mut bytes);
    let (Ok(header), Ok(local)) = (frame::decode(&bytes), frame::decode_local(&bytes)) else { return false };
    header.chain_before == end.0
        && header.first.0 == end.1 + 1
        && header.chain_after == place.chain
        && local.ring_offset.0 == place.ring_offset
        && frame::check_payloads(&bytes, &header).is_ok()
}

/// Whether the header of this frame is still there.
fn lies_there(node: &Node, offset: u64, place: &Place) -> bool {
    let mut bytes = vec![0; 4096];
    node.journal.read(offset, &mut bytes);
    frame::decode(&bytes)
        .is_ok_and(|header| header.chain_after == place.chain && header.last().0 == place.last)
}
