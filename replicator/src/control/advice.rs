//! What is wrong with a volume, as seen from one node, and what an operator would type next. A pure function of
//! the report, so that it can be read top down and tested as a table.

use super::facts::Facts;
use super::json::{Advice, AdviceSeverity, PeerReport, ReplicaReport, ResyncReport, VolumeReport};

/// What is wrong with a volume whose replica has answered; the worst first.
pub(super) fn problems(facts: &Facts, report: &VolumeReport) -> Vec<Advice> {
    let Some(replica) = &report.replica else { return Vec::new() };
    let own = facts.name();
    let mut list = Vec::new();
    disk(&report.name, replica, &mut list);
    service(&report.name, &own, replica, &mut list);
    for peer in &replica.peers {
        list.extend(peer_problem(&own, replica, peer));
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

fn disk(volume: &str, replica: &ReplicaReport, list: &mut Vec<Advice>) {
    match replica.disk_state.as_str() {
        "Failed" => list.push(failure(
            "the disk or the journal reported an error; this copy is no longer used".into(),
            Some(format!("look for the device's error in the kernel log (dmesg); serve from another node: holdfast promote {volume} there")),
        )),
        "Inconsistent" if replica.peers.iter().any(|peer| peer.connection == "SyncTarget") => list.push(note(
            "this copy is being brought level; it cannot be served before that is done".into(),
            None,
        )),
        "Inconsistent" => list.push(failure(
            "this copy is a mix of old and new blocks and cannot be served".into(),
            Some("it is brought level by itself once a Primary is connected".into()),
        )),
        "Outdated" => list.push(warning(
            "this copy is behind: others hold acknowledged writes that it lacks".into(),
            Some("it catches up by itself once it is connected to a copy that has them".into()),
        )),
        _ => {}
    }
    if replica.suspect {
        list.push(failure("a failed flush makes this copy doubtful; it must be verified".into(), None));
    }
    if replica.superblock_repairs > 0 {
        let text = format!("{} damaged superblock copies were repaired so far", replica.superblock_repairs);
        list.push(warning(
            text,
            Some("the journal's device may be failing: check it (smartctl, dmesg)".into()),
        ));
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
        let shrink: Vec<String> =
            missing.iter().map(|peer| format!("holdfast shrink {volume} --remove {}", peer.node)).collect();
        let names: Vec<&str> = missing.iter().map(|peer| peer.node.as_str()).collect();
        let cure = (!missing.is_empty())
            .then(|| format!("start {} again, or go on without: {}", names.join(" and "), shrink.join("; ")));
        list.push(failure(format!("I/O waits: {reason}"), cure));
    }
    if is_primary {
        let is_alone = replica.record.in_sync.iter().all(|node| node == own);
        let has_members = replica.peers.iter().any(|peer| peer.protocol != "A");
        if is_alone && has_members {
            let text = "this node serves alone: what is written now is on one disk only".to_owned();
            list.push(warning(text, Some("bring the other replica back; it catches up by itself".into())));
        }
        return;
    }
    let serving = replica.peers.iter().find(|peer| peer.role.as_deref() == Some("Primary"));
    if serving.is_some() {
        return;
    }
    let may_serve =
        replica.record.in_sync.is_empty() || replica.record.in_sync.iter().any(|node| node == own);
    match &replica.record.primary {
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

fn peer_problem(own: &str, replica: &ReplicaReport, peer: &PeerReport) -> Option<Advice> {
    let name = &peer.node;
    let address = peer.address.as_deref().unwrap_or("its address");
    match peer.connection.as_str() {
        "StandAlone" => {
            let reason = peer.reason.as_deref().unwrap_or("no reason given");
            let cure = "an operator must act: see \"StandAlone\" in docs/operating.md".to_owned();
            Some(failure(format!("{name} is refused: {reason}"), Some(cure)))
        }
        "Connecting" => {
            let reason = peer.reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"));
            let cure = format!("is the replicator running on {name}, and {address} reachable from {own}?");
            Some(warning(format!("no connection to {name}{reason}"), Some(cure)))
        }
        "CatchUp" => {
            let behind = replica.journaled.saturating_sub(peer.ack.journaled);
            Some(note(format!("{name} catches up, {behind} entries to go"), None))
        }
        "SyncSource" => {
            let progress = peer.resync.as_ref().map_or_else(String::new, describe);
            Some(note(format!("{name} is brought level by blocks{progress}"), None))
        }
        "Established" if replica.role == "Primary" && !peer.member && peer.protocol != "A" => {
            Some(note(format!("{name} is level and about to join the in-sync set"), None))
        }
        _ => None,
    }
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
