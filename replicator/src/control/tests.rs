//! The control interface over a real unix socket, in front of a volume that is made up.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use replicator_core::command::AdminError;
use replicator_core::compare::{Verdict, verdict};
use replicator_core::config::Protocol;
use replicator_core::disk::superblock::{DiskState, LogPoint, Record};
use replicator_core::event::{AdminAction, Reign};
use replicator_core::history::History;
use replicator_core::status::{Connection, Counters, PeerStatus, Role, Status};
use replicator_core::units::{Chain, Epoch, NodeId, NodeSet, Position, ReignId, Sequence};
use replicator_core::wire::message::{Ack, Hello, LogEnd};

use super::json::{AdviceSeverity, NodeStatus, ReplicaReport, VolumeReport};
use super::server::HEAD_TIMEOUT;
use super::*;
use crate::config::{WithSecret, parse};

const CONFIGURATION: &str = r#"
[cluster]
name = "db"
secret = "0123456789abcdef"
[[node]]
name = "alpha"
address = "10.0.0.1"
[[node]]
name = "beta"
address = "10.0.0.2"
[[volume]]
name = "r0"
uuid = "01915f1e-0a4b-4c3d-8e2f-0123456789ab"
size = "1GiB"
[[volume.replica]]
node = "alpha"
disk = "/d/r0.disk"
journal = "/d/r0.journal"
port = 7788
nbd-socket = "/run/r0.sock"
nbd-listen = "127.0.0.1:10809"
[[volume.replica]]
node = "beta"
disk = "/d/r0.disk"
journal = "/d/r0.journal"
port = 7788
"#;

/// A volume that says what it is told to say and remembers what it was asked.
struct Fake {
    status: Mutex<Result<VolumeStatus, VolumeError>>,
    answer: Mutex<Result<String, VolumeError>>,
    asked: Mutex<Vec<AdminAction>>,
    /// If there is one, each action waits for a word.
    gate: Mutex<Option<mpsc::Receiver<()>>>,
}

impl Volume for Fake {
    fn name(&self) -> &str {
        "r0"
    }

    fn admin(&self, action: AdminAction, _deadline: Duration) -> Result<String, VolumeError> {
        self.asked.lock().unwrap().push(action);
        if let Some(gate) = self.gate.lock().unwrap().as_ref() {
            gate.recv().unwrap();
        }
        self.answer.lock().unwrap().clone()
    }

    fn attach_ublk(&self, index: u32, generation: u64, tags: u16) -> Result<String, VolumeError> {
        self.answer.lock().unwrap().clone().map(|_| format!("attached {index} {generation} {tags}"))
    }

    fn break_ublk(&self, index: u32) -> Result<String, VolumeError> {
        self.answer.lock().unwrap().clone().map(|_| format!("broken {index}"))
    }

    fn status(&self) -> Result<VolumeStatus, VolumeError> {
        self.status.lock().unwrap().clone()
    }

    fn branches(&self) -> std::io::Result<Vec<crate::branch::BranchInfo>> {
        Ok(Vec::new())
    }

    fn delete_branch(&self, _name: &str) -> std::io::Result<()> {
        Err(std::io::ErrorKind::NotFound.into())
    }
}

/// A level primary on alpha with beta in place.
fn healthy() -> Status {
    let (alpha, beta) = (NodeId(0), NodeId(1));
    Status {
        node: alpha,
        replica: 7,
        role: Role::Primary,
        serving: true,
        frozen: None,
        managed: false,
        lease_end: None,
        wish: None,
        disk_state: DiskState::UpToDate,
        suspect: false,
        disk_full: false,
        proven: true,
        sessions: None,
        export_generation: 1,
        volume_bytes: 1 << 30,
        block_bytes: 512,
        record: Record {
            epoch: Epoch(2),
            version: 1,
            primary: Some(alpha),
            reign: ReignId(0xabc),
            in_sync: NodeSet::only(alpha).with(beta),
        },
        promised: Epoch(2),
        head: Position { epoch: Epoch(2), sequence: Sequence(9) },
        chain: Chain(0xdef),
        journaled: Sequence(9),
        durable: Sequence(8),
        committed: Sequence(9),
        stable: Sequence(8),
        applied: Sequence(7),
        ring_bytes: 1000,
        ring_used_bytes: 10,
        arena_used_bytes: 4096,
        arena_bytes: 64 << 20,
        superblock_repairs: 0,
        verify: None,
        sums: None,
        scrub: None,
        found_blocks: 0,
        branching: None,
        branch_failure: None,
        discards_of: None,
        freeze: None,
        delay: None,
        bookmarks: Vec::new(),
        staged: None,
        peers: vec![PeerStatus {
            node: beta,
            protocol: Protocol::C,
            connection: Connection::Established,
            reason: None,
            role: Some(Role::Secondary),
            disk_state: Some(DiskState::UpToDate),
            member: true,
            answers: true,
            lag_bytes: Some(0),
            delayed: false,
            ack: Ack {
                received: Sequence(9),
                journaled: Sequence(9),
                durable: Sequence(8),
                applied: Sequence(6),
            },
            resync: None,
            dirty_blocks: 0,
            fork: None,
        }],
        counters: Counters { writes: 9, ..Counters::default() },
    }
}

fn volume_status(core: Status) -> VolumeStatus {
    VolumeStatus {
        latencies: crate::latency::Latencies::default(),
        name: "r0".to_owned(),
        core,
        nbd_connections: 1,
        ublk: None,
        disk_direct: true,
        journal_direct: true,
        backends: "direct".to_owned(),
        ring_flags: "coop".to_owned(),
        memory_locked: true,
    }
}

/// A server in a folder of its own.
struct Bench {
    folder: tempfile::TempDir,
    volume: Arc<Fake>,
    server: Option<Server>,
}

impl Bench {
    fn new() -> Self {
        let volume = Arc::new(Fake {
            status: Mutex::new(Ok(volume_status(healthy()))),
            answer: Mutex::new(Ok("n0 is Primary now".to_owned())),
            asked: Mutex::default(),
            gate: Mutex::default(),
        });
        let folder = tempfile::tempdir().unwrap();
        let mut bench = Self { folder, volume, server: None };
        bench.server = Some(bench.start().unwrap());
        bench
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("control.sock")
    }

    fn start(&self) -> Result<Server, ServerError> {
        Server::start(
            &self.path(),
            LiveFacts::new(facts()),
            vec![Arc::clone(&self.volume) as Arc<dyn Volume>],
            Arc::new(Unchanged),
        )
    }

    fn client(&self) -> Client {
        Client::new(&self.path())
    }

    /// Sends bytes as they are and reads until the server closes.
    fn raw(&self, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // The server may refuse before it has read everything.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// A configuration that stays as it is, and says so of node 0.
struct Unchanged;

impl Reload for Unchanged {
    fn reload(&self) -> Result<(Facts, String), String> {
        Ok((facts(), "n0: nothing has changed".to_owned()))
    }

    fn rekey(&self) -> Result<String, String> {
        Err("the secret file is gone".to_owned())
    }
}

fn facts() -> Facts {
    let loaded = parse(Path::new("/etc/holdfast.toml"), CONFIGURATION, WithSecret::Yes).unwrap();
    Facts::new(loaded.cluster, NodeId(0))
}

fn refusal(error: &ClientError) -> (String, String, Option<String>) {
    let ClientError::Refused(reason) = error else { panic!("{error}") };
    (reason.code.clone(), reason.message.clone(), reason.hint.clone())
}

#[test]
fn a_reload_is_answered_with_names() {
    let bench = Bench::new();
    let done = bench.client().reload().unwrap();
    assert!(
        done.message.ends_with(": nothing has changed") && !done.message.starts_with("n0"),
        "{}",
        done.message
    );
}

#[test]
fn a_rekey_that_fails_says_why() {
    let (code, message, _) = refusal(&Bench::new().client().rekey().unwrap_err());
    assert_eq!((code.as_str(), message.as_str()), ("refused", "the secret file is gone"));
}

#[test]
fn status_names_nodes_and_uses_the_fields_words() {
    let bench = Bench::new();
    let status = bench.client().status().unwrap();
    assert_eq!(
        (status.cluster.as_str(), status.node.as_str(), status.pid),
        ("db", "alpha", std::process::id())
    );
    let volume = bench.client().volume("r0").unwrap();
    assert_eq!(status.volumes, vec![volume.clone()]);
    assert_eq!(volume.uuid, "01915f1e-0a4b-4c3d-8e2f-0123456789ab");
    assert_eq!(volume.nbd, ["nbd+unix:///r0?socket=/run/r0.sock", "nbd://127.0.0.1:10809/r0"]);
    assert_eq!(volume.problems, []);
    let replica = volume.replica.unwrap();
    assert_eq!((replica.role.as_str(), replica.disk_state.as_str()), ("Primary", "UpToDate"));
    assert_eq!(replica.record.primary.as_deref(), Some("alpha"));
    assert_eq!(replica.record.in_sync, ["alpha", "beta"]);
    assert_eq!((replica.head.as_str(), replica.journaled, replica.applied), ("2:9", 9, 7));
    let peer = &replica.peers[0];
    assert_eq!((peer.node.as_str(), peer.connection.as_str()), ("beta", "Established"));
    assert_eq!((peer.address.as_deref(), peer.ack.applied), (Some("10.0.0.2:7788"), 6));
}

#[test]
fn actions_reach_the_volume() {
    let bench = Bench::new();
    let client = bench.client();
    assert_eq!(client.promote("r0", true).unwrap().message, "alpha is Primary now");
    client.demote("r0").unwrap();
    client.shrink("r0", "beta").unwrap();
    client.promote("r0", false).unwrap();
    let asked = bench.volume.asked.lock().unwrap();
    let AdminAction::Promote { force: true, reign: first } = asked[0] else { panic!("{asked:?}") };
    assert_eq!(asked[1..3], [AdminAction::Demote, AdminAction::Shrink { node: NodeId(1) }]);
    let AdminAction::Promote { force: false, reign: second } = asked[3] else { panic!("{asked:?}") };
    assert_ne!(first, second, "each promotion draws its own reign id");
}

#[test]
fn a_ublk_device_is_handed_to_the_volume() {
    let bench = Bench::new();
    let request = json::AttachUblk { index: 3, generation: 7, tags: 129 };
    assert_eq!(bench.client().attach_ublk("r0", request).unwrap().message, "attached 3 7 129");
    assert_eq!(bench.client().break_ublk("r0", 3).unwrap().message, "broken 3");
    *bench.volume.answer.lock().unwrap() = Err(VolumeError::Stopped);
    assert_eq!(refusal(&bench.client().attach_ublk("r0", request).unwrap_err()).0, "stopped");
}

#[test]
fn an_orchestrators_requests_become_actions() {
    let bench = Bench::new();
    let client = bench.client();
    let sealed = client.seal("r0", &json::Seal { attempt: 7, epoch: 3 }).unwrap();
    assert_eq!((sealed.attempt, sealed.replica.promised), (7, 2));
    let in_sync = vec!["alpha".to_owned(), "beta".to_owned()];
    let reign = json::OpenEpoch {
        epoch: 3,
        version: 1,
        reign: "0a".to_owned(),
        in_sync: in_sync.clone(),
        generation: 4,
        lease_end_ms: Some(5),
    };
    client.open_epoch("r0", &reign).unwrap();
    client.record("r0", &json::TellRecord { epoch: 3, version: 2, in_sync }).unwrap();
    client.lease("r0", json::Lease { epoch: 3, end_ms: 6 }).unwrap();
    client.release("r0").unwrap();
    let (epoch, in_sync) = (Epoch(3), NodeSet::only(NodeId(0)).with(NodeId(1)));
    let end = |ms: u64| replicator_core::units::Instant(ms * 1_000_000);
    let reign =
        Reign { epoch, version: 1, reign: ReignId(10), in_sync, generation: 4, lease_end: Some(end(5)) };
    let expected = [
        AdminAction::Seal { epoch },
        AdminAction::OpenEpoch(reign),
        AdminAction::Record { epoch, version: 2, in_sync },
        AdminAction::Lease { epoch, end: end(6) },
        AdminAction::Release,
    ];
    assert_eq!(*bench.volume.asked.lock().unwrap(), expected);
    let stranger = json::TellRecord { epoch: 3, version: 2, in_sync: vec!["gamma".to_owned()] };
    assert_eq!(refusal(&client.record("r0", &stranger).unwrap_err()).0, "unknown-node");
}

#[test]
fn refusals_have_code_cause_and_cure() {
    let bench = Bench::new();
    let cases = [
        (
            VolumeError::Refused(AdminError::Refused("n1 is Primary".into())),
            "refused",
            "beta is Primary",
            "status",
        ),
        (
            VolumeError::Refused(AdminError::NeedsForce("n1 is silent".into())),
            "needs-force",
            "beta",
            "--force",
        ),
        (
            VolumeError::Refused(AdminError::Managed("an orchestrator decides".into())),
            "managed",
            "orchestrator",
            "holdfast cluster move r0",
        ),
        (VolumeError::Refused(AdminError::Device("EIO".into())), "device", "EIO", "dmesg"),
        (VolumeError::Deadline(30_000), "deadline", "30000 ms", "holdfast status r0"),
        (VolumeError::Stopped, "stopped", "has stopped", "restart"),
    ];
    for (answer, code, part, cure) in cases {
        *bench.volume.answer.lock().unwrap() = Err(answer);
        let found = refusal(&bench.client().promote("r0", false).unwrap_err());
        assert_eq!(found.0, code);
        assert!(
            found.1.contains(part) && found.2.as_ref().is_some_and(|hint| hint.contains(cure)),
            "{found:?}"
        );
    }
    let (code, message, hint) = refusal(&bench.client().volume("r 1/é").unwrap_err());
    assert_eq!(code, "unknown-volume");
    assert!(message.contains("\"r 1/é\"") && hint.unwrap().contains("r0"), "{message}");
    let (code, message, hint) = refusal(&bench.client().shrink("r0", "gamma").unwrap_err());
    assert_eq!(code, "unknown-node");
    assert!(message.contains("gamma") && hint.unwrap().contains("alpha, beta"), "{message}");
}

#[test]
fn a_volume_that_has_stopped_is_reported_and_not_an_error() {
    let bench = Bench::new();
    *bench.volume.status.lock().unwrap() = Err(VolumeError::Stopped);
    let volume = bench.client().status().unwrap().volumes.remove(0);
    assert_eq!(volume.replica, None);
    assert_eq!(volume.problems[0].severity, AdviceSeverity::Error);
    assert!(volume.problems[0].text.contains("has stopped"), "{:?}", volume.problems);
}

#[test]
fn bad_requests_get_an_error_in_json() {
    let bench = Bench::new();
    let post = |body: &str| {
        format!(
            "POST /v1/volumes/r0/promote HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let cases = [
        (post("{"), "400", "bad-json"),
        (post("{\"force\": 1}"), "400", "bad-json"),
        (post("{\"forse\": true}"), "400", "unknown field `forse`"),
        (post("[[[[[["), "400", "bad-json"),
        (get("/"), "404", "no-route"),
        (get("/v1/volumes/r0/promote"), "405", "no-method"),
        (get("/v1/volumes/r1"), "404", "unknown-volume"),
        (get("/v1/volumes/%ff"), "400", "bad-path"),
        (post(&" ".repeat(5000)), "413", "too-large"),
    ];
    for (request, status, part) in cases {
        let answer = bench.raw(request.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request:.80}: {answer}");
        assert!(answer.contains(part), "{request:.80}: {answer}");
        assert!(answer.contains("{\"error\":{\"code\":"), "{answer}");
    }
    assert!(bench.volume.asked.lock().unwrap().is_empty());
}

#[test]
fn hostile_heads_are_refused_and_the_server_goes_on() {
    let bench = Bench::new();
    let long = format!("GET /v1/status HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(64 << 10));
    let many = format!("GET /v1/status HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(200));
    for request in
        [long.as_bytes(), many.as_bytes(), b"\0\0\0\0\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\r\n\r\n"]
    {
        let answer = bench.raw(request);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    // A body whose stated length is absurd is not allocated.
    let huge = "POST /v1/volumes/r0/promote HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999999\r\n\r\n";
    assert!(bench.raw(huge.as_bytes()).starts_with("HTTP/1.1 413"));
    assert!(bench.client().status().is_ok());
}

/// Connections that ask nothing, or nothing whole: more than the server takes at one time.
fn sleepers(bench: &Bench) -> Vec<UnixStream> {
    let begin = |n: usize| {
        let mut stream = UnixStream::connect(bench.path()).unwrap();
        let half: &[u8] = match n % 3 {
            0 => b"",
            1 => b"GET /v1/sta",
            _ => b"POST /v1/volumes/r0/promote HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n{",
        };
        stream.write_all(half).unwrap();
        stream
    };
    (0..64).map(begin).collect()
}

#[test]
fn clients_that_ask_nothing_delay_nobody() {
    let bench = Bench::new();
    let began = Instant::now();
    let sleepers = sleepers(&bench);
    assert!(bench.client().status().is_ok());
    assert!(began.elapsed() < HEAD_TIMEOUT, "the answer waited for them: {:?}", began.elapsed());
    drop(sleepers);
}

#[test]
fn a_request_that_is_worked_on_is_not_ended_for_others() {
    let bench = Bench::new();
    let (open, gate) = mpsc::channel();
    *bench.volume.gate.lock().unwrap() = Some(gate);
    let client = bench.client();
    let promotion = std::thread::spawn(move || client.promote("r0", false));
    let deadline = Instant::now() + Duration::from_secs(20);
    while bench.volume.asked.lock().unwrap().is_empty() {
        assert!(Instant::now() < deadline, "the request reaches the volume");
        std::thread::yield_now();
    }
    let sleepers = sleepers(&bench);
    assert!(bench.client().status().is_ok());
    open.send(()).unwrap();
    assert_eq!(promotion.join().unwrap().unwrap().message, "alpha is Primary now");
    drop(sleepers);
}

#[test]
fn a_client_that_is_slow_is_let_go() {
    let bench = Bench::new();
    let began = Instant::now();
    assert_eq!(bench.raw(b"GET /v1/status HTTP/1.1\r\n"), "");
    assert!(began.elapsed() >= HEAD_TIMEOUT);
    let half = b"POST /v1/volumes/r0/promote HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n{";
    assert!(bench.raw(half).starts_with("HTTP/1.1 408"));
}

#[test]
fn one_server_for_a_socket_that_is_private_and_removed() {
    let mut bench = Bench::new();
    let mode = std::fs::metadata(bench.path()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let error = bench.start().unwrap_err().to_string();
    assert!(error.contains("belongs to another process that is running"), "{error}");
    assert!(bench.client().version().is_ok(), "the first one is not disturbed");
    bench.server = None;
    assert!(!bench.path().exists());
    let error = bench.client().status().unwrap_err();
    assert!(matches!(&error, ClientError::Unreachable { .. }), "{error}");
    assert!(error.hint().unwrap().contains("holdfast replicator"));
}

#[test]
fn a_stale_socket_is_replaced_and_a_file_is_not() {
    let mut bench = Bench::new();
    bench.server = None;
    drop(UnixListener::bind(bench.path()).unwrap());
    assert!(bench.path().exists());
    bench.server = Some(bench.start().unwrap());
    assert!(bench.client().version().is_ok());
    bench.server = None;
    std::fs::write(bench.path(), "precious").unwrap();
    let error = bench.start().unwrap_err().to_string();
    assert!(error.contains("is not a socket; it is left alone"), "{error}");
    assert_eq!(std::fs::read(bench.path()).unwrap(), b"precious");
    let nowhere = bench.folder.path().join("no/control.sock");
    let error = Server::start(&nowhere, LiveFacts::new(facts()), Vec::new(), Arc::new(Unchanged))
        .unwrap_err()
        .to_string();
    assert!(error.contains("does not exist; make it first"), "{error}");
}

#[test]
fn the_client_tells_strangers_from_replicators() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let stranger = std::thread::spawn(move || {
        for answer in
            ["hello\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]", "HTTP/1.1 500 No\r\n\r\n"]
        {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    for _ in 0..3 {
        let error = Client::new(&path).status().unwrap_err();
        assert!(matches!(&error, ClientError::Garbled { .. }), "{error}");
    }
    stranger.join().unwrap();
}

fn advice_for(change: impl FnOnce(&mut Status)) -> Vec<json::Advice> {
    let mut status = healthy();
    change(&mut status);
    VolumeReport::new(&facts(), "r0", Ok::<_, &VolumeError>(&volume_status(status))).problems
}

fn disconnect(status: &mut Status) {
    let peer = &mut status.peers[0];
    (peer.connection, peer.role, peer.disk_state) = (Connection::Connecting, None, None);
}

fn refuse(status: &mut Status, reason: &str) {
    disconnect(status);
    (status.peers[0].connection, status.peers[0].reason) = (Connection::StandAlone, Some(reason.into()));
}

type Change = fn(&mut Status);

/// What is changed in a healthy status, and what is then said and advised.
const ADVICE: [(Change, &str, &str); 19] = [
    (disconnect, "no connection to beta", "10.0.0.2:7788 reachable from alpha"),
    (
        |status| {
            disconnect(status);
            status.frozen = Some("n1 is gone".into());
        },
        "I/O waits: beta is gone",
        "start beta again, or go on without: holdfast shrink r0 --remove beta",
    ),
    (
        |status| {
            disconnect(status);
            status.record.in_sync = NodeSet::only(NodeId(0));
            status.peers[0].member = false;
        },
        "serves alone",
        "start beta again, then it catches up by itself",
    ),
    (
        |status| {
            disconnect(status);
            status.role = Role::Secondary;
            status.record.primary = Some(NodeId(1));
        },
        "the primary, beta, is not reachable",
        "holdfast promote r0 --force",
    ),
    (
        |status| {
            disconnect(status);
            status.role = Role::Secondary;
            status.record.primary = Some(NodeId(1));
            status.record.in_sync = NodeSet::only(NodeId(1));
        },
        "the primary, beta, is not reachable",
        "may lack acknowledged writes; promote beta instead",
    ),
    (
        |status| {
            status.role = Role::Secondary;
            status.record.primary = None;
        },
        "no replica is Primary",
        "holdfast promote r0",
    ),
    (
        |status| {
            disconnect(status);
            status.role = Role::Secondary;
        },
        "not every peer can be asked",
        "holdfast status r0",
    ),
    (
        |status| refuse(status, "split brain with n1"),
        "alpha and beta do not connect: split brain with beta",
        "neither a restart nor a promotion heals it",
    ),
    (
        |status| {
            refuse(status, "split brain");
            status.record.in_sync = NodeSet::only(NodeId(0));
        },
        "serves alone",
        "beta is refused and does not come back by itself",
    ),
    (
        |status| {
            refuse(
                status,
                "the Secondary's disk is Failed: have it written anew with `holdfast invalidate` there",
            );
            status.frozen = Some("n1 is gone".into());
        },
        "I/O waits",
        "settle why beta is refused (starting it again does not help), or go on without: holdfast shrink r0",
    ),
    (
        |status| {
            refuse(
                status,
                "the Secondary's disk is Failed: have it written anew with `holdfast invalidate` there",
            );
        },
        "do not connect",
        "serve from the copy that is sound",
    ),
    (
        |status| {
            refuse(status, "split brain");
            status.role = Role::Secondary;
            status.record.primary = Some(NodeId(1));
        },
        "does not follow the primary, beta",
        "would split the history further",
    ),
    (
        |status| {
            refuse(status, "split brain");
            status.role = Role::Secondary;
            status.record.primary = None;
        },
        "it cannot ask beta who does",
        "promote one side only",
    ),
    (
        |status| {
            refuse(status, "the Secondary's disk is Failed");
            status.role = Role::Secondary;
            status.disk_state = DiskState::Outdated;
        },
        "this copy is behind",
        "with beta it cannot while that one is refused",
    ),
    (
        |status| {
            status.record.in_sync = NodeSet::only(NodeId(0));
            status.peers[0].connection = Connection::CatchUp;
        },
        "serves alone",
        "beta is connected and joins by itself",
    ),
    (|status| status.disk_state = DiskState::Failed, "reported an error", "dmesg"),
    (|status| status.disk_state = DiskState::Inconsistent, "cannot be served", "brought level by itself"),
    (|status| status.ring_used_bytes = 950, "95% full", "larger journal"),
    (|status| status.superblock_repairs = 2, "repaired at 2 starts", "after a power cut that may be"),
];

#[test]
fn advice() {
    for (change, text, cure) in ADVICE {
        let problems = advice_for(change);
        let found = problems.iter().find(|problem| problem.text.contains(text));
        let found = found.unwrap_or_else(|| panic!("no {text:?} in {problems:?}"));
        assert!(found.cure.as_ref().is_some_and(|found| found.contains(cure)), "{found:?}");
        assert!(problems.is_sorted_by_key(|problem| std::cmp::Reverse(problem.severity)), "{problems:?}");
    }
}

/// A fresh replica's hello.
fn hello(node: u8) -> Hello {
    Hello {
        node: NodeId(node),
        replica: u128::from(node) + 1,
        volume_bytes: 1 << 30,
        block_bytes: 512,
        primary: false,
        proven: true,
        suspect: false,
        disk_state: DiskState::UpToDate,
        promised: Epoch(0),
        record: Record::default(),
        head: LogPoint::default(),
        tail: Sequence(0),
        stable: Sequence(0),
        durable: Sequence(0),
        applied: Sequence(0),
        history: History::default(),
        data_base: None,
        discards: 0,
        yields: false,
        diverges: false,
        discards_of: None,
        delayed: false,
        end: LogEnd::default(),
    }
}

#[test]
fn advice_follows_from_what_the_core_says() {
    let configuration = parse(Path::new("/etc/holdfast.toml"), CONFIGURATION, WithSecret::Yes).unwrap();
    let core = configuration.cluster.volume_options("alpha", "r0").unwrap().core;
    type Meet = fn(&mut Hello, &mut Hello);
    let table: [(Meet, &str); 6] = [
        (|mine, theirs| (mine.primary, theirs.primary) = (true, true), "neither a restart nor a promotion"),
        (|mine, theirs| (mine.primary, theirs.promised) = (true, Epoch(5)), "repeat the promotion"),
        (|mine, theirs| (mine.primary, theirs.disk_state) = (true, DiskState::Failed), "or a new disk"),
        (|mine, theirs| (mine.primary, theirs.suspect) = (true, true), "holdfast invalidate r0"),
        (|mine, theirs| theirs.replica = mine.replica, "no disk was copied"),
        (|_, theirs| theirs.block_bytes *= 8, "compare the configurations"),
    ];
    for (meet, cure) in table {
        let (mut mine, mut theirs) = (hello(0), hello(1));
        meet(&mut mine, &mut theirs);
        let (Verdict::Refuse { reason } | Verdict::Fork { reason, .. }) = verdict(&core, &mine, &theirs)
        else {
            panic!("{cure}")
        };
        let problems = advice_for(|status| refuse(status, &reason));
        let found =
            problems.iter().filter_map(|problem| problem.cure.as_ref()).any(|found| found.contains(cure));
        assert!(found, "{reason}: {problems:?}");
    }
}

#[test]
fn nobody_is_told_to_promote_or_restart_into_a_split_brain() {
    for role in [Role::Primary, Role::Secondary] {
        for primary in [None, Some(NodeId(0)), Some(NodeId(1))] {
            let problems = advice_for(|status| {
                refuse(status, "split brain: the histories part after entry 3");
                (status.role, status.record.primary) = (role, primary);
                status.record.in_sync = NodeSet::only(NodeId(0));
            });
            for cure in problems.iter().filter_map(|problem| problem.cure.as_ref()) {
                let tempts = [
                    "if beta is surely down",
                    "if nobody serves",
                    "start beta again",
                    "catches up by itself",
                ];
                assert!(tempts.iter().all(|part| !cure.contains(part)), "{role} {primary:?}: {cure}");
            }
        }
    }
}

#[test]
fn json_is_read_back() {
    let report = VolumeReport::new(&facts(), "r0", Ok::<_, &VolumeError>(&volume_status(healthy())));
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<VolumeReport>(&text).unwrap(), report);
    let names: [fn(&ReplicaReport) -> &str; 2] = [|replica| &replica.role, |replica| &replica.disk_state];
    assert_eq!(names.map(|name| name(report.replica.as_ref().unwrap())), ["Primary", "UpToDate"]);
    assert!(serde_json::from_str::<NodeStatus>("{}").is_err());
}
