//! Whether a node may have a lease: only the primary of the record, and not before nobody else can answer.

use alloc::format;
use alloc::string::String;

use super::cluster::lease_over_at;
use super::fence;
use crate::policy::{Policy, Volume};
use crate::proof::Resource;
use crate::state::State;
use crate::units::{Instant, NodeId};
use crate::view::View;

/// Why a lease is not granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Withheld {
    /// The record names somebody else, or nobody.
    NotPrimary,
    /// What it says of its machine is not agreed on yet, or it is said to be off.
    Unknown,
    /// Somebody else may still answer, until then.
    Until(Instant),
}

impl Withheld {
    /// How long it takes at least until it can be granted, if that is known.
    #[must_use]
    pub fn again_ms(&self, now: Instant) -> Option<u64> {
        match self {
            Self::Until(until) => Some(until.since_ms(now)),
            Self::NotPrimary | Self::Unknown => None,
        }
    }

    /// The reason in words.
    #[must_use]
    pub fn text(&self, now: Instant) -> String {
        match self {
            Self::NotPrimary => String::from("it is not the primary of the record"),
            Self::Unknown => String::from("its boot is not agreed on yet"),
            Self::Until(until) => format!("the old primary may still answer for {} ms", until.since_ms(now)),
        }
    }
}

/// Whether the leader, its leadership confirmed by a majority after the request came in, may grant `node` the lease of
/// `volume` now.
///
/// # Errors
/// Why not.
pub fn may_grant(
    state: &State,
    policy: &Policy,
    view: &View,
    volume: &Volume,
    node: NodeId,
) -> Result<(), Withheld> {
    let record = state.records.get(&volume.id).filter(|record| record.primary == Some(node));
    let record = record.ok_or(Withheld::NotPrimary)?;
    if !fence::is_known(state, view, node) {
        return Err(Withheld::Unknown);
    }
    // One that serves was given a lease in this reign, so nobody else had one then, nor could get one since.
    if record.opened || record.proof.suffices_for(Resource::VolumeService) {
        return Ok(());
    }
    let others = volume.replicas.iter().filter(|other| **other != node);
    let over_at = others.map(|other| lease_over_at(policy.lease, view, volume, *other)).max();
    match over_at {
        Some(over_at) if view.now < over_at => Err(Withheld::Until(over_at)),
        _ => Ok(()),
    }
}
