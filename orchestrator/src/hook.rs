//! Hooks: programs that are told of what happens. Each has a thread of its own, on which one call follows the other; nothing
//! waits for them. Each call has a deadline, and when many wait, more are left out and counted.

use std::io;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use replicator::config::Hook;

use crate::happening::Happening;
use crate::process::{End, Leaves, call, shown};

/// Calls of one hook that wait.
const WAITING_MAX: usize = 64;

/// What a program finds in its environment.
type Told = Arc<Vec<(&'static str, String)>>;

/// What came of calls since the process began.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) done: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) left_out: AtomicU64,
}

/// The hooks of a process.
pub(crate) struct Hooks {
    /// Each with its calls; gone when they are stopped.
    hooks: Mutex<Vec<(Hook, SyncSender<Told>)>>,
    is_stopped: Arc<AtomicBool>,
    pub(crate) counts: Arc<Counts>,
    cluster: String,
    node: String,
}

impl Hooks {
    /// Begins to wait for something to tell.
    pub(crate) fn start(hooks: Vec<Hook>, cluster: String, node: String) -> io::Result<Self> {
        let (counts, is_stopped) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
        let begin = |hook: Hook| {
            let (sender, receiver) = sync_channel(WAITING_MAX);
            let (counts, is_stopped) = (Arc::clone(&counts), Arc::clone(&is_stopped));
            let own = hook.clone();
            let work = move || work(&own, &receiver, &counts, &is_stopped);
            std::thread::Builder::new().name("hook".to_owned()).spawn(work)?;
            Ok((hook, sender))
        };
        let hooks = hooks.into_iter().map(begin).collect::<io::Result<Vec<_>>>()?;
        Ok(Self { hooks: Mutex::new(hooks), is_stopped, counts, cluster, node })
    }

    /// Has those told who want to know. Never waits.
    pub(crate) fn tell(&self, happening: &Happening, leads: bool, at_unix_ms: u64) {
        let hooks = self.hooks.lock().expect("nobody panics with them in hand");
        let mut told = None;
        for (hook, calls) in hooks.iter().filter(|(hook, _)| hook.on.contains(&happening.occasion)) {
            let told = told.get_or_insert_with(|| Arc::new(self.environment(happening, leads, at_unix_ms)));
            if let Err(TrySendError::Full(_)) = calls.try_send(Arc::clone(told)) {
                self.counts.left_out.fetch_add(1, Ordering::Relaxed);
                let program = &hook.run[0];
                eprintln!("{program} is not told, since {WAITING_MAX} calls wait: {}", happening.text);
            }
        }
    }

    fn environment(
        &self,
        happening: &Happening,
        leads: bool,
        at_unix_ms: u64,
    ) -> Vec<(&'static str, String)> {
        let mut told = vec![
            ("HOLDFAST_EVENT", happening.occasion.word().to_owned()),
            ("HOLDFAST_CLUSTER", self.cluster.clone()),
            ("HOLDFAST_NODE", self.node.clone()),
            ("HOLDFAST_LEADS", if leads { "yes" } else { "no" }.to_owned()),
            ("HOLDFAST_AT_UNIX_MS", at_unix_ms.to_string()),
            ("HOLDFAST_TEXT", happening.text.clone()),
            ("HOLDFAST_REASON", happening.reason.clone()),
        ];
        let optional = [
            ("HOLDFAST_VOLUME", happening.volume.clone()),
            ("HOLDFAST_ABOUT_NODE", happening.node.clone()),
            ("HOLDFAST_EPOCH", happening.epoch.map(|epoch| epoch.to_string())),
            ("HOLDFAST_PRIMARY", happening.primary.clone()),
            ("HOLDFAST_OLD_PRIMARY", happening.old_primary.clone()),
            ("HOLDFAST_ROLE", happening.roles.map(|(now, _)| now.to_owned())),
            ("HOLDFAST_OLD_ROLE", happening.roles.map(|(_, was)| was.to_owned())),
        ];
        told.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));
        told
    }

    /// Breaks off those that run, and begins no other.
    pub(crate) fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        self.hooks.lock().expect("nobody panics with them in hand").clear();
    }
}

fn work(hook: &Hook, calls: &Receiver<Told>, counts: &Counts, is_stopped: &AtomicBool) {
    while let Ok(told) = calls.recv() {
        if is_stopped.load(Ordering::Relaxed) {
            return;
        }
        let (program, arguments) = hook.run.split_first().expect("the configuration is checked");
        let mut command = Command::new(program);
        // Texts come from other programs, perhaps; no environment takes a zero byte.
        let told = told.iter().map(|(name, value)| (*name, value.replace('\0', " ")));
        command.args(arguments).envs(told);
        let timeout = Duration::from_millis(hook.timeout_ms);
        let answer = call(&mut command, b"", timeout, Leaves::Nothing, is_stopped);
        let why = match answer.end {
            End::Exited(0) => {
                counts.done.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            End::Exited(code) => format!("it ended with {code}: {}", shown(&answer.errors, None)),
            End::TimedOut => format!("it took longer than {} ms and was killed", timeout.as_millis()),
            End::BrokenOff => return,
            End::Failed(why) => why,
        };
        counts.failed.fetch_add(1, Ordering::Relaxed);
        eprintln!("the hook {program} failed: {why}");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use replicator::config::Occasion;

    use super::*;

    fn hook(run: &[&str], timeout_ms: u64) -> Hook {
        let run = run.iter().map(|word| (*word).to_owned()).collect();
        Hook { on: vec![Occasion::Failover], run, timeout_ms }
    }

    fn happening(occasion: Occasion) -> Happening {
        let mut happening = Happening::new(occasion, "b is\0primary".to_owned(), "a is gone".to_owned());
        happening.volume = Some("r0".to_owned());
        happening
    }

    fn start(hooks: Vec<Hook>) -> Hooks {
        Hooks::start(hooks, "db".to_owned(), "b".to_owned()).unwrap()
    }

    fn wait_for(what: &str, is_so: impl Fn() -> bool) {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < Duration::from_secs(30), "waited in vain for {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_program_is_told_what_it_wants_to_know() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("told");
        let script = format!("env | grep ^HOLDFAST_ | sort > {}", file.display());
        let hooks = start(vec![hook(&["sh", "-c", &script], 10_000)]);
        hooks.tell(&happening(Occasion::Leader), true, 0);
        hooks.tell(&happening(Occasion::Failover), true, 77);
        wait_for("the program", || hooks.counts.done.load(Ordering::Relaxed) == 1);
        let told = std::fs::read_to_string(file).unwrap();
        let expected = "HOLDFAST_AT_UNIX_MS=77\nHOLDFAST_CLUSTER=db\nHOLDFAST_EVENT=failover\nHOLDFAST_LEADS=yes\n\
             HOLDFAST_NODE=b\nHOLDFAST_REASON=a is gone\nHOLDFAST_TEXT=b is primary\nHOLDFAST_VOLUME=r0\n";
        assert_eq!(told, expected);
    }

    #[test]
    fn one_that_hangs_is_killed_and_one_that_fails_is_counted() {
        let hooks =
            start(vec![hook(&["sleep", "600"], 50), hook(&["false"], 1_000), hook(&["/no/such"], 1_000)]);
        hooks.tell(&happening(Occasion::Failover), false, 0);
        wait_for("all of them", || hooks.counts.failed.load(Ordering::Relaxed) == 3);
        assert_eq!(hooks.counts.done.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn nobody_waits_for_hooks_and_too_many_are_left_out() {
        let hooks = start(vec![hook(&["sleep", "600"], 600_000)]);
        let began = Instant::now();
        for _ in 0..WAITING_MAX + 10 {
            hooks.tell(&happening(Occasion::Failover), false, 0);
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        assert!((9..=10).contains(&hooks.counts.left_out.load(Ordering::Relaxed)), "{:?}", hooks.counts);
        hooks.stop();
        hooks.tell(&happening(Occasion::Failover), false, 0);
    }
}
