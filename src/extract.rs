//! `holdfast extract`: what a volume holds, off a replica at rest, to standard output.

use std::io::{self, IsTerminal, Write};

use anyhow::{Result, bail};
use replicator::content::Content;
use replicator_core::disk::superblock::DiskState;

use crate::cli::ExtractArgs;
use crate::inspect::{Disk, Subject};
use crate::output::say;

/// Bytes read at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// Writes the range that is asked for.
pub(crate) fn run(arguments: &ExtractArgs) -> Result<()> {
    let subject = Subject::find(&arguments.replica)?;
    let Some(disk) = &subject.disk else { bail!("say which disk belongs to the journal: --disk PATH") };
    if io::stdout().is_terminal() {
        bail!("a volume is nothing for a terminal: send the output to a file or a program");
    }
    let content = Content::open(&subject.journal, disk)?;
    let judged = Disk::judge(disk, Some(content.superblock()))?;
    // Nothing is written, so images of devices will do.
    if !judged.is_sound && !judged.may_be_image {
        bail!("the disk {} {}", disk.display(), judged.verdict);
    }
    let state = content.superblock().disk_state;
    if state != DiskState::UpToDate {
        say(&format!(
            "holdfast: this copy is {state}: another one has more, or this one is no state the volume ever had"
        ));
    }
    let (from, has) = (arguments.offset, content.size_bytes());
    let length = arguments.length.unwrap_or_else(|| has.saturating_sub(from));
    match from.checked_add(length) {
        Some(end) if end <= has => copy(&content, from, end),
        _ => bail!("the volume has {has} bytes, and {length} from {from} on are more"),
    }
}

fn copy(content: &Content, from: u64, end: u64) -> Result<()> {
    let mut out = io::stdout().lock();
    let mut bytes = Vec::new();
    let mut at = from;
    while at < end {
        let piece = PIECE_BYTES.min(end - at);
        bytes.resize(usize::try_from(piece).expect("a piece fits into memory"), 0);
        content.read_at(at, &mut bytes)?;
        out.write_all(&bytes)?;
        at += piece;
    }
    Ok(out.flush()?)
}
