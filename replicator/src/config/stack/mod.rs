//! `[[stack]]`: what runs above volumes where they are primary, as ordered `[[stack.step]]`. What each kind of step needs
//! is read in `step`; whether it exists on a machine is not.

mod step;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::Path;

use replicator_core::units::{NodeId, VolumeId};

use super::cluster::list;
use super::orchestrator::Orchestrator;
use super::problem::Problems;
use super::reader::{NodeDraft, VolumeDraft, checked_name};
use super::section::{At, Section};
use step::{Read, read_step};

pub use step::{
    AgentPlaces, AgentStep, CommandStep, FileSystemStep, Fsck, Holders, Step, StepKind, UnitStep,
};

const FAILURES_MAX: u64 = 3;
const FORGET_AFTER_MS: u64 = 600_000;
/// The kernel counts lifetimes of addresses in whole seconds, and may be a quarter of one late.
const LEASE_FOR_ADDRESS_MS: u64 = 1_000;

/// What runs above volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Its name.
    pub name: String,
    /// The volumes below it.
    pub volumes: Vec<VolumeId>,
    /// The steps above them, from the bottom up.
    pub steps: Vec<Step>,
    /// Where it is best, the best first.
    pub prefers: Vec<NodeId>,
    /// Whether it stays where it is although it is better elsewhere.
    pub stays: bool,
    /// Stacks that it runs beside.
    pub with: Vec<String>,
    /// Stacks that it does not run beside.
    pub apart: Vec<String>,
    /// Failures after which it is given up on a node.
    pub failures_max: u32,
    /// How long a failure counts.
    pub forget_after_ms: u64,
}

/// A `[[stack]]` with the places of its values.
pub(super) struct StackDraft {
    span: Range<usize>,
    name: At<String>,
    volumes: Vec<At<String>>,
    steps: Vec<(Range<usize>, Step)>,
    devices: Vec<At<String>>,
    prefers: Vec<At<String>>,
    with: Vec<At<String>>,
    apart: Vec<At<String>>,
    rest: Stack,
}

/// Reads all `[[stack]]`; `None` if one of them leaves nothing to look at.
pub(super) fn read(top: &mut Section<'_>, path: &Path, problems: &mut Problems) -> Option<Vec<StackDraft>> {
    let mut sections = top.tables("stack", "[[stack]]", problems);
    let drafts: Vec<_> = sections.drain(..).map(|section| read_one(section, path, problems)).collect();
    drafts.into_iter().collect()
}

fn read_one(mut section: Section<'_>, path: &Path, problems: &mut Problems) -> Option<StackDraft> {
    let span = section.span.clone();
    let name = section.text("name", problems);
    let name = section.require("name", name, "write name = \"db\"".to_owned(), problems);
    let name = name.and_then(|name| checked_name(name, problems));
    let prefers = section.texts("prefer", problems);
    let stays = section.boolean("stay", problems).is_none_or(|at| at.value);
    let (with, apart) = (section.texts("with", problems), section.texts("apart", problems));
    let failures_max = section.integer("failures", 1..=50, problems).map_or(FAILURES_MAX, |at| at.value);
    let forget_after_ms = section.duration_ms("forget-failures", problems);
    let mut sections = section.tables("step", "[[stack.step]]", problems);
    section.finish(problems);
    let steps: Vec<_> = sections.drain(..).map(|step| read_step(step, path, problems)).collect();
    let (mut volumes, mut above, mut devices) = (Vec::new(), Vec::new(), Vec::<At<String>>::new());
    for step in steps.into_iter().collect::<Option<Vec<_>>>()? {
        match step {
            Read::Volume(volume) if above.is_empty() => volumes.push(volume),
            Read::Volume(volume) => {
                let help = "write the steps of volumes first".to_owned();
                problems.error(&volume.span, "a volume is below everything else of a stack", help);
            }
            Read::Above(span, mut step, device) => {
                if let StepKind::FileSystem(file_system) = &mut step.kind {
                    file_system.find_device(devices.last(), &span, problems);
                }
                above.push((span, step));
                devices.extend(device);
            }
        }
    }
    let name = name?;
    let rest = Stack {
        name: name.value.clone(),
        volumes: Vec::new(),
        steps: Vec::new(),
        prefers: Vec::new(),
        stays,
        with: with.iter().map(|at| at.value.clone()).collect(),
        apart: apart.iter().map(|at| at.value.clone()).collect(),
        failures_max: u32::try_from(failures_max).expect("in range"),
        forget_after_ms: forget_after_ms.map_or(FORGET_AFTER_MS, |at| at.value),
    };
    Some(StackDraft { span, name, volumes, steps: above, devices, prefers, with, apart, rest })
}

/// What the sections say together with the rest of the file.
pub(super) fn check(
    drafts: &[StackDraft],
    nodes: &[NodeDraft],
    volumes: &[VolumeDraft],
    orchestrator: Option<&At<Orchestrator>>,
    problems: &mut Problems,
) {
    for (place, draft) in drafts.iter().enumerate() {
        if drafts[..place].iter().any(|other| other.name.value == draft.name.value) {
            problems.error(
                &draft.name.span,
                "this stack's name was used before",
                "each must differ".to_owned(),
            );
        }
        if volumes.iter().any(|volume| volume.name.value == draft.name.value) {
            let help = "commands take either, and must tell them apart".to_owned();
            problems.error(&draft.name.span, "a volume has this name", help);
        }
        check_volumes(draft, volumes, problems);
        check_steps(draft, orchestrator, problems);
        for at in &draft.prefers {
            if !nodes.iter().any(|node| node.name.value == at.value) {
                let known = list(nodes.iter().map(|node| &node.name.value));
                let message = format!("there is no node \"{}\"", at.value);
                problems.error(&at.span, message, format!("the nodes of this file are {known}"));
            }
        }
        for at in draft.with.iter().chain(&draft.apart) {
            if !drafts[..place].iter().any(|other| other.name.value == at.value) {
                let message = format!("there is no stack \"{}\" before this one", at.value);
                let help = "a stack follows others that stand above it in the file, so that they do not chase each other";
                problems.error(&at.span, message, help.to_owned());
            }
        }
        if orchestrator.is_none() {
            problems.warning(&draft.span, "nobody runs this: the file has no [orchestrator]", None);
        }
    }
}

fn check_volumes(draft: &StackDraft, volumes: &[VolumeDraft], problems: &mut Problems) {
    if draft.volumes.is_empty() {
        let message = format!("stack \"{}\" stands on no volume", draft.name.value);
        let help =
            "begin with a [[stack.step]] of kind = \"volume\": it runs where that is primary".to_owned();
        problems.error(&draft.span, message, help);
    }
    for at in &draft.volumes {
        if !volumes.iter().any(|volume| volume.name.value == at.value) {
            let known = list(volumes.iter().map(|volume| &volume.name.value));
            let message = format!("there is no volume \"{}\"", at.value);
            problems.error(&at.span, message, format!("the volumes of this file are {known}"));
        }
    }
    for at in &draft.devices {
        if !draft.volumes.iter().any(|volume| volume.value == at.value) {
            let message = format!("\"{}\" is no volume of this stack", at.value);
            let help = "write a [[stack.step]] of kind = \"volume\" for it first".to_owned();
            problems.error(&at.span, message, help);
        }
    }
}

fn check_steps(draft: &StackDraft, orchestrator: Option<&At<Orchestrator>>, problems: &mut Problems) {
    for (place, (span, step)) in draft.steps.iter().enumerate() {
        if draft.steps[..place].iter().any(|(_, other)| other.name == step.name) {
            let message = format!("two steps are called \"{}\"", step.name);
            problems.error(span, message, "write a `name` for each".to_owned());
        }
        if step.start_timeout_ms == 0 || step.stop_timeout_ms == 0 || step.monitor_timeout_ms == 0 {
            problems.error(span, "a timeout must be above 0", None);
        }
        let is_address = matches!(step.kind, StepKind::Address { .. });
        if is_address && orchestrator.is_some_and(|at| at.value.lease_ms < LEASE_FOR_ADDRESS_MS) {
            let message =
                "an address needs a `lease` of a second or more: the kernel counts its lifetime in seconds";
            problems.error(span, message, "write lease = \"1s\" in [orchestrator]".to_owned());
        }
    }
}

/// The stacks, once everything is sound.
pub(super) fn build(
    drafts: Vec<StackDraft>,
    id_of: impl Fn(&str) -> NodeId,
    volume_of: impl Fn(&str) -> VolumeId,
) -> Vec<Stack> {
    let one = |draft: StackDraft| Stack {
        volumes: draft.volumes.iter().map(|at| volume_of(&at.value)).collect(),
        prefers: draft.prefers.iter().map(|at| id_of(&at.value)).collect(),
        steps: draft.steps.into_iter().map(|(_, step)| step).collect(),
        ..draft.rest
    };
    drafts.into_iter().map(one).collect()
}
