//! What is said of a `[[stack]]` that cannot be.

use std::path::Path;

use super::super::{ConfigError, WithSecret, parse};
use super::*;

/// A sound file up to its stacks.
fn head() -> String {
    let nodes = ["a", "b", "w"].iter().enumerate().map(|(place, name)| {
        format!("[[node]]\nname = \"{name}\"\naddress = \"10.0.0.{}\"\n[node.orchestrator]\n", place + 1)
    });
    let nodes: String = nodes.collect();
    format!(
        "[cluster]\nname = \"c\"\nsecret = \"0123456789abcdef\"\n[orchestrator]\nlease = \"1s\"\n{nodes}\
         [[volume]]\nname = \"r0\"\nuuid = \"01915f1e-0a4b-4c3d-8e2f-0123456789ab\"\nsize = \"1GiB\"\n{}{}",
        replica("a"),
        replica("b"),
    )
}

fn replica(node: &str) -> String {
    format!("[[volume.replica]]\nnode = \"{node}\"\ndisk = \"/d/0\"\njournal = \"/d/1\"\nport = 7788\n")
}

/// A stack on `r0` with these steps.
fn stack(steps: &[&str]) -> String {
    let volume = "[[stack]]\nname = \"db\"\n[[stack.step]]\nkind = \"volume\"\nvolume = \"r0\"\n";
    let steps: String = steps.iter().map(|step| format!("[[stack.step]]\n{step}\n")).collect();
    format!("{volume}{steps}")
}

fn read(stacks: &str) -> Result<(Vec<Stack>, String), String> {
    match parse(Path::new("/etc/holdfast.toml"), &format!("{}{stacks}", head()), WithSecret::No) {
        Ok(loaded) => Ok((loaded.cluster.stacks, loaded.warnings.to_string())),
        Err(ConfigError::Invalid(problems)) => Err(problems.to_string()),
        Err(other) => panic!("{other}"),
    }
}

/// The stack must be refused with all these words.
fn refused(stacks: &str, words: &[&str]) {
    let text = read(stacks).expect_err("it was accepted");
    words.iter().for_each(|word| assert!(text.contains(word), "{word} is not in:\n{text}"));
}

fn kinds(steps: &[&str]) -> Vec<StepKind> {
    let (stacks, warnings) = read(&stack(steps)).unwrap();
    assert_eq!(warnings, "");
    stacks[0].steps.iter().map(|step| step.kind.clone()).collect()
}

const DEVICE: &str = "kind = \"device\"\nvolume = \"r0\"";

#[test]
fn a_file_system_is_on_the_device_below_it() {
    let found = kinds(&[DEVICE, "kind = \"filesystem\"\nmount = \"/srv/db/\""]);
    let expected = FileSystemStep {
        device: "/dev/holdfast/r0".into(),
        mount: "/srv/db".into(),
        kind: "auto".to_owned(),
        options: String::new(),
        fsck: Fsck::Preen,
        holders: Holders::Kill,
    };
    assert_eq!(found[1], StepKind::FileSystem(expected));
    let StepKind::FileSystem(FileSystemStep { mount, .. }) = &found[1] else { unreachable!() };
    assert_eq!(mount.as_os_str(), "/srv/db", "as the kernel writes it");
}

#[test]
fn a_file_system_may_be_on_any_device() {
    let text = "kind = \"filesystem\"\ndevice = \"/dev/vg/db\"\nmount = \"/srv/db\"\ntype = \"ext4\"\n\
                mount-options = \"noatime,discard\"\nfsck = \"force\"\nholders = \"leave\"";
    let found = kinds(&[text]);
    let expected = FileSystemStep {
        device: "/dev/vg/db".into(),
        mount: "/srv/db".into(),
        kind: "ext4".to_owned(),
        options: "noatime,discard".to_owned(),
        fsck: Fsck::Force,
        holders: Holders::Leave,
    };
    assert_eq!(found, [StepKind::FileSystem(expected)]);
}

#[test]
fn what_is_wrong_with_a_file_system_is_said() {
    let step = |text: &str| stack(&[DEVICE, &format!("kind = \"filesystem\"\n{text}")]);
    refused(&stack(&["kind = \"filesystem\"\nmount = \"/srv\""]), &["on which device", "kind = \"device\""]);
    refused(&step(""), &["`mount` is missing", "mount = \"/srv/db\""]);
    refused(&step("mount = \"srv\""), &["\"srv\" is no path from the root"]);
    refused(&step("mount = \"/\""), &["no path from the root"]);
    refused(&step("mount = \"/srv/../etc\""), &["without .."]);
    refused(&step("mount = \"/srv\"\nmount-options = \"ro, noatime\""), &["mount(8)", "without blanks"]);
    refused(&step("mount = \"/srv\"\ntype = \"-o\""), &["mount(8)"]);
    refused(&step("mount = \"/srv\"\nfsck = \"force\""), &["ext2, ext3 and ext4", "fsck = \"preen\""]);
    refused(&step("mount = \"/srv\"\nfsck = \"pren\""), &["did you mean \"preen\"?"]);
    refused(&step("mount = \"/srv\"\nlazy = true"), &["unknown key `lazy`"]);
}

#[test]
fn what_is_wrong_with_a_stack_is_said() {
    refused("[[stack]]\nname = \"db\"\n", &["stack \"db\" stands on no volume", "kind = \"volume\""]);
    let other = "[[stack]]\nname = \"db\"\n[[stack.step]]\nkind = \"volume\"\nvolume = \"r1\"\n";
    refused(other, &["there is no volume \"r1\"", "r0"]);
    refused(&stack(&["kind = \"volum\""]), &["did you mean \"volume\"?"]);
    refused(&stack(&[DEVICE, "kind = \"volume\"\nvolume = \"r0\""]), &["below everything else"]);
    refused(&stack(&[DEVICE, DEVICE]), &["two steps are called \"device\""]);
    refused(&stack(&["kind = \"device\"\nvolume = \"r1\""]), &["\"r1\" is no volume of this stack"]);
    refused(&stack(&[&format!("{DEVICE}\nstart-timeout = \"0s\"")]), &["a timeout must be above 0"]);
    refused(&format!("{}{}", stack(&[]), stack(&[])), &["this stack's name was used before"]);
    refused(&stack(&[]).replace("\"db\"", "\"r0\""), &["a volume has this name"]);
    let with = stack(&[]).replace("\"db\"", "\"db\"\nwith = [\"web\"]");
    refused(&with, &["there is no stack \"web\" before this one"]);
    let prefer = stack(&[]).replace("\"db\"", "\"db\"\nprefer = [\"c\"]");
    refused(&prefer, &["there is no node \"c\"", "\"a\", \"b\""]);
}

#[test]
fn what_is_wrong_with_a_command_is_said() {
    refused(&stack(&["kind = \"command\""]), &["either `run`, or `start`"]);
    refused(&stack(&["kind = \"command\"\nrun = [\"x\"]\nstop = [\"y\"]"]), &["either `run`, or `start`"]);
    refused(&stack(&["kind = \"command\"\nrun = []"]), &["`run` names no program"]);
    let found = kinds(&["kind = \"command\"\nrun = [\"./app\", \"./x\"]"]);
    let run = vec!["/etc/app".to_owned(), "./x".to_owned()];
    assert_eq!(found, [StepKind::Command(CommandStep::Run { run, monitor: None })]);
}

#[test]
fn what_is_wrong_with_an_address_is_said() {
    let step = |text: &str| stack(&[&format!("kind = \"address\"\n{text}")]);
    refused(&step("interface = \"eth0\""), &["`address` is missing"]);
    refused(&step("address = \"10.0.0.9\"\ninterface = \"eth0\""), &["no address with its network"]);
    refused(&step("address = \"10.0.0.9/33\"\ninterface = \"eth0\""), &["no address with its network"]);
    refused(&step("address = \"10.0.0.9/24\"\ninterface = \"an interface\""), &["no name of an interface"]);
    let needs = "address = \"10.0.0.9/24\"\ninterface = \"eth0\"\nneeds = \"off\"";
    refused(&step(needs), &["`needs` is not for an address"]);
}

#[test]
fn an_agent_is_told_its_parameters_as_text() {
    let found = kinds(&[
        "kind = \"ocf\"\nagent = \"ocf:heartbeat:pgsql\"\nparameters = { pgport = 5433, check = true }",
    ]);
    let StepKind::Agent(agent) = &found[0] else { panic!("{found:?}") };
    assert_eq!((agent.provider.as_str(), agent.agent.as_str()), ("heartbeat", "pgsql"));
    let parameters: Vec<_> =
        agent.parameters.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(parameters, [("check", "1"), ("pgport", "5433")]);
}

#[test]
fn what_is_wrong_with_an_agent_or_a_unit_is_said() {
    let agent = |text: &str| stack(&[&format!("kind = \"ocf\"\n{text}")]);
    refused(&agent(""), &["`agent` is missing", "ocf:heartbeat:pgsql"]);
    refused(&agent("agent = \"pgsql\""), &["\"pgsql\" is no resource agent"]);
    refused(&agent("agent = \"ocf:../..:x\""), &["is no resource agent"]);
    refused(&agent("agent = \"ocf:heartbeat:x\"\nparameters = { \"a b\" = 1 }"), &["`a b` cannot be told"]);
    refused(&agent("agent = \"ocf:heartbeat:x\"\nparameter = { a = 1 }"), &["did you mean `parameters`?"]);
    let unit = |text: &str| stack(&[&format!("kind = \"systemd\"\n{text}")]);
    refused(&unit(""), &["`unit` is missing"]);
    refused(&unit("unit = \"a b\""), &["is no name of a unit"]);
    refused(&unit("unit = \"--now\""), &["is no name of a unit"]);
    let StepKind::Unit(found) = &kinds(&["kind = \"systemd\"\nunit = \"postgresql@17-main\""])[0] else {
        panic!()
    };
    assert_eq!(found.unit, "postgresql@17-main.service");
}
