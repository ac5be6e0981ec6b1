//! What operators ask nodes for, and what these answer.

use replicator_core::command::AdminError;
use replicator_core::event::{AdminAction, Event};
use replicator_core::units::{AdminId, ReignId};

use super::World;

impl World {
    /// Asks `node` for something and waits for the answer.
    ///
    /// # Errors
    /// What the node says.
    pub fn admin(&mut self, node: usize, action: AdminAction) -> Result<String, AdminError> {
        let id = self.ask(node, action);
        self.run_until(&format!("the answer to {action:?}"), |world| {
            world.nodes[node].answers.iter().any(|(other, _)| *other == id) || !world.is_up(node)
        });
        self.answer(node, id).unwrap_or_else(|| Err(AdminError::Device("the node is down".into())))
    }

    /// Asks `node` for something.
    pub fn ask(&mut self, node: usize, action: AdminAction) -> AdminId {
        let id = AdminId(self.id());
        self.note(|| format!("n{node} is told to {action:?}"));
        if let AdminAction::Promote { force, .. } = action {
            self.ledger.promoting(node, force);
        }
        if let AdminAction::FreezeApply { at } = action {
            self.freezes.insert(id, at);
        }
        self.leases.told(node, action);
        let now = self.instant(node);
        self.nodes[node].handle(now, Event::Admin { id, action });
        self.collect();
        id
    }

    /// The answer to what `node` was asked, once it is there.
    pub fn answer(&mut self, node: usize, id: AdminId) -> Option<Result<String, AdminError>> {
        let at = self.nodes[node].answers.iter().position(|(other, _)| *other == id)?;
        let answer = self.nodes[node].answers.swap_remove(at).1;
        self.note(|| format!("n{node} answers {answer:?}"));
        if let (Some(at), Ok(_)) = (self.freezes.remove(&id), &answer) {
            self.ledger.check_frozen_at(node, at);
        }
        Some(answer)
    }

    /// A fresh identity for a reign.
    pub fn reign_id(&mut self) -> ReignId {
        ReignId(u128::from(self.random.bits()) << 64 | u128::from(self.random.bits()))
    }

    /// Whether `node` could answer a client now, if it has done what was asked.
    pub fn may_answer(&self, node: usize) -> bool {
        self.leases.may_answer(node, self.instant(node), self.ledger.saved(node).record.epoch)
    }

    /// Promotes `node`.
    ///
    /// # Errors
    /// What the node says.
    pub fn promote(&mut self, node: usize, force: bool) -> Result<String, AdminError> {
        let reign = self.reign_id();
        self.admin(node, AdminAction::Promote { force, reign })
    }
}
