//! A branch as a simulated node keeps it: what the loser of a fork held in the blocks that differ.

use std::collections::BTreeMap;

use replicator_core::command::BranchPlan;
use replicator_core::dirty::{BLOCK_BYTES, WORD_BLOCKS};

use crate::disk::SimDisk;

/// A branch.
#[derive(Clone, Debug)]
pub struct Branch {
    pub plan: BranchPlan,
    /// Its blocks, by number.
    pub blocks: BTreeMap<u64, Vec<u8>>,
}

impl Branch {
    /// What `disk` holds now in the blocks of `plan`.
    pub fn of(plan: BranchPlan, disk: &SimDisk) -> Self {
        let mut blocks = BTreeMap::new();
        for word in 0..plan.blocks.words() {
            let bits = plan.blocks.word(word);
            for bit in (0..WORD_BLOCKS).filter(|bit| bits >> bit & 1 == 1) {
                let block = word * WORD_BLOCKS + bit;
                let mut bytes = vec![0; 4096];
                disk.read(block * BLOCK_BYTES, &mut bytes);
                blocks.insert(block, bytes);
            }
        }
        Self { plan, blocks }
    }
}
