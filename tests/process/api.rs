//! What orchestrators and replicators tell others over TCP: roles for load balancers, figures for monitoring, hooks, and
//! everything for operators with a certificate. The client is curl.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use holdfast_tests::{run, wait_for};
use serde_json::Value;

use crate::failover::Cluster;

const API: &str = "api-listen";
const METRICS: &str = "metrics-listen";

fn curl(arguments: &[&str]) -> Output {
    let always = ["--silent", "--show-error", "--max-time", "20"];
    Command::new("curl").args(always).args(arguments).output().expect("curl is installed")
}

/// Status and body of an answer; none if there is none.
fn ask(at: SocketAddr, path: &str, more: &[&str]) -> Option<(u16, String)> {
    let url = format!("http://{at}{path}");
    let arguments: Vec<&str> =
        ["--write-out", "\n%{http_code}"].iter().chain(more).copied().chain([&*url]).collect();
    let output = curl(&arguments);
    let text = String::from_utf8(output.stdout).ok()?;
    let (body, code) = text.rsplit_once('\n')?;
    output.status.success().then(|| (code.parse().unwrap(), body.to_owned()))
}

fn code(cluster: &Cluster, node: &str, path: &str) -> Option<u16> {
    ask(cluster.listens(node, API), path, &[]).map(|(code, _)| code)
}

fn wait_code(cluster: &Cluster, node: &str, path: &str, wanted: u16) {
    let what = format!("{path} on {node} to be {wanted}");
    wait_for(&what, || (code(cluster, node, path) == Some(wanted)).then_some(()));
}

fn figures(cluster: &Cluster, node: &str, key: &str) -> String {
    let (code, text) = ask(cluster.listens(node, key), "/metrics", &[]).expect("it answers");
    assert_eq!(code, 200, "{text}");
    text
}

#[test]
fn load_balancers_see_a_failover() {
    let mut cluster = Cluster::start();
    cluster.wait_primary("w", "a", 2);
    for path in [
        "/",
        "/primary",
        "/read-write",
        "/leader",
        "/read-only",
        "/health",
        "/readiness",
        "/primary?volume=r0",
    ] {
        wait_code(&cluster, "a", path, 200);
    }
    for path in ["/replica", "/sync", "/async"] {
        assert_eq!(code(&cluster, "a", path), Some(503), "{path}");
    }
    for path in ["/replica", "/sync", "/synchronous", "/read-only", "/health", "/readiness", "/liveness"] {
        wait_code(&cluster, "b", path, 200);
    }
    for path in ["/", "/primary", "/leader", "/async"] {
        assert_eq!(code(&cluster, "b", path), Some(503), "{path}");
    }
    // A witness has no replica, and is well.
    for (path, wanted) in
        [("/primary", 503), ("/replica", 503), ("/health", 200), ("/liveness", 200), ("/readiness", 200)]
    {
        wait_code(&cluster, "w", path, wanted);
    }
    // Load balancers ask in other ways, too.
    let at = cluster.listens("a", API);
    for method in ["OPTIONS", "HEAD"] {
        let more = if method == "HEAD" { vec!["--head"] } else { vec!["--request", method] };
        let (code, text) = ask(at, "/primary", &more).unwrap();
        assert!(code == 200 || text.contains("200 OK"), "{method}: {text}");
    }
    let (_, text) = ask(cluster.listens("b", API), "/primary", &[]).unwrap();
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer["reason"], "another node is primary, or none");
    assert_eq!(
        (&answer["volumes"][0]["role"], &answer["volumes"][0]["primary"]),
        (&"replica".into(), &"a".into())
    );
    assert_eq!(code(&cluster, "a", "/primary?volume=r9"), Some(404));
    assert_eq!(code(&cluster, "a", "/replica?lag=1MB"), Some(400));

    cluster.kill_node("a");
    wait_code(&cluster, "b", "/primary", 200);
    assert_eq!(code(&cluster, "b", "/replica"), Some(503));
    assert!(
        figures(&cluster, "b", API).contains("holdfast_events_total{event=\"failover\",volume=\"r0\"} 1")
    );
    cluster.revive_node("a");
    wait_code(&cluster, "a", "/replica", 200);
    assert_eq!(code(&cluster, "a", "/primary"), Some(503));
}

#[test]
fn without_a_majority_nobody_is_primary() {
    let mut cluster = Cluster::start();
    cluster.wait_primary("w", "a", 2);
    wait_code(&cluster, "a", "/primary", 200);
    cluster.kill("orchestrator", "w");
    cluster.kill("orchestrator", "b");
    wait_code(&cluster, "a", "/primary", 503);
    wait_code(&cluster, "a", "/readiness", 503);
    assert_eq!(code(&cluster, "a", "/health"), Some(200), "it runs all the same");
    let (_, text) = ask(cluster.listens("a", API), "/primary", &[]).unwrap();
    assert!(text.contains("no lease is held here"), "{text}");
}

/// What a family is said to be.
struct Family {
    kind: String,
    has_help: bool,
}

/// What promtool would complain about: help and type before samples, once; suffixes and units; no series twice.
fn check_metrics(text: &str) {
    let mut families: Vec<(String, Family)> = Vec::new();
    let mut series = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help has a text");
            assert!(!help.is_empty() && families.iter().all(|(known, _)| known != name), "{line}");
            families.push((name.to_owned(), Family { kind: String::new(), has_help: true }));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type has a word");
            let (known, family) = families.last_mut().expect("the help comes first");
            assert!(known == name && family.kind.is_empty(), "{line}");
            family.kind = kind.to_owned();
            check_name(name, kind);
        } else {
            let (key, value) = line.rsplit_once(' ').expect("a sample has a value");
            assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
            assert!(series.insert(key.to_owned()), "twice: {key}");
            let name = key.split('{').next().unwrap();
            let (family, said) = families.last().expect("a sample follows its help and type");
            let is_its = match said.kind.as_str() {
                "histogram" => {
                    ["_bucket", "_sum", "_count"].iter().any(|end| name == format!("{family}{end}"))
                }
                _ => name == family,
            };
            assert!(is_its && said.has_help && !said.kind.is_empty(), "{line} is not of {family}");
        }
    }
}

fn check_name(name: &str, kind: &str) {
    assert!(name.starts_with("holdfast_"), "{name}");
    assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit()), "{name}");
    assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
    let parts: Vec<&str> = name.split('_').collect();
    for part in ["ms", "us", "ns", "milliseconds", "kib", "mib", "gauge", "counter", "count", "sum", "bucket"]
    {
        assert!(!parts.contains(&part), "{name}: {part}");
    }
    assert_eq!(name.ends_with("_seconds"), name.contains("_seconds"), "the unit comes last: {name}");
}

#[test]
fn figures_are_as_prometheus_wants_them() {
    let cluster = Cluster::start();
    cluster.wait_primary("w", "a", 2);
    let mut client = cluster.connect("a");
    for place in 0..8 {
        client.write_at(place * 4096, &[7; 4096]).unwrap();
    }
    client.flush().unwrap();
    wait_for("the secondary to follow", || {
        figures(&cluster, "a", METRICS)
            .contains("holdfast_peer_connection{volume=\"r0\",peer=\"b\",state=\"Established\"} 1")
            .then_some(())
    });
    for node in ["a", "b"] {
        check_metrics(&figures(&cluster, node, METRICS));
    }
    for node in ["a", "b", "w"] {
        check_metrics(&figures(&cluster, node, API));
    }
    let replicator = figures(&cluster, "a", METRICS);
    for line in [
        "holdfast_replica_up{volume=\"r0\"} 1",
        "holdfast_replica_role{volume=\"r0\",role=\"Primary\"} 1",
        "holdfast_replica_role{volume=\"r0\",role=\"Secondary\"} 0",
        "holdfast_replica_writes_total{volume=\"r0\"} 8",
        "holdfast_replica_flushes_total{volume=\"r0\"} 1",
        "holdfast_replica_write_seconds_count{volume=\"r0\"} 8",
        "holdfast_replica_flush_seconds_count{volume=\"r0\"} 1",
        "holdfast_peer_member{volume=\"r0\",peer=\"b\"} 1",
        "holdfast_peer_lag_bytes{volume=\"r0\",peer=\"b\"} 0",
    ] {
        assert!(replicator.contains(line), "{line} in {replicator}");
    }
    let orchestrator = figures(&cluster, "a", API);
    for line in [
        "holdfast_volume_primary{volume=\"r0\",node=\"a\"} 1",
        "holdfast_volume_primary{volume=\"r0\",node=\"b\"} 0",
        "holdfast_volume_member{volume=\"r0\",node=\"b\"} 1",
        "holdfast_volume_opened{volume=\"r0\"} 1",
        "holdfast_node_health{node=\"b\",health=\"alive\"} 1",
        "holdfast_events_total{event=\"failover\",volume=\"r0\"} 0",
    ] {
        assert!(orchestrator.contains(line), "{line} in {orchestrator}");
    }
    let lease = orchestrator
        .lines()
        .find_map(|line| line.strip_prefix("holdfast_volume_lease_left_seconds{volume=\"r0\"} "));
    let lease: f64 = lease.unwrap().parse().unwrap();
    assert!((0.0..=0.6).contains(&lease), "{lease}");
    // A replicator offers nothing else.
    assert_eq!(ask(cluster.listens("a", METRICS), "/v1/status", &[]).unwrap().0, 404);
    assert_eq!(ask(cluster.listens("a", METRICS), "/metrics", &["--request", "POST"]).unwrap().0, 405);
}

/// Has a certificate made; says in which folder.
fn certificate(cluster: &Cluster, command: &str, folder: &str) -> PathBuf {
    let folder = cluster.path(folder);
    let config = cluster.config();
    let made = run(&[command, "ops", folder.to_str().unwrap(), "--config", config.to_str().unwrap()]);
    assert!(made.status.success(), "{made:?}");
    folder
}

/// Asks over TLS as whoever has the files in this folder.
fn ask_securely(at: SocketAddr, path: &str, folder: &std::path::Path, more: &[&str]) -> Output {
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (authority, certificate, key) =
        (file("ca-cert.pem"), file("client-cert.pem"), file("client-key.pem"));
    let url = format!("https://{at}{path}");
    let files = ["--fail", "--cacert", &authority, "--cert", &certificate, "--key", &key];
    curl(&files.iter().chain(more).copied().chain([&*url]).collect::<Vec<_>>())
}

#[test]
fn only_operators_with_a_certificate_change_anything() {
    let cluster = Cluster::start();
    cluster.wait_primary("w", "a", 2);
    let at = cluster.listens("a", API);
    let standby = ["--data", "{\"on\": true}", "--header", "content-type: application/json"];
    // In the clear nothing is changed, and what only operators may read is not read.
    let (code, text) = ask(at, "/v1/nodes/b/standby", &standby).unwrap();
    assert_eq!(code, 403, "{text}");
    assert!(text.contains("holdfast operator-certificate"), "{text}");
    assert_eq!(ask(at, "/v1/status", &[]).unwrap().0, 403);
    assert_eq!(ask(at, "/primary", &["--request", "POST"]).unwrap().0, 405);
    // An NBD client's certificate is none, nor another cluster's, nor none.
    let operator = certificate(&cluster, "operator-certificate", "operator");
    let client = certificate(&cluster, "client-certificate", "client");
    std::fs::copy(operator.join("ca-cert.pem"), client.join("ca-cert.pem")).unwrap();
    let other = Cluster::start();
    let text = std::fs::read_to_string(other.config())
        .unwrap()
        .replace("0123456789abcdef0123", "another-cluster-s-sec");
    std::fs::write(other.config(), text).unwrap();
    let stranger = certificate(&other, "operator-certificate", "operator");
    std::fs::copy(operator.join("ca-cert.pem"), stranger.join("ca-cert.pem")).unwrap();
    for folder in [&client, &stranger] {
        let refused = ask_securely(at, "/v1/nodes/b/standby", folder, &standby);
        assert!(!refused.status.success(), "{refused:?}");
    }
    let authority = operator.join("ca-cert.pem");
    let bare = curl(&["--cacert", authority.to_str().unwrap(), &format!("https://{at}/v1/status")]);
    assert!(!bare.status.success(), "{bare:?}");
    assert_eq!(cluster.status("a").unwrap()["nodes"][1]["standby"], false);
    // An operator's is.
    let done = ask_securely(at, "/v1/nodes/b/standby", &operator, &standby);
    assert!(done.status.success(), "{done:?}");
    wait_for("b to be in standby", || (cluster.status("a")?["nodes"][1]["standby"] == true).then_some(()));
    let status = ask_securely(at, "/v1/status", &operator, &[]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["volumes"][0]["record"]["primary"], "a");
    // The open ones are to be had there, too.
    assert!(ask_securely(at, "/primary", &operator, &[]).status.success());
}

#[test]
fn hostile_bytes_over_tcp_harm_nobody() {
    let cluster = Cluster::start();
    cluster.wait_primary("w", "a", 2);
    wait_code(&cluster, "a", "/primary", 200);
    let places = [cluster.listens("a", API), cluster.listens("a", METRICS)];
    let epoch = cluster.status("w").unwrap()["volumes"][0]["record"]["epoch"].clone();
    let throw = |at: SocketAddr, bytes: &[u8]| {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // It may have been closed before all was said.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let mut state = 7_u64;
    for _ in 0..20 {
        let noise = (0..3000).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        });
        let noise: Vec<u8> = noise.collect();
        for at in places {
            throw(at, &noise);
            // A right beginning: of TLS, of a request.
            throw(at, &[&[0x16, 3, 1, 2, 0][..], &noise].concat());
            throw(at, &[b"GET /metrics HTTP/1.1\r\nhost: ", &noise[..], b"\r\n\r\n"].concat());
        }
    }
    for at in places {
        let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(1 << 20));
        let answer = throw(at, long.as_bytes());
        assert!(answer.is_empty() || answer.contains(" 431 ") || answer.contains(" 414 "), "{answer}");
        let headers = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(500));
        assert!(!throw(at, headers.as_bytes()).contains(" 200 "), "too many headers");
        let large = format!("POST /primary HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", 1_u64 << 40);
        assert!(throw(at, large.as_bytes()).contains(" 413 "), "a large body");
    }
    // Connections that say nothing take nobody's place.
    let began = Instant::now();
    let idle: Vec<TcpStream> =
        places.iter().flat_map(|at| (0..64).map(move |_| TcpStream::connect(at).unwrap())).collect();
    assert_eq!(code(&cluster, "a", "/primary"), Some(200));
    check_metrics(&figures(&cluster, "a", METRICS));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    drop(idle);
    assert_eq!(
        cluster.status("w").unwrap()["volumes"][0]["record"]["epoch"],
        epoch,
        "no failover came of it"
    );
}

#[test]
fn hooks_are_told_and_hinder_nothing() {
    let mut told = PathBuf::new();
    let mut cluster = Cluster::start_with("", |folder| {
        told = folder.join("told");
        let script = format!(
            "echo $HOLDFAST_NODE $HOLDFAST_EVENT $HOLDFAST_VOLUME $HOLDFAST_ROLE $HOLDFAST_OLD_PRIMARY $HOLDFAST_PRIMARY >> {}",
            told.display()
        );
        format!(
            "[[hook]]\non = [\"role\", \"failover\", \"member-back\"]\nrun = [\"sh\", \"-c\", \"{script}\"]\n\
             [[hook]]\nrun = [\"sleep\", \"600\"]\ntimeout = \"1s\"\n"
        )
    });
    let wait_told = |line: &str| {
        wait_for(&format!("the hook to be told: {line}"), || {
            let told = std::fs::read_to_string(&told).ok()?;
            told.lines().any(|told| told == line).then_some(())
        });
    };
    cluster.wait_primary("w", "a", 2);
    wait_told("a role r0 primary");
    cluster.kill_node("a");
    cluster.wait_primary("w", "b", 1);
    cluster.revive_node("a");
    cluster.wait_primary("w", "b", 2);
    for line in ["b role r0 primary", "b failover r0 a b", "w failover r0 a b", "w member-back r0 b"] {
        wait_told(line);
    }
    wait_for("the hooks that hang to be killed", || {
        let figures = ask(cluster.listens("w", API), "/metrics", &[])?.1;
        let failed = figures
            .lines()
            .find_map(|line| line.strip_prefix("holdfast_hooks_total{outcome=\"failed\"} "))?;
        (failed.parse::<f64>().ok()? >= 1.0).then_some(())
    });
}
