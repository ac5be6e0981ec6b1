"""A cluster of real processes, each node in a network namespace of its own: two with a replica, one that only votes.

```text
   namespace hfN-a      hfN-b       hfN-w
        l0 l1           l0 l1       l0 l1      10.77.LINK.NODE, one veth for each link
         |  |            |  |        |  |
         +--|------------+--|--------+--|---  bridge r0 \\
            +---------------+-----------+---  bridge r1 /  in the namespace hfN-net
```

The namespaces are names in the test's own mount namespace (`own_namespaces` of scripts/lib.sh) and go with its last
process, whatever happens to it. Files and unix sockets are shared: who runs on a node reaches its sockets by path.
"""

import json
import os
import pathlib
import signal
import subprocess
import time

from harness import VOLUME, Failure, holdfast_binary, process_state, run, stop, wait_until

DATA = ("a", "b")
WITNESS = "w"
NODES = (*DATA, WITNESS)
PORT, REPLICATION_PORT = 7787, 7788


def alternatives(default, given):
    """`key = value` lines of a section, the given ones in the place of the default ones."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in {**default, **given}.items())


class Loopback:
    """No network at all: each node has a loopback address. Nothing between them can be broken, and nobody need be root."""

    links = range(1)

    def __init__(self):
        # Of its own, so that several clusters can run at one time.
        pid = os.getpid()
        self.net = f"127.{pid % 250 + 1}.{pid // 250 % 250 + 1}"

    def address(self, node, _link=0):
        return f"{self.net}.{NODES.index(node) + 1}"

    def inside(self, _node):
        return []


class Namespaces:
    """The namespaces, and ways to break what is between them."""

    def __init__(self, shop, links=1):
        self.prefix = f"hf{os.getpid()}"
        self.links = range(links)
        shop.undo(self.remove)
        self.switch = self.namespace("net")
        self._ip(f"netns add {self.switch}")
        for link in self.links:
            self._ip(f"-n {self.switch} link add r{link} type bridge")
            self._ip(f"-n {self.switch} link set r{link} up")
        for number, node in enumerate(NODES, 1):
            here = self.namespace(node)
            self._ip(f"netns add {here}")
            self._ip(f"-n {here} link set lo up")
            for link in self.links:
                self._ip(f"link add l{link} netns {here} type veth peer name {node}{link} netns {self.switch}")
                self._ip(f"-n {self.switch} link set {node}{link} master r{link} up")
                self._ip(f"-n {here} addr add 10.77.{link}.{number}/24 dev l{link}")
                self._ip(f"-n {here} link set l{link} up")

    @staticmethod
    def _ip(words):
        run(["ip", *words.split()])

    def remove(self):
        for name in (*NODES, "net"):
            run(["ip", "netns", "del", self.namespace(name)], check=False)

    def namespace(self, node):
        return f"{self.prefix}-{node}"

    def inside(self, node):
        """What a command begins with that runs on a node."""
        return ["ip", "netns", "exec", self.namespace(node)]

    def address(self, node, link=0):
        return f"10.77.{link}.{NODES.index(node) + 1}"

    def unplug(self, node, link=None):
        """The cables of a node, or one of them, are pulled."""
        self._set(node, link, "down")

    def plug(self, node, link=None):
        self._set(node, link, "up")

    def _set(self, node, link, state):
        for one in self.links if link is None else [link]:
            self._ip(f"-n {self.switch} link set {node}{one} {state}")

    def drop(self, *ways):
        """What goes from one node to another is lost, for each pair of `ways` and no other; one direction each."""
        for node in NODES:
            sources = [self.address(source, link) for source, target in ways if target == node for link in self.links]
            rule = f"ip saddr {{ {', '.join(sources)} }} drop" if sources else ""
            self._nft(node, "table inet cut\ndelete table inet cut\ntable inet cut {\nchain in {\n"
                            f"type filter hook input priority 0;\n{rule}\n}}\n}}\n")

    def _nft(self, node, rules):
        run([*self.inside(node), "nft", "-f", "-"], input=rules, stdin=None)

    def cut(self, one, other):
        """Both ways between two nodes."""
        self.drop((one, other), (other, one))

    def heal(self):
        self.drop()
        for node in NODES:
            self.plug(node)


class Nodes:
    """The processes. `replicator` and `orchestrator` are started, killed and stopped apart from each other."""

    def __init__(self, shop, *, network=None, size="16MiB", journal="64MiB", orchestrator=None, volume=None, folder=None, more=""):
        self.shop = shop
        self.folder = pathlib.Path(folder or shop.folder)
        self.binary = holdfast_binary()
        self.network = network or Namespaces(shop)
        self.processes = {}
        self.config = self.folder / "holdfast.toml"
        self.config.write_text(self._configuration(size, journal, orchestrator or {}, volume or {}) + more)
        self.config.chmod(0o600)
        for node in DATA:
            run([self.binary, "create", VOLUME, "--config", self.config, "--node", node])

    def _configuration(self, size, journal, orchestrator, volume):
        network = self.network
        text = '[cluster]\nname = "nodes"\nsecret = "0123456789abcdef0123456789abcdef"\n'
        text += "[orchestrator]\n" + alternatives({}, orchestrator)
        for node in NODES:
            more = [network.address(node, link) for link in list(network.links)[1:]]
            text += f'[[node]]\nname = "{node}"\naddress = "{network.address(node)}"\ncontrol = "{node}.ctl"\n'
            text += f'[node.orchestrator]\nport = {PORT}\nlinks = {json.dumps(more)}\ncontrol = "{node}.orc"\nstore = "{node}.store"\n'
        text += f'[[volume]]\nname = "{VOLUME}"\nuuid = "01915f1e-0a4b-4c3d-8e2f-0123456789ab"\nsize = "{size}"\n'
        text += alternatives({"lock-memory": False}, volume)
        for node in DATA:
            text += f'[[volume.replica]]\nnode = "{node}"\ndisk = "{node}.disk"\njournal = "{node}.journal"\n'
            text += f'journal-size = "{journal}"\nport = {REPLICATION_PORT}\nnbd-socket = "{node}.nbd"\n'
        return text

    # --- processes --------------------------------------------------------------------------------------------

    def start(self, what, node):
        command = [*self.network.inside(node), self.binary, what, "--config", self.config, "--node", node]
        self.processes[what, node] = self.shop.start(command, log=f"{what}.{node}.log")

    def start_node(self, node):
        if node != WITNESS:
            self.start("replicator", node)
        self.start("orchestrator", node)

    def start_all(self):
        for node in NODES:
            self.start_node(node)

    def _of(self, node, what=None):
        return [process for (kind, name), process in self.processes.items()
                if name == node and what in (None, kind) and process.poll() is None]

    def kill(self, node, what=None):
        """kill -9 of one process of a node, or of all, as when the machine dies."""
        processes = self._of(node, what)
        for process in processes:
            process.kill()
        for process in processes:
            process.wait(10)

    def signal(self, node, number, what=None):
        """Sends a signal. One that is told to stop has stopped afterwards."""
        for process in self._of(node, what):
            process.send_signal(number)
            if number == signal.SIGSTOP:
                wait_until(lambda process=process: process_state(process.pid) == "T", "a process to stop", 10, every=0.001)

    def stop_all(self):
        """In order: orchestrators, then the primary, then the others."""
        primary = (self.record() or {}).get("primary")
        for node in NODES:
            for process in self._of(node, "orchestrator"):
                stop(process)
        for node in sorted(DATA, key=lambda node: node != primary):
            for process in self._of(node, "replicator"):
                code = stop(process)
                if code != 0:
                    raise Failure(f"the replicator of {node} ended with code {code}: see {process.log.name}")

    def running(self):
        return {key: process.pid for key, process in self.processes.items() if process.poll() is None}

    # --- what they say ----------------------------------------------------------------------------------------

    def socket(self, node):
        return str(self.folder / f"{node}.nbd")

    def command(self, *words, check=True, seconds=20):
        return run([self.binary, *words], check=check, seconds=seconds)

    def tell(self, node, *words):
        """An operator's command to the cluster."""
        return self.command("cluster", *words, "--control", self.folder / f"{node}.orc").stdout

    def cluster(self, node):
        """What an orchestrator says of the cluster, or None while it does not answer."""
        try:
            done = run([self.binary, "cluster", "status", "--json", "--control", self.folder / f"{node}.orc"],
                       check=False, seconds=5, split=True)
            return json.loads(done.stdout)
        except (ValueError, Failure):
            return None

    def replica(self, node):
        """What a replica says of itself, or None while it does not answer."""
        try:
            done = run([self.binary, "status", VOLUME, "--json", "--control", self.folder / f"{node}.ctl"],
                       check=False, seconds=5, split=True)
            return json.loads(done.stdout)["replica"]
        except (ValueError, KeyError, IndexError, Failure):
            return None

    def record(self, ask=None):
        """The newest record that any orchestrator (or this one) knows."""
        found = []
        for node in [ask] if ask else NODES:
            status = self.cluster(node)
            record = status and status["volumes"] and status["volumes"][0]["record"]
            if record:
                found.append(record)
        return max(found, key=lambda record: (record["epoch"], record["version"]), default=None)

    def leader(self):
        for node in NODES:
            status = self.cluster(node)
            if status and status["leader"]:
                return status["leader"]
        return None

    def primary(self):
        record = self.record()
        return record["primary"] if record and record["opened"] else None

    def wait_primary(self, wanted=None, *, ask=None, members=None, seconds=30):
        """Waits for an opened primary, this one if one is named, with so many members; returns its record."""

        def reigns():
            record = self.record(ask)
            good = record and record["opened"] and record["primary"] and wanted in (None, record["primary"])
            return record if good and members in (None, len(record["in_sync"])) else None

        return wait_until(reigns, f"{wanted or 'somebody'} to be primary of {members or 'any'} members", seconds)

    def wait_well(self, seconds=40):
        """Waits until all is well: a primary, both in sync and up to date, every node heard; returns the record."""

        def well():
            record = self.record()
            if not record or not record["opened"] or set(record["in_sync"]) != set(DATA):
                return None
            replicas = [self.replica(node) for node in DATA]
            if not all(replica and replica["disk_state"] == "UpToDate" for replica in replicas):
                return None
            statuses = [self.cluster(node) for node in NODES]
            heard = all(status and status["leader"] and all(node["health"] != "suspected" for node in status["nodes"])
                        for status in statuses)
            return record if heard else None

        return wait_until(well, "everything to be well again", seconds, every=0.1)

    def wait_level(self, seconds=40):
        """Waits until both replicas have applied the same last entry. Nobody must be writing."""

        def level():
            replicas = [self.replica(node) for node in DATA]
            if not all(replicas):
                return False
            same = len({(replica["head"], replica["chain"], replica["applied"]) for replica in replicas}) == 1
            return same and all(replica["applied"] == replica["journaled"] for replica in replicas)

        wait_until(level, "both replicas to be level", seconds)

    def logs(self, lines=30):
        text = ""
        for log in sorted(self.folder.glob("*.log")):
            tail = log.read_text(errors="replace").strip().splitlines()[-lines:]
            text += f"--- the end of {log.name}\n" + "\n".join(tail) + "\n"
        return text
