//! `[[fence]]`: how a node is switched off. One section for each device and node; what the agent itself wants is in
//! `options`, as it is called in the agent's own documentation.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use replicator_core::units::NodeId;

use super::WithSecret;
use super::cluster::{list, resolve};
use super::orchestrator::{FenceMode, Orchestrator};
use super::problem::Problems;
use super::reader::{NodeDraft, VolumeDraft, checked_name};
use super::secret;
use super::section::{At, Section};
use crate::options::Secret;

/// Names under which agents take a password.
const PASSWORD_OPTIONS: [&str; 2] = ["password", "passwd"];
/// Options that are not the configuration's to give, and why.
const OWN_OPTIONS: [(&str, &str); 3] = [
    ("action", "nodes are switched off, and nothing else"),
    ("nodename", "it is the node of this section"),
    ("delay", "write `delay` beside `agent`, so that it is not part of the agent's time"),
];
const TIMEOUT_MS: u64 = 60_000;
const RETRIES: u64 = 2;

/// A device that can switch one node off.
#[derive(Clone, Debug)]
pub struct FenceDevice {
    /// Its name, in messages.
    pub name: String,
    /// The node.
    pub target: NodeId,
    /// The agent: a program of the ClusterLabs protocol, by name or by path.
    pub agent: String,
    /// Devices of the lowest level are tried first, and all of them must succeed.
    pub level: u8,
    /// What the agent is told.
    pub options: BTreeMap<String, String>,
    /// What it is told and nobody else; `None` also if it was not asked for.
    pub password: Option<Secret>,
    /// Whether it is told a password.
    pub has_password: bool,
    /// How long one call of the agent may take.
    pub timeout_ms: u64,
    /// How often it is tried again.
    pub retries: u32,
    /// How long the first attempt waits.
    pub delay_ms: u64,
    /// Where its parts stand in the file.
    pub places: FencePlaces,
}

/// Where the parts of a `[[fence]]` stand in the file.
#[derive(Clone, Debug)]
pub struct FencePlaces {
    /// The section.
    pub section: Range<usize>,
    /// The agent.
    pub agent: Range<usize>,
    /// The options.
    pub options: BTreeMap<String, Range<usize>>,
}

/// A `[[fence]]` with the places of its values.
pub(super) struct FenceDraft {
    name: At<String>,
    node: At<String>,
    device: FenceDevice,
}

/// Reads all `[[fence]]`; `None` if one of them leaves nothing to look at.
pub(super) fn read(
    top: &mut Section<'_>,
    path: &Path,
    with_secret: WithSecret,
    problems: &mut Problems,
) -> Option<Vec<FenceDraft>> {
    let mut sections = top.tables("fence", "[[fence]]", problems);
    sections.drain(..).map(|section| read_one(section, path, with_secret, problems)).collect()
}

fn read_one(
    mut section: Section<'_>,
    path: &Path,
    with_secret: WithSecret,
    problems: &mut Problems,
) -> Option<FenceDraft> {
    let span = section.span.clone();
    let mut required = |key: &'static str, help: &str, problems: &mut Problems| {
        let value = section.text(key, problems);
        section.require(key, value, help.to_owned(), problems)
    };
    let name = required("name", "write name = \"ipmi-a\"", problems);
    let node = required("node", "write the name of the node that it switches off", problems);
    let agent = required("agent", "write agent = \"fence_ipmilan\"", problems);
    let name = name.and_then(|name| checked_name(name, problems));
    let level = section.integer("level", 1..=9, problems).map_or(1, |at| at.value);
    let timeout_ms = section.duration_ms("timeout", problems);
    let retries = section.integer("retries", 0..=10, problems).map_or(RETRIES, |at| at.value);
    let delay_ms = section.duration_ms("delay", problems).map_or(0, |at| at.value);
    let file = section.text("password-file", problems);
    let given = section.pairs("options", "[fence.options]", problems);
    section.finish(problems);
    if let Some(timeout_ms) = timeout_ms.as_ref().filter(|at| at.value == 0) {
        problems.error(&timeout_ms.span, "`timeout` must be above 0", "\"60s\" is the default".to_owned());
    }
    let (mut options, mut places) = (BTreeMap::new(), BTreeMap::new());
    let mut password = None;
    for (key, at) in given {
        let key = key.replace('-', "_");
        check_option(&key, &at, problems);
        places.insert(key.clone(), at.span);
        if PASSWORD_OPTIONS.contains(&key.as_str()) {
            password = Some(Secret(at.value.into_bytes()));
        } else {
            options.insert(key, at.value);
        }
    }
    let has_password = file.is_some() || password.is_some();
    if let Some(file) = file.filter(|_| with_secret == WithSecret::Yes) {
        if password.is_some() {
            let message = "both `password-file` and a password in `options` are given";
            problems.error(&file.span, message, "keep one".to_owned());
        }
        password = secret::password(&resolve(path, &file.value), &file, problems);
    }
    let (name, node, agent) = (name?, node?, agent?);
    let device = FenceDevice {
        name: name.value.clone(),
        target: NodeId(0),
        agent: agent.value,
        level: u8::try_from(level).expect("in range"),
        options,
        password,
        has_password,
        timeout_ms: timeout_ms.map_or(TIMEOUT_MS, |at| at.value),
        retries: u32::try_from(retries).expect("in range"),
        delay_ms,
        places: FencePlaces { section: span, agent: agent.span, options: places },
    };
    Some(FenceDraft { name, node, device })
}

/// What no device may be told, whatever its agent says.
fn check_option(key: &str, at: &At<String>, problems: &mut Problems) {
    if let Some((_, why)) = OWN_OPTIONS.iter().find(|(own, _)| *own == key) {
        problems.error(&at.span, format!("`{key}` is not for `options`"), (*why).to_owned());
    }
    if at.value.contains(['\n', '\r', '\0']) {
        problems.error(&at.span, format!("`{key}` has a line break: agents read lines"), None);
    }
    if key == "method" && at.value == "cycle" {
        let message = "`method = \"cycle\"` lets the device switch the node on again before anybody knows that it was off";
        problems.error(&at.span, message, "write method = \"onoff\", or leave it out".to_owned());
    }
    if key == "missing_as_off" && !matches!(at.value.as_str(), "0" | "false") {
        let message = "`missing_as_off` takes a machine that the device does not know for one that is off";
        problems.error(&at.span, message, "leave it out: what is not known is no proof".to_owned());
    }
}

/// What the sections say together with the rest of the file.
pub(super) fn check(
    drafts: &[FenceDraft],
    nodes: &[NodeDraft],
    volumes: &[VolumeDraft],
    orchestrator: Option<&At<Orchestrator>>,
    problems: &mut Problems,
) {
    for (place, draft) in drafts.iter().enumerate() {
        if !nodes.iter().any(|node| node.name.value == draft.node.value) {
            let known = list(nodes.iter().map(|node| &node.name.value));
            let message = format!("there is no node \"{}\"", draft.node.value);
            problems.error(&draft.node.span, message, format!("the nodes of this file are {known}"));
        }
        if drafts[..place].iter().any(|other| other.name.value == draft.name.value) {
            let help = "each must differ from the others".to_owned();
            problems.error(&draft.name.span, "this fence device's name was used before", help);
        }
        if orchestrator.is_none() {
            let message = "nobody uses this: the file has no [orchestrator]";
            problems.warning(&draft.device.places.section, message, None);
        }
    }
    let Some(orchestrator) = orchestrator else { return };
    let has_device = |node: &NodeDraft| drafts.iter().any(|draft| draft.node.value == node.name.value);
    let has_watchdog = |node: &NodeDraft| node.orchestrator.watchdog.is_some();
    let mode = orchestrator.value.fence;
    for volume in volumes {
        if mode != FenceMode::Always && !volume.takeover_needs_off {
            continue;
        }
        for replica in &volume.replicas {
            let Some(node) = nodes.iter().find(|node| node.name.value == replica.node.value) else {
                continue;
            };
            let is_covered = has_watchdog(node) || mode != FenceMode::Never && has_device(node);
            if !is_covered {
                let message = format!(
                    "when \"{}\" dies, nobody takes over \"{}\" by itself: nothing here can show that it is off",
                    node.name.value, volume.name.value
                );
                let help = format!(
                    "write a [[fence]] with node = \"{}\", or `watchdog` for it; else an operator has to say: \
                     holdfast confirm-off {}",
                    node.name.value, node.name.value
                );
                problems.warning(&replica.node.span, message, help);
            }
        }
    }
}

/// The devices, once everything is sound.
pub(super) fn build(drafts: Vec<FenceDraft>, id_of: impl Fn(&str) -> NodeId) -> Vec<FenceDevice> {
    drafts.into_iter().map(|draft| FenceDevice { target: id_of(&draft.node.value), ..draft.device }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Loaded, parse};
    use super::*;

    const HEAD: &str = r#"[cluster]
name = "db"
secret = "0123456789abcdef"
[orchestrator]
[[node]]
name = "a"
address = "10.0.0.1"
[[node]]
name = "b"
address = "10.0.0.2"
[[node]]
name = "w"
address = "10.0.0.3"
"#;
    const VOLUME: &str = r#"[[volume]]
name = "r0"
uuid = "01915f1e-0a4b-4c3d-8e2f-0123456789ab"
size = "1GiB"
takeover-needs = "off"
[[volume.replica]]
node = "a"
disk = "/d"
journal = "/j"
port = 7788
"#;
    const DEVICE: &str = r#"[[fence]]
name = "ipmi-a"
node = "a"
agent = "fence_ipmilan"
[fence.options]
ip = "10.0.9.1"
lanplus = true
plug = 7
password = "hunter2"
"#;

    fn check(text: &str) -> Result<Loaded, String> {
        parse(Path::new("/etc/holdfast.toml"), text, WithSecret::Yes).map_err(|error| error.to_string())
    }

    #[test]
    fn a_device_is_read_with_its_defaults() {
        let loaded = check(&format!("{HEAD}{VOLUME}{DEVICE}")).unwrap();
        let device = &loaded.cluster.fence[0];
        assert_eq!(
            (device.target, device.level, device.timeout_ms, device.retries),
            (NodeId(0), 1, 60_000, 2)
        );
        let options: Vec<_> = device.options.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(options.join(" "), "ip=10.0.9.1 lanplus=1 plug=7");
        assert_eq!(device.password.as_ref().map(|secret| secret.0.as_slice()), Some(&b"hunter2"[..]));
        assert!(!format!("{device:?}").contains("hunter2"));
        let warnings = loaded.warnings.to_string();
        assert!(!warnings.contains("ipmi-a") && !warnings.contains("[[fence]]"), "{warnings}");
    }

    #[test]
    fn what_is_wrong_is_said_where_it_stands() {
        for (from, to, place, part) in [
            ("node = \"a\"\nagent", "node = \"x\"\nagent", ":26:8", "there is no node \"x\""),
            ("plug = 7", "action = \"on\"", ":31:10", "`action` is not for `options`"),
            ("plug = 7", "method = \"cycle\"", ":31:10", "switch the node on again"),
            ("plug = 7", "missing_as_off = 1", ":31:18", "takes a machine that the device does not know"),
            ("plug = 7", "plug = \"7\\n8\"", ":31:8", "line break"),
            ("plug = 7", "plug = [7]", ":31:8", "expected text in quotes"),
            ("agent = ", "agnt = ", ":27:1", "unknown key `agnt`"),
            ("agent = \"fence_ipmilan\"\n", "", ":24:1", "`agent` is missing"),
        ] {
            let text = format!("{HEAD}{VOLUME}{}", DEVICE.replacen(from, to, 1));
            let error = check(&text).expect_err(part);
            assert!(error.contains(part) && error.contains(place), "{part} {place}: {error}");
        }
        let error = check(&format!("{HEAD}{DEVICE}{DEVICE}")).unwrap_err();
        assert!(error.contains("name was used before"), "{error}");
    }

    #[test]
    fn a_password_is_one_line_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let device = DEVICE.replace("password = \"hunter2\"\n", "");
        let device = device
            .replace("[fence.options]", &format!("password-file = \"{}\"\n[fence.options]", path.display()));
        let read = || check(&format!("{HEAD}{VOLUME}{device}"));
        assert!(read().unwrap_err().contains("cannot read the secret file"));
        std::fs::write(&path, "two\nlines\n").unwrap();
        assert!(read().unwrap_err().contains("is not one line of text"));
        std::fs::write(&path, "hunter2\n").unwrap();
        let loaded = read().unwrap();
        assert_eq!(loaded.cluster.fence[0].password.as_ref().map(|secret| secret.0.len()), Some(7));
    }

    #[test]
    fn a_node_that_nobody_can_show_to_be_off_is_warned_of() {
        let warnings = |text: &str| check(text).unwrap().warnings.to_string();
        assert!(warnings(&format!("{HEAD}{VOLUME}")).contains("nobody takes over \"r0\" by itself"));
        let relaxed = VOLUME.replace("\"off\"", "\"lease\"");
        assert!(!warnings(&format!("{HEAD}{relaxed}")).contains("takes over"));
        let always = HEAD.replace("[orchestrator]\n", "[orchestrator]\nfence = \"always\"\n");
        assert!(warnings(&format!("{always}{relaxed}")).contains("takes over"));
        let never = HEAD.replace("[orchestrator]\n", "[orchestrator]\nfence = \"never\"\n");
        assert!(warnings(&format!("{never}{VOLUME}{DEVICE}")).contains("takes over"));
        let watched = HEAD.replacen(
            "address = \"10.0.0.1\"\n",
            "address = \"10.0.0.1\"\n[node.orchestrator]\nwatchdog = \"/dev/watchdog\"\n",
            1,
        );
        assert!(!warnings(&format!("{watched}{VOLUME}")).contains("takes over"));
    }

    #[test]
    fn two_nodes_without_a_witness_are_refused() {
        let two = HEAD.replace("[[node]]\nname = \"w\"\naddress = \"10.0.0.3\"\n", "");
        let error = check(&format!("{two}{VOLUME}{DEVICE}")).unwrap_err();
        assert!(error.contains("two nodes without a witness are not supported"), "{error}");
    }
}
