//! What only the leader can say: it is asked there, whoever was asked first. A part of the running orchestrator.

use orchestrator_core::decide::{self, Fault};

use super::{CALL_WITHIN, Orchestrator};
use crate::clock::now;
use crate::transport::message::{Answer, Question, Request, Response, Supposed};
use crate::transport::peer::Peer;

impl Orchestrator {
    /// Asks the leader, here or elsewhere.
    pub(crate) async fn ask(&self, question: Question) -> Result<Answer, String> {
        let response = match self.consensus.leadership().leader {
            Some(leader) if leader != self.options.me => {
                let name = self.options.policy.node_name(leader);
                let address = self.addresses.get(&leader).cloned();
                let address = address.ok_or_else(|| format!("{name} leads, and is not configured"))?;
                let asked = Peer::new(address).call(&Request::Ask(question), CALL_WITHIN * 2).await;
                asked.map_err(|error| format!("{name} leads and does not answer: {error}"))?
            }
            _ => self.on_ask(&question),
        };
        match response {
            Response::Answer(answer) => Ok(answer),
            Response::NotLeader(_) => Err("nobody leads: is a majority of the nodes up?".to_owned()),
            Response::Failed(text) => Err(text),
            _ => Err("the leader answers another question".to_owned()),
        }
    }

    pub(super) fn on_ask(&self, question: &Question) -> Response {
        let now = now();
        let view = self.mind().view(self.options.me, &self.heartbeats.health(now), now);
        let Some(view) = view else { return Response::NotLeader(self.consensus.leadership().leader) };
        let applied = self.consensus.applied();
        let (state, policy) = (&applied.state, &self.options.policy);
        Response::Answer(match question {
            Question::Volume(volume) => match decide::explain_volume(state, policy, &view, *volume) {
                Some(explained) => Answer::Explained(explained),
                None => return Response::Failed("the leader's configuration has no such volume".to_owned()),
            },
            Question::Node(node) => Answer::Explained(decide::explain_node(state, policy, &view, *node)),
            Question::Plan(supposed) => {
                let fault = match *supposed {
                    Supposed::Nothing => Fault::Nothing,
                    Supposed::Dies(node) => Fault::Dies(node),
                    Supposed::Cut(one, other) => Fault::Cut(one, other),
                    Supposed::DiskFails(node, volume) => Fault::DiskFails(node, volume),
                };
                Answer::Planned(decide::plan(state, policy, &view, fault))
            }
            Question::Notes => Answer::Notes(decide::cluster(state, policy, &view).notes),
        })
    }
}
