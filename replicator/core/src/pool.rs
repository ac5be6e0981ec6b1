//! The pool: which pages of the arena are free. It is next-fit over a bitmap, so that buffers freed roughly in
//! the order they were taken cost a few instructions, and one that is held for long blocks nobody else. It
//! never touches the memory itself.

use alloc::vec;
use alloc::vec::Vec;

use crate::units::{Buffer, PAGE_BYTES};

/// Allocator of runs of pages; all its memory is taken at the start.
#[derive(Debug)]
pub struct Pool {
    /// One bit a page, set while the page is in use.
    used: Vec<u64>,
    pages: u32,
    free: u32,
    cursor: u32,
}

impl Pool {
    /// A pool over an arena of `bytes`, a multiple of the page.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        assert!(bytes.is_multiple_of(PAGE_BYTES * 64), "the arena is sized in groups of 64 pages");
        let pages = u32::try_from(bytes / PAGE_BYTES).expect("an arena is far below 16 TiB");
        Self { used: vec![0; pages as usize / 64], pages, free: pages, cursor: 0 }
    }

    /// Pages in use now.
    #[must_use]
    pub fn used_pages(&self) -> u32 {
        self.pages - self.free
    }

    /// Pages there are.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Pages free now (not necessarily in one run).
    #[must_use]
    pub fn free_pages(&self) -> u32 {
        self.free
    }

    /// A run of pages that holds `bytes`, if there is one.
    pub fn take(&mut self, bytes: usize) -> Option<Buffer> {
        let pages = u32::try_from(bytes.div_ceil(PAGE_BYTES)).ok()?;
        assert!(pages > 0, "an empty buffer has no use");
        if pages > self.free {
            return None;
        }
        let page = self.find(self.cursor, self.pages, pages).or_else(|| {
            let end = self.cursor.saturating_add(pages).min(self.pages);
            self.find(0, end, pages)
        })?;
        self.mark(page, pages, true);
        self.cursor = if page + pages == self.pages { 0 } else { page + pages };
        Some(Buffer { page, pages })
    }

    /// Gives a whole buffer back.
    pub fn give(&mut self, buffer: Buffer) {
        self.mark(buffer.page, buffer.pages, false);
    }

    /// Gives back the pages of `buffer` that lie behind its first `bytes`; returns what is left of it.
    pub fn shrink(&mut self, buffer: Buffer, bytes: usize) -> Buffer {
        let keep = u32::try_from(bytes.div_ceil(PAGE_BYTES)).expect("it only shrinks");
        assert!(keep > 0 && keep <= buffer.pages, "a buffer shrinks to a part of itself");
        if keep < buffer.pages {
            self.mark(buffer.page + keep, buffer.pages - keep, false);
            if self.cursor == buffer.page + buffer.pages {
                self.cursor = buffer.page + keep;
            }
        }
        Buffer { page: buffer.page, pages: keep }
    }

    /// The first run of `pages` free pages that lies within `from..to`.
    fn find(&self, from: u32, to: u32, pages: u32) -> Option<u32> {
        let mut start = from;
        let mut at = from;
        while at < to {
            let word = self.used[at as usize / 64] >> (at % 64);
            let rest = 64 - at % 64;
            if word & 1 == 1 {
                at += (!word).trailing_zeros().min(rest);
                start = at;
            } else {
                at += word.trailing_zeros().min(rest);
            }
            if at.min(to).saturating_sub(start) >= pages {
                return Some(start);
            }
        }
        None
    }

    fn mark(&mut self, page: u32, pages: u32, used: bool) {
        assert!(page + pages <= self.pages, "a buffer lies within the pool");
        let mut at = page;
        let end = page + pages;
        while at < end {
            let bits = (64 - at % 64).min(end - at);
            let mask = (u64::MAX >> (64 - bits)) << (at % 64);
            let word = &mut self.used[at as usize / 64];
            if used {
                assert!(*word & mask == 0, "a page is handed out once");
                *word |= mask;
            } else {
                assert!(*word & mask == mask, "a page is given back once");
                *word &= !mask;
            }
            at += bits;
        }
        self.free = if used { self.free - pages } else { self.free + pages };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn takes_gives_and_shrinks() {
        let mut pool = Pool::new(64 * PAGE_BYTES);
        let a = pool.take(PAGE_BYTES * 60).unwrap();
        let a = pool.shrink(a, PAGE_BYTES * 3);
        assert_eq!(pool.used_pages(), 3);
        let b = pool.take(PAGE_BYTES * 61).unwrap();
        assert!(pool.take(1).is_none());
        pool.give(a);
        pool.give(b);
        assert_eq!(pool.free_pages(), 64);
        assert!(pool.take(PAGE_BYTES * 64).is_some());
    }

    #[test]
    #[should_panic(expected = "given back once")]
    fn giving_twice_is_a_bug() {
        let mut pool = Pool::new(64 * PAGE_BYTES);
        let a = pool.take(1).unwrap();
        pool.give(a);
        pool.give(a);
    }

    proptest! {
        #[test]
        fn buffers_never_overlap(sizes in prop::collection::vec((1usize..40, any::<bool>()), 1..200)) {
            let mut pool = Pool::new(256 * PAGE_BYTES);
            let mut held: Vec<Buffer> = Vec::new();
            for (pages, give) in sizes {
                if give && !held.is_empty() {
                    pool.give(held.remove(pages % held.len()));
                } else if let Some(buffer) = pool.take(pages * PAGE_BYTES) {
                    for other in &held {
                        prop_assert!(buffer.page + buffer.pages <= other.page
                            || other.page + other.pages <= buffer.page);
                    }
                    held.push(buffer);
                }
                let used: u32 = held.iter().map(|b| b.pages).sum();
                prop_assert_eq!(pool.used_pages(), used);
            }
        }
    }
}
