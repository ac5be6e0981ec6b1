//! The bodies of requests to the control interface.

use serde::{Deserialize, Serialize};

/// Body of `POST .../promote`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promote {
    /// Without the word of members that cannot be reached.
    #[serde(default)]
    pub force: bool,
}

/// Body of `POST .../bookmarks/add` and `.../bookmarks/delete`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameBookmark {
    /// Its name.
    pub name: String,
}

/// Body of `POST .../demote`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Demote {}

/// Body of `POST .../shrink`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shrink {
    /// Name of the node to take out of the in-sync set.
    pub node: String,
}

/// Body of `POST .../grow`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grow {
    /// How many bytes the volume is to have.
    pub size_bytes: u64,
}

/// Body of `POST .../verify`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartVerify {
    /// Write anew what differs.
    #[serde(default)]
    pub repair: bool,
    /// Name of the node whose copy is right where nothing proves which one is; absent: the primary.
    #[serde(default)]
    pub trust: Option<String>,
    /// End the verify under way instead.
    #[serde(default)]
    pub stop: bool,
}

/// Body of `POST .../ublk/attach`: begin to serve a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachUblk {
    /// N of `/dev/ublkcN`.
    pub index: u32,
    /// The export generation that it belongs to.
    pub generation: u64,
    /// How many tags it was made with.
    pub tags: u16,
}

/// Body of `POST .../ublk/break`: have all requests of a device fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BreakUblk {
    /// N of `/dev/ublkbN`.
    pub index: u32,
}

/// Body of `POST .../invalidate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invalidate {
    /// Must be true: the data of this node's copy is given up.
    #[serde(default)]
    pub discard_my_data: bool,
}

/// Body of `POST .../seal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    /// Comes back in the answer.
    pub attempt: u64,
    /// Above the record's epoch, and not below what was promised.
    pub epoch: u64,
}

/// Body of `POST .../open-epoch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenEpoch {
    /// The reign.
    pub epoch: u64,
    /// Version of its record.
    pub version: u64,
    /// Its identity, 32 hexadecimal digits.
    pub reign: String,
    /// Names of the members of the in-sync set.
    pub in_sync: Vec<String>,
    /// Counts the promotions that broke clients' sessions.
    pub generation: u64,
    /// Until when clients may be answered, on `CLOCK_BOOTTIME`, if that is known.
    pub lease_end_ms: Option<u64>,
}

/// Body of `POST .../record`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TellRecord {
    /// The reign.
    pub epoch: u64,
    /// Version of the record.
    pub version: u64,
    /// Names of the members of the in-sync set.
    pub in_sync: Vec<String>,
}

/// Body of `POST .../lease`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// The reign it is for.
    pub epoch: u64,
    /// Its end on `CLOCK_BOOTTIME`.
    pub end_ms: u64,
}

/// Body of `POST .../release`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {}

/// Body of `POST .../scrub`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartScrub {
    /// End the scrub under way instead.
    #[serde(default)]
    pub stop: bool,
}
