//! `holdfast inspect`: a replica at rest, for people and as JSON.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use replicator::config::{WithSecret, format_uuid};
use replicator::inspect::{FramesEnd, InspectedFrame, Inspection, inspect};
use replicator_core::disk::superblock::{LogPoint, Superblock};
use replicator_core::frame::Entry;
use replicator_core::units::NodeId;
use serde_json::{Value, json};

use crate::cli::{AtRestArgs, InspectArgs};
use crate::output::{self, counted, human_bytes};
use crate::target;

/// What to look at, and how nodes are called.
pub(crate) struct Subject {
    pub(crate) journal: PathBuf,
    pub(crate) disk: Option<PathBuf>,
    names: Vec<(NodeId, String)>,
}

impl Subject {
    pub(crate) fn find(arguments: &AtRestArgs) -> Result<Self> {
        if let Some(journal) = &arguments.journal {
            return Ok(Self { journal: journal.clone(), disk: arguments.disk.clone(), names: Vec::new() });
        }
        let (Some(config), Some(volume)) = (&arguments.config, &arguments.volume) else {
            bail!("say which replica: a volume with --config FILE, or --journal PATH");
        };
        let cluster = target::load(config, WithSecret::No)?;
        let node = target::find(&cluster, arguments.node.as_deref())?;
        let volume = cluster.volume(volume)?;
        let Some(replica) = volume.replicas.iter().find(|replica| replica.node == node.id) else {
            bail!("volume {} has no replica on node {}", volume.name, node.name);
        };
        let names = cluster.nodes.iter().map(|node| (node.id, node.name.clone())).collect();
        Ok(Self { journal: replica.journal.clone(), disk: Some(replica.disk.clone()), names })
    }

    fn name(&self, node: NodeId) -> String {
        let found = self.names.iter().find(|(id, _)| *id == node);
        found.map_or_else(|| format!("node {}", node.0), |(_, name)| name.clone())
    }
}

/// Reads the replica and prints what was found.
pub(crate) fn run(arguments: &InspectArgs) -> Result<()> {
    let subject = Subject::find(&arguments.replica)?;
    let inspection = inspect(&subject.journal, arguments.frames)?;
    let disk = subject.disk.as_deref().map(|disk| Disk::judge(disk, inspection.superblock())).transpose()?;
    let verdict = disk.as_ref().map(|disk| disk.verdict.as_str());
    let mut damage = inspection.damage();
    damage
        .extend(disk.as_ref().filter(|disk| !disk.is_sound).map(|disk| format!("the disk {}", disk.verdict)));
    if arguments.json {
        let value = to_json(&subject, &inspection, verdict, &damage, arguments.entries);
        output::print_json(&value, true)?;
    } else {
        output::print(&to_text(&subject, &inspection, verdict, arguments.entries))?;
    }
    if damage.is_empty() {
        return Ok(());
    }
    Err(Damaged { journal: subject.journal, damage: damage.join("; ") }.into())
}

/// The replica was read, and is damaged: an ending of its own, so that a script can tell it from a failure to read.
#[derive(Debug)]
pub(crate) struct Damaged {
    journal: PathBuf,
    damage: String,
}

impl std::error::Error for Damaged {}

impl std::fmt::Display for Damaged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.journal.display(), self.damage)
    }
}

/// A backing disk beside the journal that says what it should be.
pub(crate) struct Disk {
    /// A sentence without its subject.
    pub(crate) verdict: String,
    /// Whether a start would take it.
    pub(crate) is_sound: bool,
    /// Whether it is a file that is as long as the device that the journal belongs to: perhaps its image.
    pub(crate) may_be_image: bool,
}

impl Disk {
    pub(crate) fn judge(path: &Path, superblock: Option<&Superblock>) -> Result<Self> {
        let cannot = || format!("cannot look at the disk {}", path.display());
        let metadata = std::fs::metadata(path).with_context(cannot)?;
        let Some(superblock) = superblock else {
            let verdict = "cannot be told without a superblock".to_owned();
            return Ok(Self { verdict, is_sound: true, may_be_image: false });
        };
        let fingerprint = if metadata.is_file() { metadata.ino() } else { 0 };
        let bytes = File::open(path).and_then(|mut disk| disk.seek(SeekFrom::End(0))).with_context(cannot)?;
        let (of_journal, wanted) = (superblock.disk_fingerprint, superblock.volume_bytes);
        let problem = if fingerprint != of_journal {
            Some(format!(
                "is NOT the one this journal belongs to (inode {fingerprint}, the journal says {of_journal})"
            ))
        } else if bytes < wanted {
            Some(format!("is too short: {bytes} bytes, the volume has {wanted}"))
        } else {
            None
        };
        let is_sound = problem.is_none();
        Ok(Self {
            verdict: problem.unwrap_or_else(|| "is the one this journal belongs to".to_owned()),
            is_sound,
            may_be_image: metadata.is_file() && of_journal == 0 && bytes >= wanted,
        })
    }
}

fn to_text(subject: &Subject, inspection: &Inspection, disk: Option<&str>, entries: bool) -> String {
    let mut out =
        format!("journal {}, {}\n", inspection.journal.display(), human_bytes(inspection.journal_bytes));
    if inspection.in_use {
        out.push_str("  in use by a running process: what is shown here may be torn\n");
    }
    if let (Some(disk), Some(verdict)) = (&subject.disk, disk) {
        let _ = writeln!(out, "disk {} {verdict}", disk.display());
    }
    for (index, copy) in inspection.copies.iter().enumerate() {
        let verdict = match copy {
            Ok(superblock) if inspection.current == Some(index) => {
                format!("sound, sequence {}, this one counts", superblock.sequence)
            }
            Ok(superblock) => format!("sound, sequence {}", superblock.sequence),
            Err(error) => error.to_string(),
        };
        let _ = writeln!(out, "superblock copy {index}: {verdict}");
    }
    if let Some(superblock) = inspection.superblock() {
        superblock_text(subject, superblock, &mut out);
    }
    if let Some(Ok(layout)) = &inspection.layout {
        let _ = writeln!(out, "ring: {} at byte {}", human_bytes(layout.ring_bytes), layout.ring_at);
    }
    ring_text(inspection, &mut out);
    if entries {
        inspection.frames.iter().for_each(|frame| frame_text(frame, &mut out));
    }
    out
}

fn superblock_text(subject: &Subject, superblock: &Superblock, out: &mut String) {
    let record = &superblock.record;
    let in_sync: Vec<String> = record.in_sync.iter().map(|node| subject.name(node)).collect();
    let primary = record.primary.map_or_else(|| "nobody".to_owned(), |node| subject.name(node));
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "  {name:<18}{value}");
    };
    line("volume", format_uuid(superblock.volume.0));
    line("replica", format!("{:032x} on {}", superblock.replica, subject.name(superblock.node)));
    line("size", format!("{} bytes in blocks of {}", superblock.volume_bytes, superblock.block_bytes));
    line(
        "disk state",
        format!("{}{}", superblock.disk_state, if superblock.suspect { ", suspect" } else { "" }),
    );
    line("stopped", if superblock.clean { "in order" } else { "not in order, or still running" }.to_owned());
    line("record", format!("epoch {}, version {}, primary {primary}", record.epoch, record.version));
    line("in sync", if in_sync.is_empty() { "nobody yet".to_owned() } else { in_sync.join(", ") });
    line("promised epoch", superblock.promised.to_string());
    line("tail", point(&superblock.tail));
    line("applied through", point(&superblock.applied_through));
    line("stable, durable", format!("{}, {}", superblock.stable, superblock.durable));
    if superblock.cut.count > 0 {
        line(
            "cuts",
            format!("{}, the newest from sequence {} on", superblock.cut.count, superblock.cut.first),
        );
    }
    if superblock.repairs > 0 {
        line(
            "repairs",
            counted(superblock.repairs, "unreadable superblock copy", "unreadable superblock copies"),
        );
    }
    for reign in superblock.history.reigns() {
        line("reign", format!("epoch {} from sequence {}, {:032x}", reign.epoch, reign.first, reign.reign.0));
    }
}

fn point(point: &LogPoint) -> String {
    format!("{}, ring offset {}, chain {}", point.position, point.ring_offset.0, point.chain)
}

fn ring_text(inspection: &Inspection, out: &mut String) {
    let entries: usize = inspection.frames.iter().map(|frame| frame.entries.len()).sum();
    let bytes: u64 = inspection.frames.iter().map(|frame| u64::from(frame.header.total_bytes)).sum();
    let damaged =
        inspection.frames.iter().filter(|frame| frame.payloads.is_err() || frame.local.is_err()).count();
    let _ = writeln!(
        out,
        "log: {} with {}, {}",
        counted(inspection.frames.len() as u64, "frame", "frames"),
        counted(entries as u64, "entry", "entries"),
        human_bytes(bytes)
    );
    if damaged > 0 {
        let _ = writeln!(out, "  damaged: {}", counted(damaged as u64, "frame", "frames"));
    }
    let _ = writeln!(out, "  ends: {}", end(&inspection.end));
}

fn end(end: &FramesEnd) -> String {
    match end {
        FramesEnd::NoSuperblock => "nothing was read, there is no sound superblock".to_owned(),
        FramesEnd::Limit => "as many frames as were asked for; there may be more".to_owned(),
        FramesEnd::NoFrame { ring_offset, error } => format!("at ring offset {}: {error}", ring_offset.0),
        FramesEnd::Cut { ring_offset } => {
            format!("at ring offset {}: a frame that was cut off, not part of this log", ring_offset.0)
        }
        FramesEnd::Stale { ring_offset } => {
            format!("at ring offset {}: an older frame, not part of this log", ring_offset.0)
        }
        FramesEnd::Unreadable { ring_offset, error } => {
            format!("at ring offset {}: the device cannot be read: {error}", ring_offset.0)
        }
    }
}

fn frame_text(frame: &InspectedFrame, out: &mut String) {
    let header = &frame.header;
    let _ = writeln!(
        out,
        "frame at {}: epoch {}, sequence {}, {}, {} bytes, committed {}, stable {}{}",
        frame.ring_offset.0,
        header.epoch,
        header.first,
        counted(u64::from(header.entries), "entry", "entries"),
        header.total_bytes,
        header.committed,
        header.stable,
        if let Err(error) = &frame.payloads { format!(", DAMAGED: {error}") } else { String::new() }
    );
    for (index, entry) in frame.entries.iter().enumerate() {
        let sequence = header.first.plus(index as u64);
        let fua = if entry.fua { " FUA" } else { "" };
        let range =
            if entry.has_range() { format!(" {}+{}", entry.offset, entry.length) } else { String::new() };
        let _ = writeln!(out, "  {sequence} {:?}{range}{fua}", entry.kind);
    }
}

fn to_json(
    subject: &Subject,
    inspection: &Inspection,
    disk: Option<&str>,
    damage: &[String],
    entries: bool,
) -> Value {
    let copy = |copy: &Result<Superblock, _>| match copy {
        Ok(superblock) => superblock_json(subject, superblock),
        Err(error) => json!({ "error": format!("{error}") }),
    };
    let layout = match &inspection.layout {
        Some(Ok(layout)) => {
            json!({ "ring_at": layout.ring_at, "ring_bytes": layout.ring_bytes, "maps_bytes": layout.maps_bytes })
        }
        Some(Err(error)) => json!({ "error": error.to_string() }),
        None => Value::Null,
    };
    let count: usize = inspection.frames.iter().map(|frame| frame.entries.len()).sum();
    let mut value = json!({
        "journal": inspection.journal.display().to_string(),
        "journal_bytes": inspection.journal_bytes,
        "in_use": inspection.in_use,
        "disk": subject.disk.as_ref().map(|disk| disk.display().to_string()),
        "disk_verdict": disk,
        "copies": inspection.copies.iter().map(copy).collect::<Vec<_>>(),
        "current": inspection.current,
        "layout": layout,
        "frames": inspection.frames.len(),
        "entries": count,
        "end": end(&inspection.end),
        "damage": damage,
    });
    if entries {
        value["log"] = inspection.frames.iter().map(frame_json).collect();
    }
    value
}

fn superblock_json(subject: &Subject, superblock: &Superblock) -> Value {
    let record = &superblock.record;
    let point = |point: &LogPoint| json!({ "position": point.position.to_string(), "ring_offset": point.ring_offset.0, "chain": point.chain.to_string() });
    let reigns = superblock.history.reigns().iter().map(|reign| {
        json!({
            "epoch": reign.epoch.0, "first": reign.first.0,
            "reign": format!("{:032x}", reign.reign.0), "chain_before": reign.chain_before.to_string(),
        })
    });
    json!({
        "sequence": superblock.sequence,
        "volume": format_uuid(superblock.volume.0),
        "incarnation": superblock.incarnation.0,
        "node": subject.name(superblock.node),
        "replica": format!("{:032x}", superblock.replica),
        "size_bytes": superblock.volume_bytes,
        "block_bytes": superblock.block_bytes,
        "journal_bytes": superblock.journal_bytes,
        "disk_state": superblock.disk_state.to_string(),
        "suspect": superblock.suspect,
        "clean": superblock.clean,
        "proven": superblock.proven,
        "promised": superblock.promised.0,
        "record": {
            "epoch": record.epoch.0, "version": record.version,
            "primary": record.primary.map(|node| subject.name(node)),
            "in_sync": record.in_sync.iter().map(|node| subject.name(node)).collect::<Vec<_>>(),
            "reign": format!("{:032x}", record.reign.0),
        },
        "cut": { "count": superblock.cut.count, "first": superblock.cut.first.0 },
        "tail": point(&superblock.tail),
        "applied_through": point(&superblock.applied_through),
        "stable": superblock.stable.0,
        "durable": superblock.durable.0,
        "export_generation": superblock.export_generation,
        "repairs": superblock.repairs,
        "history": reigns.collect::<Vec<_>>(),
    })
}

fn frame_json(frame: &InspectedFrame) -> Value {
    let header = &frame.header;
    let entry = |(index, entry): (usize, &Entry)| {
        json!({
            "sequence": header.first.plus(index as u64).0, "kind": format!("{:?}", entry.kind),
            "offset": entry.offset, "length": entry.length, "fua": entry.fua,
        })
    };
    json!({
        "ring_offset": frame.ring_offset.0,
        "epoch": header.epoch.0,
        "first": header.first.0,
        "bytes": header.total_bytes,
        "committed": header.committed.0,
        "stable": header.stable.0,
        "damage": frame.payloads.as_ref().err().map(ToString::to_string),
        "entries": frame.entries.iter().enumerate().map(entry).collect::<Vec<_>>(),
    })
}
