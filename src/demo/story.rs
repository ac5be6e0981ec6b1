//! The story of the demonstration, step by step.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::disks;
use super::ledger::{Ledger, RECORD_BYTES, SLOTS};
use super::report::{Narrator, Outcome};
use super::writer::{self, Pace, WRITERS, Writers};
use crate::cli::DemoArgs;
use crate::output::grouped;
use crate::sandbox::cluster::{SandboxCluster, node_replica};
use crate::sandbox::plan::{Plan, VOLUME};
use crate::signals::StopFlag;

const SIZE_BYTES: u64 = 256 << 20;
const JOURNAL_BYTES: u64 = 512 << 20;
const READY_WITHIN: Duration = Duration::from_secs(20);
const PROMOTED_WITHIN: Duration = Duration::from_secs(15);
const LEVEL_WITHIN: Duration = Duration::from_secs(30);
/// The node that begins as primary, and the one that takes over.
const OLD: usize = 0;
const NEW: usize = 1;
const _: () = assert!(((WRITERS * SLOTS as u64) + 1) * RECORD_BYTES as u64 <= SIZE_BYTES);

/// A story under way.
struct Story<'s> {
    narrator: &'s Narrator,
    stop: &'s StopFlag,
    cluster: SandboxCluster,
    ledgers: Vec<Ledger>,
    outcome: Outcome,
}

/// Tells the story from beginning to end.
pub(super) fn tell(arguments: &DemoArgs, stop: &StopFlag, narrator: &Narrator) -> Result<Outcome> {
    narrator.tell("two nodes start, a and b: real processes, real files, TCP between them");
    let plan = Plan {
        nodes: 2,
        protocol: 'C',
        size_bytes: SIZE_BYTES,
        journal_bytes: JOURNAL_BYTES,
        on_peer_loss: "freeze",
        nbd_tcp: false,
        tls: false,
        checksums: None,
    };
    let cluster = SandboxCluster::start(&plan, arguments.dir.as_deref(), arguments.keep, stop)?;
    let outcome = Outcome { protocol: plan.protocol, ..Outcome::default() };
    let ledgers = (0..WRITERS).map(Ledger::new).collect();
    let mut story = Story { narrator, stop, cluster, ledgers, outcome };
    let told = story.run(Duration::from_secs(arguments.seconds));
    let Story { mut cluster, mut outcome, .. } = story;
    outcome.seconds = narrator.elapsed().as_secs_f64();
    if told.is_ok() && !outcome.is_good() {
        cluster.keep();
    }
    let ended = cluster.end();
    told.and(ended).map(|()| outcome)
}

impl Story<'_> {
    fn run(&mut self, writing: Duration) -> Result<()> {
        self.cluster.make_ready(READY_WITHIN)?;
        self.narrator.tell(
            "a is Primary and serves r0 over NBD, b is level; protocol C: acknowledged when in both journals",
        );
        let killed = self.write_and_kill(writing.mul_f64(0.6))?;
        self.fail_over(killed)?;
        self.check_after_failover()?;
        let writers = self.resume();
        let result = self.bring_back(&writers, writing.mul_f64(0.4));
        let (ledgers, written) = writers.stop();
        self.ledgers = ledgers;
        result?;
        written.context("writing to the new primary failed")?;
        self.count();
        self.narrator.tell(&format!(
            "writers stop; {} records acknowledged in all",
            grouped(self.outcome.acknowledged)
        ));
        self.settle()?;
        self.compare()
    }

    fn socket(&self, node: usize) -> PathBuf {
        self.cluster.nodes()[node].replica.nbd_socket.clone()
    }

    /// Writes for a while, kills the primary in the middle of it, and says when.
    fn write_and_kill(&mut self, duration: Duration) -> Result<Instant> {
        self.narrator
            .tell(&format!("{WRITERS} writers append numbered records of 4 KiB to a, flushing now and then"));
        let writers = Writers::start(std::mem::take(&mut self.ledgers), &self.socket(OLD), Pace::Full);
        let end = Instant::now() + duration;
        let mut interrupted = false;
        while Instant::now() < end && !writers.has_failed() && !interrupted {
            self.narrator.progress(format!("{} records acknowledged", grouped(writers.acknowledged())));
            interrupted = self.stop.sleep(Duration::from_millis(50));
        }
        let has_failed = writers.has_failed();
        let killed = Instant::now();
        let kill = self.cluster.node_mut(OLD).kill();
        let (ledgers, broken) = writers.stop();
        self.ledgers = ledgers;
        kill?;
        if interrupted {
            bail!("interrupted");
        }
        if has_failed {
            let error = broken.err().map_or_else(|| anyhow!("a writer ended"), anyhow::Error::from);
            return Err(error.context("writing failed before anything was killed"));
        }
        self.count();
        self.outcome.acknowledged_before_failover = self.outcome.acknowledged;
        let count = grouped(self.outcome.acknowledged);
        let text = format!("kill -9 of a in the middle of it; {count} records are acknowledged");
        self.narrator.tell_at(killed, &text);
        Ok(killed)
    }

    /// Promotes the other node and waits for the first write there.
    fn fail_over(&mut self, killed: Instant) -> Result<()> {
        let give_up = Arc::new(AtomicBool::new(false));
        let (socket, flag) = (self.socket(NEW), Arc::clone(&give_up));
        let probe = std::thread::spawn(move || writer::probe(&socket, &flag).map(|()| Instant::now()));
        let promoted = self.promote(killed + PROMOTED_WITHIN);
        if promoted.is_err() {
            give_up.store(true, Ordering::Relaxed);
        }
        while promoted.is_ok() && !probe.is_finished() {
            if killed.elapsed() > PROMOTED_WITHIN || self.stop.is_set() {
                give_up.store(true, Ordering::Relaxed);
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let served = probe.join().map_err(|_| anyhow!("the probe panicked"))?;
        promoted?;
        let served = served.context("b was promoted and takes no writes")?;
        let failover = served.duration_since(killed);
        self.outcome.failover_ms = u64::try_from(failover.as_millis()).unwrap_or(u64::MAX);
        let failover_ms = self.outcome.failover_ms;
        self.narrator
            .tell(&format!("b is promoted and acknowledges its first write {failover_ms} ms after the kill"));
        Ok(())
    }

    fn promote(&self, deadline: Instant) -> Result<()> {
        let client = self.cluster.nodes()[NEW].client();
        loop {
            // By force, since a cannot be asked: the operator's word that it is down.
            match client.promote(VOLUME, true) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() >= deadline || self.stop.is_set() => {
                    return Err(error).context("b is not promoted");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn check_after_failover(&mut self) -> Result<()> {
        self.narrator.progress("every record is looked for".to_owned());
        let socket = self.socket(NEW);
        let verdict =
            writer::check(&mut self.ledgers, &socket).context("cannot read from the new primary")?;
        self.outcome.lost += verdict.lost;
        self.outcome.corrupt += verdict.corrupt;
        self.narrator.tell(&format!(
            "every slot of the ledger is read back from b: {} lost, {} corrupt",
            verdict.lost, verdict.corrupt
        ));
        Ok(())
    }

    fn resume(&mut self) -> Writers {
        self.narrator.tell("the writers go on, on b alone, at an easy pace");
        Writers::start(std::mem::take(&mut self.ledgers), &self.socket(NEW), Pace::Easy)
    }

    /// Restarts the old primary while writing goes on, and waits until it is level.
    fn bring_back(&mut self, writers: &Writers, writing: Duration) -> Result<()> {
        let end = Instant::now() + writing;
        self.write_until(writers, Instant::now() + writing / 2)?;
        let restarted = Instant::now();
        self.cluster.restart(OLD)?;
        self.narrator
            .tell("a is started again; it cuts off what b never had, and catches up while b goes on");
        self.cluster.wait_for(restarted + LEVEL_WITHIN, "the old primary to catch up", |nodes| {
            let joined = node_replica(&nodes[NEW]).is_some_and(|replica| {
                replica.peers.iter().all(|peer| peer.connection == "Established" && peer.member)
            });
            joined && node_replica(&nodes[OLD]).is_some_and(|replica| replica.disk_state == "UpToDate")
        })?;
        self.outcome.caught_up_ms = u64::try_from(restarted.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.narrator.tell(&format!(
            "a is Secondary, UpToDate and in sync {} ms after its start",
            self.outcome.caught_up_ms
        ));
        self.write_until(writers, end)
    }

    fn write_until(&self, writers: &Writers, end: Instant) -> Result<()> {
        while Instant::now() < end && !writers.has_failed() {
            self.narrator.progress(format!("{} records acknowledged", grouped(writers.acknowledged())));
            if self.stop.sleep(Duration::from_millis(50)) {
                bail!("interrupted");
            }
        }
        Ok(())
    }

    fn count(&mut self) {
        self.outcome.acknowledged = self.ledgers.iter().map(Ledger::acknowledged).sum();
        self.outcome.flushed = self.ledgers.iter().map(Ledger::flushed).sum();
    }

    /// Waits until both replicas have applied the same last entry, then stops both in order.
    fn settle(&mut self) -> Result<()> {
        let deadline = Instant::now() + LEVEL_WITHIN;
        self.cluster.wait_for(deadline, "both replicas to apply the same last entry", |nodes| {
            match (node_replica(&nodes[OLD]), node_replica(&nodes[NEW])) {
                (Some(old), Some(new)) => {
                    old.head == new.head
                        && old.chain == new.chain
                        && old.applied == new.applied
                        && new.applied == new.journaled
                }
                _ => false,
            }
        })?;
        let demoted = self.cluster.nodes()[NEW].client().demote(VOLUME);
        demoted.context("b is not demoted")?;
        let disorderly = self.cluster.stop_nodes()?;
        if !disorderly.is_empty() {
            let logs: String = self.cluster.nodes().iter().map(|node| node.log_tail()).collect();
            bail!("{} did not end in order{logs}", disorderly.join(" and "));
        }
        self.narrator.tell("b is demoted, both nodes stop in order");
        Ok(())
    }

    /// Looks for every record on both disks, and compares the disks byte for byte.
    fn compare(&mut self) -> Result<()> {
        self.narrator.progress("the disks are compared".to_owned());
        let disks: Vec<PathBuf> = self.cluster.nodes().iter().map(|node| node.replica.disk.clone()).collect();
        for disk in &disks {
            let verdict = disks::check(&mut self.ledgers, disk)?;
            self.outcome.lost += verdict.lost;
            self.outcome.corrupt += verdict.corrupt;
        }
        self.outcome.first_difference = disks::first_difference(&disks[OLD], &disks[NEW])?;
        self.outcome.replicas_identical = self.outcome.first_difference.is_none();
        self.outcome.compared_bytes = SIZE_BYTES;
        let verdict = if self.outcome.replicas_identical { "identical" } else { "DIFFERENT" };
        self.narrator
            .tell(&format!("both disks are read: every record is looked for, and they are {verdict}"));
        Ok(())
    }
}
