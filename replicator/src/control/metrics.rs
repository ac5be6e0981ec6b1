//! What a replicator tells monitoring: the figures of `status`, named for Prometheus. Sequences are entries of the log, sizes
//! bytes, times seconds.

use std::sync::Arc;

use super::Volume;
use super::facts::Facts;
use super::json::{PeerReport, ReplicaReport, VolumeReport};
use crate::latency::Latencies;
use crate::metrics::{Family, Page};

/// What a role may be.
const ROLES: [&str; 2] = ["Primary", "Secondary"];
/// What the state of a copy may be.
const DISK_STATES: [&str; 6] = ["Diskless", "Attaching", "Inconsistent", "Outdated", "UpToDate", "Failed"];
/// What the state of a connection may be.
const CONNECTIONS: [&str; 7] =
    ["StandAlone", "Connecting", "Connected", "CatchUp", "SyncSource", "SyncTarget", "Established"];

/// All figures of a node. Waits for each volume.
pub(super) fn text(facts: &Facts, volumes: &[Arc<dyn Volume>]) -> String {
    let mut page = Page::default();
    let (cluster, node) = (facts.cluster_name(), facts.name());
    page.gauge("holdfast_replicator_info", "Which replicator answers; always 1.")
        .add(&[("cluster", cluster), ("node", &node), ("version", env!("CARGO_PKG_VERSION"))], true);
    for volume in volumes {
        let status = volume.status();
        let report = VolumeReport::new(facts, volume.name(), status.as_ref());
        let up = "Whether the replica runs and answers.";
        page.gauge("holdfast_replica_up", up).add(&[("volume", &report.name)], report.replica.is_some());
        if let (Some(replica), Ok(status)) = (&report.replica, &status) {
            Volumes { page: &mut page, volume: &report.name }.tell(replica, &status.latencies);
        }
    }
    page.text()
}

/// The figures of one volume.
struct Volumes<'a> {
    page: &'a mut Page,
    volume: &'a str,
}

impl Volumes<'_> {
    fn tell(&mut self, replica: &ReplicaReport, latencies: &Latencies) {
        self.tell_state(replica);
        self.tell_sizes(replica);
        self.tell_counters(replica);
        self.tell_latencies(latencies);
        for peer in &replica.peers {
            self.tell_peer(replica, peer);
        }
    }

    fn gauge(&mut self, name: &'static str, help: &'static str, value: impl crate::metrics::Figure) {
        self.page.gauge(name, help).add(&[("volume", self.volume)], value);
    }

    fn counter(&mut self, name: &'static str, help: &'static str, value: u64) {
        self.page.counter(name, help).add(&[("volume", self.volume)], value);
    }

    fn state(
        &mut self,
        name: &'static str,
        help: &'static str,
        label: &'static str,
        words: &[&str],
        is: &str,
    ) {
        self.page.gauge(name, help).add_state(&[("volume", self.volume)], label, words, is);
    }

    fn tell_state(&mut self, replica: &ReplicaReport) {
        self.state("holdfast_replica_role", "Role: 1 for what it is.", "role", &ROLES, &replica.role);
        let help = "State of the copy: 1 for what it is.";
        self.state("holdfast_replica_disk_state", help, "state", &DISK_STATES, &replica.disk_state);
        self.gauge("holdfast_replica_serving", "Whether clients are served.", replica.serving);
        self.gauge("holdfast_replica_frozen", "Whether clients' I/O waits.", replica.frozen.is_some());
        self.gauge("holdfast_replica_suspect", "Whether the copy must be verified.", replica.suspect);
        self.gauge("holdfast_replica_disk_full", "Whether the backing disk has no space.", replica.disk_full);
        self.gauge("holdfast_replica_epoch", "Reign of the newest record known.", replica.record.epoch);
        self.gauge("holdfast_replica_promised_epoch", "Highest epoch promised.", replica.promised);
        let help = "Names what clients are attached to.";
        self.gauge("holdfast_replica_export_generation", help, replica.export_generation);
        let help = "Members of the in-sync set in the newest record known.";
        self.gauge("holdfast_replica_members", help, replica.record.in_sync.len() as u64);
        self.gauge("holdfast_replica_nbd_connections", "NBD connections.", replica.nbd_connections);
    }

    fn tell_sizes(&mut self, replica: &ReplicaReport) {
        self.gauge("holdfast_replica_size_bytes", "Size of the volume.", replica.size_bytes);
        self.gauge("holdfast_replica_journal_bytes", "Size of the journal's ring.", replica.ring.bytes);
        let help = "Bytes of the journal's ring in use.";
        self.gauge("holdfast_replica_journal_used_bytes", help, replica.ring.used_bytes);
        self.gauge("holdfast_replica_buffer_bytes", "Memory for requests and frames.", replica.memory.bytes);
        let help = "Memory for requests and frames in use.";
        self.gauge("holdfast_replica_buffer_used_bytes", help, replica.memory.used_bytes);
        let sequence = "Newest entry of the log that has come so far.";
        let head = replica.head.split_once(':').and_then(|(_, sequence)| sequence.parse().ok()).unwrap_or(0);
        let stages: [(&str, u64); 6] = [
            ("head", head),
            ("journaled", replica.journaled),
            ("durable", replica.durable),
            ("committed", replica.committed),
            ("stable", replica.stable),
            ("applied", replica.applied),
        ];
        for (stage, value) in stages {
            let labels = [("volume", self.volume), ("stage", stage)];
            self.page.gauge("holdfast_replica_log_sequence", sequence).add(&labels, value);
        }
    }

    fn tell_counters(&mut self, replica: &ReplicaReport) {
        let counters = &replica.counters;
        self.counter("holdfast_replica_reads_total", "Reads done.", counters.reads);
        self.counter("holdfast_replica_writes_total", "Writes, zeroes and trims done.", counters.writes);
        self.counter("holdfast_replica_flushes_total", "Flushes done.", counters.flushes);
        self.counter("holdfast_replica_read_bytes_total", "Bytes read by clients.", counters.read_bytes);
        self.counter(
            "holdfast_replica_written_bytes_total",
            "Bytes written by clients.",
            counters.written_bytes,
        );
        self.counter("holdfast_replica_frames_total", "Frames closed or received.", counters.frames);
        self.counter("holdfast_replica_journal_syncs_total", "Syncs of the journal.", counters.journal_syncs);
        self.counter("holdfast_replica_disk_writes_total", "Writes to the disk.", counters.disk_writes);
        self.counter("holdfast_replica_checkpoints_total", "Checkpoints taken.", counters.checkpoints);
        let help = "Bytes of blocks sent in resyncs.";
        self.counter("holdfast_replica_resync_bytes_total", help, counters.resync_bytes);
        let help = "Blocks of the disk that could not be read.";
        self.counter("holdfast_replica_unreadable_blocks_total", help, counters.unreadable_blocks);
        let help = "Blocks of the disk that were not what was written there.";
        self.counter("holdfast_replica_rotten_blocks_total", help, counters.rotten_blocks);
        let help = "Blocks written anew with what another replica holds.";
        self.counter("holdfast_replica_mended_blocks_total", help, counters.mended_blocks);
        let help = "Bad superblock copies found and repaired.";
        self.counter("holdfast_replica_superblock_repairs_total", help, replica.superblock_repairs);
        let help = "Bytes of which a verify said that they differ from the primary's.";
        self.gauge("holdfast_replica_differing_bytes", help, replica.found_bytes);
    }

    fn tell_latencies(&mut self, latencies: &Latencies) {
        let kinds = [
            ("holdfast_replica_read_seconds", "How long reads took.", latencies.reads),
            ("holdfast_replica_write_seconds", "How long writes took.", latencies.writes),
            ("holdfast_replica_flush_seconds", "How long flushes took.", latencies.flushes),
        ];
        for (name, help, latency) in kinds {
            self.page.latency(name, help).add_latency(&[("volume", self.volume)], latency);
        }
    }

    fn peer(&mut self, name: &'static str, help: &'static str) -> &mut Family {
        self.page.gauge(name, help)
    }

    fn tell_peer(&mut self, replica: &ReplicaReport, peer: &PeerReport) {
        let labels = [("volume", self.volume), ("peer", peer.node.as_str())];
        let help = "State of the connection to a peer: 1 for what it is.";
        self.peer("holdfast_peer_connection", help).add_state(
            &labels,
            "state",
            &CONNECTIONS,
            &peer.connection,
        );
        self.peer("holdfast_peer_member", "Whether a peer is in the in-sync set.").add(&labels, peer.member);
        let help = "Bytes of the volume that a peer may lack, as far as the journal does not say it.";
        self.peer("holdfast_peer_dirty_bytes", help).add(&labels, peer.dirty_bytes);
        if replica.role == ROLES[0]
            && let Some(lag_bytes) = peer.lag_bytes
        {
            let help = "Bytes of the log that a peer has not in its journal.";
            self.peer("holdfast_peer_lag_bytes", help).add(&labels, lag_bytes);
            let help = "Entries of the log that a peer has not in its journal.";
            let lag = replica.journaled.saturating_sub(peer.ack.journaled);
            self.peer("holdfast_peer_lag_entries", help).add(&labels, lag);
        }
        let Some(resync) = &peer.resync else { return };
        let help = "Bytes that a resync was to bring level when it began.";
        self.peer("holdfast_peer_resync_bytes", help).add(&labels, resync.bytes);
        let help = "Bytes that a resync has still to bring level.";
        self.peer("holdfast_peer_resync_left_bytes", help).add(&labels, resync.left_bytes);
        let help = "Bytes a second of a resync so far.";
        self.peer("holdfast_peer_resync_bytes_per_second", help).add(&labels, resync.rate_bytes);
    }
}
