//! `[[stack.step]]`: one step, by its kind. What a kind needs is read here; how steps stand together is not.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::super::cluster::resolve;
use super::super::problem::Problems;
use super::super::section::{At, Section};

const START_TIMEOUT_MS: u64 = 60_000;
const STOP_TIMEOUT_MS: u64 = 60_000;
const MONITOR_INTERVAL_MS: u64 = 5_000;
const MONITOR_TIMEOUT_MS: u64 = 20_000;
/// Where `attach` puts links to devices, by volume.
const LINKS: &str = "/dev/holdfast";

/// A step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its name, one of its kind in the stack.
    pub name: String,
    /// What it is.
    pub kind: StepKind,
    /// Whether the old node must surely be off before it is started elsewhere.
    pub needs_off: bool,
    /// How long it may take to start.
    pub start_timeout_ms: u64,
    /// How long it may take to stop.
    pub stop_timeout_ms: u64,
    /// How often it is looked at; never if 0.
    pub monitor_interval_ms: u64,
    /// How long a look may take.
    pub monitor_timeout_ms: u64,
}

/// What a step is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepKind {
    /// A volume as a block device of the kernel.
    Device {
        /// The volume.
        volume: String,
        /// Over ublk instead of NBD.
        ublk: bool,
    },
    /// Programs that start and stop something, or one that runs.
    Command(CommandStep),
    /// A file system, mounted.
    FileSystem(FileSystemStep),
    /// A resource agent of the Open Cluster Framework.
    Agent(AgentStep),
    /// A unit of systemd.
    Unit(UnitStep),
    /// An address that moves.
    Address {
        /// The address.
        address: IpAddr,
        /// Bits of its network.
        prefix_bits: u8,
        /// The interface.
        interface: String,
        /// Whether it is not used where somebody else has it.
        refuses_duplicates: bool,
    },
}

/// A step of programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandStep {
    /// A program that runs as long as the step does.
    Run {
        /// The program and its arguments.
        run: Vec<String>,
        /// A program that says whether it is well.
        monitor: Option<Vec<String>>,
    },
    /// Programs that start and stop something.
    Call {
        /// Starts it; again does no harm.
        start: Vec<String>,
        /// Stops it; again does no harm.
        stop: Option<Vec<String>>,
        /// Says whether it runs.
        monitor: Option<Vec<String>>,
    },
}

/// A resource agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentStep {
    /// Who made it: the folder it is in.
    pub provider: String,
    /// Which one it is.
    pub agent: String,
    /// What it is told.
    pub parameters: BTreeMap<String, String>,
    /// Where its parts stand in the file.
    pub places: AgentPlaces,
}

/// Where the parts of a resource agent's step stand in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPlaces {
    /// Its name.
    pub agent: Range<usize>,
    /// Its parameters.
    pub parameters: BTreeMap<String, Range<usize>>,
}

impl AgentStep {
    /// Its name as it is written.
    #[must_use]
    pub fn name(&self) -> String {
        format!("ocf:{}:{}", self.provider, self.agent)
    }
}

/// A unit of systemd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitStep {
    /// Its name, with what kind of unit it is.
    pub unit: String,
    /// Where it stands in the file.
    pub place: Range<usize>,
}

/// A file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystemStep {
    /// The block device that it is on.
    pub device: PathBuf,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Its type, as mount(8) calls it; `auto` to look.
    pub kind: String,
    /// Options for mount(8), with commas between them.
    pub options: String,
    /// Whether it is checked before it is mounted.
    pub fsck: Fsck,
    /// What is done with processes that use it when it is to be unmounted.
    pub holders: Holders,
}

/// Whether a file system is checked before it is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsck {
    /// As at boot: what is safe to repair is repaired, if it says of itself that it needs it.
    Preen,
    /// The same, and looked at from end to end each time.
    Force,
    /// Not at all.
    Never,
}

/// What is done with processes that use a file system when it is to be unmounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holders {
    /// They get SIGTERM, and SIGKILL when half of the time is over.
    Kill,
    /// They are named, and nothing is done to them.
    Leave,
}

impl FileSystemStep {
    /// Without a device of its own it is on the one below.
    pub(super) fn find_device(
        &mut self,
        below: Option<&At<String>>,
        span: &Range<usize>,
        problems: &mut Problems,
    ) {
        match below {
            _ if self.device != Path::new("") => {}
            Some(volume) => self.device = Path::new(LINKS).join(&volume.value),
            None => {
                let help = "write a [[stack.step]] of kind = \"device\" below it, or device = \"/dev/...\""
                    .to_owned();
                problems.error(span, "nothing says on which device the file system is", help);
            }
        }
    }
}

/// What a `[[stack.step]]` says.
pub(super) enum Read {
    Volume(At<String>),
    Above(Range<usize>, Step, Option<At<String>>),
}

/// Reads one.
pub(super) fn read_step(mut section: Section<'_>, path: &Path, problems: &mut Problems) -> Option<Read> {
    let span = section.span.clone();
    let kinds =
        ["volume", "device", "filesystem", "ocf", "systemd", "command", "address"].map(|kind| (kind, kind));
    let kind = section.choice("kind", &kinds, problems);
    let help = "write what it is, as in kind = \"command\"".to_owned();
    let kind = section.require("kind", kind, help, problems)?.value;
    if kind == "volume" {
        let volume = section.text("volume", problems);
        let help = "write the name of a [[volume]]".to_owned();
        let volume = section.require("volume", volume, help, problems);
        section.finish(problems);
        return volume.map(Read::Volume);
    }
    let name = section.text("name", problems).map_or_else(|| kind.to_owned(), |at| at.value);
    let mut duration = |key: &'static str, default_ms: u64, problems: &mut Problems| {
        section.duration_ms(key, problems).map_or(default_ms, |at| at.value)
    };
    let start_timeout_ms = duration("start-timeout", START_TIMEOUT_MS, problems);
    let stop_timeout_ms = duration("stop-timeout", STOP_TIMEOUT_MS, problems);
    let monitor_interval_ms = duration("monitor-interval", MONITOR_INTERVAL_MS, problems);
    let monitor_timeout_ms = duration("monitor-timeout", MONITOR_TIMEOUT_MS, problems);
    let needs = section.choice("needs", &[("lease", false), ("off", true)], problems);
    if let Some(needs) = needs.as_ref().filter(|_| kind == "address") {
        let message = "`needs` is not for an address: its lifetime ends with the lease";
        problems.error(&needs.span, message, "leave it out".to_owned());
    }
    let mut device = None;
    let kind = match kind {
        "device" => {
            device = read_device(&mut section, problems);
            let ublk = section.choice("driver", &[("nbd", false), ("ublk", true)], problems);
            let volume = device.as_ref().map(|volume| volume.value.clone());
            volume.map(|volume| StepKind::Device { volume, ublk: ublk.is_some_and(|at| at.value) })
        }
        "filesystem" => read_file_system(&mut section, problems).map(StepKind::FileSystem),
        "ocf" => read_agent(&mut section, problems).map(StepKind::Agent),
        "systemd" => read_unit(&mut section, problems).map(StepKind::Unit),
        "address" => read_address(&mut section, problems),
        _ => read_command(&mut section, path, problems).map(StepKind::Command),
    };
    section.finish(problems);
    let step = Step {
        name,
        kind: kind?,
        needs_off: needs.is_some_and(|at| at.value),
        start_timeout_ms,
        stop_timeout_ms,
        monitor_interval_ms,
        monitor_timeout_ms,
    };
    Some(Read::Above(span, step, device))
}

fn read_device(section: &mut Section<'_>, problems: &mut Problems) -> Option<At<String>> {
    let volume = section.text("volume", problems);
    section.require("volume", volume, "write the name of a volume of this stack".to_owned(), problems)
}

fn read_address(section: &mut Section<'_>, problems: &mut Problems) -> Option<StepKind> {
    let address = section.text("address", problems);
    let help = "write address = \"10.0.0.9/24\"".to_owned();
    let address = section.require("address", address, help, problems);
    let interface = section.text("interface", problems);
    let interface =
        section.require("interface", interface, "write interface = \"eth0\"".to_owned(), problems);
    let duplicates = section.choice("duplicates", &[("refuse", true), ("ignore", false)], problems);
    let refuses_duplicates = duplicates.is_none_or(|at| at.value);
    let (at, interface) = (address?, interface?);
    let parts = at.value.split_once('/');
    let parsed =
        parts.and_then(|(address, bits)| Some((address.parse::<IpAddr>().ok()?, bits.parse::<u8>().ok()?)));
    let is_possible = |(address, bits): &(IpAddr, u8)| {
        *bits >= 1 && *bits <= if address.is_ipv4() { 32 } else { 128 } && !address.is_unspecified()
    };
    let Some((address, prefix_bits)) = parsed.filter(is_possible) else {
        let message = format!("\"{}\" is no address with its network", at.value);
        problems.error(&at.span, message, "write it as in \"10.0.0.9/24\" or \"fd00::9/64\"".to_owned());
        return None;
    };
    if interface.value.is_empty() || interface.value.len() > 15 || interface.value.contains(['/', ' ']) {
        problems.error(&interface.span, "this is no name of an interface", None);
        return None;
    }
    let interface = interface.value;
    Some(StepKind::Address { address, prefix_bits, interface, refuses_duplicates })
}

fn read_command(section: &mut Section<'_>, path: &Path, problems: &mut Problems) -> Option<CommandStep> {
    let span = section.span.clone();
    let mut program = |key: &'static str, problems: &mut Problems| {
        let given = section.has(key);
        let texts = section.texts(key, problems);
        if given && texts.is_empty() {
            problems.error(&span, format!("`{key}` names no program"), None);
        }
        let mut words: Vec<String> = texts.into_iter().map(|at| at.value).collect();
        let first = words.first_mut()?;
        // As everywhere in the file; a bare name is looked for as a shell does.
        if first.contains('/') {
            *first = resolve(path, first).to_string_lossy().into_owned();
        }
        Some(words)
    };
    let (run, start) = (program("run", problems), program("start", problems));
    let (stop, monitor) = (program("stop", problems), program("monitor", problems));
    match (run, start) {
        (Some(run), None) if stop.is_none() => Some(CommandStep::Run { run, monitor }),
        (None, Some(start)) => Some(CommandStep::Call { start, stop, monitor }),
        _ => {
            let help = "write run = [\"program\", ...] for one that stays in the foreground and ends with SIGTERM, or \
                 start and stop for ones that come back"
                .to_owned();
            problems.error(&span, "a command has either `run`, or `start` and perhaps `stop`", help);
            None
        }
    }
}

fn read_file_system(section: &mut Section<'_>, problems: &mut Problems) -> Option<FileSystemStep> {
    let span = section.span.clone();
    let device = section.text("device", problems);
    let mount = section.text("mount", problems);
    let mount = section.require("mount", mount, "write mount = \"/srv/db\"".to_owned(), problems);
    let kind = section.text("type", problems).unwrap_or_else(|| At { value: "auto".to_owned(), span });
    let options = section.text("mount-options", problems);
    let policies = [("preen", Fsck::Preen), ("force", Fsck::Force), ("never", Fsck::Never)];
    let fsck = section.choice("fsck", &policies, problems);
    let holders = section.choice("holders", &[("kill", Holders::Kill), ("leave", Holders::Leave)], problems);
    let mount = mount?;
    for path in device.iter().chain([&mount]) {
        let path_of = Path::new(&path.value);
        let is_plain = path_of.components().all(|part| !matches!(part, std::path::Component::ParentDir));
        if !path_of.is_absolute() || !is_plain || path_of == Path::new("/") {
            let message = format!("\"{}\" is no path from the root", path.value);
            problems.error(&path.span, message, "write it as in \"/srv/db\", without ..".to_owned());
        }
    }
    let is_word = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "._-,=:/%+@".contains(c));
    for at in options.iter().chain([&kind]) {
        if !is_word(&at.value) || at.value.starts_with('-') {
            let help = "write it as in /etc/fstab, without blanks".to_owned();
            problems.error(&at.span, format!("\"{}\" is nothing that mount(8) takes", at.value), help);
        }
    }
    if let Some(fsck) = fsck.as_ref().filter(|at| at.value == Fsck::Force && !kind.value.starts_with("ext")) {
        let help = "write type = \"ext4\", or fsck = \"preen\"".to_owned();
        problems.error(&fsck.span, "`fsck = \"force\"` is for ext2, ext3 and ext4", help);
    }
    Some(FileSystemStep {
        device: device.map(|at| PathBuf::from(at.value)).unwrap_or_default(),
        // Without a slash at its end, as the kernel shows it.
        mount: Path::new(&mount.value).components().collect(),
        kind: kind.value,
        options: options.map_or_else(String::new, |at| at.value),
        fsck: fsck.map_or(Fsck::Preen, |at| at.value),
        holders: holders.map_or(Holders::Kill, |at| at.value),
    })
}

fn read_agent(section: &mut Section<'_>, problems: &mut Problems) -> Option<AgentStep> {
    let agent = section.text("agent", problems);
    let help = "write agent = \"ocf:heartbeat:pgsql\"".to_owned();
    let agent = section.require("agent", agent, help.clone(), problems);
    let given = section.pairs("parameters", "[stack.step.parameters]", problems);
    let agent = agent?;
    let parts: Vec<&str> = agent.value.split(':').collect();
    let is_name = |text: &str| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        !text.is_empty() && !text.starts_with('.') && text.chars().all(is_plain)
    };
    let (provider, name) = match parts.as_slice() {
        ["ocf", provider, name] if is_name(provider) && is_name(name) => (*provider, *name),
        _ => {
            let message = format!("\"{}\" is no resource agent", agent.value);
            problems.error(&agent.span, message, help);
            return None;
        }
    };
    let is_variable = |key: &str| key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let (mut parameters, mut places) = (BTreeMap::new(), BTreeMap::new());
    for (key, at) in given {
        if !is_variable(&key) || at.value.contains('\0') {
            problems.error(&at.span, format!("`{key}` cannot be told to an agent"), None);
        }
        places.insert(key.clone(), at.span);
        parameters.insert(key, at.value);
    }
    let (provider, name) = (provider.to_owned(), name.to_owned());
    let places = AgentPlaces { agent: agent.span, parameters: places };
    Some(AgentStep { provider, agent: name, parameters, places })
}

fn read_unit(section: &mut Section<'_>, problems: &mut Problems) -> Option<UnitStep> {
    let unit = section.text("unit", problems);
    let help = "write unit = \"postgresql@17-main.service\"".to_owned();
    let At { value, span } = section.require("unit", unit, help.clone(), problems)?;
    // As systemctl reads it: without a dot at its end it is a service.
    let unit = if value.contains('.') { value } else { format!("{value}.service") };
    let is_part = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    if unit.starts_with(['-', '.']) || !unit.chars().all(is_part) {
        problems.error(&span, format!("\"{unit}\" is no name of a unit"), help);
        return None;
    }
    Some(UnitStep { unit, place: span })
}
