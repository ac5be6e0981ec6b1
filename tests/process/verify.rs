//! Two real copies compared under a real load; then one is damaged behind the program's back, at three places, and
//! these three are found, said, and written anew.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use holdfast_tests::{Client, Sandbox, run, wait_for};
use serde_json::Value;

const BLOCK: usize = 4096;
const VOLUME_BYTES: u64 = 64 << 20;

fn verify(sandbox: &Sandbox, extra: &[&str]) -> (Option<i32>, Value) {
    let mut arguments = vec!["verify", "r0", "--wait", "--json", "--control", &sandbox.nodes[0].control];
    arguments.extend(extra);
    let output = run(&arguments);
    let report = serde_json::from_slice(&output.stdout);
    let said = || String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), report.unwrap_or_else(|error| panic!("{error}: {}", said())))
}

/// (first byte, bytes) of each run of differences.
fn differences(report: &Value) -> Vec<(u64, u64)> {
    let runs = report["peers"][0]["differences"].as_array().expect("differences");
    runs.iter().map(|run| (run["offset"].as_u64().unwrap(), run["length"].as_u64().unwrap())).collect()
}

fn write_on(socket: &str, seed: u64, stop: &AtomicBool) {
    let mut client = Client::connect(socket).unwrap();
    let mut random = seed | 1;
    while !stop.load(Ordering::Relaxed) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let blocks = usize::try_from(1 + (random >> 60)).unwrap();
        let place = (random >> 20) % (VOLUME_BYTES / BLOCK as u64 - 16);
        let byte = u8::try_from(random >> 56).unwrap();
        client.write_at(place * BLOCK as u64, &vec![byte; blocks * BLOCK]).unwrap();
        if random.is_multiple_of(64) {
            client.flush().unwrap();
        }
    }
}

#[test]
fn copies_are_equal_under_load_and_what_is_damaged_is_found_exactly_and_repaired() {
    let sandbox = Sandbox::start(&["--size", "64M", "--journal-size", "32M"]);
    sandbox.wait_level(0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        for seed in 0..3 {
            let socket = sandbox.nodes[0].nbd_socket.clone();
            scope.spawn(move || write_on(&socket, 77 + seed, stop));
        }
        for repair in [&[][..], &["--repair"]] {
            let (code, report) = verify(&sandbox, repair);
            assert_eq!(code, Some(0), "{report:#}");
            assert_eq!((report["phase"].as_str(), differences(&report).len()), (Some("done"), 0));
            assert_eq!(report["peers"][0]["settled_bytes"], 0, "nothing is found that is not there");
        }
        stop.store(true, Ordering::Relaxed);
    });
    let applied = |node: usize| sandbox.status(node).map(|status| status["applied"].clone());
    wait_for("both to have applied everything", || {
        let head = sandbox.status(0)?["journaled"].clone();
        (applied(0)? == head && applied(1)? == head).then_some(())
    });

    let disk = std::fs::OpenOptions::new().write(true).open(&sandbox.nodes[1].disk).unwrap();
    let damage = [4096, 9_000_000, VOLUME_BYTES - 100];
    for at in damage {
        disk.write_all_at(b"not what was written here", at).unwrap();
    }
    drop(disk);
    let expected: Vec<_> = damage.map(|at| (at / 4096 * 4096, 4096)).into();
    let (code, report) = verify(&sandbox, &[]);
    assert_eq!((code, differences(&report)), (Some(3), expected), "{report:#}");
    for node in 0..2 {
        let text = sandbox.status_text(node);
        assert!(text.contains("differ") && text.contains("--repair"), "node {node} says so: {text}");
    }
    let (code, report) = verify(&sandbox, &["--repair"]);
    assert_eq!((code, differences(&report).len()), (Some(0), 0), "{report:#}");
    assert_eq!(report["peers"][0]["settled_bytes"], 3 * 4096);
    assert_eq!(sandbox.status(1).unwrap()["counters"]["mended_blocks"], 3, "its neighbours were left alone");
    let (code, _) = verify(&sandbox, &[]);
    assert_eq!(code, Some(0));
    let disks = sandbox.stop_and_read_disks(0);
    assert!(disks[0] == disks[1], "both disks hold the same bytes");
}

#[test]
fn the_operator_says_whose_copy_counts() {
    let sandbox = Sandbox::start(&["--size", "64M", "--journal-size", "32M"]);
    sandbox.wait_level(0);
    let disk = std::fs::OpenOptions::new().write(true).open(&sandbox.nodes[0].disk).unwrap();
    disk.write_all_at(b"rot", 123_456).unwrap();
    drop(disk);
    let (code, report) = verify(&sandbox, &["--repair", "--trust", "b"]);
    assert_eq!((code, differences(&report).len()), (Some(0), 0), "{report:#}");
    let disks = sandbox.stop_and_read_disks(0);
    assert!(disks[0] == disks[1] && disks[0].iter().all(|byte| *byte == 0), "the volume is as it was: empty");
}

#[test]
fn a_verify_that_cannot_be_is_refused_with_a_reason() {
    let sandbox = Sandbox::start(&["--size", "16M", "--journal-size", "32M"]);
    let output = run(&["verify", "r0", "--control", &sandbox.nodes[1].control]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("on the Primary"), "{text}");
    let output = run(&["verify", "r0", "--stop", "--control", &sandbox.nodes[0].control]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("no verify is under way"), "{text}");
}
