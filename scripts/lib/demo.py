"""The demo: two data nodes and a witness, clients that write all along, and four things that happen to them. Nobody types
anything but the planned move. What was acknowledged is checked at the end, and both disks are compared byte for byte."""

import argparse
import json
import os
import sys
import time

from harness import Failure, Workshop, parse_size, run, wait_until
from history import Clients, acknowledged, faults, pauses, reigns
from nodes import DATA, NODES, WITNESS, Loopback, Namespaces, Nodes

SIZE = "256MiB"
PHASES = ("detect", "agree", "promote", "first_write")


def other(node):
    return DATA[1 - DATA.index(node)]


def can_have_namespaces():
    """Whether this script was started with a place for namespaces of its own, as scripts/demo does for root."""
    return os.environ.get("HOLDFAST_DEMO_NAMESPACES") == "1" and os.geteuid() == 0


class Demo:
    def __init__(self, shop, options):
        self.options, self.began = options, time.monotonic()
        self.namespaces = can_have_namespaces()
        self.clients = None
        network = Namespaces(shop) if self.namespaces else Loopback()
        self.nodes = Nodes(shop, network=network, size=SIZE, journal="128MiB")
        shop.undo(lambda: self.clients and self.clients.stop())
        self.outcome = {"acknowledged": 0, "lost": 0, "corrupt": 0, "double_primaries": 0}
        self.timelines = {}

    def tell(self, text, at=None):
        print(f"{(at or time.monotonic()) - self.began:7.2f}s  {text}", file=sys.stderr, flush=True)

    # --- the story --------------------------------------------------------------------------------------------

    def play(self):
        where = "each in a network namespace of its own" if self.namespaces else "on loopback addresses of this machine"
        self.tell(f"two nodes with a replica, a and b, and a witness, w: real processes, {where}")
        self.nodes.start_all()
        record = first = self.nodes.wait_well()
        primary = record["primary"]
        self.tell(f"{primary} is Primary and serves r0 over NBD, {other(primary)} is level; nobody was asked")
        sockets = {node: self.nodes.socket(node) for node in DATA}
        self.clients = Clients(DATA, sockets, pause=0.0005, retry=0.002)
        self.tell("a client on each node writes and reads numbered blocks as long as its node lets it, flushing now and then")
        time.sleep(self.options.seconds * 0.2)
        primary = self.dies(primary)
        self.comes_back(other(primary))
        primary = self.moves(primary)
        if self.namespaces:
            primary = self.is_cut_off(primary)
        else:
            self.tell("the network is not cut: that needs root, and network namespaces")
        time.sleep(self.options.seconds * 0.2)
        self.finish(primary, first)

    def dies(self, primary):
        killed = time.monotonic()
        self.nodes.kill(primary)
        self.tell(f"kill -9 of both processes of {primary}, in the middle of writing", killed)
        self.outcome["failover_ms"] = self.failover("failover", primary, killed)
        time.sleep(self.options.seconds * 0.1)
        return other(primary)

    def comes_back(self, node):
        started = time.monotonic()
        self.nodes.start_node(node)
        self.tell(f"{node} is started again, while {other(node)} goes on")
        self.nodes.wait_well()
        self.outcome["caught_up_ms"] = round((time.monotonic() - started) * 1000)
        self.tell(f"{node} is UpToDate and in sync again {self.outcome['caught_up_ms']} ms after its start")
        time.sleep(self.options.seconds * 0.1)

    def moves(self, primary):
        target, asked = other(primary), time.monotonic()
        self.tell(f"an operator moves r0 to {target}: holdfast cluster move r0 --to {target}", asked)
        self.nodes.tell(WITNESS, "move", "r0", "--to", target)
        self._first_write(target, asked)
        time.sleep(self.options.seconds * 0.05)
        pause, _ = pauses([one for one in self.clients.operations if one.begun > asked - 0.5])[0]
        self.outcome["switchover_pause_ms"] = round(pause * 1000)
        self.tell(f"r0 is served by {target}; the longest pause of a write was {self.outcome['switchover_pause_ms']} ms")
        self.nodes.wait_well()
        time.sleep(self.options.seconds * 0.1)
        return target

    def is_cut_off(self, primary):
        cut = time.monotonic()
        self.nodes.network.unplug(primary)
        self.tell(f"the cables of {primary}, which is Primary, are pulled", cut)
        self.outcome["cut_ms"] = self.failover("cut", primary, cut)
        time.sleep(self.options.seconds * 0.1)
        self.nodes.network.plug(primary)
        self.nodes.wait_well()
        self.tell(f"they are plugged in again: {primary} follows {other(primary)} and is in sync")
        return other(primary)

    # --- timelines --------------------------------------------------------------------------------------------

    def _first_write(self, node, since):
        def first():
            return min((one.ended for one in self.clients.operations[-4000:]
                        if one.is_write and one.node == node and one.ended and one.begun > since), default=None)

        return wait_until(first, f"{node} to acknowledge a write", 30, every=0.005)

    def failover(self, name, primary, since):
        """Waits for it, tells its phases, and returns from the last write of the old primary to the first of the new."""
        target = other(primary)
        first = self._first_write(target, since)
        last = max((one.ended for one in self.clients.operations[-8000:]
                    if one.is_write and one.node == primary and one.ended and one.ended < first), default=since)
        record = self.nodes.wait_primary(target, ask=WITNESS)
        texts = {"detect": f"{primary} is not heard", "agree": f"{target} follows", "promote": f"begin epoch {record['epoch']}: "}
        phases = {**self._said(texts, since), "first_write": first}
        self.timelines[name] = {phase: round((phases[phase] - last) * 1000) for phase in PHASES if phase in phases}
        said = {"detect": f"{primary} is not heard", "agree": f"a majority agrees: {target} follows",
                "promote": f"{target} has begun its epoch {record['epoch']}",
                "first_write": f"{target} acknowledges its first write: the old lease has surely ended"}
        for phase in PHASES:
            if phase in phases:
                self.tell(f"  +{self.timelines[name][phase]:5} ms  {said[phase]}", phases[phase])
        return round((first - last) * 1000)

    def _said(self, texts, since):
        """When each of these was first said in the log of an orchestrator after that moment."""
        found, offset = {}, time.time() - time.monotonic()
        for node in NODES:
            for event in (self.nodes.cluster(node) or {"events": []})["events"]:
                at = event["at_unix_ms"] / 1000 - offset
                for name, text in texts.items():
                    if at > since - 0.002 and text in event["text"]:
                        found[name] = min(found.get(name, at), at)
        return found

    # --- the end ----------------------------------------------------------------------------------------------

    def finish(self, primary, first):
        self.clients.stop()
        self.nodes.wait_level()
        self.clients.read_all(primary, self.nodes.socket(primary))
        operations = self.clients.operations
        wrong, epochs = faults(operations), self.nodes.record()["epoch"] - first["epoch"]
        lost = [fault for fault in wrong if " written over it " in fault]
        self.outcome.update(acknowledged=len(acknowledged(operations)), lost=len(lost),
                            corrupt=len(wrong) - len(lost) + len(self.clients.corrupt),
                            double_primaries=max(0, reigns(operations) - epochs - 1))
        self.tell(f"the clients stop; {self.outcome['acknowledged']:,} writes were acknowledged, and every answer is judged: "
                  f"{self.outcome['lost']} lost, {self.outcome['corrupt']} corrupt")
        for text in (wrong + self.clients.corrupt)[:5]:
            self.tell(f"  {text}")
        self.nodes.stop_all()
        disks = [self.nodes.folder / f"{node}.disk" for node in DATA]
        self.outcome["replicas_identical"] = run(["cmp", *disks], check=False).returncode == 0
        self.tell(f"all stop in order; both disks are read, and they are {'identical' if self.outcome['replicas_identical'] else 'DIFFERENT'}")
        self.outcome.update(compared_bytes=parse_size(SIZE.removesuffix("iB")), protocol="C", phases=self.timelines,
                            namespaces=self.namespaces, seconds=round(time.monotonic() - self.began, 2))

    def is_good(self):
        outcome = self.outcome
        return not (outcome["lost"] or outcome["corrupt"] or outcome["double_primaries"]) and outcome["replicas_identical"]


def main():
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="how long to write between what happens, in all (10)")
    parser.add_argument("--json", action="store_true", help="one line of JSON at the end, for programs")
    parser.add_argument("--dir", help="where the files are (the system's temporary folder)")
    parser.add_argument("--keep", action="store_true", help="keep the files")
    options = parser.parse_args()
    with Workshop("demo", parent=options.dir, keep=options.keep) as shop:
        demo = Demo(shop, options)
        try:
            demo.play()
        except Failure as failure:
            raise Failure(f"{failure}\n{demo.nodes.logs()}") from None
    if options.json:
        print(json.dumps(demo.outcome), flush=True)
    else:
        for key, value in demo.outcome.items():
            print(f"  {key:22}{json.dumps(value)}")
    return 0 if demo.is_good() else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        sys.exit(f"error: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
