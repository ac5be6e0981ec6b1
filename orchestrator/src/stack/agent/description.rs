//! What a resource agent says of itself, its `meta-data`: which parameters it takes and must have, which actions it knows, and
//! how long it advises to give them.

use std::collections::{BTreeMap, BTreeSet};

use roxmltree::{Document, Node};
use thiserror::Error;

/// Why a description is of no use.
#[derive(Debug, Error)]
pub(super) enum DescriptionError {
    /// It is no XML.
    #[error("its meta-data is no XML: {0}")]
    Xml(#[from] roxmltree::Error),
    /// It is no text.
    #[error("its meta-data is no text")]
    NotText,
    /// It describes something else.
    #[error("its meta-data has no actions of a resource agent")]
    NotAnAgent,
}

/// An agent's description.
#[derive(Clone, Debug, Default)]
pub(super) struct Description {
    parameters: BTreeSet<String>,
    required: BTreeSet<String>,
    /// The longest advice for each action that it knows.
    advised_ms: BTreeMap<String, u64>,
}

impl Description {
    /// Reads one.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, DescriptionError> {
        let text = std::str::from_utf8(bytes).map_err(|_| DescriptionError::NotText)?;
        // Agents name a document type that nobody has; it is not looked at.
        let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
        let document = Document::parse_with_options(text, options)?;
        let root = document.root_element();
        let mut description = Self::default();
        for parameter in root.descendants().filter(|node| node.has_tag_name("parameter")) {
            let Some(name) = parameter.attribute("name") else { continue };
            description.parameters.insert(name.to_owned());
            if is_set(parameter, "required") && !is_set(parameter, "deprecated") {
                description.required.insert(name.to_owned());
            }
        }
        for action in root.descendants().filter(|node| node.has_tag_name("action")) {
            let Some(name) = action.attribute("name") else { continue };
            let advised_ms = action.attribute("timeout").and_then(time_ms).unwrap_or(0);
            let known = description.advised_ms.entry(name.to_owned()).or_default();
            // Closer looks than the usual one are not taken unless somebody asks for them.
            let is_usual = matches!(action.attribute("depth"), None | Some("0"));
            if is_usual {
                *known = (*known).max(advised_ms);
            }
        }
        if !root.has_tag_name("resource-agent") || description.advised_ms.is_empty() {
            return Err(DescriptionError::NotAnAgent);
        }
        Ok(description)
    }

    /// Whether it knows an action.
    pub(super) fn knows(&self, action: &str) -> bool {
        self.advised_ms.contains_key(action)
    }

    /// How long it advises to give an action; nothing if it does not.
    pub(super) fn advised_ms(&self, action: &str) -> u64 {
        self.advised_ms.get(action).copied().unwrap_or(0)
    }

    /// Parameters that must be given.
    pub(super) fn required(&self) -> impl Iterator<Item = &str> {
        self.required.iter().map(String::as_str)
    }

    /// Whether it takes a parameter.
    pub(super) fn takes(&self, parameter: &str) -> bool {
        self.parameters.contains(parameter)
    }

    /// The parameters it takes, as a list for people.
    pub(super) fn parameters(&self) -> String {
        self.parameters.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
    }
}

fn is_set(node: Node<'_, '_>, name: &str) -> bool {
    matches!(node.attribute(name), Some("1" | "true"))
}

/// A time as agents write it: `20s`, `20`, `500ms`, `2min`.
fn time_ms(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..end].parse().ok()?;
    let unit_ms = match text[end..].trim() {
        "ms" | "msec" => 1,
        "" | "s" | "sec" => 1_000,
        "m" | "min" => 60_000,
        "h" | "hr" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(unit_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_read() {
        let text = br#"<?xml version="1.0"?><!DOCTYPE resource-agent SYSTEM "ra-api-1.dtd">
            <resource-agent name="x"><parameters><parameter name="ip" unique="1" required="1"/>
            <parameter name="nic"/></parameters><actions><action name="start" timeout="2min"/>
            <action name="monitor" timeout="20" depth="0"/><action name="monitor" timeout="90s" depth="20"/>
            <action name="stop" timeout="soon"/></actions></resource-agent>"#;
        let found = Description::parse(text).unwrap();
        assert_eq!(found.required().collect::<Vec<_>>(), ["ip"]);
        assert_eq!(found.parameters(), "ip, nic");
        let advised = ["start", "monitor", "stop", "promote"].map(|action| found.advised_ms(action));
        assert_eq!(advised, [120_000, 20_000, 0, 0]);
        assert!(found.knows("stop") && !found.knows("promote"));
    }

    #[test]
    fn what_is_no_description_is_refused() {
        for text in [&b"garbage"[..], b"<resource-agent/>", b"<a><action name='start'/></a>", b"\xff"] {
            assert!(Description::parse(text).is_err(), "{text:?}");
        }
    }
}
