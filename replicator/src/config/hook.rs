//! `[[hook]]`: a program that the orchestrators run when something happens. It is told, and decides nothing.

use std::path::Path;

use super::cluster::resolve;
use super::orchestrator::Orchestrator;
use super::problem::Problems;
use super::section::{At, Section};
use super::value::format_duration_ms;

const HOOKS_MAX: usize = 16;
const TIMEOUT_MS: u64 = 30_000;
const TIMEOUT_MAX_MS: u64 = 600_000;

/// What a hook may be run for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Occasion {
    /// The replica on this node begins or ends to be primary.
    Role,
    /// Another node is to be primary without the old one's word.
    Failover,
    /// Another node is to be primary after the old one has stopped.
    Switchover,
    /// A replica is taken out of the in-sync set.
    MemberLost,
    /// A replica comes into the in-sync set.
    MemberBack,
    /// A node is to be switched off, is off, or could not be switched off.
    Fence,
    /// A node is not heard any more.
    NodeLost,
    /// A node is heard again.
    NodeBack,
    /// Another node leads.
    Leader,
}

impl Occasion {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Role,
        Self::Failover,
        Self::Switchover,
        Self::MemberLost,
        Self::MemberBack,
        Self::Fence,
        Self::NodeLost,
        Self::NodeBack,
        Self::Leader,
    ];

    /// Its word, in the file and for the program.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Role => "role",
            Self::Failover => "failover",
            Self::Switchover => "switchover",
            Self::MemberLost => "member-lost",
            Self::MemberBack => "member-back",
            Self::Fence => "fence",
            Self::NodeLost => "node-lost",
            Self::NodeBack => "node-back",
            Self::Leader => "leader",
        }
    }
}

/// A program that is run when something happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// What it is run for.
    pub on: Vec<Occasion>,
    /// The program and its arguments.
    pub run: Vec<String>,
    /// How long one call may take.
    pub timeout_ms: u64,
}

/// Reads all `[[hook]]`.
pub(super) fn read(top: &mut Section<'_>, path: &Path, problems: &mut Problems) -> Vec<At<Hook>> {
    let sections = top.tables("hook", "[[hook]]", problems);
    if let Some(extra) = sections.get(HOOKS_MAX) {
        problems.error(&extra.span, format!("there may be at most {HOOKS_MAX} hooks"), None);
    }
    sections.into_iter().filter_map(|section| read_one(section, path, problems)).collect()
}

fn read_one(mut section: Section<'_>, path: &Path, problems: &mut Problems) -> Option<At<Hook>> {
    let span = section.span.clone();
    let words = section.texts("on", problems);
    let mut run: Vec<String> = section.texts("run", problems).into_iter().map(|at| at.value).collect();
    let timeout = section.duration_ms("timeout", problems);
    section.finish(problems);
    let timeout_ms = timeout.as_ref().map_or(TIMEOUT_MS, |at| at.value);
    if let Some(timeout) = timeout.filter(|at| !(1..=TIMEOUT_MAX_MS).contains(&at.value)) {
        let message = format!("`timeout` must be above 0 and at most {}", format_duration_ms(TIMEOUT_MAX_MS));
        problems.error(&timeout.span, message, "\"30s\" is the default".to_owned());
    }
    let mut on = Vec::new();
    for at in &words {
        match Occasion::ALL.into_iter().find(|occasion| occasion.word() == at.value) {
            Some(occasion) => on.push(occasion),
            None => {
                let known: Vec<&str> = Occasion::ALL.iter().map(|occasion| occasion.word()).collect();
                let message = format!("`on`: \"{}\" is nothing that happens", at.value);
                problems.error(&at.span, message, format!("what happens is: {}", known.join(", ")));
            }
        }
    }
    if words.is_empty() {
        on = Occasion::ALL.to_vec();
    }
    match run.first_mut() {
        // As everywhere in the file; a bare name is looked for as a shell does.
        Some(program) if program.contains('/') => {
            *program = resolve(path, program).to_string_lossy().into_owned();
        }
        Some(_) => {}
        None => {
            let help = "write run = [\"/usr/local/bin/tell\", \"ops\"]".to_owned();
            problems.error(&span, "a hook names no program", help);
            return None;
        }
    }
    Some(At { value: Hook { on, run, timeout_ms }, span })
}

/// What the sections say together with the rest of the file.
pub(super) fn check(hooks: &[At<Hook>], orchestrator: Option<&At<Orchestrator>>, problems: &mut Problems) {
    if let (Some(hook), None) = (hooks.first(), orchestrator) {
        let help = "orchestrators run hooks: write an [orchestrator], or leave the hook out".to_owned();
        problems.error(&hook.span, "a [[hook]] without an [orchestrator] is never run", help);
    }
}
