//! A replica that applies late, as an operator sees it: what was written over is had from it, and it is never a member.

use std::process::Command;
use std::time::Duration;

use holdfast_tests::{Client, Sandbox, run, said, wait_for};

const BLOCK: usize = 4096;

fn write(sandbox: &Sandbox, byte: u8) {
    let mut client = wait_for("the export to open", || Client::connect(&sandbox.nodes[0].nbd_socket).ok());
    client.write_at(0, &[byte; BLOCK]).unwrap();
    client.flush().unwrap();
    let written = sandbox.status(0).unwrap()["durable"].clone();
    wait_for("b to have it in its journal", || (sandbox.status(1)?["durable"] == written).then_some(()));
}

/// The first block of the frozen export of b.
fn frozen_block(sandbox: &Sandbox) -> u8 {
    let uri = format!("nbd+unix:///r0@frozen?socket={}", sandbox.nodes[1].nbd_socket);
    let read = Command::new("nbdcopy").args([&uri, "-"]).output().expect("nbdcopy is there");
    assert!(read.status.success(), "{read:?}");
    assert!(read.stdout[..BLOCK].iter().all(|byte| *byte == read.stdout[0]));
    read.stdout[0]
}

#[test]
fn what_was_written_over_by_mistake_is_had_from_a_delayed_replica() {
    let mut sandbox = Sandbox::start_delayed("1h");
    write(&sandbox, 1);
    // What is said to the second means all of that second, and the entry after it comes in another one.
    let between = Command::new("date").args(["-u", "+%F %T"]).output().expect("date is there");
    let between = String::from_utf8(between.stdout).unwrap();
    let between = between.trim();
    std::thread::sleep(Duration::from_millis(1100));
    write(&sandbox, 2);
    let b = |words: &[&str]| run(&[words, &["--control", &sandbox.nodes[1].control]].concat());

    let status = wait_for("b to answer", || sandbox.status(1));
    let delay = &status["delay"];
    assert!(delay["waiting_entries"].as_u64().unwrap() >= 2 && delay["gives_way"] == false, "{delay}");
    assert_eq!((&delay["delay_ms"], &delay["is_delaying"]), (&3_600_000.into(), &true.into()), "{delay}");
    assert_eq!(sandbox.status(0).unwrap()["record"]["in_sync"].as_array().unwrap().len(), 1);
    let text = said(&b(&["status", "r0"]));
    assert!(text.contains("delay   60min; the disk shows"), "{text}");

    let frozen = b(&["freeze-apply", "r0", "--at", between]);
    assert!(frozen.status.success(), "{}", said(&frozen));
    assert_eq!(frozen_block(&sandbox), 1, "the older one");
    let head = status["head"].as_str().unwrap().to_owned();
    let moved = b(&["freeze-apply", "r0", "--at", &head]);
    assert!(moved.status.success(), "{}", said(&moved));
    assert_eq!(frozen_block(&sandbox), 2);
    let back = b(&["freeze-apply", "r0", "--at", between]);
    assert!(!back.status.success() && said(&back).contains("already"), "{}", said(&back));
    let none = b(&["freeze-apply", "r0", "--at", "yesterday"]);
    assert!(!none.status.success() && said(&none).contains("a position as in 3:1042"), "{}", said(&none));

    // It survives the process, and ends when it is told to.
    sandbox.kill(1);
    sandbox.restart(1);
    wait_for("it to be frozen again", || {
        sandbox.status(1).filter(|status| status["freeze"]["export"] == "r0@frozen")
    });
    assert_eq!(frozen_block(&sandbox), 2);
    let thawed = run(&["thaw", "r0", "--control", &sandbox.nodes[1].control]);
    assert!(thawed.status.success(), "{}", said(&thawed));
}

#[test]
fn a_delayed_replica_that_is_promoted_has_everything() {
    let mut sandbox = Sandbox::start_delayed("1h");
    write(&sandbox, 7);
    sandbox.kill(0);
    wait_for("b to be promoted", || {
        run(&["promote", "r0", "--force", "--control", &sandbox.nodes[1].control])
            .status
            .success()
            .then_some(())
    });
    let mut client = wait_for("the export to open", || Client::connect(&sandbox.nodes[1].nbd_socket).ok());
    let mut block = vec![0; BLOCK];
    client.read_at(0, &mut block).unwrap();
    assert!(block.iter().all(|byte| *byte == 7), "what waited was applied first");
}
