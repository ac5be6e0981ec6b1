//! The watch over I/O that does not end: a disk that answers nothing for too long is treated as one that failed. It
//! knows nothing of single operations: of each kind, how many are under way, and when one last ended.
//!
//! A process that was stopped for a while finds answers that nobody has taken yet, and a disk that slept beside it. So it
//! counts only time in which it looked: while something is under way it looks several times within the timeout, and
//! a longer gap between two looks counts as a short one.

use super::Machine;
use crate::command::Command;
use crate::event::{Errno, Event};
use crate::units::Instant;

/// Looks within the timeout.
const LOOKS: u64 = 16;
/// Looks' distance that a gap between two looks counts for at most.
const GAP_LOOKS: u64 = 2;
/// What the kernel says of what took too long.
const TIMED_OUT: Errno = Errno(110);

const KINDS: [&str; 7] = [
    "writing the journal, which does not answer,",
    "syncing the journal, which does not answer,",
    "reading the journal, which does not answer,",
    "reading the disk, which does not answer,",
    "writing the disk, which does not answer,",
    "syncing the disk, which does not answer,",
    "writing the superblock to the journal, which does not answer,",
];

#[derive(Clone, Copy, Debug)]
struct Kind {
    under_way: u32,
    /// When one of them ended, or the first began, on the watch's own clock.
    since: Instant,
}

/// I/O under way.
#[derive(Debug)]
pub(super) struct Watch {
    kinds: [Kind; KINDS.len()],
    timeout_ms: u64,
    /// The watch's own clock: it stands still while nobody looks.
    clock: Instant,
    /// When somebody last looked.
    looked: Instant,
}

impl Watch {
    /// A watch with this timeout; 0 for one that waits for ever.
    pub(super) fn new(timeout_ms: u64, now: Instant) -> Self {
        let kinds = [Kind { under_way: 0, since: now }; KINDS.len()];
        Self { kinds, timeout_ms, clock: now, looked: now }
    }

    /// A command is being taken.
    pub(super) fn begin(&mut self, command: &Command, now: Instant) {
        let kind = match command {
            Command::WriteJournal { .. } => 0,
            Command::SyncJournal { .. } => 1,
            Command::ReadJournal { .. } => 2,
            Command::ReadDisk { .. } => 3,
            Command::WriteDisk { .. } | Command::ZeroDisk { .. } => 4,
            Command::SyncDisk { .. } => 5,
            Command::WriteSuperblock { .. } => 6,
            _ => return,
        };
        self.look(now);
        let kind = &mut self.kinds[kind];
        if kind.under_way == 0 {
            kind.since = self.clock;
        }
        kind.under_way += 1;
    }

    /// An I/O has ended.
    pub(super) fn end(&mut self, event: &Event<'_>, now: Instant) {
        let kind = match event {
            Event::JournalWritten { .. } => 0,
            Event::JournalSynced { .. } => 1,
            Event::JournalRead { .. } => 2,
            Event::DiskRead { .. } => 3,
            Event::DiskWritten { .. } => 4,
            Event::DiskSynced { .. } => 5,
            Event::SuperblockWritten { .. } => 6,
            _ => return,
        };
        self.look(now);
        let kind = &mut self.kinds[kind];
        kind.under_way = kind.under_way.checked_sub(1).expect("it was begun");
        kind.since = self.clock;
    }

    fn look(&mut self, now: Instant) {
        let gap = self.looked.plus_ms(GAP_LOOKS * self.timeout_ms / LOOKS).min(now);
        self.clock.0 += gap.0 - self.looked.0;
        self.looked = now;
    }

    /// When to look next.
    fn due(&self) -> Option<Instant> {
        let is_busy = self.timeout_ms > 0 && self.kinds.iter().any(|kind| kind.under_way > 0);
        is_busy.then(|| self.looked.plus_ms(self.timeout_ms / LOOKS))
    }

    /// The kind of I/O that is late for good.
    fn late(&mut self, now: Instant) -> Option<&'static str> {
        if self.timeout_ms == 0 {
            return None;
        }
        self.look(now);
        let is_late = |kind: &Kind| kind.under_way > 0 && self.clock >= kind.since.plus_ms(self.timeout_ms);
        let late = self.kinds.iter().position(is_late)?;
        Some(KINDS[late])
    }
}

impl Machine {
    /// Fails the copy if its disk or journal answers nothing any more.
    pub(super) fn check_disks(&mut self) {
        if !self.is_failed()
            && let Some(what) = self.watch.late(self.now)
        {
            self.fail_device(what, TIMED_OUT);
        }
    }

    pub(super) fn disks_due(&self) -> Option<Instant> {
        if self.is_failed() { None } else { self.watch.due() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Token;

    const SYNC: Command = Command::SyncDisk { token: Token(1) };

    fn at(ms: u64) -> Instant {
        Instant(ms * 1_000_000)
    }

    fn watch() -> Watch {
        let mut watch = Watch::new(1600, at(0));
        watch.begin(&SYNC, at(10_000));
        watch
    }

    #[test]
    fn what_does_not_answer_is_late_when_somebody_has_looked_for_the_timeout() {
        let mut watch = watch();
        for ms in (10_100..11_600).step_by(100) {
            assert_eq!(watch.due(), Some(at(ms)));
            assert_eq!(watch.late(at(ms)), None);
        }
        assert_eq!(watch.late(at(11_599)), None);
        assert!(watch.late(at(11_600)).is_some_and(|what| what.contains("syncing the disk")));
    }

    #[test]
    fn time_in_which_the_process_was_stopped_does_not_count() {
        let mut watch = watch();
        // It sleeps, and the disk with it, again and again; each gap counts for two looks.
        for second in [90, 150, 200, 300, 400, 500, 600] {
            assert_eq!(watch.late(at(second * 1000)), None);
        }
        assert_eq!(watch.late(at(600_199)), None);
        // An answer that waited is taken late, and what begins then has all its time.
        watch.end(&Event::DiskSynced { token: Token(1), result: Ok(()) }, at(600_199));
        assert_eq!((watch.due(), watch.late(at(700_000))), (None, None));
        watch.begin(&SYNC, at(700_000));
        assert_eq!(watch.late(at(700_200)), None);
        assert_eq!(watch.late(at(800_000)), None);
    }

    #[test]
    fn without_a_timeout_nothing_is_late() {
        let mut watch = Watch::new(0, at(0));
        watch.begin(&SYNC, at(1));
        assert_eq!((watch.due(), watch.late(at(1_000_000))), (None, None));
    }
}
