"""How long it takes: nodes in network namespaces, a client on each that writes all along.

The primary's node is killed again and again; the volume is moved again and again; all processors are kept busy and
nothing may fail over; and everything rests. What was acknowledged is checked over all of it.
"""

import argparse
import os
import pathlib
import random
import subprocess
import sys
import time

import report
from harness import Failure, Workshop, cpu_seconds, machine_facts, memory, wait_until
from history import Clients, acknowledged, faults, pauses, reigns
from nodes import DATA, NODES, Nodes

# Of a failover that takes longer than this it is kept what the nodes said.
SLOW_SECONDS = 1.0
QUICK = {"runs": 5, "moves": 5, "load_seconds": 20, "rest_seconds": 10}


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench failover", description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="how often the primary's node is killed (100)")
    parser.add_argument("--moves", type=int, default=100, help="how often the volume is moved (100)")
    parser.add_argument("--load-seconds", type=float, default=600, help="how long all processors are kept busy (600)")
    parser.add_argument("--rest-seconds", type=float, default=30, help="how long everything rests (30)")
    parser.add_argument("--quick", action="store_true", help="five of each, half a minute: to see that it works")
    parser.add_argument("--seed", type=int, default=1, help="of the moments at which nodes are killed")
    parser.add_argument("--dir", help="where disks, journals and logs are (target/bench)")
    report.add_storing(parser, "failover")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    return options


def other(node):
    return DATA[1 - DATA.index(node)]


def quantile(values, share):
    """The smallest value that so large a share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def said(nodes, since):
    """All that the nodes have said from shortly before that moment on, with its time in seconds after it; the clocks are
    those of this machine."""
    offset = time.time() - time.monotonic() + since
    events = {node: (nodes.cluster(node) or {"events": []})["events"] for node in NODES}
    lines = [(event["at_unix_ms"] / 1000 - offset, node, event["text"]) for node in events for event in events[node]]
    return sorted(line for line in lines if line[0] > -0.5)


def phases_of(nodes, texts, since):
    """When each of these was first said after that moment, in seconds."""
    lines = [line for line in said(nodes, since) if line[0] > -0.002]
    first = {name: next((at for at, _, line in lines if text in line), None) for name, text in texts.items()}
    return {name: at for name, at in first.items() if at is not None}


class Bench:
    def __init__(self, shop, options):
        self.options = options
        self.dice = random.Random(options.seed)
        self.nodes = Nodes(shop)
        self.clients = None
        shop.undo(lambda: self.clients and self.clients.stop())
        self.epochs = 0
        self.checks = []
        self.looks = []

    def begin(self):
        self.nodes.start_all()
        self.epochs = self.nodes.wait_well()["epoch"]

    def start_clients(self, **options):
        self.clients = Clients(DATA, {node: self.nodes.socket(node) for node in DATA}, pause=0.001, retry=0.001, **options)
        self.answered()

    def stop_clients(self, what):
        """Ends the clients and judges all that they saw."""
        self.clients.stop()
        record = self.nodes.wait_well()
        self.clients.read_all(record["primary"], self.nodes.socket(record["primary"]))
        operations = self.clients.operations
        begun, self.epochs = record["epoch"] - self.epochs, record["epoch"]
        wrong = self.clients.corrupt + faults(operations)
        doubles = max(0, reigns(operations) - begun - 1)
        self.checks.append({"part": what, "acknowledged": len(acknowledged(operations)), "epochs": begun,
                            "wrong": len(wrong), "double_primaries": doubles})
        if wrong or doubles:
            print(f"WRONG in {what}: {doubles} answers of two primaries; " + "; ".join(wrong[:5]), flush=True)
        return operations

    def answered(self, since=None, seconds=60):
        since = time.monotonic() if since is None else since
        return wait_until(lambda: self.clients.last_answer(since), "a write to be acknowledged", seconds, every=0.005)

    # --- the parts --------------------------------------------------------------------------------------------

    def kills(self):
        runs = []
        self.start_clients(readers=False)
        for number in range(self.options.runs):
            before = self.nodes.wait_well(90)
            primary, leader = before["primary"], self.nodes.leader()
            self.answered()
            # At any moment between two renewals of the lease.
            time.sleep(self.dice.uniform(0.1, 0.6))
            killed = time.monotonic()
            self.nodes.kill(primary)
            first = self._first_on(other(primary), killed)
            last = max(one.ended for one in self.clients.operations[-2000:]
                       if one.node == primary and one.ended and one.ended < first)
            epoch = before["epoch"] + 1
            texts = {"detect": f"{primary} is not heard", "agree": f"{other(primary)} follows", "promote": f"begin epoch {epoch}: "}
            phases = phases_of(self.nodes, texts, last)
            runs.append({"primary": primary, "led": leader == primary, "failover": first - last, **phases})
            if first - last > SLOW_SECONDS:
                runs[-1]["seen"] = {"events": said(self.nodes, last), "looks": self.looks}
            self._progress("kill", number, self.options.runs, first - last)
            self.nodes.start_node(primary)
        self.nodes.wait_well(90)
        self.stop_clients("kills")
        return runs

    def _first_on(self, node, since):
        """When a write of that node was first answered. What takes long is looked at meanwhile."""
        looks = []

        def first():
            seconds = time.monotonic() - since
            if seconds > SLOW_SECONDS + 0.3 * len(looks):
                looks.append((seconds, self.nodes.replica(node)))
            return self._first_of(node, since)

        found = wait_until(first, "the other node to acknowledge", 60, every=0.01)
        self.looks = looks
        return found

    def _first_of(self, node, since):
        return min((one.ended for one in self.clients.operations[-2000:]
                    if one.node == node and one.ended and one.begun > since), default=None)

    def moves(self):
        runs = []
        self.start_clients(readers=False)
        for number in range(self.options.moves):
            before = self.nodes.wait_well(90)
            self.answered()
            time.sleep(self.dice.uniform(0.1, 0.3))
            asked = time.monotonic()
            self.nodes.tell("w", "move", "r0", "--to", other(before["primary"]))
            wait_until(lambda: self._first_of(other(before["primary"]), asked), "the other node to acknowledge", 30, every=0.005)
            self.answered()
            # From the last write before it, which is a few milliseconds old.
            pause = max(length for length, began in pauses(self.clients.operations[-20_000:]) if began + length > asked)
            runs.append({"pause": pause})
            self._progress("move", number, self.options.moves, pause)
        self.stop_clients("moves")
        return runs

    def load(self):
        """All processors busy, twice over; whoever is suspected or promoted is so wrongly."""
        suspicions, before = self._suspicions(), self.nodes.wait_well()
        self.start_clients(readers=False)
        burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
        try:
            end = time.monotonic() + self.options.load_seconds
            while time.monotonic() < end:
                time.sleep(min(10, max(0, end - time.monotonic())))
        finally:
            for burner in burners:
                burner.kill()
                burner.wait()
        after = self.nodes.wait_well(90)
        operations = self.stop_clients("load")
        return {"seconds": self.options.load_seconds, "busy_processes": len(burners),
                "failovers": after["epoch"] - before["epoch"], "suspicions": self._suspicions() - suspicions,
                "writes": len(acknowledged(operations)), "longest_pause": pauses(operations)[0][0]}

    def _suspicions(self):
        statuses = [self.nodes.cluster(node) for node in NODES]
        return sum(node["suspicions"] for status in statuses if status for node in status["nodes"])

    def rest(self):
        """Nobody writes. Processor time, memory and packets of each process and node."""
        self.nodes.wait_well()
        pids = self.nodes.running()
        began, cpu = time.monotonic(), {key: cpu_seconds(pid) for key, pid in pids.items()}
        sent = {node: self._sent(pids["orchestrator", node]) for node in NODES}
        time.sleep(self.options.rest_seconds)
        seconds = time.monotonic() - began
        return {f"{what} {node}": {"cpu_percent": 100 * (cpu_seconds(pid) - cpu[what, node]) / seconds,
                                   "rss_bytes": memory(pid)["VmRSS"],
                                   "packets_per_second": (self._sent(pid) - sent[node]) / seconds}
                for (what, node), pid in sorted(pids.items())}

    @staticmethod
    def _sent(pid):
        """Packets that the node of a process has sent."""
        lines = pathlib.Path(f"/proc/{pid}/net/dev").read_text().splitlines()
        return sum(int(line.split(":")[1].split()[9]) for line in lines if line.strip().startswith("l0:"))

    def _progress(self, what, number, of, seconds):
        print(f"  {what} {number + 1} of {of}: {seconds * 1000:.0f} ms", flush=True)


def rows_of(name, values, bounds):
    """A row for each quantile of some seconds; `bounds` in milliseconds."""
    rows = []
    for label, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("most", 1.0)):
        value, bound = quantile(values, share) * 1000, bounds.get(label)
        rows.append([f"{name}, {label}, ms", f"{value:.0f}", f"{bound}" if bound else "-", verdict(value < bound) if bound else "-"])
    return rows


def verdict(good):
    return "yes" if good else "NO"


def table(results):
    rows = []
    if results["kills"]:
        rows += rows_of("primary's node killed", [run["failover"] for run in results["kills"]], {"p50": 700, "p99": 1500})
    if results["moves"]:
        rows += rows_of("moved on plan, longest pause", [run["pause"] for run in results["moves"]], {"p99": 200})
    load = results["load"]
    if load:
        rows += [[f"false failovers, {load['seconds']:.0f} s with {load['busy_processes']} busy processes", str(load["failovers"]), "0", verdict(not load["failovers"])],
                 ["false suspicions in that time", str(load["suspicions"]), "-", "-"],
                 ["longest pause of a write in that time, ms", f"{load['longest_pause'] * 1000:.0f}", "-", "-"]]
    for name, one in results["rest"].items():
        if name.startswith("orchestrator"):
            rows += [[f"{name} at rest, % of a core", f"{one['cpu_percent']:.2f}", "1", verdict(one["cpu_percent"] < 1)],
                     [f"{name} at rest, MiB resident", f"{one['rss_bytes'] / (1 << 20):.1f}", "40", verdict(one["rss_bytes"] < 40 << 20)],
                     [f"packets a second from its node", f"{one['packets_per_second']:.0f}", "-", "-"]]
    wrong = sum(check["wrong"] for check in results["checks"])
    doubles = sum(check["double_primaries"] for check in results["checks"])
    count = sum(check["acknowledged"] for check in results["checks"])
    rows += [[f"wrong answers among {count:,} acknowledged writes and all reads", str(wrong), "0", verdict(not wrong)],
             ["answers of two primaries at once", str(doubles), "0", verdict(not doubles)]]
    text = report.markdown(["figure", "value", "bound", "kept"], rows)
    runs = results["kills"]
    if runs:
        names = ("detect", "agree", "promote", "failover")
        parts = [[name] + [f"{quantile([run[name] for run in runs if name in run], share) * 1000:.0f}" for share in (0.5, 0.9, 0.99)] for name in names]
        led = sum(run["led"] for run in runs)
        text += ("\n\nAfter the last write that the old primary acknowledged, in ms; in "
                 f"{led} of {len(runs)} runs it was the leader, too.\n\n" + report.markdown(["until", "p50", "p90", "p99"], parts))
    return text


def main():
    options = arguments()
    with Workshop("failover", parent=options.dir or str(report.ROOT / "target" / "bench")) as shop:
        facts = machine_facts()
        bench = Bench(shop, options)
        try:
            bench.begin()
            # Nobody moves anything to a node that was just killed again and again: it is in quarantine.
            results = {"rest": bench.rest() if options.rest_seconds else {}, "moves": bench.moves() if options.moves else [],
                       "kills": bench.kills() if options.runs else [], "load": bench.load() if options.load_seconds else {}}
        except Failure as failure:
            raise Failure(f"{failure}\n{bench.nodes.logs()}") from None
        results["checks"] = bench.checks
    text = table(results)
    report.publish("failover", "How long failovers and moves take", facts, text, results, options)
    return 0 if not any(check["wrong"] or check["double_primaries"] for check in results["checks"]) else 1


if __name__ == "__main__":
    report.run(main)
