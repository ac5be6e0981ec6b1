//! Who waits for memory, in one order for all kinds of clients, so that nobody is overtaken for ever.

use std::collections::VecDeque;

use super::slab::Key;
use crate::frontend::Need;

/// One who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiter {
    /// An NBD connection.
    Client(Key),
    /// A request of the kernel device, by its tag.
    Ublk(u16),
}

/// All of them, by what they need.
pub(crate) struct Waiters {
    queues: [VecDeque<Waiter>; 2],
    /// The one who waits longest for this is being asked.
    asked: Option<Need>,
}

impl Waiters {
    pub(crate) fn new() -> Self {
        Self { queues: [VecDeque::with_capacity(64), VecDeque::with_capacity(64)], asked: None }
    }

    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.queues.iter().all(VecDeque::is_empty)
    }

    /// How many wait for this.
    pub(crate) fn len(&self, need: Need) -> usize {
        self.queues[need as usize].len()
    }

    /// Whether a request that needs memory must wait for others first.
    pub(crate) fn must_queue(&self, need: Need) -> bool {
        self.asked != Some(need) && self.len(need) > 0
    }

    /// Puts one at the end.
    pub(crate) fn push(&mut self, waiter: Waiter, need: Need) {
        self.queues[need as usize].push_back(waiter);
    }

    /// Takes the first one out, whom nobody overtakes until [`Self::asked`].
    pub(crate) fn ask(&mut self, need: Need) -> Option<Waiter> {
        let waiter = self.queues[need as usize].pop_front()?;
        self.asked = Some(need);
        Some(waiter)
    }

    /// The one taken out was asked. If there was no memory for it, it has put itself at the end, and is the first
    /// again.
    pub(crate) fn asked(&mut self, need: Need, still_waits: bool) {
        self.asked = None;
        let queue = &mut self.queues[need as usize];
        if still_waits && let Some(last) = queue.pop_back() {
            queue.push_front(last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_longest_is_asked_first_and_not_overtaken() {
        let mut waiters = Waiters::new();
        assert!(!waiters.must_queue(Need::Read));
        waiters.push(Waiter::Ublk(1), Need::Read);
        waiters.push(Waiter::Ublk(2), Need::Read);
        assert!(waiters.must_queue(Need::Read) && !waiters.must_queue(Need::Write));
        let first = waiters.ask(Need::Read).unwrap();
        assert_eq!(first, Waiter::Ublk(1));
        assert!(!waiters.must_queue(Need::Read), "the one who is asked may take memory");
        waiters.push(first, Need::Read);
        waiters.asked(Need::Read, true);
        assert_eq!(waiters.ask(Need::Read), Some(Waiter::Ublk(1)));
        waiters.asked(Need::Read, false);
        assert_eq!((waiters.len(Need::Read), waiters.is_empty()), (1, false));
    }
}
