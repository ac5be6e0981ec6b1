//! Forks: two logs that parted, each with entries that a client may count on. They are found when the two replicas
//! meet, before anything moves; this is what is known of one, for the operator who must choose.

use super::Machine;
use crate::command::Report;
use crate::disk::superblock::DiskState;
use crate::status::{Branching, ForkSide, ForkStatus};
use crate::units::{NodeId, Sequence};
use crate::wire::message::{Hello, LogEnd};

/// The fork that stands between this replica and a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fork {
    pub(super) status: ForkStatus,
    /// The peer's copy was one that could bring this one level.
    pub(super) is_usable: bool,
    /// The peer knows a later record than this replica.
    pub(super) is_later: bool,
}

/// What lies past `common` in the log that `hello` speaks of.
fn side(hello: &Hello, common: Sequence) -> ForkSide {
    let newest = hello.history.newest();
    let began_here = newest.is_some_and(|reign| reign.first == common.next());
    let head = hello.head.position;
    let LogEnd { head_ms, reign_ms, changed_blocks } = hello.end;
    let has_any = head.sequence > common;
    ForkSide {
        head,
        entries: head.sequence.0.saturating_sub(common.0),
        changed_blocks,
        first_ms: (has_any && began_here && reign_ms > 0).then_some(reign_ms),
        last_ms: (has_any && head_ms > 0).then_some(head_ms),
    }
}

impl Machine {
    /// When this log grew last, and how much its peers may lack.
    pub(super) fn log_end(&self) -> LogEnd {
        let blocks = self.peers.iter().map(|peer| peer.tracker.dirty_blocks()).max();
        let current = &self.meta.current;
        let head_ms = if self.log.head_ms == 0 { current.head_ms } else { self.log.head_ms };
        LogEnd { head_ms, reign_ms: current.reign_ms, changed_blocks: blocks.unwrap_or_default() }
    }

    /// Notes that the log of a peer parted from this one after entry `common`. The operator is told once.
    pub(super) fn note_fork(&mut self, index: usize, mine: &Hello, theirs: &Hello, common: Sequence) {
        let status = ForkStatus {
            common: mine.history.position_of(common),
            here: side(mine, common),
            there: side(theirs, common),
        };
        let is_usable = theirs.disk_state == DiskState::UpToDate && !theirs.suspect;
        let peer = &mut self.peers[index];
        let place = |fork: &Fork| (fork.status.common, fork.status.here.head, fork.status.there.head);
        let is_later = theirs.record.is_later_than(&mine.record);
        let fork = Fork { status, is_usable, is_later };
        let is_news = peer.fork.as_ref().map(place) != Some(place(&fork));
        peer.fork = Some(fork);
        if is_news {
            let node = peer.config.node;
            self.report(Report::Fork { node, fork: status });
        }
    }

    /// The fork that keeps this replica and its peer apart, if one does.
    pub(super) fn fork_with(&self, node: NodeId) -> Option<&Fork> {
        self.peers.iter().find(|peer| peer.config.node == node)?.fork.as_ref()
    }

    /// Whether what is here beyond a common point is being given up, and how far that has come.
    pub(super) fn branching(&self) -> Option<Branching> {
        let resolve = self.resolve.as_ref()?;
        Some(resolve.branching())
    }
}
