//! The ledger: what every replica was seen to do, and the rules of replication held against it. It sees bytes that
//! reach disks and words that reach others, never a machine's own state, and so knows who has which entry, written
//! or durable, what was promised to clients, and what a start must find.

mod delay;
mod disk;
mod frames;
mod gathered;
mod promises;
mod reigns;
mod start;
mod superblock;
mod words;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

pub use delay::Clocks;
use promises::Obligation;
use replicator_core::disk::superblock::Superblock;
use replicator_core::units::{Chain, Epoch, NodeId, NodeSet, ReignId};

use crate::checker::STALE;
use crate::disk::SECTOR;
use crate::node::{Node, Seen};

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
    /// When its Primary closed it, by that one's clock.
    closed_ms: u64,
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

/// A reign as it was stored first, whether it ever began or not.
#[derive(Clone, Copy)]
struct Recorded {
    forced: bool,
    /// Where the log of its Primary ended then.
    behind: Chain,
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
    /// What its writer knew to be stable.
    mark: u64,
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
    /// What it gathers behind its log.
    gathered: Vec<gathered::Piece>,
    /// The most that this replica is known to remember as stable, whatever happens to it.
    durable_mark: u64,
    /// Both copies of its superblock say this.
    saved: Superblock,
    /// Its log began anew and its blocks are not all there yet: its disk is no state of any log.
    is_mixed: bool,
    /// Where the volume ended when the replica was created.
    first_end: usize,
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
    /// How old an entry is to be when it is applied.
    delay_ms: u64,
    /// The last entry that the disk may have shown when the process started.
    may_show: u64,
    clocks: Clocks,
    /// When frames are old enough, on the clock that never goes back.
    due: HashMap<usize, u64>,
    /// It is brought level by blocks, or was in the stream under way.
    is_resynced: bool,
    /// The newest epoch anywhere when it was last made anew: who still follows an earlier one may go by what it had.
    wiped_in: Epoch,
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
    /// Reigns that some record names.
    recorded: HashMap<ReignId, Recorded>,
    writes: HashMap<u64, usize>,
    /// Zeroing requests that are not seen in a log yet: node, write, sectors.
    zeroings: Vec<(usize, u64, Range<usize>)>,
    obligations: Vec<Obligation>,
    obliged: HashSet<u64>,
    /// Whether a configuration manager decides.
    managed: bool,
    /// Rare things that happened.
    pub marks: Vec<&'static str>,
}

fn nodes_of(set: NodeSet) -> impl Iterator<Item = usize> {
    set.iter().map(|node| usize::from(node.0))
}

/// Who wrote the sectors of a disk of `sectors` on which a replica was just created: behind the volume, which ends at
/// `end`, somebody else.
fn fresh_sectors(end: usize, sectors: usize) -> Vec<u64> {
    (0..sectors).map(|sector| if sector < end { 0 } else { STALE }).collect()
}

impl Replica {
    fn new(superblock: &Superblock, sectors: usize, delay_ms: u64) -> Self {
        let first_end = sectors_of(0, superblock.volume_bytes).end;
        Self {
            log: Vec::new(),
            has: Vec::new(),
            ever: Vec::new(),
            before_cut: HashMap::new(),
            places: BTreeMap::new(),
            ghosts: Vec::new(),
            place_of: HashMap::new(),
            last_offset: 0,
            gathered: Vec::new(),
            durable_mark: 0,
            saved: *superblock,
            is_mixed: false,
            first_end,
            base: fresh_sectors(first_end, sectors),
            base_at: 0,
            process: 0,
            acked: (0, 0),
            envelopes: HashMap::new(),
            void: false,
            force: false,
            delay_ms,
            may_show: 0,
            clocks: Clocks::default(),
            due: HashMap::new(),
            is_resynced: false,
            wiped_in: Epoch(0),
        }
    }
}

fn id_of(node: usize) -> NodeId {
    NodeId(u8::try_from(node).unwrap())
}

fn sectors_of(offset: u64, length: u64) -> Range<usize> {
    let start = usize::try_from(offset).unwrap() / SECTOR;
    start..start + usize::try_from(length).unwrap() / SECTOR
}

impl Ledger {
    /// Fresh replicas of a volume of `sectors`, each beginning with its superblock, and how late each applies.
    pub fn new(sectors: usize, ring_bytes: u64, managed: bool, replicas: &[(Superblock, u64)]) -> Self {
        Self {
            frames: Vec::new(),
            by_chain: HashMap::new(),
            genesis: replicas[0].0.tail.chain,
            ring_bytes,
            replicas: replicas.iter().map(|(sb, delay_ms)| Replica::new(sb, sectors, *delay_ms)).collect(),
            reigns: Vec::new(),
            members: HashMap::new(),
            recorded: HashMap::new(),
            writes: HashMap::new(),
            zeroings: Vec::new(),
            obligations: Vec::new(),
            obliged: HashSet::new(),
            managed,
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

    /// The configuration of `x` has another delay from its next start on.
    pub fn set_delay(&mut self, x: usize, delay_ms: u64) {
        self.replicas[x].delay_ms = delay_ms;
    }

    /// The disks of `x` are gone; it was made anew.
    pub fn recreated(&mut self, x: usize, superblock: &Superblock) {
        let newest = self.replicas.iter().map(|replica| replica.saved.record.epoch).max();
        let old = &mut self.replicas[x];
        let Replica { process, delay_ms, clocks, .. } = *old;
        let mut before_cut = std::mem::take(&mut old.before_cut);
        before_cut.extend(old.log.iter().map(|frame| (*frame, old.ever[*frame])));
        *old = Replica {
            process,
            clocks,
            before_cut,
            wiped_in: newest.unwrap_or_default(),
            ..Replica::new(superblock, old.base.len(), delay_ms)
        };
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

    /// What `p` may go by, a Primary or who follows one: the most that `r` ever had, or, if it left the reign of `p` for a
    /// later one, had when it did. What it said before may reach `p` after.
    fn told(&self, p: usize, r: usize, frame: usize) -> Level {
        let left = self.replicas[r].saved.promised.max(self.replicas[r].wiped_in);
        let (mine, theirs) = (self.replicas[p].saved.record.epoch, left);
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
                    self.gathered_durable(x, *offset);
                    let replica = &mut self.replicas[x];
                    let mark = replica.places.get(offset).map_or(0, |place| place.mark);
                    replica.durable_mark = replica.durable_mark.max(mark);
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
            Seen::Frozen => self.frozen(x, &node.disk),
            Seen::SuperblockCopy | Seen::Refused(_) | Seen::Serve(_) | Seen::VolumeSize(_) => {}
        }
    }
}
