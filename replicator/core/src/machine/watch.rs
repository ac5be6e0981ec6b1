//! The watch over I/O that does not end: a disk that answers nothing for too long is treated as one that failed. It
//! knows nothing of single operations: of each kind, how many are under way, and when one last ended.
//!
//! A process that was stopped for a while finds answers that nobody has taken yet. So what is late is looked at again and
//! again for a while in which the process surely ran.

use super::Machine;
use crate::command::Command;
use crate::event::{Errno, Event};
use crate::units::Instant;

/// For so long it is looked at again and again.
const DOUBT_MS: u64 = 1000;
/// So often.
const LOOK_MS: u64 = 200;
/// Between looks that are further apart the process was stopped, or may have been.
const GAP_MS: u64 = 500;
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
    /// When one of them ended, or the first began.
    since: Instant,
    /// When it was found late, and when last since then.
    doubted: Option<(Instant, Instant)>,
}

/// I/O under way.
#[derive(Debug)]
pub(super) struct Watch([Kind; KINDS.len()]);

impl Watch {
    pub(super) fn new(now: Instant) -> Self {
        Self([Kind { under_way: 0, since: now, doubted: None }; KINDS.len()])
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
        let kind = &mut self.0[kind];
        if kind.under_way == 0 {
            (kind.since, kind.doubted) = (now, None);
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
        let kind = &mut self.0[kind];
        kind.under_way = kind.under_way.checked_sub(1).expect("it was begun");
        (kind.since, kind.doubted) = (now, None);
    }

    /// When to look next.
    fn due(&self, timeout_ms: u64) -> Option<Instant> {
        let busy = self.0.iter().filter(|kind| kind.under_way > 0);
        let due = |kind: &Kind| match kind.doubted {
            Some((_, last)) => last.plus_ms(LOOK_MS),
            None => kind.since.plus_ms(timeout_ms),
        };
        busy.map(due).min()
    }

    /// The kind of I/O that is late for good.
    fn late(&mut self, timeout_ms: u64, now: Instant) -> Option<&'static str> {
        for (kind, what) in self.0.iter_mut().zip(KINDS) {
            if kind.under_way == 0 || now < kind.since.plus_ms(timeout_ms) {
                continue;
            }
            let first = match kind.doubted {
                Some((first, last)) if now <= last.plus_ms(GAP_MS) => first,
                _ => now,
            };
            if now >= first.plus_ms(DOUBT_MS) {
                return Some(what);
            }
            kind.doubted = Some((first, now));
        }
        None
    }
}

impl Machine {
    /// Fails the copy if its disk or journal answers nothing any more.
    pub(super) fn check_disks(&mut self) {
        let (timeout_ms, now) = (self.config.disk_timeout_ms, self.now);
        if timeout_ms > 0
            && !self.is_failed()
            && let Some(what) = self.watch.late(timeout_ms, now)
        {
            self.fail_device(what, TIMED_OUT);
        }
    }

    pub(super) fn disks_due(&self) -> Option<Instant> {
        let watches = self.config.disk_timeout_ms > 0 && !self.is_failed();
        watches.then(|| self.watch.due(self.config.disk_timeout_ms)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Token;

    fn at(ms: u64) -> Instant {
        Instant(ms * 1_000_000)
    }

    #[test]
    fn what_does_not_answer_is_late_after_a_while_in_which_somebody_looked() {
        let mut watch = Watch::new(at(0));
        assert_eq!(watch.due(1000), None);
        watch.begin(&Command::SyncDisk { token: Token(1) }, at(100));
        assert_eq!(watch.due(1000), Some(at(1100)));
        assert_eq!(watch.late(1000, at(1099)), None);
        // The process was stopped: the answer may be there.
        assert_eq!(watch.late(1000, at(90_000)), None);
        assert_eq!(watch.due(1000), Some(at(90_200)));
        // It was stopped again before the next look.
        assert_eq!(watch.late(1000, at(95_000)), None);
        assert_eq!(watch.late(1000, at(95_400)), None);
        watch.end(&Event::DiskSynced { token: Token(1), result: Ok(()) }, at(95_401));
        assert_eq!((watch.due(1000), watch.late(1000, at(99_000))), (None, None));
        watch.begin(&Command::SyncDisk { token: Token(2) }, at(100_000));
        assert_eq!(watch.late(1000, at(101_000)), None);
        for ms in (101_200..102_000).step_by(200) {
            assert_eq!(watch.late(1000, at(ms)), None);
        }
        assert!(watch.late(1000, at(102_000)).is_some_and(|what| what.contains("syncing the disk")));
    }
}
