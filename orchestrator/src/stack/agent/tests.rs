//! Agents of Debian's `resource-agents`, unmodified, each with a network of its own; and agents that a test writes. They need
//! root; without it, or without the packages, nothing is tested and that is said.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::AtomicBool;

use super::*;

const LONG: Duration = Duration::from_secs(60);
/// Set in the process that lives in the namespace.
const INSIDE: &str = "HOLDFAST_TEST_AGENTS";

/// Runs the test of this name once more, with a network of its own. Whether this is that run.
fn in_own_network(name: &str, needs: &[&str]) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        run("ip", &["link", "set", "lo", "up"]);
        return true;
    }
    let missing = needs.iter().find(|need| !Path::new(need).exists());
    if !rustix::process::geteuid().is_root() || missing.is_some() {
        eprintln!("not tested: resource agents need root, and {needs:?}");
        return false;
    }
    let mut again = Command::new("unshare");
    again.args(["--net", "--"]).arg(std::env::current_exe().unwrap()).env(INSIDE, "1").env_remove("OCF_ROOT");
    again.args(["--exact", &format!("stack::agent::tests::{name}"), "--nocapture"]);
    let output = again.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "{said}");
    false
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("it is installed");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A configuration with one `ocf` step, as it is read.
fn loaded(agent: &str, parameters: &str) -> replicator::config::Loaded {
    let step = format!("kind = \"ocf\"\nagent = \"{agent}\"\nparameters = {{ {parameters} }}\n");
    super::super::one_step::loaded(&step)
}

/// A step that runs an agent.
struct Bench {
    agent: Agent,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new(agent: &str, parameters: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text: Vec<String> = parameters.iter().map(|(key, value)| format!("{key} = '{value}'")).collect();
        let cluster = loaded(agent, &text.join(", ")).cluster;
        let replicator::config::StepKind::Agent(step) = &cluster.stacks[0].steps[0].kind else {
            unreachable!()
        };
        let places = Places {
            node: "a".to_owned(),
            program: PathBuf::new(),
            replicator: PathBuf::new(),
            store: folder.path().to_owned(),
        };
        // One name for each test, as agents keep files under it.
        let stack = format!("test{}", std::process::id());
        let cage = Cage::of(&stack, "agent", &folder.path().join("agent"));
        Self { agent: Agent::new(step, (&stack, "agent"), 5_000, &places, cage), _folder: folder }
    }

    fn act(&self, action: Action) -> Outcome {
        let (timeout, until) = (LONG, crate::clock::now());
        self.agent.carry_out(&Task { action, timeout, until, is_broken_off: &AtomicBool::new(false) })
    }

    /// Comes and goes twice, each action twice; `check` is asked while it runs.
    fn comes_and_goes(&self, check: impl Fn()) {
        assert_eq!(self.act(Action::Probe), Outcome::NotRunning);
        for _ in 0..2 {
            for _ in 0..2 {
                assert_eq!(self.act(Action::Start), Outcome::Done);
                assert_eq!(self.act(Action::Monitor), Outcome::Done);
                assert_eq!(self.act(Action::Probe), Outcome::Done);
            }
            check();
            for action in [Action::Stop, Action::Stop, Action::Force] {
                assert_eq!(self.act(action), Outcome::Done);
            }
            assert_eq!(self.act(Action::Monitor), Outcome::NotRunning);
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.agent.cage.clear(LONG, &AtomicBool::new(false));
    }
}

fn installed(agent: &str) -> String {
    format!("{ROOT}/resource.d/heartbeat/{agent}")
}

#[test]
fn dummy_runs_unmodified() {
    if !in_own_network("dummy_runs_unmodified", &[&installed("Dummy")]) {
        return;
    }
    Bench::new("ocf:heartbeat:Dummy", &[]).comes_and_goes(|| {});
}

#[test]
fn ipaddr2_runs_unmodified() {
    if !in_own_network("ipaddr2_runs_unmodified", &[&installed("IPaddr2")]) {
        return;
    }
    run("ip", &["link", "add", "vip0", "type", "veth", "peer", "name", "vip1"]);
    run("ip", &["link", "set", "vip0", "up"]);
    run("ip", &["link", "set", "vip1", "up"]);
    let parameters = [("ip", "10.77.0.9"), ("cidr_netmask", "24"), ("nic", "vip0")];
    let bench = Bench::new("ocf:heartbeat:IPaddr2", &parameters);
    bench.comes_and_goes(|| assert!(run("ip", &["addr", "show", "vip0"]).contains("10.77.0.9/24")));
    assert!(!run("ip", &["addr", "show", "vip0"]).contains("10.77.0.9"));
    let bench = Bench::new("ocf:heartbeat:IPaddr2", &[("ip", "10.77.0.9"), ("nic", "nowhere")]);
    let outcome = bench.act(Action::Start);
    assert!(matches!(outcome, Outcome::Refused(_) | Outcome::Failed(_)), "{outcome:?}");
}

#[test]
fn nginx_runs_unmodified() {
    if !in_own_network("nginx_runs_unmodified", &[&installed("nginx"), "/usr/sbin/nginx"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let text = format!(
        "pid {};\nerror_log {} warn;\nevents {{ }}\nhttp {{\n  access_log off;\n  client_body_temp_path {};\n  server {{\n    \
         listen 127.0.0.1:8080;\n    location / {{ return 200 'here'; }}\n  }}\n}}\n",
        at("pid"),
        at("errors"),
        at("bodies")
    );
    fs::write(at("nginx.conf"), text).unwrap();
    let parameters = [("configfile", at("nginx.conf")), ("status10url", "http://127.0.0.1:8080/".to_owned())];
    let parameters: Vec<(&str, &str)> =
        parameters.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let bench = Bench::new("ocf:heartbeat:nginx", &parameters);
    bench.comes_and_goes(|| {
        std::net::TcpStream::connect("127.0.0.1:8080").expect("it listens");
    });
}

#[test]
fn pgsql_runs_unmodified() {
    let tools = run("sh", &["-c", "ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1"]);
    let tools = tools.trim();
    let ctl = format!("{tools}/pg_ctl");
    if !in_own_network("pgsql_runs_unmodified", &[&installed("pgsql"), &ctl]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    run("chown", &["postgres", &at("")]);
    let initdb = format!("{tools}/initdb -N -D {} >/dev/null", at("data"));
    run("su", &["postgres", "-s", "/bin/sh", "-c", &initdb]);
    let socket = at("");
    let options = format!("-c fsync=off -c unix_socket_directories={socket}");
    let parameters = [
        ("pgctl", ctl.as_str()),
        ("psql", &format!("{tools}/psql")),
        ("pgdata", &at("data")),
        ("socketdir", &socket),
        ("logfile", &at("log")),
        ("start_opt", &options),
    ]
    .map(|(key, value)| (key, value.to_owned()));
    let parameters: Vec<(&str, &str)> =
        parameters.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let bench = Bench::new("ocf:heartbeat:pgsql", &parameters);
    bench.comes_and_goes(|| {
        let psql = format!("{tools}/psql -h {socket} -Atc 'select 6 * 7'");
        assert_eq!(run("su", &["postgres", "-s", "/bin/sh", "-c", &psql]).trim(), "42");
    });
    // What it started is found and killed when it does not stop: an agent that cannot say so is asked after that.
    assert_eq!(bench.act(Action::Start), Outcome::Done);
    assert_eq!(bench.act(Action::Force), Outcome::Done);
    assert_eq!(bench.act(Action::Monitor), Outcome::NotRunning);
}

/// What comes of an agent's exit code and words.
fn came(code: i32, errors: &str) -> Outcome {
    let answer = Answer { end: End::Exited(code), output: Vec::new(), errors: errors.as_bytes().to_vec() };
    failure(&answer, LONG)
}

#[test]
fn exit_codes_have_words_and_some_are_not_tried_again() {
    let said = "noise\nocf-exit-reason:no such file: x\nocf-exit-reason:Setup problem\nmore noise\n";
    let text = "something that it needs is not installed here (exit code 5): Setup problem".to_owned();
    assert_eq!(came(5, said), Outcome::Refused(text));
    assert_eq!(came(1, "it broke"), Outcome::Failed("it failed: exit code 1: it broke".to_owned()));
    for code in [2, 3, 4, 5, 6] {
        assert!(matches!(came(code, ""), Outcome::Refused(_)), "{code}");
    }
    for code in [1, 7, 8, 9, 42, 126] {
        assert!(matches!(came(code, ""), Outcome::Failed(_)), "{code}");
    }
}

#[test]
fn one_that_is_not_installed_does_not_run_and_is_not_tried_again() {
    let bench = Bench::new("ocf:nobody:nothing", &[]);
    assert_eq!(bench.act(Action::Probe), Outcome::NotRunning);
    let text = "ocf:nobody:nothing is not installed here".to_owned();
    assert_eq!(bench.act(Action::Start), Outcome::Refused(text.clone()));
    assert_eq!(bench.act(Action::Stop), Outcome::Failed(text), "it may have been taken away while it ran");
}

#[test]
fn a_configuration_is_held_against_what_agents_say_of_themselves() {
    if !Path::new(&installed("pgsql")).exists() {
        eprintln!("not tested: resource-agents is not installed");
        return;
    }
    let checked = |agent: &str, parameters: &str| {
        let mut loaded = loaded(agent, parameters);
        crate::stack::check(&loaded.cluster, &mut loaded.warnings);
        loaded.warnings.to_string()
    };
    assert_eq!(checked("ocf:heartbeat:Dummy", "state = '/run/x'"), "");
    let text = checked("ocf:heartbeat:Dummy", "stat = '/run/x'");
    assert!(text.contains("ocf:heartbeat:Dummy takes no `stat`") && text.contains("state"), "{text}");
    let text = checked("ocf:heartbeat:IPaddr2", "nic = 'eth0'");
    assert!(text.contains("must be told `ip`") && text.contains("kind = \"address\""), "{text}");
    let text = checked("ocf:heartbeat:pgsql", "");
    assert!(
        text.contains("advises 120 s for its start") && text.contains("start-timeout = \"120s\""),
        "{text}"
    );
    let text = checked("ocf:nobody:nothing", "a = 1");
    assert!(text.contains("is not installed here"), "{text}");
}
