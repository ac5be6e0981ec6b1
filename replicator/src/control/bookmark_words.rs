//! Words of the control interface for bookmarks.

use replicator_core::bookmarks::{BookmarkStatus, Everything};
use replicator_core::dirty::BLOCK_BYTES;
use serde::{Deserialize, Serialize};

/// A point in the past of a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BookmarkReport {
    /// Its name.
    pub name: String,
    /// Where it is, `epoch:sequence`.
    pub position: String,
    /// When it was made, in milliseconds since 1970; 0 if that is not known.
    pub made_ms: u64,
    /// Bytes of the blocks that were written in place since.
    pub changed_bytes: u64,
    /// The metadata context of the frozen export that tells which.
    pub context: String,
    /// Why it says that everything changed, if that is not what was written.
    pub everything: Option<String>,
}

impl BookmarkReport {
    pub(super) fn new(bookmark: &BookmarkStatus) -> Self {
        Self {
            name: bookmark.name.clone(),
            position: bookmark.position.to_string(),
            made_ms: bookmark.made_ms,
            changed_bytes: bookmark.changed_blocks * BLOCK_BYTES,
            context: format!("{}{}", nbd_frontend::DIRTY, bookmark.name),
            everything: bookmark.everything.map(|why| everything_words(why).to_owned()),
        }
    }
}

/// Why the next backup reads everything.
fn everything_words(why: Everything) -> &'static str {
    match why {
        Everything::Interrupted => {
            "the replicator ended while blocks were written that the journal does not tell of (a resync, a repair): what \
             changed is not known, and everything counts"
        }
        Everything::Damaged => {
            "its map on the journal device was damaged: what changed is not known, and everything counts"
        }
    }
}
