//! Which parts of the volume changed since a bookmark, for block status.

use nbd_frontend::Extent;
use replicator_core::dirty::{BLOCK_BYTES, DirtyMap, WORD_BLOCKS};

/// Appends the extents of `offset..offset + length`, in order and without gaps, as far as a reply takes them.
pub(super) fn extents(map: &DirtyMap, offset: u64, length: u64, extents: &mut Vec<Extent>) {
    let end = offset.saturating_add(length);
    let mut at = offset;
    while at < end && extents.len() < nbd_frontend::EXTENTS_MAX {
        let is_changed = is_set(map, at / BLOCK_BYTES);
        let next = run_end(map, at / BLOCK_BYTES, is_changed).saturating_mul(BLOCK_BYTES).min(end);
        extents.push(Extent::change(next - at, is_changed));
        at = next;
    }
}

fn is_set(map: &DirtyMap, block: u64) -> bool {
    map.word(block / WORD_BLOCKS) >> (block % WORD_BLOCKS) & 1 == 1
}

/// The first block behind `block` that is otherwise; beyond the volume there is none that is set.
fn run_end(map: &DirtyMap, block: u64, is_changed: bool) -> u64 {
    let (index, skip) = (block / WORD_BLOCKS, block % WORD_BLOCKS);
    let otherwise = |index| if is_changed { !map.word(index) } else { map.word(index) };
    let place = |index: u64, word: u64| index * WORD_BLOCKS + u64::from(word.trailing_zeros());
    let rest = otherwise(index) >> skip << skip;
    if rest != 0 {
        return place(index, rest);
    }
    let next = if is_changed {
        (index + 1..map.words()).find(|index| otherwise(*index) != 0)
    } else {
        map.next_word(index + 1)
    };
    next.map_or(u64::MAX / BLOCK_BYTES, |index| place(index, otherwise(index)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(map: &DirtyMap, offset: u64, length: u64) -> Vec<Extent> {
        let mut found = Vec::new();
        extents(map, offset, length, &mut found);
        found
    }

    #[test]
    fn runs_of_changed_blocks_alternate_with_the_rest() {
        // 200 blocks, and a part of one.
        let bytes = 200 * BLOCK_BYTES + 512;
        let mut map = DirtyMap::new(bytes, 1 << 16);
        assert_eq!(told(&map, 0, bytes), [Extent::change(bytes, false)]);
        map.set_bytes(3 * BLOCK_BYTES, BLOCK_BYTES);
        map.set_bytes(60 * BLOCK_BYTES, 100 * BLOCK_BYTES);
        let run = |blocks: u64, is_changed| Extent::change(blocks * BLOCK_BYTES, is_changed);
        let all = [run(3, false), run(1, true), run(56, false), run(100, true)];
        let rest = Extent::change(40 * BLOCK_BYTES + 512, false);
        assert_eq!(told(&map, 0, bytes), [&all[..], &[rest]].concat());
        // From within a block to within another one.
        let part = told(&map, 3 * BLOCK_BYTES + 512, BLOCK_BYTES);
        assert_eq!(part, [Extent::change(BLOCK_BYTES - 512, true), Extent::change(512, false)]);
        map.set_all();
        assert_eq!(told(&map, 0, bytes), [Extent::change(bytes, true)]);
    }
}
