//! Incremental backups with clients that are not ours: libnbd's Python module through the script of the documentation,
//! nbdcopy, nbdinfo and qemu-img, from a secondary that stands still while a client goes on writing. Every backup is
//! restored and compared byte by byte.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use holdfast_tests::{Client, Sandbox, holdfast, run, wait_for};
use serde_json::Value;

const BLOCK: usize = 4096;

fn start() -> Sandbox {
    let sandbox = Sandbox::start(&["--size", "64M", "--journal-size", "160M", "--on-peer-loss", "continue"]);
    sandbox.wait_level(0);
    sandbox
}

fn must(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn ask(sandbox: &Sandbox, node: usize, words: &[&str]) -> String {
    must(run(&[words, &["--control", &sandbox.nodes[node].control]].concat()))
}

/// The script of docs/backup.md, with the `holdfast` under test in its path.
fn script(arguments: &[&str]) -> Output {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/incremental-backup");
    let folder = holdfast().parent().unwrap().to_owned();
    let rest = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(path);
    command.args(arguments).env("PATH", format!("{}:{rest}", folder.display())).stdin(Stdio::null());
    command.output().expect("python3 is there")
}

/// Waits until a node has put everything in place that it has in its journal.
fn settle(sandbox: &Sandbox, node: usize) {
    wait_for("all to be applied", || sandbox.status(node).filter(|v| v["applied"] == v["journaled"]));
}

fn frozen_uri(sandbox: &Sandbox, node: usize) -> String {
    format!("nbd+unix:///r0@frozen?socket={}", sandbox.nodes[node].nbd_socket)
}

/// A backup of a node that is frozen: the script's, and all of it as nbdcopy reads it.
fn take(sandbox: &Sandbox, node: usize, folder: &Path) -> (String, Vec<u8>) {
    ask(sandbox, node, &["freeze-apply", "r0"]);
    let control = sandbox.nodes[node].control.clone();
    let said = must(script(&["take", "r0", folder.to_str().unwrap(), "--control", &control, "--frozen"]));
    let all =
        Command::new("nbdcopy").args([&frozen_uri(sandbox, node), "-"]).output().expect("nbdcopy is there");
    assert!(all.status.success(), "{all:?}");
    ask(sandbox, node, &["thaw", "r0"]);
    (said, all.stdout)
}

fn restored(folder: &Path, upto: usize) -> Vec<u8> {
    let image = folder.join("restored");
    let upto = upto.to_string();
    must(script(&["restore", folder.to_str().unwrap(), image.to_str().unwrap(), "--upto", &upto]));
    std::fs::read(image).unwrap()
}

fn read_bytes(said: &str) -> u64 {
    let (_, rest) = said.split_once(": ").unwrap();
    rest.split(' ').next().unwrap().parse().unwrap()
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backups");
    (folder, path)
}

/// Writes blocks in `blocks`, over and over, until told to stop.
fn load(socket: &str, blocks: std::ops::Range<usize>, stop: &AtomicBool) {
    let mut client = wait_for("the export to open", || Client::connect(socket).ok());
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        let block = blocks.start + n * 7919 % blocks.len();
        let bytes = [u8::try_from(n % 251 + 1).unwrap(); BLOCK];
        client.write_at((block * BLOCK) as u64, &bytes).unwrap();
    }
}

#[test]
fn incremental_backups_under_load_restore_every_position_to_the_byte() {
    let mut sandbox = start();
    let (_kept, folder) = folder();
    let mut client = wait_for("the export to open", || Client::connect(&sandbox.nodes[0].nbd_socket).ok());
    for n in 0..16 {
        client.write_at(n << 22, &vec![u8::try_from(n + 1).unwrap(); 1 << 20]).unwrap();
    }
    let mut images = Vec::new();
    for round in 0..4 {
        let stop = AtomicBool::new(false);
        // A part of the volume in each round, the same for both sides of the freeze.
        let blocks = round * 1000..round * 1000 + 300;
        let socket = sandbox.nodes[0].nbd_socket.clone();
        let (said, image) = std::thread::scope(|scope| {
            scope.spawn(|| load(&socket, blocks, &stop));
            std::thread::sleep(std::time::Duration::from_millis(200));
            let taken = take(&sandbox, 1, &folder);
            stop.store(true, Ordering::Relaxed);
            taken
        });
        assert_eq!(said.contains("incremental"), round > 0, "{said}");
        assert!(round == 0 || read_bytes(&said) <= 2 * 300 * BLOCK as u64, "{said}");
        images.push(image);
        // The node dies, and comes back.
        if round == 1 {
            sandbox.kill(1);
            sandbox.restart(1);
            wait_for("b to answer", || sandbox.status(1));
            sandbox.wait_level(0);
        }
    }
    for (n, image) in images.iter().enumerate() {
        assert!(restored(&folder, n + 1) == *image, "backup {} is not what was frozen", n + 1);
    }
    assert!(images.windows(2).all(|pair| pair[0] != pair[1]), "nothing changed in between");
    let list = ask(&sandbox, 1, &["bookmark", "list", "r0"]);
    assert!(list.contains("backup-4") && !list.contains("backup-3"), "{list}");
}

#[test]
fn foreign_tools_are_told_what_changed_since_a_bookmark() {
    let sandbox = start();
    let mut client = wait_for("the export to open", || Client::connect(&sandbox.nodes[0].nbd_socket).ok());
    client.write_at(0, &[1; BLOCK]).unwrap();
    settle(&sandbox, 1);
    ask(&sandbox, 1, &["freeze-apply", "r0"]);
    ask(&sandbox, 1, &["bookmark", "add", "r0", "monday"]);
    ask(&sandbox, 1, &["thaw", "r0"]);
    client.write_at(8 << 20, &[2; 3 * BLOCK]).unwrap();
    client.write_at((20 << 20) + 512, &[3; 512]).unwrap();
    client.flush().unwrap();
    settle(&sandbox, 1);
    ask(&sandbox, 1, &["freeze-apply", "r0"]);
    let uri = frozen_uri(&sandbox, 1);
    let map = Command::new("nbdinfo").args(["--map=holdfast:dirty:monday", "--json", &uri]).output();
    let map: Value = serde_json::from_str(&must(map.expect("nbdinfo is there"))).unwrap();
    let dirty = |extent: &&Value| extent["type"] == 1;
    let runs: Vec<(u64, u64)> = map.as_array().unwrap().iter().filter(dirty).map(run_of("offset")).collect();
    assert_eq!(runs, [(8 << 20, 3 * BLOCK as u64), (20 << 20, BLOCK as u64)], "{map}");
    // qemu asks for any context in the place of base:allocation; what is dirty is no data to it.
    let options = format!(
        "driver=nbd,export=r0@frozen,server.type=unix,server.path={},x-dirty-bitmap=holdfast:dirty:monday",
        sandbox.nodes[1].nbd_socket
    );
    let map = Command::new("qemu-img").args(["map", "--output=json", "--image-opts", &options]).output();
    let map: Value = serde_json::from_str(&must(map.expect("qemu-img is there"))).unwrap();
    let dirty = |extent: &&Value| extent["data"] == false;
    let runs: Vec<(u64, u64)> = map.as_array().unwrap().iter().filter(dirty).map(run_of("start")).collect();
    assert_eq!(runs, [(8 << 20, 3 * BLOCK as u64), (20 << 20, BLOCK as u64)], "{map}");
    // The volume itself moves: nothing is said of it.
    let live = format!("nbd+unix:///r0?socket={}", sandbox.nodes[0].nbd_socket);
    let listed = must(Command::new("nbdinfo").arg(&live).output().unwrap());
    assert!(listed.contains("base:allocation") && !listed.contains("holdfast:dirty"), "{listed}");
    // Who reads with a bookmark is cut off when it is deleted.
    ask(&sandbox, 1, &["bookmark", "delete", "r0", "monday"]);
    let map = Command::new("nbdinfo").args(["--map=holdfast:dirty:monday", &uri]).output().unwrap();
    assert!(!map.status.success(), "{map:?}");
}

fn run_of(start: &'static str) -> impl Fn(&Value) -> (u64, u64) {
    move |extent| (extent[start].as_u64().unwrap(), extent["length"].as_u64().unwrap())
}

#[test]
fn after_a_failover_the_next_backup_is_right_on_either_node() {
    let mut sandbox = start();
    let (_kept, folder) = folder();
    let mut client = wait_for("the export to open", || Client::connect(&sandbox.nodes[0].nbd_socket).ok());
    client.write_at(0, &vec![1; 1 << 20]).unwrap();
    settle(&sandbox, 1);
    let (first, _) = take(&sandbox, 1, &folder);
    assert!(first.contains("full"), "{first}");
    client.write_at(1 << 20, &[2; BLOCK]).unwrap();
    drop(client);
    // b takes over, writes, and is a secondary again.
    sandbox.kill(0);
    let forced = wait_for("b to be promoted", || {
        Some(sandbox.promote(1, true)).filter(|output| output.status.success())
    });
    must(forced);
    let mut client = wait_for("the export to open", || Client::connect(&sandbox.nodes[1].nbd_socket).ok());
    client.write_at(2 << 20, &[3; BLOCK]).unwrap();
    drop(client);
    sandbox.restart(0);
    sandbox.wait_level(1);
    // The other node has no bookmark of that backup: it says so, and is read in full.
    let (other, image) = take(&sandbox, 0, &folder);
    assert!(other.contains("full"), "{other}");
    assert!(restored(&folder, 2) == image);
    ask(&sandbox, 1, &["demote", "r0"]);
    wait_for("a to be promoted", || Some(sandbox.promote(0, false)).filter(|output| output.status.success()));
    sandbox.wait_level(0);
    settle(&sandbox, 1);
    // Its own bookmark went through all of that.
    let list = ask(&sandbox, 1, &["bookmark", "list", "r0", "--json"]);
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["bookmarks"][0]["name"], "backup-1", "{list}");
    assert_eq!(list["bookmarks"][0]["changed_bytes"].as_u64().unwrap(), 2 * BLOCK as u64, "{list}");
}
