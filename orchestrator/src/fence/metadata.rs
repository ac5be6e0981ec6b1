//! What an agent says of itself: which options it takes, which it must have, which actions it knows. From that follows
//! whether it can prove anything.

use std::collections::BTreeMap;

use replicator::config::FenceDevice;
use roxmltree::{Document, Node};
use thiserror::Error;

/// Why a description is of no use.
#[derive(Debug, Error)]
pub(super) enum MetadataError {
    /// It is no XML.
    #[error("its description is no XML: {0}")]
    Xml(#[from] roxmltree::Error),
    /// It is no text.
    #[error("its description is no text")]
    NotText,
    /// It describes something else.
    #[error("its description has no parameters and actions of a fence agent")]
    NotAnAgent,
}

/// An agent's description.
#[derive(Clone, Debug)]
pub(super) struct Metadata {
    parameters: BTreeMap<String, Parameter>,
    actions: BTreeMap<String, Action>,
}

#[derive(Clone, Debug)]
struct Parameter {
    is_required: bool,
    is_deprecated: bool,
    /// The older name of the same.
    obsoletes: Option<String>,
    /// What it may be, if that is a list.
    choices: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
struct Action {
    is_automatic: bool,
    is_on_target: bool,
}

/// What is wrong with the use of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Misuse {
    /// The option that it is about; without one it is about the agent.
    pub(super) option: Option<String>,
    /// What is wrong.
    pub(super) message: String,
    /// What to do.
    pub(super) help: Option<String>,
    /// Whether the agent may do its work nevertheless.
    pub(super) is_harmless: bool,
}

impl Metadata {
    /// Reads a description.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, MetadataError> {
        let text = std::str::from_utf8(bytes).map_err(|_| MetadataError::NotText)?;
        let document = Document::parse(text)?;
        let root = document.root_element();
        let named = |name: &'static str| move |node: &Node<'_, '_>| node.has_tag_name(name);
        let parameters: BTreeMap<_, _> =
            root.descendants().filter(named("parameter")).filter_map(parameter).collect();
        let actions: BTreeMap<_, _> = root.descendants().filter(named("action")).filter_map(action).collect();
        if !root.has_tag_name("resource-agent") || actions.is_empty() {
            return Err(MetadataError::NotAnAgent);
        }
        Ok(Self { parameters, actions })
    }

    /// What is wrong with a device that uses this agent.
    pub(super) fn misuses(&self, device: &FenceDevice) -> Vec<Misuse> {
        let mut misuses = self.powerless(&device.agent);
        let is_given = |name: &str| {
            let is_password = matches!(name, "password" | "passwd") && device.has_password;
            is_password || device.options.contains_key(name)
        };
        for (name, parameter) in &self.parameters {
            let older = parameter.obsoletes.as_deref();
            let is_missing = parameter.is_required && !parameter.is_deprecated && name != "action";
            if is_missing && !is_given(name) && !older.is_some_and(is_given) {
                misuses.push(Misuse {
                    option: None,
                    message: format!("{} must be told `{name}`", device.agent),
                    help: Some(format!("write {name} = \"...\" in [fence.options]")),
                    is_harmless: false,
                });
            }
        }
        for (name, value) in &device.options {
            match self.parameters.get(name) {
                None => misuses.push(Misuse {
                    option: Some(name.clone()),
                    message: format!("{} knows no `{name}`", device.agent),
                    help: Some(format!("it knows: {}", self.known())),
                    is_harmless: false,
                }),
                Some(parameter) if !parameter.choices.is_empty() && !parameter.choices.contains(value) => {
                    misuses.push(Misuse {
                        option: Some(name.clone()),
                        message: format!("`{name}` of {} cannot be \"{value}\"", device.agent),
                        help: Some(format!("it may be: {}", parameter.choices.join(", "))),
                        is_harmless: false,
                    });
                }
                Some(parameter) if parameter.is_deprecated => misuses.push(Misuse {
                    option: Some(name.clone()),
                    message: format!("`{name}` of {} is an old name", device.agent),
                    help: self.newer(name).map(|newer| format!("write {newer}")),
                    is_harmless: true,
                }),
                Some(_) => {}
            }
        }
        misuses
    }

    /// Whether what the agent does is no proof that a node is off.
    fn powerless(&self, agent: &str) -> Vec<Misuse> {
        let misuse = |message: String, help: &str| Misuse {
            option: None,
            message,
            help: Some(help.to_owned()),
            is_harmless: false,
        };
        let mut misuses = Vec::new();
        for action in ["off", "status"].into_iter().filter(|action| !self.actions.contains_key(*action)) {
            let message =
                format!("{agent} knows no action `{action}`: nobody can tell whether a node is off");
            misuses.push(misuse(message, "use an agent that switches a node off and says whether it is"));
        }
        if self.actions.get("off").is_some_and(|off| off.is_on_target) {
            let message = format!("{agent} has to run on the very node that is to be switched off");
            misuses.push(misuse(message, "a node that is gone runs nothing: use an agent for its power"));
        }
        if self.actions.get("on").is_some_and(|on| on.is_automatic || on.is_on_target) {
            let message = format!("{agent} takes a node's access to something away and leaves it running");
            misuses
                .push(misuse(message, "that is no proof that it serves nobody: use an agent for its power"));
        }
        misuses
    }

    fn known(&self) -> String {
        let current = self.parameters.iter().filter(|(_, parameter)| !parameter.is_deprecated);
        current.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
    }

    fn newer(&self, old: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(_, parameter)| parameter.obsoletes.as_deref() == Some(old));
        found.map(|(name, _)| name.as_str())
    }
}

fn is_set(node: Node<'_, '_>, name: &str) -> bool {
    matches!(node.attribute(name), Some("1" | "true"))
}

fn name_of(node: Node<'_, '_>) -> Option<String> {
    node.attribute("name").map(|name| name.replace('-', "_"))
}

fn parameter(node: Node<'_, '_>) -> Option<(String, Parameter)> {
    let choices = node.descendants().filter(|node| node.has_tag_name("option"));
    let parameter = Parameter {
        is_required: is_set(node, "required"),
        is_deprecated: is_set(node, "deprecated"),
        obsoletes: node.attribute("obsoletes").map(|name| name.replace('-', "_")),
        choices: choices.filter_map(|choice| choice.attribute("value").map(str::to_owned)).collect(),
    };
    Some((name_of(node)?, parameter))
}

fn action(node: Node<'_, '_>) -> Option<(String, Action)> {
    let action = Action { is_automatic: is_set(node, "automatic"), is_on_target: is_set(node, "on_target") };
    Some((node.attribute("name")?.to_owned(), action))
}
