"""How long a stack takes to follow: nodes in network namespaces, ext4 on the volume, a service on that, an address above
it, and a client that puts lines into a ledger through the address all along.

In turn the primary's machine dies, that is, its cables are pulled and everything on it is killed, and its cables are pulled
and it goes on until its service is back elsewhere. Then it boots anew. What was acknowledged must be there, and the address
must not be on two nodes at once.
"""

import argparse
import pathlib
import random
import subprocess
import sys
import threading
import time

import report
from failover import other, phases_of, quantile, rows_of, said, verdict
from harness import Failure, Workshop, machine_facts, run, wait_until
from nodes import DATA, WITNESS, Nodes

HERE = pathlib.Path(__file__).parent
ADDRESS, PORT = "10.77.0.100", 7999
# Of a failover that takes longer than this it is kept what the nodes said.
SLOW_SECONDS = 2.5
FAULTS = {"dies": "primary's machine dies", "cut": "primary's cables are pulled"}
PHASES = ("detect", "agree", "promote", "start", "run", "failover")


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench stack", description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="how often there is a fault; one kind, then the other (100)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments of the faults")
    parser.add_argument("--dir", help="where disks, journals and logs are (target/bench)")
    report.add_storing(parser, "stack")
    return parser.parse_args()


def stack_of(folder):
    """The same text for both nodes: what is mounted is in a namespace of each one's own, and so are its paths."""
    python, stand, mounted = sys.executable, folder / "stand", folder / "mounted"
    stand.mkdir()
    mounted.mkdir()
    return f"""[[stack]]
name = "shop"
failures = 50
[[stack.step]]
kind = "volume"
volume = "r0"
[[stack.step]]
kind = "command"
name = "disk"
start = ["/bin/sh", "-c", "exec {python} {HERE}/stack_disk.py start {folder}/$HOLDFAST_NODE.nbd {stand}"]
stop = ["{python}", "{HERE}/stack_disk.py", "stop", "{stand}"]
monitor = ["test", "-b", "{stand}/loop"]
[[stack.step]]
kind = "filesystem"
device = "{stand}/loop"
mount = "{mounted}"
type = "ext4"
mount-options = "noatime"
[[stack.step]]
kind = "command"
name = "ledger"
run = ["{python}", "{HERE}/stack_ledger.py", "{mounted}/ledger", "{PORT}"]
monitor = ["/bin/bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/{PORT}"]
[[stack.step]]
kind = "address"
address = "{ADDRESS}/24"
interface = "l0"
"""


class Client:
    """The process of the client, and when its lines were answered."""

    def __init__(self, shop, inside):
        self.times, self.lost = [], None
        self.process = subprocess.Popen([*inside, sys.executable, HERE / "stack_client.py", ADDRESS, str(PORT)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        shop.undo(self.process.kill)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in self.process.stdout:
            if line.startswith("lost"):
                self.lost = line.split()[1:]
            else:
                self.times.append(float(line))

    def wait_answer(self, since, seconds=60, meanwhile=lambda: None):
        """When the first line after that moment was answered."""

        def first():
            meanwhile()
            return next((at for at in self.times[-2000:] if at > since), None)

        return wait_until(first, "the service to answer", seconds, every=0.005)

    def end(self):
        self.process.stdin.close()
        wait_until(lambda: self.lost is not None, "the client to look at the ledger", 30)
        return self.lost


class Bench:
    def __init__(self, shop, options):
        self.shop, self.options, self.dice = shop, options, random.Random(options.seed)
        folder = pathlib.Path(shop.folder)
        self.nodes = Nodes(shop, size="64MiB", orchestrator={"lease": "1s"}, more=stack_of(folder))
        self.network = self.nodes.network
        self.doubles = 0
        # What steps have started outlives the orchestrators.
        shop.undo(lambda: [self.kill(node) for node in DATA])

    def faults(self):
        self.nodes.start_all()
        self.nodes.wait_well()
        client, runs = Client(self.shop, self.network.inside(WITNESS)), []
        for number in range(self.options.runs):
            before = self.nodes.wait_well(90)
            primary, fault = before["primary"], list(FAULTS)[number % len(FAULTS)]
            client.wait_answer(time.monotonic())
            # At any moment between two renewals of the lease.
            time.sleep(self.dice.uniform(0.1, 1.1))
            began = time.monotonic()
            self.network.unplug(primary)
            cut = time.monotonic()
            if fault == "dies":
                self.kill(primary)
            # What was answered before the cables were out was perhaps not heard yet.
            first = client.wait_answer(max(cut, began + 0.1), meanwhile=lambda fault=fault: fault == "cut" and self.count_holders())
            last = max(at for at in client.times if at < first)
            texts = {"detect": f"{primary} is not heard", "agree": f"{other(primary)} follows",
                     "promote": f"begin epoch {before['epoch'] + 1}: ", "start": "shop is being started", "run": "shop runs"}
            runs.append({"fault": fault, "primary": primary, "failover": first - last})
            print(f"  fault {number + 1} of {self.options.runs}, {FAULTS[fault]}: {1000 * (first - last):.0f} ms", flush=True)
            time.sleep(0.2)
            runs[-1] |= phases_of(self.nodes, texts, last)
            if first - last > SLOW_SECONDS:
                runs[-1]["seen"] = said(self.nodes, last)
            self.boot(primary)
        self.nodes.wait_well(90)
        return {"faults": runs, "acknowledged": len(client.times), "lost": client.end(), "double_holders": self.doubles}

    def count_holders(self):
        self.doubles += all([self.holds(node) for node in DATA])

    def holds(self, node):
        return ADDRESS in run(["ip", "-n", self.network.namespace(node), "-4", "-o", "addr", "show", "dev", "l0"]).stdout

    def kill(self, node):
        """Nothing of it runs any more. With its processes its mounts are gone, and with them its block device."""
        for pid in run(["ip", "netns", "pids", self.network.namespace(node)]).stdout.split():
            subprocess.run(["kill", "-KILL", pid], check=False, stderr=subprocess.DEVNULL)
        self.nodes.kill(node)

    def boot(self, node):
        """The machine begins anew, with its cables in, and without the address that it may have had when it died."""
        self.kill(node)
        run(["ip", "-n", self.network.namespace(node), "addr", "del", f"{ADDRESS}/24", "dev", "l0"], check=False)
        self.network.plug(node)
        self.nodes.start_node(node)


def table(results):
    rows = []
    for fault, words in FAULTS.items():
        seconds = [one["failover"] for one in results["faults"] if one["fault"] == fault]
        if seconds:
            rows += rows_of(f"{words}: last answer to first", seconds, {"p99": 3000})
    lost, doubles = len(results["lost"]), results["double_holders"]
    rows += [[f"lines lost of {results['acknowledged']:,} acknowledged", str(lost), "0", verdict(not lost)],
             ["looks at which both nodes had the address", str(doubles), "0", verdict(not doubles)]]
    parts = [[phase] + [f"{quantile([one[phase] for one in results['faults'] if phase in one], share) * 1000:.0f}"
                        for share in (0.5, 0.9, 0.99)] for phase in PHASES]
    return (report.markdown(["figure", "value", "bound", "kept"], rows) +
            "\n\nAfter the last answer, in ms; `start`: the first step begins; `run`: the last one is done.\n\n" +
            report.markdown(["until", "p50", "p90", "p99"], parts))


def main():
    options = arguments()
    with Workshop("stack", parent=options.dir or str(report.ROOT / "target" / "bench")) as shop:
        facts = machine_facts()
        bench = Bench(shop, options)
        try:
            results = bench.faults()
        except Failure as failure:
            raise Failure(f"{failure}\n{bench.nodes.logs()}") from None
    report.publish("stack", "How long a stack takes to follow", facts, table(results), results, options)
    return 1 if results["lost"] or results["double_holders"] else 0


if __name__ == "__main__":
    report.run(main)
