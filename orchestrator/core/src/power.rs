//! What is agreed on about the power of nodes: under which boot each runs, who was asked to switch one off, and the
//! evidence that one is off. Evidence names a boot, and proves nothing about another one.
//!
//! ```text
//!              runs                    asked                  switched off, confirmed
//!  (unknown) -------> running, boot B -------> to be off, B -------------------------> off, boot B
//!                          ^   ^                   |  |                                   |
//!                          |   +--- failed, spared-+  |                                   |
//!                          +------ runs, boot C ------+-----------------------------------+
//! ```

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::policy::Policy;
use crate::proof::Proof;
use crate::record::Refused;
use crate::units::{BootId, NodeId};

/// Happenings that are remembered.
const HISTORY_MAX: usize = 16;

/// The power of all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Power {
    /// Those of whom something is known.
    pub nodes: BTreeMap<NodeId, NodePower>,
    /// Number of the newest order.
    pub orders: u64,
    /// What came of orders, and what operators have said; the newest last.
    pub history: Vec<Past>,
}

/// The power of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePower {
    /// The boot under which it was given anything last. It is given nothing under another one that is not agreed on.
    pub boot: Option<BootId>,
    /// Timeout of the watchdog that it has armed.
    pub watchdog_ms: Option<u64>,
    /// Who was asked to switch it off.
    pub order: Option<Order>,
    /// Orders in a row that came to nothing.
    pub failures: u32,
    /// Why it is surely off.
    pub off: Option<Off>,
}

/// Somebody was asked to switch a node off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Tells it from others.
    pub number: u64,
    /// Who does it.
    pub by: NodeId,
    /// The boot that is to end, if the node ever said one.
    pub boot: Option<BootId>,
    /// The operator who wants it; without one it is given up when it is needed no more.
    pub asked_by: Option<String>,
    /// Why.
    pub reason: String,
}

/// Evidence: that boot of the node has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Off {
    /// The node.
    pub node: NodeId,
    /// Its boot. A node that never said one was never given anything.
    pub boot: Option<BootId>,
    /// How that is known.
    pub means: Means,
    /// When, in milliseconds since 1970, by the clock of whoever found it. For people.
    pub at_unix_ms: u64,
}

/// How it is known that a node is off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Means {
    /// Fence agents switched it off and read back that it is.
    Agent {
        /// The node on which they ran.
        by: NodeId,
        /// The devices, by name.
        agent: String,
    },
    /// Somebody has looked and answers for it.
    Operator {
        /// Who.
        who: String,
    },
}

impl Means {
    /// How, in words.
    #[must_use]
    pub fn text(&self, policy: &Policy) -> String {
        match self {
            Self::Agent { by, agent } => {
                format!("by {agent}, run on {} and read back", policy.node_name(*by))
            }
            Self::Operator { who } => format!("by the word of {who}"),
        }
    }
}

/// Something that was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// The node it is about.
    pub node: NodeId,
    /// When, in milliseconds since 1970; absent where nobody looked at a clock.
    pub at_unix_ms: Option<u64>,
    /// What.
    pub text: String,
}

/// A change of what is agreed on about a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerChange {
    /// It runs. Evidence that it was off is about another boot, or wrong.
    Runs {
        /// Its boot.
        boot: BootId,
        /// Timeout of the watchdog that it has armed.
        watchdog_ms: Option<u64>,
    },
    /// It is to be switched off.
    Fence {
        /// By whom.
        by: NodeId,
        /// The boot that is known.
        boot: Option<BootId>,
        /// The operator who wants it.
        asked_by: Option<String>,
        /// Why.
        reason: String,
    },
    /// It need not be switched off any more.
    Spare {
        /// The order.
        number: u64,
        /// Why.
        reason: String,
    },
    /// An order was carried out, or could not be.
    Fenced {
        /// The order.
        number: u64,
        /// The devices that switched it off and said afterwards that it is off, or why it is not known to be.
        outcome: Result<String, String>,
        /// When.
        at_unix_ms: u64,
    },
    /// An operator has seen that it is off.
    ConfirmOff {
        /// The boot that was known when the operator was asked.
        boot: Option<BootId>,
        /// Who.
        who: String,
        /// When.
        at_unix_ms: u64,
    },
}

impl Power {
    /// The evidence that a node is off, if there is any about the boot under which it was given anything.
    #[must_use]
    pub fn off(&self, node: NodeId) -> Option<&Off> {
        self.nodes.get(&node)?.off.as_ref()
    }

    /// Who was asked to switch a node off.
    #[must_use]
    pub fn order(&self, node: NodeId) -> Option<&Order> {
        self.nodes.get(&node)?.order.as_ref()
    }

    /// The boot of a node that is agreed on.
    #[must_use]
    pub fn boot(&self, node: NodeId) -> Option<BootId> {
        self.nodes.get(&node)?.boot
    }

    /// Applies an entry of the log.
    ///
    /// # Errors
    /// If it was decided on another state.
    pub fn apply(&mut self, node: NodeId, change: &PowerChange) -> Result<(), Refused> {
        let one = self.nodes.entry(node).or_default();
        let (text, at_unix_ms) = match change {
            PowerChange::Runs { boot, watchdog_ms } => {
                let is_same = one.boot == Some(*boot);
                (one.boot, one.watchdog_ms) = (Some(*boot), *watchdog_ms);
                // Whoever is switching it off means another boot: what comes of that says nothing about this one.
                let is_void = one.order.take_if(|_| !is_same).is_some();
                let text = match one.off.take() {
                    Some(_) if is_same => "was said to be off, and runs: that was wrong",
                    Some(_) => "was off, and runs again",
                    None if is_void => {
                        "was to be switched off, and has booted since: that proves nothing any more"
                    }
                    None => return Ok(()),
                };
                (String::from(text), None)
            }
            PowerChange::Fence { by, boot, asked_by, reason } => {
                if one.boot != *boot {
                    return Err(Refused::Boot);
                }
                if *by == node || one.order.is_some() || one.off.is_some() {
                    return Err(Refused::Order);
                }
                self.orders += 1;
                let (number, by, boot) = (self.orders, *by, *boot);
                let (asked_by, reason) = (asked_by.clone(), reason.clone());
                one.order = Some(Order { number, by, boot, asked_by, reason });
                return Ok(());
            }
            PowerChange::Spare { number, reason } => {
                one.order.take_if(|order| order.number == *number).ok_or(Refused::Order)?;
                (format!("is switched off no more: {reason}"), None)
            }
            PowerChange::Fenced { number, outcome, at_unix_ms } => {
                let order = one.order.take_if(|order| order.number == *number).ok_or(Refused::Order)?;
                let text = one.fenced(node, &order, outcome, *at_unix_ms);
                (text, Some(*at_unix_ms))
            }
            PowerChange::ConfirmOff { boot, who, at_unix_ms } => {
                if one.boot != *boot {
                    return Err(Refused::Boot);
                }
                one.order = None;
                let (boot, means, at_unix_ms) = (*boot, Means::Operator { who: who.clone() }, *at_unix_ms);
                one.off = Some(Off { node, boot, means, at_unix_ms });
                (format!("is off, says {who}"), Some(at_unix_ms))
            }
        };
        if self.history.len() == HISTORY_MAX {
            self.history.remove(0);
        }
        self.history.push(Past { node, at_unix_ms, text });
        Ok(())
    }

    /// Whether a proof rests on what is agreed on now.
    #[must_use]
    pub fn bears_out(&self, proof: &Proof) -> bool {
        match proof {
            Proof::PowerOff { off } | Proof::Operator { off, .. } => {
                off.iter().all(|off| self.off(off.node) == Some(off))
            }
            Proof::WatchdogExpired { nodes } => {
                nodes.iter().all(|node| self.nodes.get(&node).is_some_and(|one| one.watchdog_ms.is_some()))
            }
            Proof::First | Proof::Released | Proof::EpochFenced | Proof::LeaseExpired => true,
        }
    }
}

impl NodePower {
    /// Takes note of what came of an order, and says it in words.
    fn fenced(
        &mut self,
        node: NodeId,
        order: &Order,
        outcome: &Result<String, String>,
        at_unix_ms: u64,
    ) -> String {
        match outcome {
            Ok(agent) => {
                assert_eq!(order.boot, self.boot, "an order ends with the boot that it is about");
                let (by, agent) = (order.by, agent.clone());
                let text = format!("is off: {agent} switched it off and read that back");
                let (boot, means) = (order.boot, Means::Agent { by, agent });
                self.off = Some(Off { node, boot, means, at_unix_ms });
                self.failures = 0;
                text
            }
            Err(why) => {
                self.failures = self.failures.saturating_add(1);
                format!("is not known to be off: {why}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(0);
    const OTHER: NodeId = NodeId(1);

    fn runs(boot: u128) -> PowerChange {
        PowerChange::Runs { boot: BootId(boot), watchdog_ms: None }
    }

    fn fence(boot: u128) -> PowerChange {
        let (by, reason) = (OTHER, String::from("it is needed"));
        PowerChange::Fence { by, boot: Some(BootId(boot)), asked_by: None, reason }
    }

    fn fenced(number: u64, outcome: Result<&str, &str>) -> PowerChange {
        let outcome = outcome.map(String::from).map_err(String::from);
        PowerChange::Fenced { number, outcome, at_unix_ms: 5 }
    }

    fn confirm(boot: u128) -> PowerChange {
        PowerChange::ConfirmOff { boot: Some(BootId(boot)), who: String::from("root"), at_unix_ms: 5 }
    }

    fn after(changes: &[PowerChange]) -> (Power, Result<(), Refused>) {
        let mut power = Power::default();
        let results: Vec<_> = changes.iter().map(|change| power.apply(NODE, change)).collect();
        (power, results.into_iter().next_back().expect("there is one"))
    }

    #[test]
    fn a_node_that_was_switched_off_and_read_back_is_off() {
        let (power, result) = after(&[runs(1), fence(1), fenced(1, Ok("ipmi"))]);
        assert_eq!(result, Ok(()));
        let off = power.off(NODE).expect("it is off");
        assert_eq!(
            (off.boot, &off.means),
            (Some(BootId(1)), &Means::Agent { by: OTHER, agent: "ipmi".into() })
        );
    }

    #[test]
    fn an_order_that_failed_is_no_evidence_and_is_counted() {
        let (power, _) = after(&[runs(1), fence(1), fenced(1, Err("no answer"))]);
        assert_eq!((power.off(NODE), power.order(NODE), power.nodes[&NODE].failures), (None, None, 1));
    }

    #[test]
    fn evidence_of_an_older_boot_proves_nothing() {
        let (power, result) = after(&[runs(1), fence(1), runs(2), fenced(1, Ok("ipmi"))]);
        assert_eq!((power.off(NODE), result), (None, Err(Refused::Order)));
        // Nor if the older boot is heard of again, late.
        let (power, _) = after(&[runs(1), fence(1), runs(2), runs(1), fenced(1, Ok("ipmi"))]);
        assert_eq!(power.off(NODE), None);
        let (power, result) = after(&[runs(1), runs(2), confirm(1)]);
        assert_eq!((power.off(NODE), result), (None, Err(Refused::Boot)));
    }

    #[test]
    fn evidence_ends_when_the_node_runs() {
        for boot in [1, 2] {
            let (power, _) = after(&[runs(1), confirm(1), runs(boot)]);
            assert_eq!(power.off(NODE), None, "boot {boot}");
        }
    }

    #[test]
    fn an_order_on_another_boot_is_refused() {
        let (_, result) = after(&[runs(1), runs(2), fence(1)]);
        assert_eq!(result, Err(Refused::Boot));
    }

    #[test]
    fn one_order_at_a_time_and_its_result_counts_once() {
        let (_, result) = after(&[runs(1), fence(1), fence(1)]);
        assert_eq!(result, Err(Refused::Order));
        let (_, result) = after(&[runs(1), fence(1), fenced(1, Ok("x")), fenced(1, Ok("x"))]);
        assert_eq!(result, Err(Refused::Order));
        let spare = PowerChange::Spare { number: 1, reason: String::from("it is heard") };
        let (power, result) = after(&[runs(1), fence(1), spare, fenced(1, Ok("x"))]);
        assert_eq!((power.off(NODE), result), (None, Err(Refused::Order)));
    }

    #[test]
    fn nobody_switches_itself_off() {
        let (by, reason) = (NODE, String::new());
        let change = PowerChange::Fence { by, boot: None, asked_by: None, reason };
        assert_eq!(after(&[change]).1, Err(Refused::Order));
    }

    #[test]
    fn a_proof_is_borne_out_only_while_its_evidence_stands() {
        let (mut power, _) = after(&[runs(1), confirm(1)]);
        let off = alloc::vec![power.off(NODE).expect("it is off").clone()];
        let proof = Proof::Operator { who: String::from("root"), off };
        assert!(power.bears_out(&proof));
        power.apply(NODE, &runs(2)).unwrap();
        assert!(!power.bears_out(&proof));
    }

    #[test]
    fn a_watchdog_proves_something_only_if_it_was_armed() {
        let proof = Proof::WatchdogExpired { nodes: crate::units::NodeSet::only(NODE) };
        let (power, _) = after(&[runs(1)]);
        assert!(!power.bears_out(&proof));
        let (power, _) = after(&[PowerChange::Runs { boot: BootId(1), watchdog_ms: Some(10) }]);
        assert!(power.bears_out(&proof));
    }
}
