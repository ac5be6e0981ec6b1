//! Stacks: what runs above volumes where they are primary, as ordered steps. The rules that a configuration gives, and
//! what a node says of a stack. How a stack is run is `runner`, whether it may run is `permit`.

mod permit;
mod runner;

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::proof::Resource;
use crate::units::{Instant, NodeId, VolumeId};

pub use permit::{Permit, permit};
pub use runner::{Action, Order, Outcome, Runner, StepView};

/// How long an address may outlive its holder's lease. The kernel counts its lifetime in whole seconds, and looks at it up
/// to [`ADDRESS_SLACK_MS`] late; so that a second can be given while a quarter of a lease of a second is left.
pub const ADDRESS_GRACE_MS: u64 = 1_000;
/// How late the kernel may take an address away.
pub const ADDRESS_SLACK_MS: u64 = 250;

/// A stack as configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stack {
    /// Its name.
    pub name: String,
    /// The volumes below it; it runs where all of them are primary. The others follow the first.
    pub volumes: Vec<VolumeId>,
    /// Its steps, from the bottom up.
    pub steps: Vec<StepRule>,
    /// Where it is best, the best first. Other nodes are equally good after these.
    pub prefers: Vec<NodeId>,
    /// Whether it stays where it runs although it is not where it is best.
    pub stays: bool,
    /// Stacks that it runs beside. They never move for it.
    pub with: Vec<String>,
    /// Stacks that it does not run beside, where there is a choice. They never move for it.
    pub apart: Vec<String>,
    /// Failures on a node after which it is given up there.
    pub failures_max: u32,
    /// How long a failure counts.
    pub forget_after_ms: u64,
}

/// A step as configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRule {
    /// Its name, one of its kind in the stack.
    pub name: String,
    /// What it holds that another node must not hold at the same time.
    pub resource: Resource,
    /// How long it may take to start.
    pub start_timeout_ms: u64,
    /// How long it may take to stop, before it is stopped by force; that may take as long again.
    pub stop_timeout_ms: u64,
    /// How often it is looked at; never, if it cannot be.
    pub monitor_interval_ms: Option<u64>,
    /// How long a look may take.
    pub monitor_timeout_ms: u64,
}

/// How a stack is on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Nothing of it runs.
    Stopped,
    /// Nobody has looked yet.
    Unknown,
    /// Steps are being started, or wait for something to be.
    Starting,
    /// All of it runs.
    Running,
    /// Its node may not serve now: nothing is started, addresses are gone, the rest waits for I/O.
    Frozen,
    /// Steps are being stopped.
    Stopping,
    /// It failed too often here.
    Failed,
    /// Something of it cannot be stopped.
    Stuck,
}

/// What a node says of a stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackView {
    /// How it is.
    pub phase: Phase,
    /// Failures that count.
    pub failures: u32,
    /// Whether it is given up here, until failures are forgotten.
    pub given_up: bool,
    /// What is to be said of it, if anything.
    pub note: String,
    /// Its steps.
    pub steps: Vec<StepView>,
}

impl Stack {
    /// Whether it stands on that volume.
    #[must_use]
    pub fn uses(&self, volume: VolumeId) -> bool {
        self.volumes.contains(&volume)
    }

    /// Where it is, judged by the record of its first volume.
    #[must_use]
    pub fn place(&self, state: &crate::state::State) -> Option<NodeId> {
        state.records.get(self.volumes.first()?)?.primary
    }
}

/// The volumes that something of these stacks may still use on a node.
pub fn occupied<'s>(stacks: impl IntoIterator<Item = (&'s Stack, &'s Runner)>) -> BTreeSet<VolumeId> {
    let used = stacks.into_iter().filter(|(_, runner)| !runner.is_stopped());
    used.flat_map(|(stack, _)| stack.volumes.iter().copied()).collect()
}

/// How many whole seconds an address may be given now so that the kernel has surely taken it away soon enough after the
/// lease has ended; none, if not even one.
#[must_use]
pub fn address_lifetime_s(now: Instant, until: Instant) -> Option<u32> {
    let last_ms = until.plus_ms(ADDRESS_GRACE_MS).since_ms(now);
    let seconds = last_ms.saturating_sub(ADDRESS_SLACK_MS) / 1000;
    u32::try_from(seconds).ok().filter(|seconds| *seconds > 0 && now < until)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_gone_when_its_grace_is_over() {
        let lifetime = |left_ms| address_lifetime_s(Instant(1_000), Instant(1_000 + left_ms));
        assert_eq!(lifetime(1_000), Some(1));
        assert_eq!(lifetime(250), Some(1));
        assert_eq!(lifetime(249), None, "a second would be too long");
        assert_eq!(lifetime(0), None);
        assert_eq!(lifetime(1_249), Some(1));
        assert_eq!(lifetime(10_000), Some(10));
        for left_ms in 0..5_000 {
            let gone_ms = lifetime(left_ms).map_or(0, |seconds| u64::from(seconds) * 1000 + ADDRESS_SLACK_MS);
            assert!(gone_ms <= left_ms + ADDRESS_GRACE_MS, "{left_ms}");
        }
    }
}
