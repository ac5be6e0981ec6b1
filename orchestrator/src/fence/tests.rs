//! Fencing with agents that really run: ones that hang, lie and babble, and those of the distribution where they are
//! installed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use orchestrator_core::units::NodeId;
use replicator::config::{self, Cluster, WithSecret};

use super::agent::tests::script;
use super::{Fencer, agent, check, devices_of};

/// A description like that of agents which switch nodes off.
const METADATA: &str = r#"<?xml version="1.0" ?>
<resource-agent name="fence_fake" shortdesc="fake"><parameters>
<parameter name="action" required="1"><content type="string" default="reboot"/></parameter>
<parameter name="plug" required="1" obsoletes="port"><content type="string"/></parameter>
<parameter name="port" required="1" deprecated="1"><content type="string"/></parameter>
<parameter name="method" required="0"><content type="select" default="onoff">
<option value="onoff"/><option value="cycle"/></content></parameter>
<parameter name="password" required="0"><content type="string"/></parameter>
</parameters><actions><action name="on" automatic="0"/><action name="off"/><action name="status"/>
<action name="metadata"/></actions></resource-agent>"#;

/// A fake agent that writes down what it is told and keeps the state of the node in a file. `off` and `status` are its
/// answers.
fn fake(folder: &Path, name: &str, off: &str, status: &str) -> PathBuf {
    std::fs::write(folder.join("metadata.xml"), METADATA).unwrap();
    let body = format!(
        "cd {folder}\nwhile read line; do case $line in action=*) action=${{line#action=}};; esac; \
         echo \"{name} $line\" >> told; done\n\
         case $action in metadata) cat metadata.xml;; off) {off};; status) {status};; *) exit 1;; esac",
        folder = folder.display()
    );
    script(folder, name, &body)
}

const GOES_OFF: &str = "echo off > state";
const TELLS: &str = "grep -q off state && exit 2; exit 0";

fn cluster(fences: &str) -> (Cluster, config::Problems) {
    let node = |name: &str, port: u16| {
        format!(
            "[[node]]\nname = \"{name}\"\naddress = \"127.0.0.1\"\ncontrol = \"{name}.ctl\"\n[node.orchestrator]\n\
                 port = {port}\ncontrol = \"{name}.orc\"\nstore = \"{name}.store\"\n"
        )
    };
    let text = format!(
        "[cluster]\nname = \"c\"\nsecret = \"0123456789abcdef0123456789abcdef\"\n[orchestrator]\n{}{}{}{fences}",
        node("a", 1),
        node("b", 2),
        node("w", 3)
    );
    let loaded = config::parse(Path::new("/c.toml"), &text, WithSecret::Yes);
    let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
    (loaded.cluster, loaded.warnings)
}

fn device(agent: &str, more: &str, options: &str) -> String {
    format!(
        "[[fence]]\nname = \"d-{level}\"\nnode = \"a\"\nagent = \"{agent}\"\nretries = 0\n{more}\n\
             [fence.options]\n{options}\n",
        level = more.len()
    )
}

fn fenced(fences: &str) -> (Result<String, String>, Vec<String>) {
    let fencer: Fencer = devices_of(&cluster(fences).0);
    let said = Mutex::new(Vec::new());
    let wanted = Arc::new(AtomicBool::new(true));
    let result = fencer.switch_off(NodeId(0), false, &wanted, &|text| said.lock().unwrap().push(text));
    (result.expect("it was wanted all the time"), said.into_inner().unwrap())
}

fn problems(fences: &str) -> String {
    let (cluster, mut problems) = cluster(fences);
    let known = problems.list().len();
    check(&cluster, &mut problems);
    let text =
        |problem: &config::Problem| format!("{} {}", problem.message, problem.help.as_deref().unwrap_or(""));
    problems.list()[known..].iter().map(text).collect::<Vec<_>>().join("\n")
}

#[test]
fn an_agent_is_told_what_the_configuration_says_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let agent = fake(folder.path(), "agent", GOES_OFF, TELLS);
    std::fs::write(folder.path().join("secret"), "hunter2\n").unwrap();
    let file = format!("password-file = \"{}\"", folder.path().join("secret").display());
    let (result, said) = fenced(&device(agent.to_str().unwrap(), &file, "plug = 7"));
    assert!(result.is_ok(), "{result:?}");
    let told = std::fs::read_to_string(folder.path().join("told")).unwrap();
    let lines = ["action=off", "nodename=a", "plug=7", "password=hunter2", "action=status"];
    assert!(lines.iter().all(|line| told.contains(&format!("agent {line}\n"))), "{told}");
    assert!(!said.join("\n").contains("hunter2"), "{said:?}");
}

#[test]
fn an_agent_that_lies_hangs_or_babbles_switches_nothing_off() {
    for (off, status, part) in [
        ("exit 0", "exit 0", "its status says that the node is on"),
        ("sleep 600", TELLS, "did not answer off in time"),
        (GOES_OFF, "sleep 600", "did not answer status in time"),
        ("exit 1", TELLS, "answered off with exit code 1"),
        (GOES_OFF, "head -c 100000 /dev/urandom; exit 7", "answered status with exit code 7"),
        (GOES_OFF, "kill -9 $$", "killed by signal 9"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let agent = fake(folder.path(), "agent", off, status);
        let (result, _) = fenced(&device(agent.to_str().unwrap(), "timeout = \"700ms\"", "plug = 7"));
        assert!(result.as_ref().is_err_and(|why| why.contains(part)), "{off}, {status}: {result:?}");
    }
}

#[test]
fn the_second_level_is_tried_when_the_first_has_failed() {
    let folder = tempfile::tempdir().unwrap();
    let bad = fake(folder.path(), "bad", "exit 1", TELLS);
    let good = fake(folder.path(), "good", GOES_OFF, TELLS);
    let fences = device(good.to_str().unwrap(), "level = 2", "plug = 7")
        + &device(bad.to_str().unwrap(), "level = 1 ", "plug = 7");
    assert_eq!(fenced(&fences).0, Ok("d-9".to_owned()));
    let told = std::fs::read_to_string(folder.path().join("told")).unwrap();
    assert!(told.starts_with("bad "), "{told}");
}

#[test]
fn an_order_that_is_not_wanted_any_more_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let agent = fake(folder.path(), "agent", GOES_OFF, TELLS);
    let fencer = devices_of(&cluster(&device(agent.to_str().unwrap(), "delay = \"1h\"", "plug = 7")).0);
    let wanted = Arc::new(AtomicBool::new(true));
    let also = Arc::clone(&wanted);
    let running = std::thread::spawn(move || fencer.switch_off(NodeId(0), false, &also, &|_| {}));
    wanted.store(false, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(running.join().unwrap(), None);
    assert!(!folder.path().join("told").exists());
}

#[test]
fn the_check_says_what_an_agent_cannot_use() {
    let folder = tempfile::tempdir().unwrap();
    let agent = fake(folder.path(), "agent", GOES_OFF, TELLS);
    let check = |options: &str| problems(&device(agent.to_str().unwrap(), "", options));
    assert_eq!(check("plug = 7"), "");
    assert!(check("").contains("must be told `plug`"));
    assert!(check("plug = 7\ncolour = \"red\"").contains("knows no `colour`"));
    assert!(check("plug = 7\nmethod = \"softly\"").contains("cannot be \"softly\""));
    assert!(check("port = 7").contains("is an old name"));
    assert!(problems(&device("fence_nowhere", "", "plug = 7")).contains("is not installed here"));
    let babbler = script(folder.path(), "babbler", "echo hello");
    assert!(problems(&device(babbler.to_str().unwrap(), "", "")).contains("does not describe itself"));
}

#[test]
fn an_agent_that_cannot_prove_anything_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (from, to, part) in [
        ("<action name=\"status\"/>", "", "knows no action `status`"),
        ("<action name=\"off\"/>", "", "knows no action `off`"),
        ("<action name=\"off\"/>", "<action name=\"off\" on_target=\"1\"/>", "has to run on the very node"),
        ("automatic=\"0\"", "automatic=\"1\" on_target=\"1\"", "leaves it running"),
    ] {
        let agent = fake(folder.path(), "agent", GOES_OFF, TELLS);
        std::fs::write(folder.path().join("metadata.xml"), METADATA.replace(from, to)).unwrap();
        let found = problems(&device(agent.to_str().unwrap(), "", "plug = 7"));
        assert!(found.contains(part), "{found}");
        let fencer = devices_of(&cluster(&device(agent.to_str().unwrap(), "", "plug = 7")).0);
        assert!(fencer.usable().is_empty());
    }
}

/// Says that a test has not looked at the agents of the distribution.
fn is_installed(agent: &str) -> bool {
    let found = agent::find(agent).is_some();
    if !found {
        eprintln!("not tested: {agent} is not installed (package fence-agents)");
    }
    found
}

#[test]
fn the_dummy_of_the_distribution_switches_off_and_is_read_back() {
    if !is_installed("fence_dummy") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    std::fs::write(&state, "on").unwrap();
    let options = format!("status_file = \"{}\"", state.display());
    let fences = device("fence_dummy", "", &options);
    assert_eq!(problems(&fences), "");
    let (result, said) = fenced(&fences);
    assert!(result.is_ok(), "{result:?} {said:?}");
    assert_eq!(std::fs::read_to_string(&state).unwrap(), "off");
}

#[test]
fn agents_of_the_distribution_are_understood() {
    if !is_installed("fence_virsh") || !is_installed("fence_scsi") {
        return;
    }
    let complete = "ip = \"host\"\nusername = \"root\"\nplug = \"a\"";
    assert_eq!(problems(&device("fence_virsh", "", complete)), "");
    assert!(
        problems(&device("fence_virsh", "", "ip = \"host\"\nplug = \"a\""))
            .contains("must be told `username`")
    );
    let old = problems(&device("fence_virsh", "", "ipaddr = \"host\"\nlogin = \"root\"\nport = \"a\""));
    assert!(old.contains("write plug") && !old.contains("must be told"), "{old}");
    assert!(problems(&device("fence_scsi", "", "")).contains("leaves it running"));
    let used: BTreeMap<&str, bool> = ["fence_virsh", "fence_scsi"]
        .into_iter()
        .map(|agent| (agent, !devices_of(&cluster(&device(agent, "", complete)).0).usable().is_empty()))
        .collect();
    assert_eq!(used, BTreeMap::from([("fence_virsh", true), ("fence_scsi", false)]));
}
