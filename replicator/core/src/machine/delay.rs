//! Delay: a Secondary whose configuration says so applies an entry when it is so old, and no earlier. All of it is in the
//! journal at once and acknowledged as ever; what waits gives up its memory and is read back when its time has come.
//!
//! ```text
//!  ring:  ... applied | waits: not old enough, and within its share of the ring | head
//!                      ^ next
//! ```
//!
//! After a crash it must be known what the disk may show. So the superblock says how far apply may have come (`apply_reach`),
//! a little ahead of it, and apply never passes what is stored there.
//!
//! The delay gives way to everything: to the ring, of which what waits may have a share, so that the Primary never waits
//! for it; to a reign that begins here, to a resync, and to giving up the data here. It says only when, never whether.

use super::Machine;
use super::role::RoleState;
use crate::disk::superblock::DiskState;
use crate::log::Frame;
use crate::status::DelayStatus;
use crate::units::{Instant, Sequence};

/// Eighths of the ring that may wait because of the delay. A freeze may hold half, so that there is room for one.
const SHARE_EIGHTHS: u64 = 3;

/// The stored reach is ahead by this part of the delay, and of the share: so rarely it is written.
const AHEAD: u64 = 32;

/// How far the delay lets apply go. Frames are named by their numbers in the log.
#[derive(Debug, Default)]
pub(super) struct Delay {
    /// The first frame whose time is not set.
    untimed: u64,
    /// The first frame that waits.
    next: u64,
    /// The last frame that was let go went before its time, for want of room.
    gives_way: bool,
}

impl Delay {
    /// The frames from `number` on are cut, and others will have their numbers.
    pub(super) fn cut(&mut self, number: u64) {
        (self.untimed, self.next) = (self.untimed.min(number), self.next.min(number));
    }
}

impl Machine {
    /// Whether the delay counts now.
    pub(super) fn is_delaying(&self) -> bool {
        let is_whole = self.meta.current.disk_state == DiskState::UpToDate && !self.is_resynced();
        // A freeze has a limit of its own.
        let is_free = self.freeze.is_none() && !self.is_draining() && !self.role.is_sequencing();
        self.config.apply_delay_ms > 0 && is_whole && is_free
    }

    /// Lets go whatever is old enough, or finds no room.
    pub(super) fn advance_delay(&mut self) {
        if self.config.apply_delay_ms == 0 {
            // What a delay has left behind counts no longer without it.
            return self.set_reach(None);
        }
        self.set_times();
        if !self.is_delaying() {
            return self.set_reach(None);
        }
        if matches!(self.role, RoleState::Stopping { .. } | RoleState::Stopped) {
            // Nothing more is let go: a disk that is left in order shows one moment.
            return;
        }
        let first = self.delay.next.max(self.log.first_unapplied());
        self.delay.next = self.first_waiting(first, self.now, self.delay_share_bytes());
        // Marks have no time of their own.
        let gone = (first..self.delay.next).rev().filter_map(|number| self.log.frame(number));
        if let Some(frame) = gone.into_iter().find(|frame| frame.entries > 0) {
            self.delay.gives_way = frame.due > self.now;
        }
        self.release_waiting(self.delay.next);
        self.advance_reach();
    }

    /// The first frame from number `first` on that is not old enough at `now`, and finds room in `share` bytes of the ring.
    fn first_waiting(&self, first: u64, now: Instant, share: u64) -> u64 {
        let head = self.log.head.ring_offset.0;
        let waits = |frame: &Frame| frame.due > now && head - frame.ring_offset.0 <= share;
        let goes = |number: &u64| self.log.frame(*number).is_some_and(|frame| !waits(frame));
        (first..).find(|number| !goes(number)).expect("the log ends somewhere")
    }

    /// The last entry before frame `number`, which may be the next one.
    fn last_before(&self, number: u64) -> Sequence {
        self.log.frame(number).map_or(self.log.last(), |frame| Sequence(frame.first.0 - 1))
    }

    /// Has the superblock say that apply may go on, before it does.
    fn advance_reach(&mut self) {
        let goes = self.last_before(self.delay.next);
        if self.meta.current.apply_reach.is_some_and(|reach| goes <= reach) {
            return;
        }
        let (ahead_ms, share) = (self.config.apply_delay_ms / AHEAD, self.delay_share_bytes());
        let then = self.now.plus_ms(ahead_ms);
        let number = self.first_waiting(self.delay.next, then, share - share / AHEAD);
        self.set_reach(Some(self.last_before(number).max(self.apply_end())));
    }

    fn set_reach(&mut self, reach: Option<Sequence>) {
        if self.meta.current.apply_reach != reach {
            self.meta.current.apply_reach = reach;
            self.meta.change();
        }
    }

    /// Sets the time of frames that are new in the log: once, so that a clock that is set later changes nothing. None
    /// waits longer than the delay from now, whatever the clocks say.
    fn set_times(&mut self) {
        let (now, wall_ms, delay_ms) = (self.now, self.wall_ms(), self.config.apply_delay_ms);
        for number in self.delay.untimed.max(self.log.first_unapplied())..self.log.next_number() {
            let frame = self.log.frame_mut(number).expect("a frame stays until it is applied");
            let is_known = frame.closed_ms > 0 && wall_ms > 0;
            let age_ms = if is_known { wall_ms.saturating_sub(frame.closed_ms) } else { 0 };
            // A mark has nothing to wait for.
            frame.due = if frame.entries == 0 { now } else { now.plus_ms(delay_ms.saturating_sub(age_ms)) };
        }
        self.delay.untimed = self.log.next_number();
    }

    /// The last entry that the delay lets be applied, if it counts. What the disk may show a part of does not wait.
    pub(super) fn delay_bound(&self) -> Option<Sequence> {
        let next = self.delay.next.max(self.log.first_unapplied());
        self.is_delaying().then(|| self.last_before(next).max(self.apply_end()))
    }

    /// When the next frame is old enough.
    pub(super) fn delay_due(&self) -> Option<Instant> {
        let is_timed = self.is_delaying() && self.delay.next < self.delay.untimed;
        is_timed.then(|| self.log.frame(self.delay.next).map(|frame| frame.due))?
    }

    fn delay_share_bytes(&self) -> u64 {
        self.log.layout.ring_bytes / 8 * SHARE_EIGHTHS
    }

    pub(super) fn delay_status(&self) -> Option<DelayStatus> {
        if self.config.apply_delay_ms == 0 {
            return None;
        }
        let log = &self.log;
        let oldest = (log.first_unapplied()..).map_while(|number| log.frame(number)).find(|f| f.entries > 0);
        let oldest_ms = oldest.map_or(0, |frame| frame.closed_ms);
        Some(DelayStatus {
            delay_ms: self.config.apply_delay_ms,
            is_delaying: self.is_delaying(),
            applied: log.applied.position,
            applied_ms: (log.applied_ms > 0).then_some(log.applied_ms),
            waiting_entries: log.unapplied_entries() as u64,
            waiting_bytes: log.head.ring_offset.0 - log.applied.ring_offset.0,
            share_bytes: self.delay_share_bytes(),
            lag_ms: (oldest_ms > 0 && self.wall_ms() > 0).then(|| self.wall_ms().saturating_sub(oldest_ms)),
            gives_way: self.delay.gives_way,
        })
    }
}
