//! A journal that is moved elsewhere, with real processes and files.

use holdfast_tests::{Client, Sandbox, run, wait_for};

#[test]
fn a_journal_is_moved_while_the_others_serve_and_its_replica_goes_on_from_where_it_was() {
    let mut sandbox =
        Sandbox::start(&["--size", "16M", "--journal-size", "20M", "--on-peer-loss", "continue"]);
    sandbox.wait_level(0);
    let mut client = wait_for("the export to open", || Client::connect(&sandbox.nodes[0].nbd_socket).ok());
    client.write_at(4096, &[7; 4096]).unwrap();
    client.flush().unwrap();
    let config = sandbox.config();
    let to = config.parent().unwrap().join("b.moved");
    let arguments = [
        "move-journal",
        "r0",
        "--config",
        config.to_str().unwrap(),
        "--node",
        "b",
        "--to",
        to.to_str().unwrap(),
    ];
    let refused = run(&arguments);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("in use"), "{text}");
    assert!(!to.exists(), "what is refused makes nothing");

    sandbox.kill(1);
    client.write_at(8192, &[8; 4096]).unwrap();
    let moved = run(&arguments);
    let text = format!("{moved:?}");
    assert!(moved.status.success() && text.contains("b.moved"), "{text}");
    sandbox.restart(1);
    wait_for("b to say where its journal is", || sandbox.log(1).contains("was moved to").then_some(()));
    let file = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, file.replace("\"b.journal\"", "\"b.moved\"")).unwrap();
    sandbox.restart(1);
    client.write_at(12288, &[9; 4096]).unwrap();
    sandbox.wait_level(0);
    drop(client);
    let disks = sandbox.stop_and_read_disks(0);
    assert!(disks[0] == disks[1] && disks[1][4096..4100] == [7; 4], "the disks differ");
}
