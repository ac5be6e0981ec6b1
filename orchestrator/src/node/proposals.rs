//! Entries for the log: what the leader has decided, and what operators want. A part of the running orchestrator.

use std::time::Duration;

use orchestrator_core::decide::Proposal;
use orchestrator_core::history::Entry;
use orchestrator_core::power::PowerChange;
use orchestrator_core::record::{ChangeKind, Order, Refused};
use orchestrator_core::state::Command;
use orchestrator_core::units::{NodeId, VolumeId};
use tokio::time::Instant;

use super::{CALL_WITHIN, Orchestrator};
use crate::consensus::ConsensusError;
use crate::power::unix_ms;
use crate::transport::message::{Request, Response};
use crate::transport::peer::Peer;

/// How long an operator's command waits for a leader: several elections.
const LEADER_WITHIN: Duration = Duration::from_millis(5_000);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(50);

impl Orchestrator {
    pub(super) async fn propose(&self, proposals: Vec<Proposal>) {
        if proposals.is_empty() {
            return;
        }
        for Proposal { command, reason } in proposals {
            let volume = changes_primary(&command);
            let entry = Entry { command, at_unix_ms: unix_ms(), reason: reason.clone() };
            let outcome = self.consensus.propose(entry).await;
            let mut mind = self.mind();
            match &outcome {
                // Told when it is applied, on every node; or decided on an older state, and the next turn sees the new one.
                Ok(Ok(()) | Err(Refused::Stale(_))) => {}
                Ok(Err(refused)) => mind.remember(format!("not decided: {reason}: {refused}")),
                Err(error) => mind.remember(format!("not decided: {reason}: {error}")),
            }
            // While the outcome is unknown it may still come to be: no lease while the record is the same.
            if let (Some((volume, _)), Ok(_)) = (volume, &outcome) {
                mind.reopen(volume);
            }
        }
        self.mind().proposing = false;
        self.wake.notify_one();
    }

    /// Proposes an operator's command here or at the leader. While leadership moves there is none for a moment: nothing was
    /// proposed then, and an operator should not have to type it again.
    pub(crate) async fn command(&self, command: Command, reason: &str) -> Result<(), String> {
        let entry = Entry { command, at_unix_ms: unix_ms(), reason: reason.to_owned() };
        let deadline = Instant::now() + LEADER_WITHIN;
        loop {
            return match self.propose_to_leader(entry.clone()).await? {
                Response::Proposed(Ok(())) => Ok(()),
                Response::Proposed(Err(refused)) => Err(refused.to_string()),
                Response::NotLeader(_) if Instant::now() < deadline => {
                    tokio::time::sleep(LOOK_AGAIN_AFTER).await;
                    continue;
                }
                Response::NotLeader(_) => {
                    Err("there is no leader: is a majority of the nodes up?".to_owned())
                }
                Response::Failed(text) => Err(text),
                _ => Err("the leader answers another question".to_owned()),
            };
        }
    }

    async fn propose_to_leader(&self, entry: Entry) -> Result<Response, String> {
        match self.consensus.leadership().leader {
            Some(leader) if leader != self.options.me => {
                let address = self.addresses.get(&leader).cloned().ok_or("the leader is not configured")?;
                let asked = Peer::new(address).call(&Request::Propose(entry), CALL_WITHIN * 6).await;
                asked.map_err(|error| format!("the leader does not answer: {error}"))
            }
            _ => Ok(self.on_propose(self.options.me, entry).await),
        }
    }

    pub(super) async fn on_propose(&self, from: NodeId, entry: Entry) -> Response {
        match &entry.command {
            Command::Create { .. } | Command::Change { .. } | Command::Leave { .. } => {
                return Response::Failed("records are changed by decisions only".to_owned());
            }
            Command::Power { change: PowerChange::Runs { .. } | PowerChange::Spare { .. }, .. } => {
                return Response::Failed("this is decided by the leader only".to_owned());
            }
            Command::Power { node, change: PowerChange::Fenced { number, .. } } => {
                let applied = self.consensus.applied();
                let order = applied.state.power.order(*node).filter(|order| order.number == *number);
                if order.is_some_and(|order| order.by != from) {
                    return Response::Failed("somebody else was asked to switch that node off".to_owned());
                }
            }
            _ => {}
        }
        match self.consensus.propose(entry).await {
            Ok(outcome) => Response::Proposed(outcome),
            Err(ConsensusError::NotLeader(leader)) => Response::NotLeader(leader),
            Err(error) => Response::Failed(error.to_string()),
        }
    }
}

/// The volume whose primary a command changes, and the record on which that was decided.
pub(super) fn changes_primary(command: &Command) -> Option<(VolumeId, Order)> {
    match command {
        Command::Change { volume, change }
            if matches!(change.kind, ChangeKind::Takeover(_) | ChangeKind::Release) =>
        {
            Some((*volume, change.expected))
        }
        _ => None,
    }
}
