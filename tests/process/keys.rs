//! The cluster's keys are rotated while clients write, and a rotation that cannot go on harms nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use holdfast_tests::wait_for;

use crate::machines::{Machines, NODES, refused, said};

const BLOCK: u64 = 4096;

fn secret(machines: &Machines, node: &str) -> Vec<u8> {
    std::fs::read(machines.home(node).join("secret")).unwrap()
}

/// The files of a node's secrets.
fn files(machines: &Machines, node: &str) -> Vec<String> {
    let entries = std::fs::read_dir(machines.home(node)).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("secret")).collect();
    names.sort();
    names
}

/// What was decided about the volume until now: a takeover is an epoch, a member that is lost a version.
fn record(machines: &Machines) -> (u64, u64) {
    let status = machines.status("w").unwrap();
    let record = &status["volumes"][0]["record"];
    (record["epoch"].as_u64().unwrap(), record["version"].as_u64().unwrap())
}

#[test]
fn keys_are_rotated_while_clients_write_and_nothing_fails() {
    let machines = Machines::in_a_cluster();
    let before = (secret(&machines, "a"), record(&machines));
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writer = {
        let (stop, written) = (Arc::clone(&stop), Arc::clone(&written));
        let mut client = machines.connect("a");
        std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                let count = written.load(Ordering::SeqCst);
                client.write_at(count % 1000 * BLOCK, &[7; 4096]).expect("no write fails");
                written.store(count + 1, Ordering::SeqCst);
            }
        })
    };
    wait_for("writes to begin", || (written.load(Ordering::SeqCst) > 0).then_some(()));
    let done = said(&machines.cluster("w", &["rotate-keys"]));
    assert!(done.contains("the keys of all 3 nodes are new"), "{done}");
    let (count, fresh) = (written.load(Ordering::SeqCst), secret(&machines, "a"));
    assert!(fresh != before.0, "the secret is the old one");
    for node in NODES {
        assert!(secret(&machines, node) == fresh, "{node} has another secret");
        assert_eq!(files(&machines, node), ["secret"]);
    }
    // The links have begun anew, and are those of the new keys: what is written now is on both.
    wait_for("writes to go on", || (written.load(Ordering::SeqCst) > count + 10).then_some(()));
    stop.store(true, Ordering::SeqCst);
    writer.join().expect("no write fails");
    machines.wait_primary("w", "a", 2);
    assert_eq!(record(&machines), before.1, "a node was taken for lost\n{}", machines.logs());
}

#[test]
fn a_rotation_waits_for_a_node_that_is_away_and_goes_on_from_any_other() {
    let mut machines = Machines::in_a_cluster();
    let before = secret(&machines, "a");
    machines.kill("orchestrator", "w");
    let waits = refused(&machines.cluster("a", &["rotate-keys"]));
    assert!(waits.contains("w: it does not answer") && waits.contains("Nothing was changed"), "{waits}");
    assert!(NODES.iter().all(|node| files(&machines, node) == ["secret"]), "a file is left");

    machines.spawn("orchestrator", "w");
    machines.wait_until("w to be back", || {
        let kept = machines.cluster("a", &["rotate-keys", "--keep-old"]);
        kept.status.success().then_some(())
    });
    for node in NODES {
        assert_eq!(files(&machines, node), ["secret", "secret.old"]);
    }
    // Both are good, also for who starts now.
    machines.kill("replicator", "b");
    machines.spawn("replicator", "b");
    machines.kill("orchestrator", "b");
    machines.spawn("orchestrator", "b");
    machines.wait_primary("a", "a", 2);

    let invited = refused(&machines.cluster("a", &["token", "b"]));
    assert!(invited.contains("rotate") || invited.contains("in the cluster already"), "{invited}");
    machines.wait_until("the rotation to end", || {
        machines.cluster("b", &["rotate-keys"]).status.success().then_some(())
    });
    assert!(
        NODES.iter().all(|node| files(&machines, node) == ["secret"] && secret(&machines, node) != before)
    );

    // Who has only what was dropped is nobody any more.
    machines.kill("orchestrator", "w");
    std::fs::write(machines.home("w").join("secret"), before).unwrap();
    machines.spawn("orchestrator", "w");
    let stranger = refused(&machines.cluster("a", &["rotate-keys"]));
    assert!(stranger.contains("w: it does not answer"), "{stranger}");
}
