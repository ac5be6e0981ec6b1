//! A volume that another node may have only when the old one is surely off: nobody takes it over before a fence agent has
//! switched the dead node off and read that back, or somebody answers for it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use holdfast_tests::{run, wait_for};

use crate::failover::Cluster;

const NEEDS_OFF: &str = "takeover-needs = \"off\"\n";

/// An agent that keeps the state of a node in a file, and does nothing while the file `broken` is there.
fn agent(folder: &Path) -> String {
    let path = folder.join("agent");
    let actions = ["off", "status", "metadata"].map(|name| format!("<action name=\"{name}\"/>"));
    let metadata = format!(
        "<resource-agent name=\"agent\"><parameters><parameter name=\"plug\" required=\"1\"/></parameters><actions>{}\
         </actions></resource-agent>",
        actions.concat()
    );
    let body = format!(
        "#!/bin/sh\ncd {}\nwhile read line; do case $line in action=*) action=${{line#action=}};; plug=*) \
         plug=${{line#plug=}};; esac; done\necho \"$action $plug\" >> told\ncase $action in\n\
         metadata) echo '{metadata}';;\noff) [ -e broken ] || echo off > $plug.power;;\n\
         status) grep -q off $plug.power && exit 2; exit 0;;\nesac\n",
        folder.display()
    );
    std::fs::write(&path, body).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let fence = |node: &str| {
        format!(
            "[[fence]]\nname = \"power-{node}\"\nnode = \"{node}\"\nagent = \"{}\"\nretries = 0\n\
             options = {{ plug = \"{node}\" }}\n",
            path.display()
        )
    };
    fence("a") + &fence("b")
}

fn proof(cluster: &Cluster, ask: &str) -> String {
    let status = cluster.status(ask).expect("it answers");
    status["volumes"][0]["record"]["proof"].as_str().unwrap_or_default().to_owned()
}

fn primary(cluster: &Cluster) -> (&'static str, &'static str) {
    wait_for("somebody to serve both members", || {
        let status = cluster.status("w")?;
        let record = &status["volumes"][0]["record"];
        let is_whole = record["opened"] == true && record["in_sync"].as_array()?.len() == 2;
        let name = record["primary"].as_str().filter(|_| is_whole)?;
        Some(if name == "a" { ("a", "b") } else { ("b", "a") })
    })
}

#[test]
fn a_dead_primary_is_switched_off_before_another_serves() {
    let mut cluster = Cluster::start_with(NEEDS_OFF, agent);
    let (dead, other) = primary(&cluster);
    cluster.kill_node(dead);
    cluster.wait_primary("w", other, 1);
    assert!(proof(&cluster, "w").starts_with("PowerOff"), "{}\n{}", proof(&cluster, "w"), cluster.logs());
    let told = std::fs::read_to_string(cluster.path("told")).unwrap();
    assert!(told.contains(&format!("off {dead}\nstatus {dead}\n")), "{told}");
    let config = cluster.config();
    let checked = run(&["config", "check", config.to_str().unwrap()]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    // It comes back under a boot that is agreed on, and the evidence is gone.
    cluster.revive_node(dead);
    cluster.wait_primary("w", other, 2);
    wait_for("the node to be on again", || {
        let status = cluster.status("w")?;
        let nodes = status["nodes"].as_array()?.clone();
        nodes.iter().find(|node| node["name"] == dead)?["power"].is_null().then_some(())
    });
}

#[test]
fn a_device_that_lies_lets_nobody_serve_until_somebody_answers_for_it() {
    let mut cluster = Cluster::start_with(NEEDS_OFF, agent);
    let (dead, other) = primary(&cluster);
    std::fs::write(cluster.path("broken"), "").unwrap();
    cluster.kill_node(dead);
    wait_for("an attempt that fails", || {
        let status = cluster.status("w")?;
        let past = status["power"].as_array()?.clone();
        past.iter().any(|past| past["text"].as_str().is_some_and(|text| text.contains("is on"))).then_some(())
    });
    let status = cluster.status("w").expect("it answers");
    assert_eq!(status["volumes"][0]["record"]["primary"], dead, "{}", cluster.logs());
    let socket = cluster.path("w.orc");
    let socket = socket.to_str().unwrap();
    let promise = run(&["confirm-off", dead, "--control", socket]);
    assert!(String::from_utf8_lossy(&promise.stdout).contains("Nothing was done"));
    let heard = run(&["confirm-off", other, "--yes", "--who", "root", "--control", socket]);
    assert!(String::from_utf8_lossy(&heard.stderr).contains("is heard right now"));
    let said = run(&["confirm-off", dead, "--yes", "--who", "root", "--control", socket]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    cluster.wait_primary("w", other, 1);
    assert!(proof(&cluster, "w").contains("by the word of root"), "{}", proof(&cluster, "w"));
}
