//! Stacks in `holdfast cluster status`: where they are and how, what is wrong with them, and what to type about it.

use std::fmt::Write as _;

use orchestrator::control::json::{Phase, StackAt, StackReport};

use crate::output::{self, Style};
use crate::table::Table;

/// One line for a stack where it is, one for each other node where it is not simply stopped.
pub(crate) fn table(stacks: &[StackReport]) -> String {
    let mut table = Table::new(2, &["stack", "node", "state", "steps", ""]);
    for stack in stacks {
        let is_here = |at: &&StackAt| stack.node.as_ref() == Some(&at.node);
        let shown = stack.at.iter().filter(|at| is_here(at) || at.view.phase != Phase::Stopped);
        let mut lines = 0;
        for at in shown {
            let running = at.view.steps.iter().filter(|step| step.state == "running").count();
            let phase = format!("{:?}", at.view.phase).to_lowercase();
            let steps = format!("{running} of {}", at.view.steps.len());
            table.row([stack.name.clone(), at.node.clone(), phase, steps, failures(at)]);
            lines += 1;
        }
        if lines == 0 {
            let node = stack.node.clone().unwrap_or_else(|| "nowhere".to_owned());
            let [state, steps, hint] = ["?".to_owned(), String::new(), "ask there, or the leader".to_owned()];
            table.row([stack.name.clone(), node, state, steps, hint]);
        }
    }
    table.render()
}

fn failures(at: &StackAt) -> String {
    match at.view.failures {
        0 => String::new(),
        1 => "1 failure".to_owned(),
        count => format!("{count} failures"),
    }
}

/// What is wrong with stacks, and what to type about it; nothing if all is well.
pub(crate) fn wrong(stacks: &[StackReport], style: Style) -> String {
    let mut out = String::new();
    for (stack, at) in stacks.iter().flat_map(|stack| stack.at.iter().map(move |at| (stack, at))) {
        let Some((is_error, words, hint)) = trouble(stack, at) else { continue };
        let name = if is_error { style.red(&stack.name) } else { style.yellow(&stack.name) };
        let _ = write!(out, "\n{name} {words}\n");
        for step in at.view.steps.iter().filter(|step| !step.words.is_empty()) {
            let _ = writeln!(out, "    {}: {}", step.name, step.words);
        }
        let _ = writeln!(out, "  {} {hint}", output::arrow());
    }
    out
}

/// Whether it is bad, what it is, and what to type; nothing if a stack is well there.
fn trouble(stack: &StackReport, at: &StackAt) -> Option<(bool, String, String)> {
    let (name, node, view) = (&stack.name, &at.node, &at.view);
    let is_here = stack.node.as_ref() == Some(node);
    let (is_error, words, hint) = match view.phase {
        Phase::Stuck => {
            let hint =
                format!("it is tried again by itself; holdfast fence {node} if its volume must go elsewhere");
            (true, format!("cannot be stopped on {node}"), hint)
        }
        _ if view.given_up => {
            let words = format!("is given up on {node}, after {}", failures(at));
            (is_here, words, format!("holdfast cluster forgive {name}, once that is cured"))
        }
        Phase::Frozen => {
            (true, format!("waits on {node}: {}", view.note), format!("holdfast explain {node}"))
        }
        Phase::Starting if is_here && view.failures > 0 => {
            let words = format!("is started again on {node}, after {}", failures(at));
            (false, words, "nothing yet: it is tried again, and moves if it fails too often".to_owned())
        }
        Phase::Starting if is_here && !view.note.is_empty() => {
            (false, format!("starts on {node}: {}", view.note), format!("holdfast explain {node}"))
        }
        // As while everything is paused.
        Phase::Running if view.steps.iter().any(|step| !step.words.is_empty()) => (
            false,
            format!("is not well on {node}, and nothing is done about it"),
            "holdfast events".to_owned(),
        ),
        _ => return None,
    };
    Some((is_error, words, hint))
}

#[cfg(test)]
mod tests {
    use orchestrator::control::json::{StackView, StepView};

    use super::*;

    fn at(node: &str, phase: Phase, failures: u32, given_up: bool, words: &str) -> StackAt {
        let step = |name: &str, words: &str| StepView {
            name: name.to_owned(),
            state: if phase == Phase::Running { "running" } else { "stopped" }.to_owned(),
            words: words.to_owned(),
        };
        let steps = vec![step("device", ""), step("filesystem", words)];
        let view = StackView { phase, failures, given_up, note: String::new(), steps };
        StackAt { node: node.to_owned(), view }
    }

    fn stack(node: &str, at: Vec<StackAt>) -> Vec<StackReport> {
        vec![StackReport { name: "db".to_owned(), node: Some(node.to_owned()), at }]
    }

    #[test]
    fn a_stack_that_runs_is_one_line_and_nothing_is_wrong() {
        let stacks =
            stack("a", vec![at("a", Phase::Running, 0, false, ""), at("b", Phase::Stopped, 0, false, "")]);
        assert_eq!(wrong(&stacks, Style::plain()), "");
        let table = table(&stacks);
        assert!(
            table.contains("running") && table.contains("2 of 2") && !table.contains("stopped"),
            "{table}"
        );
    }

    #[test]
    fn one_that_is_given_up_says_why_and_what_to_type() {
        let words = "the file system is damaged; run fsck /dev/holdfast/r0 yourself";
        let text = wrong(&stack("a", vec![at("a", Phase::Failed, 1, true, words)]), Style::plain());
        for part in ["db is given up on a, after 1 failure", words, "holdfast cluster forgive db"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }

    #[test]
    fn one_that_cannot_be_stopped_says_who_is_in_the_way() {
        let words = "/srv/db is in use by bash (process 4711, works in it)";
        let text = wrong(&stack("b", vec![at("a", Phase::Stuck, 0, false, words)]), Style::plain());
        for part in ["db cannot be stopped on a", words, "holdfast fence a"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }
}
