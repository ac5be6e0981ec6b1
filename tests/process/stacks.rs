//! What stands on a volume runs where that is primary: started after it, stopped before it leaves, and started elsewhere
//! when its machine dies.

use std::path::Path;
use std::time::{Duration, Instant};

use holdfast_tests::{run, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::failover::Cluster;

/// A stack of two steps; both write down when they begin and end, the upper one runs.
fn stack(folder: &Path) -> String {
    let diary = folder.join("diary");
    let note = |word: &str| format!("echo $HOLDFAST_NODE $HOLDFAST_STEP {word} >> {}", diary.display());
    let pid = format!("echo $$ > {}/app.$HOLDFAST_NODE.pid", folder.display());
    format!(
        "[[stack]]\nname = \"db\"\n[[stack.step]]\nkind = \"volume\"\nvolume = \"r0\"\n\
         [[stack.step]]\nkind = \"command\"\nname = \"below\"\nstart = [\"sh\", \"-c\", \"{}\"]\n\
         stop = [\"sh\", \"-c\", \"{}\"]\n\
         [[stack.step]]\nkind = \"command\"\nname = \"app\"\nmonitor-interval = \"100ms\"\n\
         run = [\"sh\", \"-c\", \"{}; {pid}; exec sleep 600\"]\n",
        note("starts"),
        note("stops"),
        note("runs"),
    )
}

struct Stacked(Cluster);

impl Stacked {
    fn start() -> Self {
        let stacked = Self(Cluster::start_with("", stack));
        stacked.0.wait_primary("w", "a", 2);
        stacked.wait_running("a");
        stacked
    }

    fn diary(&self) -> String {
        std::fs::read_to_string(self.0.path("diary")).unwrap_or_default()
    }

    /// How the stack is on a node, by its own word.
    fn at(&self, node: &str) -> Option<Value> {
        let status = self.0.status(node)?;
        let at = status["stacks"][0]["at"].as_array()?.iter().find(|at| at["node"] == node)?.clone();
        Some(at)
    }

    fn wait_phase(&self, node: &str, phase: &str) {
        let what = format!("the stack on {node} to be {phase}");
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for(&what, || (self.at(node)?["phase"] == phase).then_some(()));
        }));
        assert!(found.is_ok(), "waited in vain for {what}\n{:?}\n{}", self.at(node), self.0.logs());
    }

    fn wait_running(&self, node: &str) {
        self.wait_phase(node, "running");
    }

    /// Asks the node that gives up the stack or gets it.
    fn switchover(&self, what: &str, to: &str) {
        let socket = self.0.path(&format!("{to}.orc"));
        let output = run(&["switchover", what, "--to", to, "--control", socket.to_str().unwrap()]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}\n{}", self.0.logs());
        eprintln!("{}{}", errors, String::from_utf8_lossy(&output.stdout));
    }

    fn pid(&self, node: &str) -> Option<Pid> {
        let text = std::fs::read_to_string(self.0.path(&format!("app.{node}.pid"))).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    }

    /// Kills what the stack runs on a node.
    fn kill_app(&self, node: &str) {
        if let Some(pid) = self.pid(node) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

impl Drop for Stacked {
    fn drop(&mut self) {
        // The orchestrators would start them again.
        for node in ["a", "b", "w"] {
            self.0.kill_node(node);
        }
        ["a", "b"].iter().for_each(|node| self.kill_app(node));
    }
}

#[test]
fn when_the_primarys_machine_dies_the_stack_comes_up_on_the_other() {
    let mut stacked = Stacked::start();
    assert_eq!(stacked.diary(), "a below starts\na app runs\n");
    stacked.0.kill_node("a");
    stacked.kill_app("a");
    stacked.0.wait_primary("w", "b", 1);
    let promoted = Instant::now();
    stacked.wait_running("b");
    eprintln!("the stack runs {} ms after the promotion was seen", promoted.elapsed().as_millis());
    assert_eq!(stacked.diary(), "a below starts\na app runs\nb below starts\nb app runs\n");
    // The machine comes back, and has nothing to do.
    stacked.0.revive_node("a");
    stacked.0.wait_primary("w", "b", 2);
    stacked.wait_phase("a", "stopped");
}

#[test]
fn a_planned_move_stops_in_reverse_and_starts_elsewhere() {
    let stacked = Stacked::start();
    stacked.switchover("db", "b");
    stacked.wait_running("b");
    let diary = "a below starts\na app runs\na below stops\nb below starts\nb app runs\n";
    assert_eq!(stacked.diary(), diary);
    let pid = stacked.pid("a").unwrap().as_raw_nonzero().get();
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "it ended before its volume left");
}

#[test]
fn a_step_that_dies_is_started_again_and_given_up_when_it_does_so_too_often() {
    let stacked = Stacked::start();
    for failures in 1..=2 {
        let before = stacked.pid("a");
        stacked.kill_app("a");
        wait_for("the step to be started again", || {
            let is_new = stacked.pid("a") != before;
            let at = stacked.at("a")?;
            (is_new && at["failures"] == failures && at["phase"] == "running").then_some(())
        });
    }
    // What is below it stayed.
    assert_eq!(stacked.diary().matches("below").count(), 1, "{}", stacked.diary());
    stacked.kill_app("a");
    // The third failure is one too many here.
    stacked.0.wait_primary("w", "b", 2);
    stacked.wait_running("b");
}

#[test]
fn an_orchestrator_that_restarts_finds_what_runs() {
    let mut stacked = Stacked::start();
    let (diary, pid) = (stacked.diary(), stacked.pid("a"));
    stacked.0.restart_orchestrator("a");
    wait_for("the stack to be found", || {
        let at = stacked.at("a")?;
        (at["phase"] == "running").then_some(())
    });
    assert_eq!(stacked.pid("a"), pid);
    assert_eq!(stacked.diary().matches("app runs").count(), diary.matches("app runs").count());
}

#[test]
fn while_it_is_paused_nobody_reacts() {
    let stacked = Stacked::start();
    stacked.0.tell("w", &["pause", "--volume", "r0"]);
    wait_for("the pause to be known", || {
        (stacked.0.status("a")?["volumes"][0]["paused"] == true).then_some(())
    });
    let pid = stacked.pid("a");
    stacked.kill_app("a");
    let at = wait_for("somebody to have looked", || {
        let at = stacked.at("a")?;
        at["steps"][1]["words"].as_str()?.contains("runs no more").then_some(at)
    });
    assert_eq!((&at["failures"], stacked.pid("a")), (&Value::from(0), pid));
    // Many looks later, too.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(stacked.pid("a"), pid);
    stacked.0.tell("w", &["pause", "--volume", "r0", "--off"]);
    wait_for("it to be started again", || (stacked.pid("a") != pid).then_some(()));
    stacked.wait_running("a");
}
