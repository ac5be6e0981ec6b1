//! Tests of the configuration: what is accepted, and the message for each mistake.

use std::path::Path;

use replicator_core::config::{OnPeerLoss, Protocol};
use replicator_core::units::NodeId;

use super::*;
use crate::options::DirectIo;

const SOUND: &str = r#"[cluster]
name = "db"
secret = "0123456789abcdef"

[[node]]
name = "a"
address = "10.0.0.1"
[[node]]
name = "b"
address = "10.0.0.2"

[[volume]]
name = "r0"
uuid = "01915f1e-0a4b-4c3d-8e2f-0123456789ab"
size = "1GiB"
[[volume.replica]]
node = "a"
disk = "/d/r0.disk"
journal = "/d/r0.journal"
port = 7788
[[volume.replica]]
node = "b"
disk = "/d/r0.disk"
journal = "/d/r0.journal"
port = 7788
"#;

fn check(text: &str) -> Result<Loaded, ConfigError> {
    parse(Path::new("/etc/holdfast.toml"), text, WithSecret::Yes)
}

/// The sound file with `from` replaced once.
fn with(from: &str, to: &str) -> String {
    assert!(SOUND.contains(from), "{from}");
    SOUND.replacen(from, to, 1)
}

#[test]
fn defaults() {
    let Loaded { cluster, warnings } = check(SOUND).unwrap();
    assert_eq!(warnings.to_string(), "");
    assert_eq!(cluster.name, "db");
    assert_eq!(cluster.nodes[1].id, NodeId(1));
    assert_eq!(cluster.nodes[1].control, Path::new("/run/holdfast/control.sock"));
    let options = cluster.volume_options("a", "r0").unwrap();
    assert_eq!(options.size_bytes, 1 << 30);
    assert_eq!(options.block_bytes, 512);
    assert_eq!(options.journal_bytes, 1 << 30);
    assert_eq!(options.listen.to_string(), "10.0.0.1:7788");
    assert_eq!(options.direct_io, DirectIo::Auto);
    assert!(options.lock_memory);
    assert_eq!(options.nbd_unix.as_deref(), Some(Path::new("/run/holdfast/r0.sock")));
    assert_eq!(options.nbd_tcp, None);
    assert_eq!(options.secrets.own.0, b"0123456789abcdef");
    assert_eq!(options.peers.len(), 1);
    assert_eq!(options.peers[0].address.to_string(), "10.0.0.2:7788");
    let core = &options.core;
    assert_eq!((core.node, core.peers[0].node), (NodeId(0), NodeId(1)));
    assert_eq!(core.peers[0].protocol, Protocol::C);
    assert_eq!(core.on_peer_loss, OnPeerLoss::Freeze);
    assert_eq!((core.sync_interval_ms, core.ping_interval_ms, core.peer_timeout_ms), (10, 500, 3000));
    assert_eq!((core.arena_bytes, core.checkpoint_bytes), (64 << 20, 64 << 20));
    assert_eq!((core.send_window_bytes, core.frames_in_flight_max), (8 << 20, 2));
}

#[test]
fn everything_given() {
    let text = r#"
[cluster]
name = "db"
incarnation = 3
secret = "0123456789abcdef"
[[node]]
name = "a"
id = 7
address = "fd00::1"
control = "run/a.sock"
[[node]]
name = "b"
id = 2
address = "fd00::2"
[[volume]]
name = "r0"
uuid = "01915f1e-0a4b-4c3d-8e2f-0123456789ab"
size = 1073741824
block-size = 4096
protocol = "B"
on-peer-loss = "continue"
buffer-memory = "128MiB"
direct-io = "off"
lock-memory = false
ring = "defer-taskrun"
nbd-connections = 4
sync-interval = "20ms"
ping-interval = "1s"
peer-timeout = "5s"
checkpoint = "16MiB"
send-window = "4MiB"
frames-in-flight = 3
[[volume.replica]]
node = "a"
disk = "r0.disk"
journal = "r0.journal"
journal-size = "64MiB"
address = "fd01::1"
port = 7788
nbd-socket = "run/r0.sock"
nbd-listen = "[::1]:10809"
[[volume.replica]]
node = "b"
disk = "/dev/sdb"
journal = "/dev/sdc"
port = 7789
protocol = "A"
"#;
    let Loaded { cluster, warnings } = check(text).unwrap();
    assert_eq!(warnings.to_string(), "");
    let a = cluster.volume_options("a", "r0").unwrap();
    assert_eq!((a.core.node, a.core.incarnation.0), (NodeId(7), 3));
    assert_eq!(a.disk, Path::new("/etc/r0.disk"));
    assert_eq!(a.listen.to_string(), "[fd01::1]:7788");
    assert_eq!(a.nbd_unix.as_deref(), Some(Path::new("/etc/run/r0.sock")));
    assert_eq!(a.nbd_tcp.unwrap().to_string(), "[::1]:10809");
    assert_eq!(a.core.peers[0].protocol, Protocol::A);
    assert_eq!((a.block_bytes, a.nbd_connections_max, a.lock_memory), (4096, 4, false));
    assert!(a.ring.defer_taskrun);
    assert_eq!((a.core.sync_interval_ms, a.core.peer_timeout_ms), (20, 5000));
    assert_eq!((a.core.checkpoint_bytes, a.core.frames_in_flight_max), (16 << 20, 3));
    let b = cluster.volume_options("b", "r0").unwrap();
    assert_eq!(b.core.peers[0].protocol, Protocol::B);
    assert_eq!(b.peers[0].address, a.listen);
    let error = cluster.volume_options("c", "r0").unwrap_err().to_string();
    assert_eq!(error, "no node \"c\" in the configuration; it has \"a\", \"b\"");
    let error = cluster.volume_options("a", "r1").unwrap_err().to_string();
    assert_eq!(error, "no volume \"r1\" in the configuration; it has \"r0\"");
}

#[test]
fn a_small_journal_lowers_the_checkpoint() {
    let text = with("port = 7788\n", "port = 7788\njournal-size = \"32MiB\"\n");
    let options = check(&text).unwrap().cluster.volume_options("a", "r0").unwrap();
    assert!(options.core.checkpoint_bytes < 8 << 20, "{}", options.core.checkpoint_bytes);
}

#[test]
fn a_journal_that_is_too_small_for_what_the_volume_has_grown_to_is_a_warning() {
    let text = with("size = \"1GiB\"", "size = \"8TiB\"");
    let checked = check(&text).unwrap();
    let shown = checked.warnings.to_string();
    assert!(shown.contains("too small to create a replica of 8TiB"), "{shown}");
    let options = checked.cluster.volume_options("a", "r0").unwrap();
    assert!(options.core.checkpoint_bytes > 8 << 20, "{}", options.core.checkpoint_bytes);
    let error =
        check(&with("size = \"1GiB\"", "size = \"8TiB\"\nchecksums = \"on\"")).unwrap_err().to_string();
    assert!(error.contains("too small for a volume of 8TiB"), "{error}");
}

#[test]
fn how_a_mistake_is_shown() {
    let error = check(&with("size = \"1GiB\"", "size = \"1GiB\"\nprotocoll = \"C\"")).unwrap_err();
    let expected = "\
error: unknown key `protocoll` in [[volume]]
  --> /etc/holdfast.toml:16:1
   |
16 | protocoll = \"C\"
   | ^^^^^^^^^
   = did you mean `protocol`?";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn all_mistakes_are_shown_at_once() {
    let text = with("size = \"1GiB\"", "size = \"1GB\"").replacen("port = 7788", "port = 0", 1);
    let text = text.replacen("name = \"db\"", "name = \"DB\"", 1);
    let error = check(&text).unwrap_err().to_string();
    for part in ["write \"1GiB\"", "out of range", "not a name"] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

/// What is replaced, by what, and what the message must contain.
const MISTAKES: &[(&str, &str, &[&str])] = &[
    ("[cluster]", "[cluster", &["holdfast.toml:1:9", "unclosed table"]),
    (
        "[cluster]",
        "[clustr]",
        &["`cluster` is missing in the file", "unknown key `clustr`", "did you mean `cluster`?"],
    ),
    ("[cluster]", "[[cluster]]", &["`cluster` is a table", "write [cluster]"]),
    ("name = \"db\"\n", "", &["`name` is missing in [cluster]"]),
    ("\"db\"", "7", &["`name`: expected text in quotes, found integer"]),
    ("\"db\"", "\"D B\"", &["\"D B\" is not a name", "for example \"d-b\""]),
    ("\"db\"", "\"\"", &["1 to 64 characters"]),
    ("secret = \"0123456789abcdef\"", "secret = \"short\"", &["has 5 bytes", "16 to 4096", "freshly drawn"]),
    ("secret = \"0123456789abcdef\"\n", "", &["the cluster has no secret", "write secret = \""]),
    ("secret =", "secret-file = \"x\"\nsecret =", &["both `secret` and `secret-file`", "keep one"]),
    (
        "secret = \"0123456789abcdef\"",
        "secret-file = \"/nope\"",
        &["cannot read the secret file /nope", "umask 077"],
    ),
    ("name = \"b\"", "name = \"a\"", &["this node name was used before"]),
    ("name = \"b\"", "name = \"b\"\nid = 0", &["this node id was used before"]),
    ("name = \"b\"", "name = \"b\"\nid = 32", &["`id`: 32 is out of range; it may be 0 to 31"]),
    ("\"10.0.0.1\"", "\"node-a\"", &["is not an IP address", "names are not looked up"]),
    ("\"10.0.0.1\"", "\"10.0.0.1:7788\"", &["is not an IP address", "without a port"]),
    ("address = \"10.0.0.1\"\n", "", &["`address` is missing in [[node]]", "holdfast.toml:5:1"]),
    ("uuid = \"01915f1e-0a4b-4c3d-8e2f-0123456789ab\"\n", "", &["`uuid` is missing", "to paste: uuid = \""]),
    ("01915f1e-0a4b-4c3d-8e2f-0123456789ab", "r0", &["\"r0\" is not a UUID", "to paste: uuid = \""]),
    ("\"1GiB\"", "\"1GB\"", &["sizes are binary here, write \"1GiB\""]),
    ("\"1GiB\"", "true", &["expected a size as in \"1GiB\", found boolean"]),
    ("\"1GiB\"", "-1", &["found a number out of range"]),
    ("\"1GiB\"", "0", &["must be above 0"]),
    ("\"1GiB\"", "\"2PiB\"", &["at most 1PiB"]),
    ("\"1GiB\"", "1000", &["not a multiple of the block size 512", "write 1024"]),
    ("\"1GiB\"", "512\nblock-size = 4096", &["not a multiple of the block size 4096", "write 4096"]),
    ("\"1GiB\"", "\"1GiB\"\nblock-size = 1024", &["`block-size` may be 512 or 4096"]),
    ("port = 7788", "port = 7788\napply-delay = \"10ms\"", &["`apply-delay` is 10ms", "1s to 720h"]),
    (
        "port = 7788",
        "port = 7788\napply-delay = \"1h\"\nprotocol = \"C\"",
        &["fed with protocol A", "leave `protocol` out"],
    ),
    ("\"1GiB\"", "\"1GiB\"\nprotocol = \"D\"", &["\"D\" is not known", "\"A\" or \"B\" or \"C\""]),
    ("\"1GiB\"", "\"1GiB\"\non-peer-loss = \"freze\"", &["did you mean \"freeze\"?"]),
    ("\"1GiB\"", "\"1GiB\"\nbuffer-memory = \"1MiB\"", &["out of range; it may be 16MiB to 64GiB"]),
    ("\"1GiB\"", "\"1GiB\"\nbuffer-memory = 33554433", &["not a multiple of 256KiB", "write 33816576"]),
    ("\"1GiB\"", "\"1GiB\"\nsend-window = \"1MiB\"", &["too small", "at least \"2MiB\""]),
    ("\"1GiB\"", "\"1GiB\"\nsend-window = \"40MiB\"", &["more than half of `buffer-memory`"]),
    ("\"1GiB\"", "\"1GiB\"\nsync-interval = 10", &["expected a duration as in \"10ms\""]),
    ("\"1GiB\"", "\"1GiB\"\nsync-interval = \"0ms\"", &["\"1ms\" to \"1min\""]),
    ("\"1GiB\"", "\"1GiB\"\npeer-timeout = \"600ms\"", &["less than twice `ping-interval`"]),
    ("\"1GiB\"", "\"1GiB\"\ncheckpoint = \"1KiB\"", &["below 1MiB", "at least \"1MiB\""]),
    ("\"1GiB\"", "\"1GiB\"\ncheckpoint = \"1GiB\"", &["more than half of this replica's journal ring"]),
    ("\"1GiB\"", "\"1GiB\"\nlock-memory = \"yes\"", &["expected true or false, found string"]),
    ("\"1GiB\"", "\"1GiB\"\nfoo = 1", &["unknown key `foo` in [[volume]]", "known here: name, uuid, size"]),
    (
        "[[volume]]",
        "[[hook]]\nrun = [\"tell\"]\n[[volume]]",
        &["a [[hook]] without an [orchestrator] is never run"],
    ),
    (
        "[[volume]]",
        "[[hook]]\non = [\"rain\"]\nrun = [\"tell\"]\n[[volume]]",
        &["\"rain\" is nothing that happens"],
    ),
    ("[[volume]]", "[[hook]]\ntimeout = \"0s\"\n[[volume]]", &["names no program", "must be above 0"]),
    (
        "name = \"b\"",
        "name = \"b\"\nmetrics-listen = \"7789\"",
        &["`metrics-listen`: \"7789\" is not an address"],
    ),
    ("node = \"a\"", "node = \"z\"", &["there is no node \"z\"", "the nodes of this file are \"a\", \"b\""]),
    ("node = \"b\"\n", "node = \"a\"\n", &["this replica's node was used before"]),
    ("port = 7788", "port = 70000", &["`port`: 70000 is out of range; it may be 1 to 65535"]),
    ("port = 7788\n", "", &["`port` is missing in [[volume.replica]]"]),
    (
        "port = 7788",
        "port = 7788\njournal-size = \"8MiB\"",
        &["too small for a volume of 1GiB", "journal-size = \""],
    ),
    ("\"/d/r0.journal\"", "\"/d/r0.disk\"", &["the path /d/r0.disk is used twice on 10.0.0.1"]),
    ("\"10.0.0.2\"", "\"10.0.0.1\"", &["is used twice on 10.0.0.1", "port 7788 is used twice"]),
    ("port = 7788", "port = 7788\nnbd-listen = \"10.0.0.1:7788\"", &["port 7788 is used twice on 10.0.0.1"]),
    (
        "port = 7788",
        "port = 7788\nnbd-listen = \"10809\"",
        &["is not an address with a port", "127.0.0.1:10809"],
    ),
    ("port = 7788", "port = 7788\nnbd_socket = \"/x\"", &["did you mean `nbd-socket`?"]),
];

#[test]
fn mistakes() {
    for (from, to, parts) in MISTAKES {
        let error = check(&with(from, to)).expect_err(to).to_string();
        for part in *parts {
            assert!(error.contains(part), "{to}: no {part:?} in\n{error}");
        }
        assert!(error.contains("--> /etc/holdfast.toml:"), "{to}: no place in\n{error}");
    }
}

#[test]
fn warnings() {
    let b = SOUND.rfind("[[volume.replica]]").unwrap();
    let one = SOUND[..b].to_owned();
    let none = SOUND[..SOUND.find("[[volume]]").unwrap()].to_owned();
    let followers = with("size = \"1GiB\"", "size = \"1GiB\"\nprotocol = \"A\"");
    for (text, part) in
        [(one, "has one replica"), (none, "no [[volume]]"), (followers, "fed with protocol A")]
    {
        let loaded = check(&text).unwrap();
        assert!(!loaded.warnings.has_errors());
        let shown = loaded.warnings.to_string();
        assert!(shown.starts_with("warning: ") && shown.contains(part), "{shown}");
    }
}

#[test]
fn a_delayed_replica_follows() {
    let text = with("port = 7788", "port = 7788\napply-delay = \"90min\"");
    let loaded = check(&text).unwrap();
    let volume = loaded.cluster.volume("r0").unwrap();
    let delayed = volume.replicas.iter().find(|replica| replica.apply_delay_ms > 0).unwrap();
    assert_eq!((delayed.protocol, delayed.apply_delay_ms), (Protocol::A, 5_400_000));
    let core = |node: &str| loaded.cluster.volume_options(node, "r0").unwrap().core;
    let name = loaded.cluster.node_name(delayed.node);
    assert_eq!(core(&name).apply_delay_ms, 5_400_000);
    let other = volume.replicas.iter().find(|replica| replica.apply_delay_ms == 0).unwrap();
    let other = core(&loaded.cluster.node_name(other.node));
    assert_eq!((other.apply_delay_ms, other.peers[0].protocol), (0, Protocol::A));
}

#[test]
fn sockets_have_short_paths() {
    let long = format!("port = 7788\nnbd-socket = \"/{}\"", "x".repeat(107));
    let error = check(&with("port = 7788", &long)).unwrap_err().to_string();
    assert!(error.contains("has 108 bytes; the kernel takes 107"), "{error}");
}

#[test]
fn secret_files() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (path, secret) = (folder.path().join("holdfast.toml"), folder.path().join("secret"));
    std::fs::write(&path, with("secret = \"0123456789abcdef\"", "secret-file = \"secret\"")).unwrap();
    std::fs::write(&secret, "0123456789abcdef0123\n").unwrap();
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o644)).unwrap();
    let loaded = load(&path, WithSecret::Yes).unwrap();
    assert_eq!(loaded.cluster.secrets.unwrap().own.0, b"0123456789abcdef0123");
    let shown = loaded.warnings.to_string();
    assert!(shown.contains("may be read by others (mode 644)") && shown.contains("chmod 600"), "{shown}");
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(load(&path, WithSecret::Yes).unwrap().warnings.to_string(), "");
    std::fs::write(&secret, "short").unwrap();
    let error = load(&path, WithSecret::Yes).unwrap_err().to_string();
    assert!(error.contains("has 5 bytes"), "{error}");
    // Whoever only looks for a control socket need not be able to read the secret.
    let loaded = load(&path, WithSecret::No).unwrap();
    let error = loaded.cluster.volume_options("a", "r0").unwrap_err().to_string();
    assert!(error.contains("secret was not read"), "{error}");
}

#[test]
fn the_example_is_sound_and_fresh() {
    let Loaded { warnings, .. } = check(&example()).unwrap();
    assert_eq!(warnings.to_string(), "");
    assert_ne!(example(), example());
}

#[test]
fn files_that_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let missing = load(&folder.path().join("none"), WithSecret::Yes).unwrap_err().to_string();
    assert!(missing.contains("cannot read the configuration file"), "{missing}");
    let large = folder.path().join("large");
    std::fs::File::create(&large).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
    let error = load(&large, WithSecret::Yes).unwrap_err().to_string();
    assert!(error.contains("is it the right file?"), "{error}");
    std::fs::write(&large, b"# one\n# two \xff\n").unwrap();
    let error = load(&large, WithSecret::Yes).unwrap_err().to_string();
    assert!(error.contains("line 2, byte 7 of it (0xff) is not UTF-8"), "{error}");
}

#[test]
fn what_has_no_end_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    );
    made.unwrap();
    for (path, kind) in
        [(Path::new("/dev/zero"), "a device"), (folder.path(), "a directory"), (&pipe, "a pipe")]
    {
        let error = load(path, WithSecret::Yes).unwrap_err().to_string();
        assert!(error.contains(kind) && error.contains("regular file"), "{error}");
        let at_secret = folder.path().join("holdfast.toml");
        let line = format!("secret-file = \"{}\"", path.display());
        std::fs::write(&at_secret, with("secret = \"0123456789abcdef\"", &line)).unwrap();
        let error = load(&at_secret, WithSecret::Yes).unwrap_err().to_string();
        assert!(error.contains("the secret file") && error.contains(kind), "{error}");
    }
    // A file that claims to be empty and is not.
    let error = load(Path::new("/proc/self/status"), WithSecret::Yes).unwrap_err().to_string();
    assert!(error.contains("--> /proc/self/status:"), "{error}");
}

#[test]
fn a_long_line_is_shown_around_the_mistake() {
    let long = "x".repeat(200_000);
    for text in [
        with("\"db\"", &format!("\"{long}\"")),
        with("\"db\"", &format!("\"db\" # {long} \u{1b}[2J {long}\n{long} = 1")),
        with("\"db\"", &format!("{{ {} }}", "a = 1, ".repeat(20_000) + "b =")),
        with("\"10.0.0.1\"", &format!("\"{long}é{long}\"")),
    ] {
        let error = check(&text).unwrap_err().to_string();
        assert!(error.lines().all(|line| line.chars().count() <= 400), "{error:.2000}");
        assert!(!error.contains('\u{1b}'), "what a terminal would obey is not printed");
        let shown = error.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit()));
        assert!(
            shown.clone().count() > 0 && shown.clone().all(|line| line.chars().count() <= 130),
            "{error}"
        );
        for (line, below) in error.lines().zip(error.lines().skip(1)) {
            if line.starts_with(|c: char| c.is_ascii_digit()) {
                assert!(
                    below.chars().count() <= line.chars().count() + 1,
                    "the caret is below the line: {error}"
                );
            }
        }
    }
}

#[test]
fn many_mistakes_are_not_all_shown() {
    let text = format!("{SOUND}\n{}", (0..5000).map(|n| format!("key{n} = 1\n")).collect::<String>());
    let error = check(&text).unwrap_err().to_string();
    assert!(error.ends_with("and 4950 more"), "{:.200}", &error[error.len() - 200..]);
    assert_eq!(error.matches("error: ").count(), 50);
}

#[test]
fn hostile_text_is_an_error_and_nothing_else() {
    // Every prefix of a sound file, and every sound file with one byte changed, is accepted or refused.
    for end in (0..SOUND.len()).filter(|end| SOUND.is_char_boundary(*end)) {
        let _ = check(&SOUND[..end]).map_err(|error| error.to_string());
    }
    for at in 0..SOUND.len() {
        for byte in [b'"', b'[', b'\n', b'9', b'\t', 0, b'\\'] {
            let mut bytes = SOUND.as_bytes().to_vec();
            bytes[at] = byte;
            let _ = check(&String::from_utf8_lossy(&bytes)).map_err(|error| error.to_string());
        }
    }
    let deep = format!("x = {}1{}", "[".repeat(20_000), "]".repeat(20_000));
    assert!(check(&deep).is_err());
    let huge = format!("{SOUND}\n{}", "[[node]]\nname = \"é\"\n".repeat(100));
    assert!(check(&huge).unwrap_err().to_string().contains("at most 32 nodes"));
}
