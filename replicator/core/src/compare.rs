//! The verdict on two replicas that meet: a pure function of what both said. It names what is safe to do, or why
//! nothing is; it is the same on both sides, seen from each.

use alloc::format;
use alloc::string::String;

use crate::config::Config;
use crate::disk::superblock::DiskState;
use crate::tracker::Base;
use crate::units::{Epoch, Sequence};
use crate::wire::message::Hello;

/// What follows from two hellos, as seen by the receiver of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Neither is Primary; the session waits.
    Idle,
    /// I am Primary and stream to it, from behind this entry.
    Source {
        /// The last entry both hold.
        common: Sequence,
        /// Whether its blocks must be brought level, too: the journal alone does not.
        needs_blocks: bool,
    },
    /// It is Primary and will say where its stream begins.
    Target,
    /// It is Primary of a later reign, and nothing here was acknowledged without it: I step down.
    StepDown,
    /// It is Primary of an earlier reign and will step down; ask again.
    AwaitStepDown,
    /// It is Primary, and what is beyond the common point here was given up: it will say what changed there.
    Borrow,
    /// I am Primary and it gave up what it has beyond the common point: it is told what changed here since.
    Lend {
        /// The last entry both hold.
        common: Sequence,
    },
    /// Both hold entries that the other has not, and clients may count on either; both sides stay as they are.
    Fork {
        /// The last entry both hold.
        common: Sequence,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Nothing is safe but an operator's decision; both sides stay as they are.
    Refuse {
        /// What is wrong and what to do.
        reason: String,
    },
}

fn refuse(reason: String) -> Verdict {
    Verdict::Refuse { reason }
}

/// Why two replicas cannot go on together.
enum Conflict {
    /// An operator must see to this.
    Other(String),
    /// Their logs part after this entry.
    Fork(Sequence, String),
}

impl From<String> for Conflict {
    fn from(reason: String) -> Self {
        Self::Other(reason)
    }
}

impl From<Conflict> for Verdict {
    fn from(conflict: Conflict) -> Self {
        match conflict {
            Conflict::Other(reason) => Self::Refuse { reason },
            Conflict::Fork(common, reason) => Self::Fork { common, reason },
        }
    }
}

/// The verdict on a peer that said `theirs` to a replica that says `mine`.
#[must_use]
pub fn verdict(config: &Config, mine: &Hello, theirs: &Hello) -> Verdict {
    if let Some(reason) = identity_conflict(config, mine, theirs) {
        return refuse(reason);
    }
    if mine.yields || theirs.yields {
        return yielding(mine, theirs);
    }
    match (mine.primary, theirs.primary) {
        (false, false) => both_secondary(mine, theirs),
        (true, true) => both_primary(mine, theirs),
        // Whoever decides has asked the Secondary for its promise, and ends one of the two reigns.
        (true, false) if config.managed && theirs.promised > mine.record.epoch => Verdict::Idle,
        (false, true) if config.managed && mine.promised > theirs.record.epoch => Verdict::Idle,
        (true, false) => match source_conflict(mine, theirs) {
            Ok(Way { common, needs_blocks }) => Verdict::Source { common, needs_blocks },
            Err(conflict) => conflict.into(),
        },
        (false, true) => match source_conflict(theirs, mine) {
            Ok(_) => Verdict::Target,
            Err(conflict) => conflict.into(),
        },
    }
}

/// One of the two gave up what it has beyond the common point: it waits for a Primary, which tells it what changed.
fn yielding(mine: &Hello, theirs: &Hello) -> Verdict {
    let (source, target) = match (mine.primary && !mine.yields, theirs.primary && !theirs.yields) {
        (true, false) => (mine, theirs),
        (false, true) => (theirs, mine),
        _ => return Verdict::Idle,
    };
    if let Some(reason) = size_conflict(source, target) {
        return refuse(reason);
    }
    match promise_conflict(source, target).map_or_else(|| common_point(source, target), Err) {
        Ok(common) if source.node == mine.node => Verdict::Lend { common },
        Ok(_) => Verdict::Borrow,
        Err(reason) => refuse(reason),
    }
}

/// Whether the two are no replicas of one volume, or not two.
fn identity_conflict(config: &Config, mine: &Hello, theirs: &Hello) -> Option<String> {
    if !config.peers.iter().any(|peer| peer.node == theirs.node) {
        return Some(format!("node id {} is no replica of this volume in the configuration", theirs.node.0));
    }
    if mine.replica == theirs.replica {
        return Some(String::from(
            "the peer's replica has the identity of this one: one was copied from the other; create it anew",
        ));
    }
    if mine.block_bytes != theirs.block_bytes {
        return Some(format!(
            "the replicas differ in their blocks: here they have {} bytes, there {}",
            mine.block_bytes, theirs.block_bytes
        ));
    }
    None
}

/// How a replica is brought level.
struct Way {
    /// The last entry both hold.
    common: Sequence,
    /// Whether the journal alone does not suffice.
    needs_blocks: bool,
}

/// Why `target` cannot have the size that `source` has. One that is smaller grows with the stream, or with the blocks.
fn size_conflict(source: &Hello, target: &Hello) -> Option<String> {
    (target.volume_bytes > source.volume_bytes).then(|| {
        format!(
            "the Secondary's copy has {} bytes, the Primary's {}: it was grown, or created larger, apart from the Primary, and \
             no copy shrinks; create it anew with `holdfast create --force`",
            target.volume_bytes, source.volume_bytes
        )
    })
}

/// Why `target` may not follow the reign of `source` though nothing else is against it.
fn promise_conflict(source: &Hello, target: &Hello) -> Option<String> {
    (target.promised > source.record.epoch).then(|| {
        format!(
            "the Secondary has promised epoch {} to another promotion; the Primary's epoch is {}: demote it and \
             promote again, or finish the other promotion",
            target.promised, source.record.epoch
        )
    })
}

/// Where `target` can be continued from by the stream of `source`, or why it cannot. Written from the source's
/// point of view; the words name positions so that they are right on both sides.
fn source_conflict(source: &Hello, target: &Hello) -> Result<Way, Conflict> {
    // A copy that is Inconsistent resumes its resync, wherever its log ends: never catch-up alone.
    let is_incomplete = target.disk_state == DiskState::Inconsistent;
    if !is_incomplete && (target.disk_state != DiskState::UpToDate || target.suspect) {
        return Err(format!(
            "the Secondary's disk is {}{}: replace what failed and start it empty with `holdfast create --force`, or, if \
             the disk is sound, have it written anew with `holdfast invalidate` there",
            target.disk_state,
            if target.suspect { " and suspect" } else { "" }
        )
        .into());
    }
    let common = common_point(source, target)?;
    let too_large = size_conflict(source, target);
    let promised_to_clients = may_be_acknowledged(target, source);
    if promised_to_clients > common {
        let reason = format!(
            "split brain: the histories part after entry {common}, and the Secondary may have acknowledged or applied \
             entries up to {promised_to_clients} that the Primary does not have; both copies are kept as they are"
        );
        return Err(Conflict::Fork(common, reason));
    }
    if let Some(reason) = too_large.or_else(|| promise_conflict(source, target)) {
        return Err(reason.into());
    }
    if target.promised == source.record.epoch
        && target.record.epoch == source.record.epoch
        && target.record.reign != source.record.reign
    {
        let reason = format!(
            "split brain: epoch {} was opened twice, by two promotions; both copies are kept as they are",
            source.record.epoch
        );
        return Err(Conflict::Fork(common, reason));
    }
    let fell_back =
        source.record.in_sync.contains(target.node) && target.head.position.sequence < source.applied;
    if fell_back && !is_incomplete && !target.is_new() {
        return Err(format!(
            "the Secondary returned at entry {}, below entry {} which it had acknowledged as durable: its disk was \
             restored or lies; `holdfast invalidate` there has it written anew",
            target.head.position.sequence, source.applied
        )
        .into());
    }
    Ok(Way { common, needs_blocks: is_incomplete || common < source.tail })
}

/// The last entry of `holder` that a client may have been promised, or that its disk may show, without `other`. While
/// `other` is in the set that `holder` knows, nothing is acknowledged that it does not have, and nothing is applied
/// beyond what is stable. If it was taken out, everything in the log may have been acknowledged.
fn may_be_acknowledged(holder: &Hello, other: &Hello) -> Sequence {
    let was_asked = holder.record.epoch == Epoch(0) || holder.record.in_sync.contains(other.node);
    if was_asked { holder.stable } else { holder.stable.max(holder.head.position.sequence) }
}

/// The last entry that the logs of both hold.
///
/// # Errors
/// Why that cannot be told.
pub fn common_point(source: &Hello, target: &Hello) -> Result<Sequence, String> {
    let (last, other) = (source.head.position.sequence, target.head.position.sequence);
    // An empty log continues every other: it is new, or its data was discarded.
    if last.min(other) == Sequence(0) {
        return Ok(Sequence(0));
    }
    let common = source.history.common_point(last, &target.history, other).ok_or_else(|| {
        String::from("the replicas' epoch histories have nothing in common that is still known; `holdfast invalidate` on the one whose data may go")
    })?;
    if common == last && common == other && source.head.chain != target.head.chain {
        return Err(format!(
            "both logs end at entry {common} but their contents differ: find out why; `holdfast invalidate` on the one whose \
             data may go"
        ));
    }
    Ok(common)
}

/// The point `common` of two logs that share it. The log that goes on there in another reign, or ends there, knows the
/// chain.
#[must_use]
pub fn common_base(mine: &Hello, theirs: &Hello, common: Sequence) -> Option<Base> {
    if common == Sequence(0) {
        return None;
    }
    let known = [mine, theirs].into_iter().find_map(|hello| {
        let next = hello.history.reigns().iter().find(|reign| reign.first == common.next());
        let at_end = (hello.head.position.sequence == common).then_some(hello.head.chain);
        next.map(|reign| reign.chain_before).or(at_end)
    })?;
    Some(Base { position: mine.history.position_of(common), chain: known })
}

fn both_secondary(mine: &Hello, theirs: &Hello) -> Verdict {
    match common_point(mine, theirs) {
        Ok(common)
            if may_be_acknowledged(mine, theirs) > common && may_be_acknowledged(theirs, mine) > common =>
        {
            refuse(format!(
                "split brain: the histories part after entry {common} and both sides went on from there (to {} here, to \
             {} there); both copies are kept as they are",
                mine.stable, theirs.stable
            ))
        }
        Ok(_) => Verdict::Idle,
        Err(reason) => refuse(reason),
    }
}

fn both_primary(mine: &Hello, theirs: &Hello) -> Verdict {
    if mine.record.epoch == theirs.record.epoch {
        let reason = format!(
            "split brain: both nodes are Primary in epoch {}; both copies are kept as they are",
            mine.record.epoch
        );
        return match common_point(mine, theirs) {
            Ok(common) => Verdict::Fork { common, reason },
            Err(_) => refuse(reason),
        };
    }
    let (older, newer) =
        if mine.record.epoch < theirs.record.epoch { (mine, theirs) } else { (theirs, mine) };
    match common_point(newer, older) {
        Ok(common) if may_be_acknowledged(older, newer) <= common => {
            if older.node == mine.node {
                Verdict::StepDown
            } else {
                Verdict::AwaitStepDown
            }
        }
        Ok(common) => {
            let reason = format!(
                "split brain: both nodes are Primary, in epochs {} and {}, and the older one went on alone after entry \
                 {common}; both copies are kept as they are",
                older.record.epoch, newer.record.epoch
            );
            Verdict::Fork { common, reason }
        }
        Err(reason) => refuse(reason),
    }
}
