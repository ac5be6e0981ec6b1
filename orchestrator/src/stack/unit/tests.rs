//! Units of a real systemd: a manager of its own, in namespaces that the test makes, on a D-Bus of its own that systemctl
//! takes for the system's. It needs root; without it, or without systemd and dbus, nothing is tested and that is said.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::*;

const LONG: Duration = Duration::from_secs(30);
/// Set in the process that lives in the namespaces.
const INSIDE: &str = "HOLDFAST_TEST_UNITS";
/// Makes the world for the manager, and becomes the test again.
const WORLD: &str = r#"set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/own/systemd/user
chmod 700 /run/own
umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mkdir -p "/sys/fs/cgroup/$GROUP"
echo 0 >"/sys/fs/cgroup/$GROUP/cgroup.procs"
export XDG_RUNTIME_DIR=/run/own DBUS_SESSION_BUS_ADDRESS=unix:path=/run/own/bus
export DBUS_SYSTEM_BUS_ADDRESS=$DBUS_SESSION_BUS_ADDRESS
dbus-daemon --session --address=$DBUS_SESSION_BUS_ADDRESS --fork --nopidfile
cd /run/own/systemd/user
printf '[Service]\nExecStart=sleep 600\n' >app.service
printf '[Service]\nExecStart=false\nRestart=no\n' >broken.service
printf '[Service]\nExecStart=sh -c "trap : TERM; while :; do sleep 0.1; done"\nTimeoutStopSec=infinity\n' >deaf.service
printf '[Service]\nExecStart=sleep 600\n[Install]\nWantedBy=default.target\n' >atboot.service
mkdir default.target.wants
ln -s ../atboot.service default.target.wants/
/usr/lib/systemd/systemd --user >/dev/null 2>&1 &
exec "$@""#;

/// The control group for the manager; gone when dropped.
struct Group(PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = Command::new("find")
            .arg(&self.0)
            .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"])
            .output();
    }
}

/// Runs the test once more, beside a manager of its own. Whether this is that run.
fn beside_a_manager(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        let deadline = Instant::now() + LONG;
        while !Command::new("systemctl")
            .args(["show", "--property=Version"])
            .output()
            .unwrap()
            .status
            .success()
        {
            assert!(Instant::now() < deadline, "the manager does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        return true;
    }
    let needs = ["/usr/lib/systemd/systemd", "/usr/bin/dbus-daemon", "/usr/bin/systemctl"];
    let Some(own) = super::super::cage::own().filter(|_| rustix::process::geteuid().is_root()) else {
        eprintln!("not tested: a manager needs root and cgroup v2");
        return false;
    };
    if let Some(missing) = needs.iter().find(|need| !Path::new(need).exists()) {
        eprintln!("not tested: {missing} is not installed");
        return false;
    }
    let group = format!("holdfast.test.{}", std::process::id());
    let place = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let place = place.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned();
    let _group = Group(own.join(&group));
    let mut again = Command::new("unshare");
    again.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    again.args(["sh", "-c", WORLD, "sh"]).arg(std::env::current_exe().unwrap());
    again.args(["--exact", &format!("stack::unit::tests::{name}"), "--nocapture"]);
    again.env(INSIDE, "1").env("GROUP", format!("{place}/{group}"));
    let output = again.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "{said}");
    false
}

fn act(unit: &str, action: Action, timeout: Duration) -> Outcome {
    let unit = Unit::new(&UnitStep { unit: unit.to_owned(), place: 0..0 });
    let until = crate::clock::now();
    unit.carry_out(&Task { action, timeout, until, is_broken_off: &AtomicBool::new(false) })
}

#[track_caller]
fn says(outcome: &Outcome, words: &str) {
    let (Outcome::Failed(text) | Outcome::Refused(text)) = outcome else { panic!("{outcome:?}") };
    assert!(text.contains(words), "{words} is not in: {text}");
}

#[test]
fn units_of_a_real_manager_come_and_go() {
    if !beside_a_manager("units_of_a_real_manager_come_and_go") {
        return;
    }
    assert_eq!(act("app.service", Action::Probe, LONG), Outcome::NotRunning);
    for _ in 0..2 {
        for action in [Action::Start, Action::Start, Action::Monitor, Action::Probe] {
            assert_eq!(act("app.service", action, LONG), Outcome::Done);
        }
        for action in [Action::Stop, Action::Stop, Action::Force] {
            assert_eq!(act("app.service", action, LONG), Outcome::Done);
        }
        assert_eq!(act("app.service", Action::Monitor, LONG), Outcome::NotRunning);
    }
    // One that dies is found out, and can be started again.
    assert_eq!(act("app.service", Action::Start, LONG), Outcome::Done);
    Command::new("systemctl").args(["kill", "--signal=SEGV", "app.service"]).status().unwrap();
    let deadline = Instant::now() + LONG;
    let outcome = loop {
        match act("app.service", Action::Monitor, LONG) {
            Outcome::Done => assert!(Instant::now() < deadline, "it lives"),
            outcome => break outcome,
        }
    };
    says(&outcome, "app.service failed with ");
    assert_eq!(act("app.service", Action::Probe, LONG), Outcome::NotRunning);
    assert_eq!(act("app.service", Action::Start, LONG), Outcome::Done);
    // One that does not stop in time is killed.
    assert_eq!(act("deaf.service", Action::Start, LONG), Outcome::Done);
    says(&act("deaf.service", Action::Stop, Duration::from_millis(800)), "systemctl stop: it took longer");
    assert_eq!(act("deaf.service", Action::Force, LONG), Outcome::Done);
    assert_eq!(act("deaf.service", Action::Monitor, LONG), Outcome::NotRunning);
    // One that ends at once has not started; one that is not there need not be tried again.
    says(&act("broken.service", Action::Start, LONG), "it has ended at once");
    let outcome = act("nothing.service", Action::Start, LONG);
    assert!(matches!(&outcome, Outcome::Refused(why) if why.contains("no such unit")), "{outcome:?}");
    assert_eq!(act("nothing.service", Action::Probe, LONG), Outcome::NotRunning);
    assert_eq!(act("nothing.service", Action::Stop, LONG), Outcome::Done);
    // One that would be started at boot is warned of.
    let warned = |unit: &str| {
        let mut loaded = configuration(unit);
        crate::stack::check(&loaded.cluster, &mut loaded.warnings);
        loaded.warnings.to_string()
    };
    assert_eq!(warned("app.service"), "");
    let text = warned("atboot.service");
    assert!(text.contains("is enabled") && text.contains("systemctl disable atboot.service"), "{text}");
    assert!(warned("nothing.service").contains("no such unit"));
}

/// A configuration with one `systemd` step, as it is read.
fn configuration(unit: &str) -> replicator::config::Loaded {
    super::super::one_step::loaded(&format!("kind = \"systemd\"\nunit = \"{unit}\"\n"))
}

#[test]
fn what_the_manager_says_is_read() {
    let shown =
        Shown::parse("LoadState=loaded\nActiveState=failed\nResult=exit-code\nUnitFileState=\nOther=x=y\n");
    assert_eq!((shown.sort(), shown.result.as_str(), shown.refusal()), (Sort::Failed, "exit-code", None));
    let sorts = ["active", "reloading", "inactive", "deactivating", "something new"];
    let sorts = sorts.map(|active| Shown { active: active.to_owned(), ..Shown::default() }.sort());
    assert_eq!(sorts, [Sort::Runs, Sort::Runs, Sort::Stopped, Sort::Changes, Sort::Changes]);
    assert!(Shown::parse("LoadState=masked").refusal().is_some());
}
