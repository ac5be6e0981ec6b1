//! What is wrong with a volume, as seen from one node, and what an operator would type next. A pure function of
//! the report, so that it can be read top down and tested as a table.

use std::borrow::Borrow;

use super::facts::Facts;
use super::json::{
    Advice, AdviceSeverity, ForkReport, ForkSideReport, PeerReport, ReplicaReport, ResyncReport, VolumeReport,
};
use super::time::format_time;
use crate::config::format_duration_ms;

/// Where to look when somebody else decides.
const MANAGED: &str =
    "the orchestrator sees to it: holdfast cluster status says what it does, and what it waits for";

/// What is wrong with a volume whose replica has answered; the worst first.
pub(super) fn problems(facts: &Facts, report: &VolumeReport) -> Vec<Advice> {
    let Some(replica) = &report.replica else { return Vec::new() };
    let own = facts.name();
    let mut list = Vec::new();
    disk(&report.name, replica, &mut list);
    verified(&report.name, &own, replica, &mut list);
    service(&report.name, &own, replica, &mut list);
    for peer in &replica.peers {
        list.extend(peer_problem(&report.name, &own, replica, peer));
    }
    if let Some(lock) = facts.volume(&report.name).map(|volume| volume.tuning.lock_memory)
        && lock
        && !replica.memory_locked
    {
        let cure = "allow it (LimitMEMLOCK=infinity, CAP_IPC_LOCK), or write lock-memory = false";
        list.push(warning(
            "memory is not locked: under memory pressure I/O may stall".into(),
            Some(cure.into()),
        ));
    }
    list.sort_by_key(|advice| std::cmp::Reverse(advice.severity));
    list
}

/// What is wrong with a volume whose replica does not answer.
pub(super) fn silent(volume: &str, error: &str) -> Advice {
    let cure = format!(
        "read the replicator's log, then restart it; `holdfast inspect {volume}` reads the replica at rest"
    );
    failure(format!("the replica gives no status: {error}"), Some(cure))
}

/// What the last verify says, as long as it says it.
fn verified(volume: &str, own: &str, replica: &ReplicaReport, list: &mut Vec<Advice>) {
    if replica.found_bytes > 0 {
        let blocks = replica.found_bytes / 4096;
        let text = format!("a verify found that {blocks} blocks of this copy differ from the primary's");
        let cure = format!(
            "on the primary: holdfast status {volume} lists them, holdfast verify {volume} --repair writes them anew"
        );
        list.push(failure(text, Some(cure)));
    }
    if replica.counters.unreadable_blocks > 0 {
        let text = format!(
            "the backing disk could not read {} blocks; {} were written anew with what another replica holds",
            replica.counters.unreadable_blocks, replica.counters.mended_blocks
        );
        let cure = "look for its errors (smartctl, dmesg): a disk that begins so often goes on so";
        list.push(warning(text, Some(cure.into())));
    }
    if replica.counters.rotten_blocks > 0 {
        let text = format!(
            "{} blocks of the backing disk did not match their checksums; {} were written anew with what another replica \
             holds",
            replica.counters.rotten_blocks, replica.counters.mended_blocks
        );
        let cure = format!(
            "holdfast scrub {volume} reads all others, too; a disk that returns what was not written is to be replaced"
        );
        list.push(warning(text, Some(cure)));
    }
    if let Some(scrub) = replica.scrub.as_ref().filter(|scrub| !scrub.is_over()) {
        list.push(note(format!("a scrub is under way{}", describe(&scrub.progress)), None));
    }
    let Some(verify) = &replica.verify else { return };
    if !verify.is_over() {
        let what = if verify.phase == "comparing" { describe(&verify.progress) } else { String::new() };
        list.push(note(format!("a verify is {}{what}", verify.phase), None));
        return;
    }
    for peer in verify.peers.iter().filter(|peer| peer.differing_bytes > 0) {
        let (name, blocks) = (&peer.node, peer.differing_bytes / 4096);
        let text = format!("the copies of {own} and {name} differ in {blocks} blocks");
        let proven = peer.differences.iter().filter_map(|run| run.right.as_deref()).next();
        let cure = match proven {
            Some(_) => format!(
                "holdfast verify {volume} --repair: where the journal proves who is right that one counts, elsewhere {own}; \
                 --trust {name} if {name} is the right one"
            ),
            None => format!(
                "nothing proves which one is right. To keep {own}'s: holdfast verify {volume} --repair; to keep \
                 {name}'s, add --trust {name}"
            ),
        };
        list.push(failure(text, Some(cure)));
    }
    if verify.unreadable_bytes > 0 {
        let text = format!("{} bytes can be read neither here nor elsewhere", verify.unreadable_bytes);
        list.push(failure(text, Some("restore them from a backup; writing them makes them readable".into())));
    }
}

fn disk(volume: &str, replica: &ReplicaReport, list: &mut Vec<Advice>) {
    match replica.disk_state.as_str() {
        "Failed" => list.push(failure(
            "the disk or the journal reported an error; this copy is no longer used".into(),
            Some(if replica.managed {
                "look for the device's error in the kernel log (dmesg)".to_owned()
            } else {
                format!("look for the device's error in the kernel log (dmesg); serve from another node: holdfast promote {volume} there")
            }),
        )),
        "Inconsistent" if replica.peers.iter().any(|peer| peer.connection == "SyncTarget") => list.push(note(
            "this copy is being brought level; it cannot be served before that is done".into(),
            None,
        )),
        "Inconsistent" => list.push(failure(
            "this copy is a mix of old and new blocks and cannot be served".into(),
            Some("it is brought level by itself once a Primary is connected".into()),
        )),
        "Outdated" => {
            let refused = names_of(&replica.peers, is_refused);
            let cure = if refused.is_empty() {
                "it catches up by itself once it is connected to a copy that has them".to_owned()
            } else {
                format!("it catches up with a copy that has them; with {refused} it cannot while that one is refused")
            };
            list.push(warning(
                "this copy is behind: others hold acknowledged writes that it lacks".into(),
                Some(cure),
            ));
        }
        _ => {}
    }
    if let Some(branching) = &replica.branching {
        let text = match branching.as_str() {
            "waits-for-primary" => {
                "what this copy has past the common point of a fork is given up; it waits for the other side to serve"
            }
            _ => "a branch of this copy is being kept; then it follows",
        };
        let cure = format!("if the other side does not serve: holdfast promote {volume} there");
        list.push(note(text.to_owned(), (branching == "waits-for-primary").then_some(cure)));
    }
    if let Some(freeze) = &replica.freeze {
        let percent = u128::from(freeze.used_bytes) * 100 / u128::from(freeze.budget_bytes.max(1));
        let since = freeze.since_ms.map_or_else(String::new, |ms| format!(" since {}", format_time(ms)));
        let text = format!(
            "apply is frozen at {}{since}; {percent}% of its share of the journal is used, at 100% it thaws",
            freeze.position
        );
        list.push(note(text, Some(format!("when the backup is done: holdfast thaw {volume}"))));
    }
    if let Some(delay) = replica.delay.as_ref().filter(|delay| delay.gives_way && delay.is_delaying) {
        let held = delay.lag_ms.map_or_else(String::new, |ms| {
            format!(", now those of {}", format_duration_ms(ms / 1000 * 1000))
        });
        let text = format!(
            "the journal is too small for `apply-delay` = {}: {} MiB of it may wait{held}, and what does not fit is applied \
             earlier",
            format_duration_ms(delay.delay_ms),
            delay.share_bytes >> 20
        );
        let cure = "give this replica a larger `journal-size` and create it anew, or lower `apply-delay`";
        list.push(warning(text, Some(cure.to_owned())));
    }
    match replica.staged {
        Some(staged) if staged.is_switched => {
            let items = staged.items_left;
            let text =
                format!("what was gathered in the journal is put in place: {items} items of blocks are left");
            list.push(note(text, None));
        }
        Some(staged) => {
            let (mib, free) = (staged.bytes >> 20, staged.free_bytes >> 20);
            let text = format!(
                "this copy is behind and being brought level: {mib} MiB are gathered in the journal, and {free} MiB \
                 fit besides; until all is there it stays as it was"
            );
            list.push(note(text, None));
        }
        None => {}
    }
    if replica.disk_full {
        let text = "the backing disk has no space left: what is acknowledged waits in the journal".to_owned();
        let cure =
            "free space where it lies (df); it goes on by itself. When the journal is full, too, writes wait";
        list.push(failure(text, Some(cure.into())));
    }
    if replica.suspect {
        list.push(failure("a failed flush makes this copy doubtful; it must be verified".into(), None));
    }
    if replica.superblock_repairs > 0 {
        let text = match replica.superblock_repairs {
            1 => "a damaged copy of the superblock was found and repaired at a start".to_owned(),
            count => format!("damaged copies of the superblock were found and repaired at {count} starts"),
        };
        let cure = "after a power cut that may be; otherwise check the journal's device (smartctl, dmesg)";
        list.push(note(text, Some(cure.into())));
    }
    if replica.ring.bytes > 0 && replica.ring.used_bytes > replica.ring.bytes / 10 * 9 {
        let percent = u128::from(replica.ring.used_bytes) * 100 / u128::from(replica.ring.bytes);
        let cure = "writes wait for the backing disk; a faster disk or a larger journal helps";
        list.push(warning(format!("the journal is {percent}% full"), Some(cure.into())));
    }
}

fn service(volume: &str, own: &str, replica: &ReplicaReport, list: &mut Vec<Advice>) {
    let is_primary = replica.role == "Primary";
    let missing: Vec<&PeerReport> =
        replica.peers.iter().filter(|peer| peer.member && !is_connected(peer)).collect();
    if let Some(reason) = &replica.frozen {
        let cure = if replica.managed { Some(MANAGED.to_owned()) } else { frozen_cure(volume, &missing) };
        list.push(failure(format!("I/O waits: {reason}"), cure));
    }
    if is_primary {
        let is_alone = replica.record.in_sync.iter().all(|node| node == own);
        let others: Vec<&PeerReport> =
            replica.peers.iter().filter(|peer| peer.protocol != "A" && !peer.delayed).collect();
        if is_alone && !others.is_empty() {
            let text = "this node serves alone: what is written now is on one disk only".to_owned();
            list.push(warning(text, Some(alone_cure(&others))));
        }
        return;
    }
    let serving = replica.peers.iter().find(|peer| peer.role.as_deref() == Some("Primary"));
    if serving.is_some() {
        return;
    }
    let refused = names_of(&replica.peers, is_refused);
    if replica.managed {
        // Whom it is to follow it need not find out itself.
        return list
            .push(note("no replica connected to this one is Primary".into(), Some(MANAGED.to_owned())));
    }
    let may_serve =
        replica.record.in_sync.is_empty() || replica.record.in_sync.iter().any(|node| node == own);
    match &replica.record.primary {
        Some(primary) if replica.peers.iter().any(|peer| peer.node == *primary && is_refused(peer)) => {
            let cure = format!(
                "settle why the two do not connect. While {primary} may serve, holdfast promote \
                 {volume} --force here would split the history further"
            );
            list.push(failure(format!("this copy does not follow the primary, {primary}"), Some(cure)));
        }
        Some(primary)
            if primary != own
                && !replica.peers.iter().any(|peer| peer.node == *primary && is_connected(peer)) =>
        {
            let cure = if may_serve {
                format!("if {primary} is surely down: holdfast promote {volume} --force")
            } else {
                let members = replica.record.in_sync.join(" or ");
                format!("this copy may lack acknowledged writes; promote {members} instead")
            };
            list.push(failure(
                format!("the primary, {primary}, is not reachable: nobody is known to serve"),
                Some(cure),
            ));
        }
        _ if !refused.is_empty() => {
            let text = format!("this node does not serve, and it cannot ask {refused} who does");
            let cure = format!(
                "ask there: holdfast status {volume}; promote one side only, and first settle why {refused} is refused"
            );
            list.push(warning(text, Some(cure)));
        }
        _ if replica.peers.iter().all(is_connected) => {
            let cure = format!("on the node that shall serve: holdfast promote {volume}");
            list.push(note("no replica is Primary: nobody serves".into(), Some(cure)));
        }
        _ => {
            let text = "this node does not serve, and not every peer can be asked who does".to_owned();
            let cure =
                format!("ask there: holdfast status {volume}; if nobody serves: holdfast promote {volume}");
            list.push(warning(text, Some(cure)));
        }
    }
}

/// What lets a primary go on that waits for `missing` members.
fn frozen_cure(volume: &str, missing: &[&PeerReport]) -> Option<String> {
    if missing.is_empty() {
        return None;
    }
    let (away, refused) = (names_of(missing, is_away), names_of(missing, is_refused));
    let shrink: Vec<String> =
        missing.iter().map(|peer| format!("holdfast shrink {volume} --remove {}", peer.node)).collect();
    let mut steps = Vec::new();
    if !refused.is_empty() {
        steps.push(format!("settle why {refused} is refused (starting it again does not help)"));
    }
    if !away.is_empty() {
        steps.push(format!("start {away} again"));
    }
    Some(format!("{}, or go on without: {}", steps.join(" and "), shrink.join("; ")))
}

/// What gives a primary that serves alone its company back.
fn alone_cure(others: &[&PeerReport]) -> String {
    let mut steps = Vec::new();
    let (away, refused) = (names_of(others, is_away), names_of(others, is_refused));
    let coming = names_of(others, is_connected);
    if !refused.is_empty() {
        steps.push(format!("{refused} is refused and does not come back by itself"));
    }
    if !away.is_empty() {
        steps.push(format!("start {away} again, then it catches up by itself"));
    }
    if !coming.is_empty() {
        steps.push(format!("{coming} is connected and joins by itself once it is level"));
    }
    steps.join("; ")
}

/// What two replicas that refuse each other need, as far as the advice differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// Both hold acknowledged writes that the other lacks.
    SplitBrain,
    /// An unfinished promotion stands between them.
    Promotion,
    /// One of the two copies is of no use as it is.
    Doubt,
    /// They are no replicas of one volume, or not two.
    Identity,
}

impl Refusal {
    /// Told by the words of the core's verdict.
    fn of(reason: &str) -> Self {
        let has = |words: &[&str]| words.iter().any(|word| reason.contains(word));
        if has(&["split brain"]) {
            Self::SplitBrain
        } else if has(&["another promotion"]) {
            Self::Promotion
        } else if has(&["holdfast invalidate"]) {
            Self::Doubt
        } else {
            Self::Identity
        }
    }

    fn cure(self, volume: &str, own: &str, peer: &str) -> String {
        match self {
            Self::SplitBrain => format!(
                "neither a restart nor a promotion heals it. Decide whose writes count, {own}'s or {peer}'s, save what \
                 you need from the other, then holdfast invalidate {volume} --discard-my-data there: \"StandAlone\" in \
                 docs/operating.md"
            ),
            Self::Promotion => {
                format!(
                    "finish or repeat the promotion: holdfast promote {volume} on the node that shall serve"
                )
            }
            Self::Doubt => format!(
                "serve from the copy that is sound, and have the other one written anew: holdfast invalidate {volume} \
                 --discard-my-data there, or a new disk: \"StandAlone\" in docs/operating.md"
            ),
            Self::Identity => format!(
                "compare the configurations of {own} and {peer}, and that no disk was copied: holdfast inspect {volume}; \
                 \"StandAlone\" in docs/operating.md"
            ),
        }
    }
}

fn peer_problem(volume: &str, own: &str, replica: &ReplicaReport, peer: &PeerReport) -> Option<Advice> {
    let name = &peer.node;
    let address = peer.address.as_deref().unwrap_or("its address");
    match peer.connection.as_str() {
        "StandAlone" => {
            let reason = peer.reason.as_deref().unwrap_or("no reason given");
            if let Some(fork) = &peer.fork {
                return Some(fork_problem(volume, own, replica, name, fork));
            }
            let text = format!("{own} and {name} do not connect: {reason}");
            Some(failure(text, Some(Refusal::of(reason).cure(volume, own, name))))
        }
        "Connecting" => {
            let reason = peer.reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"));
            let cure = format!("is the replicator running on {name}, and {address} reachable from {own}?");
            Some(warning(format!("no connection to {name}{reason}"), Some(cure)))
        }
        "CatchUp" => {
            let behind = replica.journaled.saturating_sub(peer.ack.journaled);
            let entries = if behind == 1 { "entry" } else { "entries" };
            Some(note(format!("{name} catches up, {behind} {entries} to go"), None))
        }
        "SyncSource" => {
            let progress = peer.resync.as_ref().map_or_else(String::new, describe);
            let how = match peer.resync {
                Some(ResyncReport { is_staged: true, .. }) => {
                    ", and stays consistent as it was until it has all"
                }
                _ => "",
            };
            Some(note(format!("{name} is brought level by blocks{progress}{how}"), None))
        }
        "Established"
            if replica.role == "Primary" && !peer.member && peer.protocol != "A" && !peer.delayed =>
        {
            Some(note(format!("{name} is level and about to join the in-sync set"), None))
        }
        _ => None,
    }
}

/// Two sides that each have what the other lacks: what is past the common point, and what to type.
fn fork_problem(volume: &str, own: &str, replica: &ReplicaReport, peer: &str, fork: &ForkReport) -> Advice {
    let side = |name: &str, side: &ForkSideReport| {
        let entries = if side.entries == 1 { "entry" } else { "entries" };
        let times = match (side.first_ms, side.last_ms) {
            (Some(first), Some(last)) => format!(", from {} to {}", format_time(first), format_time(last)),
            (None, Some(last)) => format!(", the last at {}", format_time(last)),
            _ => String::new(),
        };
        let kib = side.changed_bytes / 1024;
        format!("{name} has {} {entries} past it, to {}, {kib} KiB changed{times}", side.entries, side.head)
    };
    let text = format!(
        "split brain: {own} and {peer} do not connect, since their logs part after entry {}. {}; {}. Nothing is \
         overwritten until you choose",
        fork.common,
        side(own, &fork.here),
        side(peer, &fork.there)
    );
    let mut cure = format!(
        "neither a restart nor a promotion heals it. Decide whose writes count; on either node: holdfast resolve \
         {volume} --discard {peer} to give up what {peer} has past {}, or --discard {own}. It is kept as a branch: \
         \"Come back from a fork\" in docs/operating.md",
        fork.common
    );
    if let Some(failed) = &replica.branch_failure {
        cure = format!("the last attempt failed: {failed}. {cure}");
    }
    if replica.discards_of.as_deref() == Some(peer) {
        cure = format!("{peer} has been asked to yield and will hear of it when it connects next");
    }
    failure(text, Some(cure))
}

/// The names of the peers that are `so`, as a sentence has them.
fn names_of<P: Borrow<PeerReport>>(peers: &[P], so: fn(&PeerReport) -> bool) -> String {
    let peers = peers.iter().map(Borrow::borrow).filter(|peer| so(peer));
    peers.map(|peer| peer.node.as_str()).collect::<Vec<_>>().join(" and ")
}

fn is_refused(peer: &PeerReport) -> bool {
    peer.connection == "StandAlone"
}

fn is_away(peer: &PeerReport) -> bool {
    !is_refused(peer) && !is_connected(peer)
}

fn is_connected(peer: &PeerReport) -> bool {
    matches!(peer.connection.as_str(), "Connected" | "CatchUp" | "SyncSource" | "SyncTarget" | "Established")
}

fn describe(progress: &ResyncReport) -> String {
    const MIB: u64 = 1 << 20;
    let done = progress.bytes.saturating_sub(progress.left_bytes);
    let percent = u128::from(done) * 100 / u128::from(progress.bytes.max(1));
    let left = progress.left_seconds.map_or_else(String::new, |seconds| format!(", about {seconds} s left"));
    format!(": {percent}% of {} MiB, {} MiB/s{left}", progress.bytes.div_ceil(MIB), progress.rate_bytes / MIB)
}

fn failure(text: String, cure: Option<String>) -> Advice {
    Advice { severity: AdviceSeverity::Error, text, cure }
}

fn warning(text: String, cure: Option<String>) -> Advice {
    Advice { severity: AdviceSeverity::Warning, text, cure }
}

fn note(text: String, cure: Option<String>) -> Advice {
    Advice { severity: AdviceSeverity::Note, text, cure }
}
