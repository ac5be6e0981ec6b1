"""Shared pieces of the Python tests and benchmarks: processes, deadlines, the sandbox.

Everything started here is stopped here, by process id, in the reverse order. Nothing waits by luck:
`wait_until` takes a condition, a deadline and words for what was awaited.
"""

import ctypes
import datetime
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
VOLUME = "r0"
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


class Failure(Exception):
    """Something did not work; the text is for a person."""


def wait_until(condition, what, seconds, every=0.02, alive=()):
    """Calls `condition` until it returns something true, and returns that.

    Gives up after `seconds`, and at once when one of the processes `alive` has ended.
    """
    end = time.monotonic() + seconds
    while True:
        for process in alive:
            if process.poll() is not None:
                tail = "\n".join(process.log.read_text(errors="replace").splitlines()[-25:])
                raise Failure(f"{process.args[0]} ended with code {process.returncode} while waiting for {what}:\n{tail}")
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Failure(f"gave up after {seconds:g} s waiting for {what}")
        time.sleep(every)


def process_state(pid):
    """The state letter of a process, or None where there is none. A zombie (Z) is dead for us."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[0]


def is_running(pid):
    return process_state(pid) not in (None, "Z", "X")


def cpu_seconds(pid):
    """User and system time of a process with all its threads, ended ones and io_uring workers too."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError as error:
        raise Failure(f"process {pid} is gone: {error}") from None
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def memory(pid):
    """VmRSS, VmHWM and VmLck of a process, in bytes."""
    found = {}
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in ("VmRSS", "VmHWM", "VmLck"):
            found[key] = int(value.split()[0]) * 1024
    return found


def _end_with_parent():
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def run(command, *, check=True, seconds=120, split=False, **options):
    """Runs a command to its end; its output is in the failure if it fails.

    `stdout` of the result holds errors too, unless `split` keeps them apart.
    """
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.PIPE if split else subprocess.STDOUT)
    options.setdefault("text", True)
    options.setdefault("stdin", subprocess.DEVNULL)
    command = [str(word) for word in command]
    try:
        done = subprocess.run(command, timeout=seconds, check=False, **options)
    except subprocess.TimeoutExpired as error:
        tail = error.stdout.decode(errors="replace")[-2000:] if error.stdout else ""
        raise Failure(f"no end after {seconds:g} s: {' '.join(command)}\n{tail}") from None
    if check and done.returncode != 0:
        text = f"{done.stdout or ''}\n{done.stderr or ''}".strip()
        raise Failure(f"exit code {done.returncode}: {' '.join(command)}\n{text[-4000:]}")
    return done


def parse_size(text):
    """'1G' -> bytes."""
    unit = {"K": 10, "M": 20, "G": 30, "T": 40}.get(text[-1:].upper())
    return int(text[:-1]) << unit if unit else int(text)


def human(size):
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def _interrupt(*_):
    raise KeyboardInterrupt


class Workshop:
    """A folder, the processes and the undo steps of one run. Use it with `with`."""

    def __init__(self, name, parent=None, keep=False):
        self.name = name
        self.keep = keep
        self._undo = []
        if parent:
            os.makedirs(parent, exist_ok=True)
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix=f"holdfast-{name}-", dir=parent))
        # Other users (postgres) must get through.
        self.folder.chmod(0o755)

    def __enter__(self):
        signal.signal(signal.SIGTERM, _interrupt)
        return self

    def __exit__(self, kind, error, trace):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            while self._undo:
                action = self._undo.pop()
                try:
                    action()
                except Exception as problem:  # one failed step must not stop the others
                    print(f"while cleaning up: {problem}", flush=True)
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.keep:
            print(f"kept: {self.folder}", flush=True)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def undo(self, action):
        """Runs `action` at the end, the last one first. It must do no harm if its work is already done."""
        self._undo.append(action)

    def start(self, command, *, log, stop_signal=signal.SIGTERM, **options):
        """Starts a process that ends with this script at the latest. Call it from the main thread only."""
        command = [str(word) for word in command]
        output = open(self.folder / log, "ab")
        options.setdefault("stdout", output)
        options.setdefault("stderr", output)
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("start_new_session", True)
        process = subprocess.Popen(command, preexec_fn=_end_with_parent, **options)
        output.close()
        process.log = self.folder / log
        self.undo(lambda: stop(process, stop_signal))
        return process


def stop(process, how=signal.SIGTERM, seconds=15):
    """Ends a process started here, with force if it does not end by itself."""
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            print(f"process {process.pid} ({process.args[0]}) ignored {how.name} for {seconds} s: killed", flush=True)
            process.kill()
            process.wait(10)
    return process.returncode


def nbd_size(uri):
    """The size an NBD server reports, or None while it does not answer."""
    try:
        done = run(["nbdinfo", "--size", uri], check=False, seconds=5, split=True)
    except Failure:
        return None
    return int(done.stdout) if done.returncode == 0 else None


def holdfast_binary():
    path = os.environ.get("HOLDFAST") or ROOT / "target/release/holdfast"
    if not os.access(path, os.X_OK):
        raise Failure(f"{path} is missing: run the script beside this file, which builds it")
    return str(path)


class Backend:
    """What serves the volume of a test: `process`, `nodes` by name, the `primary` among them."""

    def serves(self):
        return self.process.poll() is None and is_running(self.primary["pid"])

    def last_words(self, lines=25):
        return "\n".join(self.process.log.read_text(errors="replace").splitlines()[-lines:])


class Sandbox(Backend):
    """`holdfast sandbox`: a cluster of real processes on this machine."""

    backend = "holdfast"

    def __init__(self, shop, *, size="1G", nodes=2, protocol="C", journal_size=None, folder=None, keep=False,
                 ready_seconds=60, log="sandbox.log", extra=()):
        self.shop = shop
        self.folder = pathlib.Path(folder or shop.folder / "sandbox")
        self.binary = holdfast_binary()
        command = [self.binary, "sandbox", "--nodes", nodes, "--protocol", protocol, "--size", size, "--dir",
                   self.folder, "--json"]
        if journal_size:
            command += ["--journal-size", journal_size]
        if keep:
            command += ["--keep"]
        command += extra
        self.restarted = []
        began = time.monotonic()
        self.process = shop.start(command, log=log, stdout=subprocess.PIPE)
        shop.undo(self.stop)
        ready = self._ready_line(ready_seconds)
        self.ready_seconds = time.monotonic() - began
        self.nodes = {node["name"]: node for node in ready["nodes"]}
        primaries = [node for node in ready["nodes"] if node["role"].lower() == "primary"]
        if len(primaries) != 1:
            raise Failure(f"the sandbox names {len(primaries)} primaries, expected 1: {ready}")
        self.primary = primaries[0]

    def _ready_line(self, seconds):
        stream = self.process.stdout
        os.set_blocking(stream.fileno(), False)
        text = b""

        def arrived():
            nonlocal text
            text += stream.read() or b""
            return b"\n" in text

        try:
            wait_until(arrived, "the sandbox's ready line", seconds, every=0.005, alive=[self.process])
            ready = json.loads(text.split(b"\n")[0])
        except ValueError as error:
            raise Failure(f"the sandbox's first line is no JSON ({error}): {text[:300]!r}") from None
        if ready.get("ready") is not True:
            raise Failure(f"the sandbox is not ready: {ready}")
        return ready

    @property
    def uri(self):
        return self.primary["nbd_uri"]

    @property
    def pids(self):
        return {name: node["pid"] for name, node in self.nodes.items()}

    def others(self):
        return [node for node in self.nodes.values() if node["name"] != self.primary["name"]]

    def command(self, *words, check=True, seconds=30):
        return run([self.binary, *words], check=check, seconds=seconds)

    def status(self, node):
        return self.command("status", "--control", node["control"], "--json", check=False).stdout.strip()

    def volume_status(self, node):
        """The volume as `node` sees it, or None while it does not answer."""
        try:
            return json.loads(self.status(node))["volumes"][0]["replica"]
        except (ValueError, KeyError, IndexError, Failure):
            return None

    def kill_primary(self):
        """kill -9 of the primary's replicator; returns once it is dead."""
        pid = self.primary["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_running(pid), f"replicator {pid} to die", 10, every=0.002)

    def promote_other(self, seconds=30):
        """Makes the other node primary (by force: the old one is dead); returns how long until NBD answered."""
        target = self.others()[0]
        began = time.monotonic()
        last = ""

        def promoted():
            nonlocal last
            done = self.command("promote", VOLUME, "--control", target["control"], "--force", check=False)
            last = done.stdout.strip()
            return done.returncode == 0

        try:
            wait_until(promoted, f"the promotion of {target['name']}", seconds, every=0.1)
        except Failure as failure:
            raise Failure(f"{failure}\nlast answer: {last}\nstatus: {self.status(target)}") from None
        wait_until(lambda: nbd_size(target["nbd_uri"]), f"the export of {target['name']}", seconds)
        self.former, self.primary = self.primary, target
        return time.monotonic() - began

    def start_node(self, node, log=None):
        """Starts the replicator of a node that was killed; returns how long until it answered `status`."""
        began = time.monotonic()
        process = self.shop.start([self.binary, "replicator", "--config", self.folder / "holdfast.toml", "--node",
                                   node["name"]], log=log or f"node-{node['name']}.log")
        node["pid"] = process.pid
        self.restarted.append(process)
        wait_until(lambda: self.volume_status(node), f"the replicator of {node['name']} to answer", 60, alive=[process])
        return time.monotonic() - began

    def stop(self, seconds=60):
        """A clean stop of all nodes; SIGINT is what the sandbox promises to clean up after."""
        code = stop(self.process, signal.SIGINT, seconds)
        ours = [process.pid for process in self.restarted]
        for node in self.nodes.values() if hasattr(self, "nodes") else ():
            if node["pid"] in ours:
                continue
            # Nodes outlive a sandbox that had to be killed; they are ours as well.
            if is_running(node["pid"]) and _is_program(node["pid"], self.binary):
                print(f"the sandbox left node {node['name']} (process {node['pid']}) running: killed", flush=True)
                os.kill(node["pid"], signal.SIGKILL)
        return code

    def stop_all(self):
        """A clean stop of the sandbox and of nodes that were started again: the primary first."""
        if self.stop() != 0:
            raise Failure(f"the sandbox ended with code {self.process.returncode}:\n{self.last_words()}")
        for process in self.restarted:
            code = stop(process)
            if code != 0:
                raise Failure(f"a replicator ended with code {code}: see {process.log.name}")


def _is_program(pid, binary):
    try:
        return os.path.realpath(f"/proc/{pid}/exe") == os.path.realpath(binary)
    except OSError:
        return False


class PlainFile(Backend):
    """The control: nbdkit over one plain file in place of the sandbox, same steps, no replication.

    "Promotion" starts the server again on the same file, which is what a test of a replicated volume must
    look like when nothing can go wrong but the test itself.
    """

    backend = "nbdkit"
    # Words for nbdkit before and behind the plugin's name.
    filters, settings = (), ()

    def __init__(self, shop, *, size="1G", folder=None, **_):
        self.shop = shop
        self.folder = pathlib.Path(folder or shop.folder / "plain")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.disk = self.folder / "disk"
        with open(self.disk, "wb") as disk:
            disk.truncate(parse_size(size))
        self.socket = self.folder / "nbd.sock"
        self.uri = f"nbd+unix:///{VOLUME}?socket={self.socket}"
        self._start()

    def _start(self):
        self.socket.unlink(missing_ok=True)
        self.process = self.shop.start(["nbdkit", "-f", "-U", self.socket, *self.filters, "file", self.disk,
                                        *self.settings], log="nbdkit.log")
        self.primary = {"name": "plain", "pid": self.process.pid, "nbd_uri": self.uri, "disk": str(self.disk)}
        self.nodes = {"plain": self.primary}
        wait_until(lambda: nbd_size(self.uri), "nbdkit", 10, alive=[self.process])

    @property
    def pids(self):
        return {"plain": self.process.pid}

    def status(self, _node):
        return "(a plain file has no status)"

    def kill_primary(self):
        self.process.kill()
        self.process.wait(10)

    def promote_other(self, seconds=30):
        began = time.monotonic()
        self._start()
        return time.monotonic() - began

    def stop(self, seconds=60):
        return stop(self.process, seconds=seconds)


class LyingServer(PlainFile):
    """A server that answers FLUSH and keeps everything in memory. A test of durability must fail on it."""

    backend = "lying"
    filters, settings = ("--filter=cache",), ("cache=unsafe",)


BACKENDS = {kind.backend: kind for kind in (Sandbox, PlainFile, LyingServer)}


def open_backend(name, shop, **options):
    return BACKENDS[name](shop, **options)


class Report:
    """Steps of a test: a line when each is done, a summary, an exit code."""

    def __init__(self, title):
        self.passed = self.failed = 0
        self.began = time.monotonic()
        print(title, flush=True)

    def _line(self, mark, what, note):
        print(f"  {time.monotonic() - self.began:6.1f} s  {mark}  {what}{': ' + note if note else ''}", flush=True)

    def ok(self, what, note=""):
        self.passed += 1
        self._line("ok  ", what, note)

    def fail(self, what, note=""):
        self.failed += 1
        self._line("FAIL", what, str(note).strip().replace("\n", "\n" + " " * 18))

    def note(self, what, note=""):
        self._line("    ", what, note)

    def check(self, what, good, note=""):
        (self.ok if good else self.fail)(what, note)
        return bool(good)

    def step(self, what, action, *arguments, **named):
        """Runs `action`; it fails by raising and may return a note. True if it went well."""
        try:
            note = action(*arguments, **named)
        except Exception as error:  # any error of a step is a failed step, never a crash of the test
            text = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
            self.fail(what, text)
            return False
        self.ok(what, note if isinstance(note, str) else "")
        return True

    def close(self):
        """Prints the closing line; returns the exit code."""
        if not self.passed and not self.failed:
            self.failed = 1
            print("  nothing was checked")
        print(f"{'PASS' if not self.failed else 'FAIL'}: {self.passed} passed, {self.failed} failed "
              f"in {time.monotonic() - self.began:.1f} s", flush=True)
        return 1 if self.failed else 0


def machine_facts():
    """What one must know to read figures from this machine."""

    def first(path, key):
        for line in pathlib.Path(path).read_text().splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
        return "?"

    def version(package):
        done = run(["dpkg-query", "-W", "-f", "${Version}", package], check=False, split=True)
        return done.stdout if done.returncode == 0 else "not installed"

    def git(*words):
        done = run(["git", "-C", ROOT, *words], check=False, split=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": (git("rev-parse", "--short=12", "HEAD") or "none") + ("+changes" if git("status", "--porcelain") else ""),
        "cpu": first("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "memory": human(int(first("/proc/meminfo", "MemTotal").split()[0]) * 1024),
        "kernel": os.uname().release,
        "virtual": run(["systemd-detect-virt"], check=False).stdout.strip() if shutil.which("systemd-detect-virt") else "?",
        "load_at_start": os.getloadavg()[0],
        "packages": {name: version(name) for name in ("nbdkit", "qemu-utils", "fio", "libnbd0")},
    }


def steal_ticks():
    """Time the hypervisor took away, and all time, in ticks: their ratio says how quiet the host was."""
    fields = [int(word) for word in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return fields[7], sum(fields[:8])
