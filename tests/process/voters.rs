//! Voters come and go while the cluster is in use: machines are written into the configuration, join, and are taken out again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::machines::{Machines, NODES, said};

/// The names of those that vote, as a machine's orchestrator knows them.
fn voters(machines: &Machines, ask: &str) -> Option<Vec<String>> {
    let status = machines.status(ask)?;
    let votes = status["nodes"].as_array()?.iter().filter(|node| node["votes"] == true);
    Some(votes.map(|node| node["name"].as_str().unwrap_or_default().to_owned()).collect())
}

/// Changes the configuration of machines, and has their orchestrators read it, one after the other.
fn reconfigure(machines: &Machines, nodes: &[&str], change: impl Fn(&str) -> String) {
    for node in nodes {
        let text = std::fs::read_to_string(machines.config(node)).unwrap();
        std::fs::write(machines.config(node), change(&text)).unwrap();
    }
    for node in nodes {
        let starts = machines.starts("orchestrator", node);
        said(&machines.cluster(node, &["reload"]));
        machines.wait_until(&format!("{node} to begin anew and follow a leader"), || {
            let has_begun = machines.starts("orchestrator", node) > starts;
            (has_begun && machines.status(node)?["leader"] != Value::Null).then_some(())
        });
    }
}

#[test]
fn voters_come_and_go_while_clients_write() {
    let mut machines = Machines::in_a_cluster();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (stop, mut client) = (Arc::clone(&stop), machines.connect("a"));
        std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                client.write_at(4096, &[7; 4096]).expect("no write fails");
            }
        })
    };
    // A restart is no failure to be acted on.
    said(&machines.cluster("a", &["pause"]));
    let section = machines.section("x");
    reconfigure(&machines, &NODES, |text| text.replace("[[volume]]", &format!("{section}[[volume]]")));
    let token = machines.token("a", "x");
    said(&machines.join("x", &token));
    machines.spawn("orchestrator", "x");
    machines.wait_until("x to vote", || (voters(&machines, "x")? == ["a", "b", "w", "x"]).then_some(()));

    // The first witness goes; it still runs, and is told.
    let gone = machines.section("w");
    reconfigure(&machines, &["a", "b", "x"], |text| {
        assert!(text.contains(&gone), "{text}");
        text.replace(&gone, "")
    });
    machines.wait_until("w to hear that it is out", || {
        let status = machines.status("w")?;
        status["excluded"].as_str()?.contains("votes no more and does nothing").then_some(())
    });
    machines.kill("orchestrator", "w");
    said(&machines.cluster("a", &["pause", "--off"]));

    // Those that are left decide: with a dead, b and x are a majority.
    stop.store(true, Ordering::SeqCst);
    writer.join().expect("no write fails");
    machines.wait_primary("x", "a", 2);
    machines.kill("orchestrator", "a");
    machines.kill("replicator", "a");
    machines.wait_primary("x", "b", 1);
}
