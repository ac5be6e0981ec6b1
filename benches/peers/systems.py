"""The systems that are compared. Each is started, serves one NBD export at `uri`, and names its processes."""

import json
import os
import select
import socket
import time

from harness import VOLUME, Failure, Sandbox, nbd_size, parse_size, run, wait_until


def preallocate(path, size):
    with open(path, "wb") as image:
        os.posix_fallocate(image.fileno(), 0, size)


def free_port():
    """A TCP port that is free now; the server that gets it starts at once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class System:
    """One system under test: `start` fills `processes` and `pids`."""

    processes = ()

    def __init__(self, shop, folder, size, options):
        self.shop, self.folder, self.size, self.options = shop, folder, size, options
        self.folder.mkdir(parents=True)
        self.socket = self.folder / "nbd.sock"
        self.uri = f"nbd+unix:///{VOLUME}?socket={self.socket}"
        self.images = []
        self.start()
        wait_until(lambda: nbd_size(self.uri), f"{self.name} to serve", 30, alive=self.processes)

    def image(self, name):
        path = self.folder / name
        preallocate(path, parse_size(self.size))
        self.images.append(path)
        return path

    def check_replicas(self):
        """None, or what is wrong. Called when no client is there any more and before the system is stopped."""
        return None


class Nbdkit(System):
    """nbdkit's file plugin: one server, one file, nothing replicated. The yardstick."""

    name = "nbdkit"

    def start(self):
        words = ["cache=none"] if self.options.direct else []
        process = self.shop.start(["nbdkit", "-f", "-U", self.socket, "file", self.image("disk"), *words],
                                  log="nbdkit.log")
        self.processes = [process]
        self.pids = {"nbdkit": process.pid}


class Qemu(System):
    """Pieces that both qemu systems need: a second storage daemon that serves the remote copy over TCP."""

    def file_node(self, path):
        if self.options.direct:
            return f"driver=file,filename={path},node-name=disk,cache.direct=on,aio=native,discard=unmap"
        return f"driver=file,filename={path},node-name=disk,aio={self.options.qemu_aio},discard=unmap"

    def start_remote(self):
        port = free_port()
        process = self.shop.start(
            ["qemu-storage-daemon", "--blockdev", self.file_node(self.image("disk-b")),
             "--nbd-server", f"addr.type=inet,addr.host=127.0.0.1,addr.port={port}",
             "--export", f"type=nbd,id=e,node-name=disk,name={VOLUME},writable=on"], log=f"{self.name}-b.log")
        wait_until(lambda: nbd_size(f"nbd://127.0.0.1:{port}/{VOLUME}"), f"the remote daemon of {self.name}", 15,
                   alive=[process])
        self.remote = f"driver=nbd,node-name=remote,server.type=inet,server.host=127.0.0.1,server.port={port},export={VOLUME}"
        return process

    def start_local(self, *arguments):
        return self.shop.start(
            ["qemu-storage-daemon", "--blockdev", self.file_node(self.image("disk-a")), "--blockdev", self.remote,
             "--nbd-server", f"addr.type=unix,addr.path={self.socket}", *arguments], log=f"{self.name}-a.log")

    def check_replicas(self):
        a, b = (open(path, "rb") for path in self.images)
        with a, b:
            while True:
                left, right = a.read(1 << 20), b.read(1 << 20)
                if left != right:
                    return f"the images differ near {a.tell()}"
                if not left:
                    return None


class QemuQuorum(Qemu):
    """qemu's quorum driver with a local and a remote child. Both must succeed; reads take the local child
    (read-pattern=fifo), which is faster than comparing both as the default does."""

    name = "quorum"

    def start(self):
        remote = self.start_remote()
        local = self.start_local(
            "--blockdev", "driver=quorum,node-name=both,vote-threshold=2,read-pattern="
            f"{self.options.quorum_reads},children.0=disk,children.1=remote",
            "--export", f"type=nbd,id=e,node-name=both,name={VOLUME},writable=on")
        self.processes = [local, remote]
        self.pids = {"a": local.pid, "b": remote.pid}


class QemuMirror(Qemu):
    """qemu's mirror job in write-blocking mode: a write is answered when both copies have it."""

    name = "mirror"

    def start(self):
        remote = self.start_remote()
        monitor = self.folder / "qmp.sock"
        local = self.start_local("--export", f"type=nbd,id=e,node-name=disk,name={VOLUME},writable=on",
                                 "--chardev", f"socket,id=q,path={monitor},server=on,wait=off",
                                 "--monitor", "chardev=q")
        self.processes = [local, remote]
        self.pids = {"a": local.pid, "b": remote.pid}
        self.qmp = Qmp(monitor, self.processes)
        self.qmp.call("blockdev-mirror", **{"job-id": "m", "device": "disk", "target": "remote", "sync": "full",
                                            "copy-mode": "write-blocking"})
        self.qmp.wait_event("BLOCK_JOB_READY", 120)


class Holdfast(System):
    """Holdfast, protocol C, two replicas."""

    name = "holdfast"
    extra = ()

    def start(self):
        self.sandbox = Sandbox(self.shop, size=self.size, nodes=2, protocol="C", extra=self.extra,
                               journal_size=self.options.journal_size, folder=self.folder / "sandbox",
                               log=f"{self.name}.log")
        self.uri = self.sandbox.uri

    @property
    def pids(self):
        return self.sandbox.pids


class HoldfastChecksums(Holdfast):
    """The same, with checksums of the blocks at rest on both replicas."""

    name = "checksums"
    extra = ("--checksums", "on")


class HoldfastBookmarks(Holdfast):
    """The same, with a bookmark on both replicas, so that both note what changes."""

    name = "bookmarks"

    def start(self):
        super().start()
        for node in self.sandbox.nodes.values():
            run([self.sandbox.binary, "bookmark", "add", VOLUME, "bench", "--control", node["control"]])


class Qmp:
    """qemu's monitor, as far as it is needed here."""

    def __init__(self, path, processes):
        self.socket = socket.socket(socket.AF_UNIX)

        def connected():
            try:
                self.socket.connect(str(path))
            except OSError:
                return False
            return True

        wait_until(connected, "qemu's monitor", 10, alive=processes)
        self.buffer, self.events = b"", []
        self._read(10)
        self.call("qmp_capabilities")

    def _read(self, seconds):
        end = time.monotonic() + seconds
        while b"\n" not in self.buffer:
            if not select.select([self.socket], [], [], max(0, end - time.monotonic()))[0]:
                raise Failure(f"qemu's monitor said nothing for {seconds} s")
            more = self.socket.recv(65536)
            if not more:
                raise Failure("qemu closed its monitor")
            self.buffer += more
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def call(self, command, **arguments):
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            message = self._read(30)
            if "event" in message:
                self.events.append(message["event"])
            elif "error" in message:
                raise Failure(f"qemu refused {command}: {message['error']}")
            else:
                return message.get("return")

    def wait_event(self, name, seconds):
        end = time.monotonic() + seconds
        while name not in self.events:
            if time.monotonic() > end:
                raise Failure(f"qemu sent no {name} in {seconds} s")
            message = self._read(seconds)
            if "event" in message:
                self.events.append(message["event"])


# Those that are compared unless others are asked for, and Holdfast with more to do, to be compared with itself.
USUAL = (Nbdkit, QemuMirror, QemuQuorum, Holdfast)
SYSTEMS = {kind.name: kind for kind in (*USUAL, HoldfastChecksums, HoldfastBookmarks)}
