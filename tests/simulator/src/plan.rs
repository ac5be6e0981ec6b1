//! What one seed draws before anything happens: sizes, protocols, clocks, and how likely each fault is. Most kinds of
//! fault are absent from most runs, so that each is seen alone and with each other (swarm testing).

use std::collections::{BTreeMap, BTreeSet};

use replicator_core::config::{OnPeerLoss, Protocol};

use crate::random::Random;
use crate::whole::Draw;
use crate::world::{Clock, Setup};
use crate::{bookmarks, delay, growth, scrub};

/// What may go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A process is killed.
    Kill,
    /// A node loses power.
    Power,
    /// All nodes lose power.
    Blackout,
    /// A process is stopped for a while and then goes on.
    Pause,
    /// A link is cut, and both ends hear of it.
    Cut,
    /// Nothing passes one way, and nobody is told.
    OneWay,
    /// Nothing passes either way, and nobody is told.
    Silent,
    /// A connection is reset.
    Reset,
    /// What was sent one way arrives late.
    Delay,
    /// A write fails.
    WriteError,
    /// There is no space for a write.
    NoSpace,
    /// A sync fails, and the kernel forgets what it could not store.
    SyncError,
    /// A read fails.
    ReadError,
    /// Writing the superblock fails.
    SuperblockError,
    /// An I/O takes seconds.
    Hang,
    /// Sectors become unreadable.
    Spoil,
    /// A bit rots in one copy of the superblock.
    SuperblockRot,
    /// A bit rots in the ring.
    RingRot,
    /// Syncs of the journal succeed and do nothing.
    LyingDisk,
    /// An operator puts back an old image of disk and journal.
    OldImage,
    /// A write of the ring lands elsewhere in it.
    Misdirect,
    /// A clock jumps ahead: the machine slept, or was moved.
    ClockJump,
    /// The time of day of a node is set.
    WallStep,
    /// An operator promotes some node.
    Promote,
    /// An operator promotes some node by force.
    Force,
    /// An operator demotes the Primary.
    Demote,
    /// An operator takes a member out of the set.
    Shrink,
    /// An operator stops a node in order.
    Stop,
    /// A node is started with other protocols, or another `on-peer-loss`.
    Reconfigure,
}

impl Fault {
    pub const ALL: [Self; 29] = [
        Self::Kill,
        Self::Power,
        Self::Blackout,
        Self::Pause,
        Self::Cut,
        Self::OneWay,
        Self::Silent,
        Self::Reset,
        Self::Delay,
        Self::WriteError,
        Self::NoSpace,
        Self::SyncError,
        Self::ReadError,
        Self::SuperblockError,
        Self::Hang,
        Self::Spoil,
        Self::SuperblockRot,
        Self::RingRot,
        Self::LyingDisk,
        Self::OldImage,
        Self::Promote,
        Self::Force,
        Self::Demote,
        Self::Shrink,
        Self::Stop,
        Self::Reconfigure,
        Self::Misdirect,
        Self::ClockJump,
        Self::WallStep,
    ];

    /// Those of which a run has some by a draw of their own, so that older seeds stay what they were.
    const DRAWN_APART: [Self; 3] = [Self::Misdirect, Self::ClockJump, Self::WallStep];

    /// Its name on the command line.
    pub fn name(self) -> String {
        let mut name = String::new();
        for letter in format!("{self:?}").chars() {
            if letter.is_uppercase() && !name.is_empty() {
                name.push('-');
            }
            name.push(letter.to_ascii_lowercase());
        }
        name
    }

    /// The device reports an error.
    fn is_error(self) -> bool {
        matches!(
            self,
            Self::WriteError
                | Self::NoSpace
                | Self::SyncError
                | Self::ReadError
                | Self::SuperblockError
                | Self::Spoil
        )
    }

    /// What only an operator without a configuration manager does, or only a person can put right.
    pub(crate) fn is_operators(self) -> bool {
        self.is_error()
            || self.is_lie()
            || matches!(self, Self::Promote | Self::Force | Self::Shrink | Self::Reconfigure)
    }

    /// The device lies, or was tampered with: what it promised is void, that it must be noticed is not.
    fn is_lie(self) -> bool {
        matches!(
            self,
            Self::SuperblockRot | Self::RingRot | Self::LyingDisk | Self::OldImage | Self::Misdirect
        )
    }
}

/// A run before it begins.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub setup: Setup,
    /// Steps of the safety phase.
    pub steps: usize,
    /// In how many of a hundred steps a client asks for something.
    pub client_percent: u64,
    /// How often a fault happens by itself: out of 100,000 steps, or I/Os for those of devices.
    pub chances: BTreeMap<Fault, u64>,
    /// In how many of a thousand rare moments something strikes.
    pub bias_permille: u64,
    pub clocks: Vec<Clock>,
    /// How far the time of day of each node is ahead.
    pub walls_ahead_ms: Vec<u64>,
    /// In how many of 100,000 steps a verify is asked for.
    pub verify_chance: u64,
    /// In how many of 100,000 steps the volume is to grow.
    pub grow_chance: u64,
    /// In how many of 100,000 steps a bookmark is made or ended.
    pub bookmark_chance: u64,
    /// The whole stack decides, and not operators.
    pub whole: Option<Draw>,
    /// All lose power once more at the end.
    pub ends_dark: bool,
    /// Strikes that are left out, counted from the first, to see which of them a failure needs.
    pub left_out: BTreeSet<u64>,
}

impl Plan {
    /// The plan of a seed.
    pub fn draw(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x005e_ed0f_9a17);
        let mut setup = draw_setup(&mut random);
        // Drawn apart, so that runs without a configuration manager stay what they were.
        setup.managed = Random::new(seed ^ 0x001e_a5ed).percent(25);
        setup.sums = draw_sums(seed, setup.nodes);
        setup.delays_ms = delay::draw(seed, setup.nodes);
        let mut clocks = vec![Clock::default(); setup.nodes];
        if random.percent(50) {
            for clock in &mut clocks {
                clock.ahead = random.below(1 << 50);
                clock.drift_permille = i64::try_from(random.below(41)).unwrap() - 20;
            }
        }
        let mut chances = draw_chances(&mut random);
        draw_apart(seed, &mut chances);
        if setup.delays_ms.is_empty() {
            // Nothing goes by the time of day.
            chances.remove(&Fault::WallStep);
        }
        if setup.managed {
            chances.retain(|fault, _| !fault.is_operators());
        }
        let steps = *pick(&mut random, &[400, 1000, 1000, 1500, 3000]);
        Self {
            seed,
            steps,
            client_percent: *pick(&mut random, &[5, 20, 30, 30, 60]),
            chances,
            bias_permille: *pick(&mut random, &[0, 5, 20, 60]),
            clocks,
            walls_ahead_ms: delay::draw_walls(seed, setup.nodes),
            verify_chance: scrub::draw_chance(seed),
            grow_chance: growth::draw_chance(seed),
            bookmark_chance: bookmarks::draw_chance(seed),
            ends_dark: random.percent(30),
            whole: None,
            left_out: BTreeSet::new(),
            setup,
        }
    }

    pub fn chance(&self, fault: Fault) -> u64 {
        self.chances.get(&fault).copied().unwrap_or_default()
    }
}

fn pick<'a, T>(random: &mut Random, from: &'a [T]) -> &'a T {
    &from[random.index(from.len())]
}

fn draw_setup(random: &mut Random) -> Setup {
    let nodes = *pick(random, &[2, 2, 2, 3, 3, 3, 3, 4]);
    let protocols = match random.below(10) {
        0..=5 => Vec::new(),
        6..=7 => vec![Protocol::B; nodes],
        _ => {
            (0..nodes).map(|_| *pick(random, &[Protocol::A, Protocol::B, Protocol::C, Protocol::C])).collect()
        }
    };
    let bulk_percent = if random.percent(12) { 25 } else { 0 };
    let sectors = if bulk_percent > 0 { 4096 } else { *pick(random, &[8, 32, 64, 64, 128, 128, 256, 1024]) };
    // The ring has this size for all of these volumes.
    let ring_bytes: u64 = 16 << 20;
    let maps_bytes = 16 * 4096;
    let near_the_end = ring_bytes * (1 + random.below(3)) - 4096 * random.below(64);
    Setup {
        nodes,
        protocols,
        on_peer_loss: if random.percent(60) { OnPeerLoss::Freeze } else { OnPeerLoss::Continue },
        sectors,
        spare_sectors: sectors / 2 + 8,
        journal_bytes: (1 << 20) + maps_bytes + ring_bytes,
        ring_start: if random.percent(60) { near_the_end } else { 0 },
        bulk_percent,
        arena_bytes: *pick(random, &[8 << 20, 8 << 20, 16 << 20]),
        checkpoint_bytes: *pick(random, &[32 << 10, 256 << 10, 1 << 20]),
        sync_interval_ms: *pick(random, &[1, 10, 10, 100]),
        send_window_bytes: *pick(random, &[64 << 10, 2 << 20]),
        frames_in_flight_max: *pick(random, &[1, 2, 2, 4]),
        ..Setup::default()
    }
}

/// Who keeps checksums of blocks at rest. Drawn apart, so that runs without them stay what they were.
fn draw_sums(seed: u64, nodes: usize) -> Vec<bool> {
    let mut random = Random::new(seed ^ 0x0c5e_ca11);
    match random.below(20) {
        0..=11 => Vec::new(),
        12..=16 => vec![true; nodes],
        _ => (0..nodes).map(|_| random.percent(50)).collect(),
    }
}

fn draw_chances(random: &mut Random) -> BTreeMap<Fault, u64> {
    let (errors, lies) = (random.percent(25), random.percent(12));
    let mut chances = BTreeMap::new();
    for fault in Fault::ALL.into_iter().filter(|fault| !Fault::DRAWN_APART.contains(fault)) {
        if (fault.is_error() && !errors) || (fault.is_lie() && !lies) || !random.percent(40) {
            continue;
        }
        let most = match fault {
            _ if fault.is_error() => 1500,
            _ if fault.is_lie() => 1000,
            Fault::Blackout | Fault::Force | Fault::Stop => 200,
            Fault::Promote | Fault::Shrink | Fault::Hang | Fault::Pause => 300,
            Fault::Delay => 1500,
            _ => 600,
        };
        // As many quiet runs as wild ones.
        let most = most >> random.below(4);
        chances.insert(fault, 1 + random.below(most));
    }
    chances
}

fn draw_apart(seed: u64, chances: &mut BTreeMap<Fault, u64>) {
    let mut random = Random::new(seed ^ 0x000a_9a47);
    for fault in Fault::DRAWN_APART {
        // Where a device lies, most promises are void: not in many runs.
        let (percent, most) = if fault.is_lie() { (4, 1000) } else { (20, 400) };
        if random.percent(percent) {
            chances.insert(fault, 1 + random.below(most));
        }
    }
}
