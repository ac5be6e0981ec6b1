//! Bookmarks at random, in some of the runs, and their checker. It keeps what a disk held when a bookmark was made; a
//! block that is otherwise by now must be in its map. It asks what a backup would ask, and looks at disks.

use replicator_core::bookmarks::BookmarkName;
use replicator_core::event::AdminAction;
use replicator_core::units::Position;

use crate::disk::SECTOR;
use crate::node::Node;
use crate::random::Random;
use crate::rule::broken;
use crate::world::World;

const NAMES: [&str; 2] = ["a", "b"];
const BLOCK: usize = 4096;

/// In how many of 100,000 steps one is made or ended; in none of most runs. Drawn beside the rest of a plan, so that
/// other runs stay as they are.
pub fn draw_chance(seed: u64) -> u64 {
    let mut random = Random::new(seed ^ 0xb00c_3a6c);
    if random.percent(35) { 1 + random.below(2000) } else { 0 }
}

/// A bookmark's name.
pub fn name(text: &str) -> BookmarkName {
    BookmarkName::new(text).expect("it can be a name")
}

/// What the operator asks for now, if for anything: (node, what).
pub fn wish(world: &mut World, chance: u64) -> Option<(usize, AdminAction)> {
    if chance == 0 || world.random.below(100_000) >= chance {
        return None;
    }
    let node = world.random.index(world.nodes.len());
    let name = name(NAMES[world.random.index(NAMES.len())]);
    let action = if world.random.percent(25) {
        AdminAction::DeleteBookmark { name }
    } else {
        AdminAction::AddBookmark { name }
    };
    world.is_up(node).then_some((node, action))
}

/// A bookmark, and what the disk held when it was first seen.
struct Held {
    name: &'static str,
    position: Position,
    disk: Vec<u8>,
}

/// All of them, by node.
pub struct Bookmarks(Vec<Vec<Held>>);

impl Bookmarks {
    pub fn new(nodes: usize) -> Self {
        Self((0..nodes).map(|_| Vec::new()).collect())
    }

    /// Takes note of bookmarks that have come or gone at a node that is up.
    pub fn look(&mut self, index: usize, node: &Node, sectors: usize) {
        let Some(machine) = &node.machine else { return };
        let held = &mut self.0[index];
        let is_there = |name: &str| machine.bookmark(name).map(|bookmark| bookmark.position);
        held.retain(|held| is_there(held.name) == Some(held.position));
        for name in NAMES {
            let Some(position) = is_there(name).filter(|_| !held.iter().any(|held| held.name == name)) else {
                continue;
            };
            let mut disk = vec![0; sectors * SECTOR];
            node.disk.read(0, &mut disk);
            held.push(Held { name, position, disk });
        }
    }

    /// Nothing is expected of a node whose devices lied.
    pub fn forget(&mut self, index: usize) {
        self.0[index].clear();
    }

    /// Compares the disk of a node; says what to count.
    pub fn check(&self, index: usize, node: &Node) -> Vec<&'static str> {
        let Some(machine) = &node.machine else { return Vec::new() };
        let mut marks = Vec::new();
        for held in &self.0[index] {
            let Some(bookmark) = machine.bookmark(held.name) else { continue };
            let mut disk = vec![0; held.disk.len()];
            node.disk.read(0, &mut disk);
            let map = bookmark.map();
            for (block, (before, now)) in held.disk.chunks(BLOCK).zip(disk.chunks(BLOCK)).enumerate() {
                let is_noted = map.word(block as u64 / 64) >> (block % 64) & 1 == 1;
                if before != now && !is_noted {
                    let Held { name, position, .. } = held;
                    broken(
                        "bookmark-lost-a-block",
                        format!(
                            "node {index}: block {block} changed since bookmark {name} at {position}, which does not say so"
                        ),
                    );
                }
            }
            let is_exact = bookmark.everything.is_none();
            marks.push(if is_exact { "bookmark checked" } else { "bookmark counts everything" });
        }
        marks
    }
}
