//! The epoch history: where each reign began in this log. Within one epoch there is one writer and so one
//! order; hence two logs can part only where their histories do, and the common point follows from them alone.

use crate::limits::HISTORY_MAX;
use crate::units::{Chain, Epoch, Position, ReignId, Sequence};

/// Where a reign began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reign {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its identity.
    pub reign: ReignId,
    /// Sequence of its first entry, the epoch start.
    pub first: Sequence,
    /// Chain before that entry.
    pub chain_before: Chain,
}

/// The reigns of one log, oldest first; bounded, the oldest are forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History {
    reigns: [Reign; HISTORY_MAX],
    len: usize,
}

impl Default for History {
    fn default() -> Self {
        Self { reigns: [Reign::default(); HISTORY_MAX], len: 0 }
    }
}

impl History {
    /// The reigns, oldest first.
    #[must_use]
    pub fn reigns(&self) -> &[Reign] {
        &self.reigns[..self.len]
    }

    /// The newest reign.
    #[must_use]
    pub fn newest(&self) -> Option<&Reign> {
        self.reigns().last()
    }

    /// Adds the next reign, forgetting the oldest when full.
    ///
    /// # Panics
    /// If it does not come after the newest: an epoch is never opened twice in one log.
    pub fn push(&mut self, reign: Reign) {
        if let Some(newest) = self.newest() {
            assert!(reign.epoch > newest.epoch, "epochs grow along a log");
            assert!(reign.first > newest.first, "each reign begins after the one before");
        }
        if self.len == HISTORY_MAX {
            self.reigns.rotate_left(1);
            self.len -= 1;
        }
        self.reigns[self.len] = reign;
        self.len += 1;
    }

    /// Forgets the reigns that began after `last`, which is now the last entry of the log.
    pub fn truncate(&mut self, last: Sequence) {
        while self.newest().is_some_and(|reign| reign.first > last) {
            self.len -= 1;
            self.reigns[self.len] = Reign::default();
        }
    }

    /// The epoch of the entry `sequence`, as far as the history reaches.
    #[must_use]
    pub fn epoch_of(&self, sequence: Sequence) -> Option<Epoch> {
        self.reigns().iter().rev().find(|reign| reign.first <= sequence).map(|reign| reign.epoch)
    }

    /// The highest sequence up to which this log, ending at `last`, and `other`, ending at `other_last`, hold the
    /// same entries. `None` if the histories do not reach far enough back to tell.
    #[must_use]
    pub fn common_point(&self, last: Sequence, other: &Self, other_last: Sequence) -> Option<Sequence> {
        let shared = self.reigns().iter().rposition(|reign| other.reigns().contains(reign));
        let Some(index) = shared else {
            // Nothing shared: equal only up to the beginning, if both still know theirs.
            return self.begins_first(other).then_some(Sequence(0));
        };
        let reign = self.reigns[index];
        let other_index = other.reigns().iter().position(|r| *r == reign)?;
        let end = end_of(self, index, last);
        let other_end = end_of(other, other_index, other_last);
        Some(end.min(other_end))
    }

    fn begins_first(&self, other: &Self) -> bool {
        let first = |history: &Self| history.reigns().first().is_none_or(|reign| reign.first == Sequence(1));
        first(self) && first(other)
    }

    /// The position of the entry `sequence`; epoch 0 before the first reign.
    #[must_use]
    pub fn position_of(&self, sequence: Sequence) -> Position {
        Position { epoch: self.epoch_of(sequence).unwrap_or_default(), sequence }
    }
}

/// The last sequence of the reign at `index`.
fn end_of(history: &History, index: usize, last: Sequence) -> Sequence {
    history.reigns().get(index + 1).map_or(last, |next| next.first.previous())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reign(epoch: u64, id: u128, first: u64) -> Reign {
        Reign { epoch: Epoch(epoch), reign: ReignId(id), first: Sequence(first), chain_before: Chain(id) }
    }

    fn history(reigns: &[Reign]) -> History {
        let mut history = History::default();
        for reign in reigns {
            history.push(*reign);
        }
        history
    }

    #[test]
    fn logs_part_where_their_histories_do() {
        let (a, b, c) = (reign(1, 7, 1), reign(2, 8, 101), reign(2, 9, 104));
        let old = history(&[a]);
        let new = history(&[a, b]);
        // (this log, its last, the other, its last, common)
        let table = [
            (&old, 90, &old, 100, Some(90)),
            (&old, 110, &new, 150, Some(100)),
            (&new, 150, &old, 110, Some(100)),
            (&new, 150, &new, 120, Some(120)),
            (&history(&[a, c]), 200, &new, 150, Some(100)),
            (&History::default(), 0, &new, 150, Some(0)),
            (&history(&[c]), 200, &new, 150, None),
        ];
        for (index, (this, last, other, other_last, common)) in table.into_iter().enumerate() {
            let found = this.common_point(Sequence(last), other, Sequence(other_last));
            assert_eq!(found, common.map(Sequence), "row {index}");
        }
    }

    #[test]
    fn the_oldest_reign_is_forgotten_when_full() {
        let mut history = History::default();
        for n in 1..=HISTORY_MAX as u64 + 3 {
            history.push(reign(n, u128::from(n), n));
        }
        assert_eq!(history.reigns().len(), HISTORY_MAX);
        assert_eq!(history.reigns()[0].epoch, Epoch(4));
        assert_eq!(history.epoch_of(Sequence(3)), None);
        history.truncate(Sequence(10));
        assert_eq!(history.newest().unwrap().epoch, Epoch(10));
    }
}
