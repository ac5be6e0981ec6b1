//! Real file systems on loop devices, in a mount namespace that each test makes for itself. They need root; without it
//! nothing is tested and that is said.

use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::sync::atomic::AtomicBool;

use super::*;

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(600);
/// Set in the process that lives in the namespace.
const INSIDE: &str = "HOLDFAST_TEST_MOUNTS";

/// Runs the test of this name once more, in a mount namespace of its own. Whether this is that run.
fn in_own_mounts(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("not tested: file systems need root");
        return false;
    }
    let mut again = Command::new("unshare");
    again.args(["--mount", "--propagation", "private", "--"]).arg(std::env::current_exe().unwrap());
    again.args(["--exact", &format!("stack::filesystem::tests::{name}"), "--nocapture"]).env(INSIDE, "1");
    let output = again.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "{said}");
    false
}

fn sh(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("it is installed");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A loop device with an empty ext4; let go when dropped.
struct Loop {
    device: String,
    image: PathBuf,
}

impl Loop {
    fn new(folder: &Path, name: &str) -> Self {
        let image = folder.join(name);
        fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        sh("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
        let device = sh("losetup", &["--find", "--show", image.to_str().unwrap()]);
        Self { device, image }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
    }
}

/// A step on one loop device, reached by a link as a volume's device is.
struct Bench {
    step: FileSystem,
    link: PathBuf,
    mount: PathBuf,
    device: Loop,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(change: impl FnOnce(&mut FileSystemStep)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let device = Loop::new(folder.path(), "first");
        let (link, mount) = (folder.path().join("r0"), folder.path().join("mnt"));
        std::os::unix::fs::symlink(&device.device, &link).unwrap();
        let mut step = FileSystemStep {
            device: link.clone(),
            mount: mount.clone(),
            kind: "ext4".to_owned(),
            options: "noatime".to_owned(),
            fsck: Fsck::Preen,
            holders: Holders::Kill,
        };
        change(&mut step);
        Self { step: FileSystem::new(step), link, mount, device, folder }
    }

    fn act(&self, action: Action, timeout: Duration) -> Outcome {
        let until = crate::clock::now();
        self.step.carry_out(&Task { action, timeout, until, is_broken_off: &AtomicBool::new(false) })
    }

    fn started(change: impl FnOnce(&mut FileSystemStep)) -> Self {
        let bench = Self::new(change);
        assert_eq!(bench.act(Action::Start, LONG), Outcome::Done);
        bench
    }

    /// A process that works in the file system, once it does.
    fn holder(&self, script: &str) -> Holder {
        let mut sh = Command::new("sh");
        let script = format!("{script}; echo ready; while :; do sleep 0.05; done");
        sh.args(["-c", &script]).current_dir(&self.mount).stdout(Stdio::piped()).process_group(0);
        let mut child = sh.spawn().unwrap();
        let mut said = [0; 6];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
        Holder(child)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // Before the loop device is let go, whatever the test has left.
        while unmount(&self.mount, UnmountFlags::DETACH).is_ok() {}
    }
}

struct Holder(Child);

impl Holder {
    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
        let _ = self.0.wait();
    }
}

#[track_caller]
fn says(outcome: &Outcome, words: &[&str]) {
    let (Outcome::Failed(text) | Outcome::Refused(text)) = outcome else { panic!("{outcome:?}") };
    words.iter().for_each(|word| assert!(text.contains(word), "{word} is not in: {text}"));
}

#[test]
fn it_comes_and_goes_and_again_does_no_harm() {
    if !in_own_mounts("it_comes_and_goes_and_again_does_no_harm") {
        return;
    }
    let bench = Bench::new(|_| {});
    assert_eq!(bench.act(Action::Probe, LONG), Outcome::NotRunning);
    for round in ["one", "two"] {
        for _ in 0..2 {
            assert_eq!(bench.act(Action::Start, LONG), Outcome::Done);
            assert_eq!(bench.act(Action::Monitor, LONG), Outcome::Done);
            assert_eq!(bench.act(Action::Probe, LONG), Outcome::Done);
        }
        assert_eq!(mounts::list().unwrap().iter().filter(|mount| mount.point == bench.mount).count(), 1);
        fs::write(bench.mount.join(round), round).unwrap();
        for action in [Action::Stop, Action::Stop, Action::Force] {
            assert_eq!(bench.act(action, LONG), Outcome::Done);
        }
        assert_eq!(bench.act(Action::Monitor, LONG), Outcome::NotRunning);
    }
    assert_eq!(bench.act(Action::Start, LONG), Outcome::Done);
    assert_eq!(fs::read_to_string(bench.mount.join("one")).unwrap(), "one");
    assert_eq!(bench.act(Action::Stop, LONG), Outcome::Done);
}

#[test]
fn it_is_checked_as_the_configuration_says() {
    if !in_own_mounts("it_is_checked_as_the_configuration_says") {
        return;
    }
    // The root directory is gone, and the file system says that it is clean.
    let damage =
        |bench: &Bench| sh("debugfs", &["-w", "-R", "clri <2>", bench.device.image.to_str().unwrap()]);
    let bench = Bench::new(|step| step.fsck = Fsck::Force);
    damage(&bench);
    let outcome = bench.act(Action::Start, LONG);
    assert!(matches!(outcome, Outcome::Refused(_)), "trying again cures nothing: {outcome:?}");
    says(&outcome, &["damaged", "run fsck", "yourself"]);
    let bench = Bench::new(|step| step.fsck = Fsck::Never);
    damage(&bench);
    says(&bench.act(Action::Start, LONG), &["exit code 32", "mount"]);
}

#[test]
fn whoever_uses_it_is_named_and_left_alone_if_that_is_wanted() {
    if !in_own_mounts("whoever_uses_it_is_named_and_left_alone_if_that_is_wanted") {
        return;
    }
    let bench = Bench::started(|step| step.holders = Holders::Leave);
    let mut holder = bench.holder(":");
    let named = format!("sh (process {}, works in it)", holder.0.id());
    for action in [Action::Stop, Action::Force] {
        says(&bench.act(action, SHORT), &["in use by", &named]);
        assert!(holder.lives());
        assert_eq!(bench.act(Action::Monitor, LONG), Outcome::Done);
    }
    drop(holder);
    let file = fs::File::create(bench.mount.join("file")).unwrap();
    says(&bench.act(Action::Stop, SHORT), &[&format!("process {}, has files open", std::process::id())]);
    drop(file);
    assert_eq!(bench.act(Action::Stop, LONG), Outcome::Done);
}

#[test]
fn whoever_uses_it_is_told_to_end_and_then_killed() {
    if !in_own_mounts("whoever_uses_it_is_told_to_end_and_then_killed") {
        return;
    }
    let bench = Bench::started(|_| {});
    let mut holder = bench.holder("trap 'exit 7' TERM");
    assert_eq!(bench.act(Action::Stop, LONG), Outcome::Done);
    assert_eq!(holder.0.wait().unwrap().code(), Some(7), "it could end in order");
    assert_eq!(bench.act(Action::Start, LONG), Outcome::Done);
    let mut holder = bench.holder("trap '' TERM");
    assert_eq!(bench.act(Action::Stop, Duration::from_secs(2)), Outcome::Done);
    assert_eq!(holder.0.wait().unwrap().code(), None, "it was killed");
    assert_eq!(bench.act(Action::Start, LONG), Outcome::Done);
    let mut holder = bench.holder("trap '' TERM");
    let began = Instant::now();
    assert_eq!(bench.act(Action::Force, LONG), Outcome::Done);
    assert!(began.elapsed() < LONG / 2, "by force nobody is asked first");
    assert!(!holder.lives());
}

#[test]
fn it_has_not_stopped_while_another_namespace_has_it() {
    if !in_own_mounts("it_has_not_stopped_while_another_namespace_has_it") {
        return;
    }
    let bench = Bench::started(|_| {});
    let mut other = Command::new("unshare");
    other.args(["--mount", "--propagation", "private", "sh", "-c", "echo ready; exec sleep 600"]);
    let mut other = Holder(other.process_group(0).stdout(Stdio::piped()).spawn().unwrap());
    let mut said = [0; 6];
    io::Read::read_exact(other.0.stdout.as_mut().unwrap(), &mut said).unwrap();
    says(&bench.act(Action::Stop, SHORT), &["unmounted here and still in use", "in a namespace"]);
    says(&bench.act(Action::Start, LONG), &["in use", &format!("process {}", other.0.id())]);
    drop(other);
    assert_eq!(bench.act(Action::Stop, LONG), Outcome::Done);
    assert_eq!(bench.act(Action::Start, LONG), Outcome::Done);
    assert_eq!(bench.act(Action::Stop, LONG), Outcome::Done);
}

#[test]
fn one_that_can_only_be_read_is_not_well() {
    if !in_own_mounts("one_that_can_only_be_read_is_not_well") {
        return;
    }
    let bench = Bench::started(|_| {});
    sh("mount", &["-o", "remount,ro", bench.mount.to_str().unwrap()]);
    says(&bench.act(Action::Monitor, LONG), &["can only be read", "dmesg"]);
    // Starting it again is a cure, as it is after the kernel gave it up.
    assert_eq!(bench.act(Action::Start, LONG), Outcome::Done);
    assert_eq!(bench.act(Action::Monitor, LONG), Outcome::Done);
    assert_eq!(bench.act(Action::Stop, LONG), Outcome::Done);
    let asked = Bench::started(|step| step.options = "noatime,ro".to_owned());
    assert_eq!(asked.act(Action::Monitor, LONG), Outcome::Done);
    assert_eq!(asked.act(Action::Stop, LONG), Outcome::Done);
}

#[test]
fn what_a_dead_device_left_is_cleared_away_and_what_is_others_is_not() {
    if !in_own_mounts("what_a_dead_device_left_is_cleared_away_and_what_is_others_is_not") {
        return;
    }
    let bench = Bench::started(|_| {});
    let second = Loop::new(bench.folder.path(), "second");
    fs::remove_file(&bench.link).unwrap();
    std::os::unix::fs::symlink(&second.device, &bench.link).unwrap();
    // The first one lives: somebody else has mounted it there.
    says(&bench.act(Action::Start, LONG), &[&bench.device.device, "is mounted at", "already"]);
    assert_eq!(bench.act(Action::Probe, LONG), Outcome::NotRunning);
    // It dies.
    fs::File::options().write(true).open(&bench.device.image).unwrap().set_len(0).unwrap();
    sh("losetup", &["-c", &bench.device.device]);
    assert_eq!(bench.act(Action::Probe, LONG), Outcome::Done, "it may be used still");
    assert_eq!(bench.act(Action::Start, LONG), Outcome::Done);
    let here = mounts::list().unwrap().into_iter().filter(|mount| mount.point == bench.mount);
    let sources: Vec<PathBuf> = here.map(|mount| mount.source).collect();
    assert_eq!(sources, [PathBuf::from(&second.device)]);
    // Without its device it is not well, and goes all the same.
    fs::remove_file(&bench.link).unwrap();
    says(&bench.act(Action::Monitor, LONG), &["is gone"]);
    assert_eq!(bench.act(Action::Stop, LONG), Outcome::Done);
    assert_eq!(bench.act(Action::Probe, LONG), Outcome::NotRunning);
    says(&bench.act(Action::Start, LONG), &["is no block device"]);
}

#[test]
fn a_device_that_is_mounted_elsewhere_is_not_mounted_twice() {
    if !in_own_mounts("a_device_that_is_mounted_elsewhere_is_not_mounted_twice") {
        return;
    }
    let bench = Bench::new(|_| {});
    let elsewhere = bench.folder.path().join("else where");
    fs::create_dir(&elsewhere).unwrap();
    sh("mount", &[&bench.device.device, elsewhere.to_str().unwrap()]);
    says(&bench.act(Action::Start, LONG), &["is mounted at", "else where", "already"]);
    says(&bench.act(Action::Stop, SHORT), &["still in use", "is mounted at", "else where"]);
    sh("umount", &[elsewhere.to_str().unwrap()]);
}

#[test]
fn what_is_mounted_below_it_is_named() {
    if !in_own_mounts("what_is_mounted_below_it_is_named") {
        return;
    }
    let bench = Bench::started(|_| {});
    let below = bench.mount.join("below");
    fs::create_dir(&below).unwrap();
    sh("mount", &["-t", "tmpfs", "tmpfs", below.to_str().unwrap()]);
    says(&bench.act(Action::Stop, SHORT), &["mnt/below is mounted below it"]);
    sh("umount", &[below.to_str().unwrap()]);
    assert_eq!(bench.act(Action::Stop, LONG), Outcome::Done);
}
