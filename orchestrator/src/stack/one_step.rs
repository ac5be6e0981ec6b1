//! A configuration whose only stack has one step, for the tests of executors.

use std::path::Path;

use replicator::config::{Loaded, WithSecret, parse};

const BASE: &str = r#"[cluster]
name = "c"
secret = "0123456789abcdef"
[orchestrator]
[[node]]
name = "a"
address = "10.0.0.0"
[node.orchestrator]
[[node]]
name = "b"
address = "10.0.0.1"
[node.orchestrator]
[[node]]
name = "w"
address = "10.0.0.2"
[node.orchestrator]
[[volume]]
name = "r0"
uuid = "01915f1e-0a4b-4c3d-8e2f-0123456789ab"
size = "1GiB"
[[volume.replica]]
node = "a"
disk = "/d/0"
journal = "/d/1"
port = 7788
[[volume.replica]]
node = "b"
disk = "/d/0"
journal = "/d/1"
port = 7788
[[stack]]
name = "db"
[[stack.step]]
kind = "volume"
volume = "r0"
[[stack.step]]
"#;

/// What it is when the step has these keys.
pub(super) fn loaded(keys: &str) -> Loaded {
    parse(Path::new("/etc/holdfast.toml"), &format!("{BASE}{keys}"), WithSecret::No).expect("it is sound")
}
