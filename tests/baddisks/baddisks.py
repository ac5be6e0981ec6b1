"""Bad disks under real processes. Clients on both data nodes write and read all along, and what they saw must be what one
disk would have answered; in the end the disks of the replicas are equal."""

import argparse
import random
import signal
import sys
import time

from disks import Disk, prove
from harness import VOLUME, Failure, Report, Workshop, run, wait_until
from history import BLOCK, SLOTS, Clients, Nbd, faults, stamped, value_of
from nodes import DATA, WITNESS, Loopback, Nodes

DISK_BYTES, JOURNAL_BYTES = 8 << 20, 20 << 20
# How often the power fails somewhere.
CUTS = 4
# Values of blocks that no other client writes.
FLUSHED, LATER = 1 << 40, 1 << 41


class Test:
    """A cluster on bad disks, and what happens to them."""

    def __init__(self, shop, seed):
        self.dice = random.Random(seed)
        self.disks = {f"{node}.{what}": Disk(shop, f"{node}.{what}", size)
                      for node in DATA for what, size in (("disk", DISK_BYTES), ("journal", JOURNAL_BYTES))}
        self.nodes = Nodes(shop, network=Loopback(), size="8MiB", journal="20MiB")
        self.clients = None
        shop.undo(lambda: self.clients and self.clients.stop())

    def begin(self):
        self.nodes.start_all()
        self.nodes.wait_well()
        self.clients = Clients(DATA, {node: self.nodes.socket(node) for node in DATA})
        self.answered_again()

    def answered_again(self, seconds=40):
        since = time.monotonic()
        wait_until(lambda: self.clients.last_answer(since), "a write to be acknowledged", seconds)

    def of(self, node):
        return [disk for name, disk in self.disks.items() if name.startswith(f"{node}.")]

    def judge(self):
        """All is well again, and every answer so far is one that a single disk could have given."""
        after = self.nodes.wait_well(60)
        self.answered_again()
        self.clients.read_all(after["primary"], self.nodes.socket(after["primary"]))
        operations = list(self.clients.operations)
        wrong = self.clients.corrupt + faults(operations)
        if wrong:
            raise Failure(f"{len(wrong)} answers are wrong, among them: " + "; ".join(wrong[:5]))
        return f"{sum(1 for one in operations if one.is_write and one.ended)} writes so far"

    def cut(self, victims):
        """The power of these machines fails, and that of their disks with it."""
        for node in victims:
            self.nodes.kill(node)
        for node in victims:
            for disk in self.of(node):
                disk.cut()
        time.sleep(self.dice.random())
        for node in victims:
            for disk in self.of(node):
                disk.plug()
            self.nodes.start_node(node)

    # --- what happens -----------------------------------------------------------------------------------------

    def power_fails(self):
        for _ in range(CUTS):
            time.sleep(self.dice.random())
            self.cut(self.dice.choice([["a"], ["b"]]))
            self.judge()
        return self.judge()

    def primary_cannot_read(self):
        primary = self.nodes.wait_well()["primary"]
        disk = self.disks[f"{primary}.disk"]
        disk.fail("pread")

        def had_elsewhere():
            replica = self.nodes.replica(primary)
            return replica and replica["counters"]["mended_blocks"] > 0

        try:
            wait_until(had_elsewhere, "a block to be had from the other replica", 20)
            self.answered_again()
        finally:
            disk.heal()
        return self.judge()

    def primary_cannot_write(self):
        primary = self.nodes.wait_well()["primary"]
        survivor = DATA[1 - DATA.index(primary)]
        self.disks[f"{primary}.disk"].fail("pwrite")
        self.nodes.wait_primary(survivor, ask=WITNESS, seconds=40)
        self.answered_again()
        # The disk is replaced, and filled.
        self.nodes.signal(primary, signal.SIGTERM, "replicator")
        self.nodes.processes["replicator", primary].wait(20)
        for disk in self.of(primary):
            disk.heal()
        self.nodes.command("create", VOLUME, "--config", self.nodes.config, "--node", primary, "--force")
        self.nodes.start("replicator", primary)
        return self.judge()

    def client(self):
        """A connection to the export, which opens a moment after the node is known as the primary."""
        def opened():
            client = Nbd(self.nodes.socket(self.nodes.wait_well(60)["primary"]), 30)
            try:
                client.open()
            except OSError:
                client.close()
                return None
            return client

        return wait_until(opened, "the export to open", 30)

    def all_power_fails(self):
        """Nobody is left who has it in memory: what was flushed must be there, what was not may be."""
        self.judge()
        self.clients.stop()
        client = self.client()
        for slot in range(SLOTS):
            client.write(slot * BLOCK, stamped(FLUSHED + slot))
        client.flush()
        for slot in range(0, SLOTS, 2):
            client.write(slot * BLOCK, stamped(LATER + slot))
        client.close()
        self.cut(list(DATA))
        client = self.client()
        found = [value_of(client.read(slot * BLOCK, BLOCK)) for slot in range(SLOTS)]
        client.close()
        lost = [slot for slot in range(SLOTS) if found[slot] not in (FLUSHED + slot, LATER + slot)]
        if lost:
            raise Failure(f"flushed, and gone: slots {lost}, which hold {[found[slot] for slot in lost]}")
        return f"{sum(value > LATER for value in found)} of {SLOTS // 2} blocks that were not flushed are there, too"

    def finish(self):
        self.nodes.wait_level()
        self.nodes.stop_all()
        a, b = (self.disks[f"{node}.disk"].path for node in DATA)
        run(["qemu-img", "compare", "-f", "raw", "-F", "raw", a, b])
        return f"{DISK_BYTES >> 20} MiB compared"


def main():
    parser = argparse.ArgumentParser(prog="tests/baddisks/run", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31), help="which deaths, in which order")
    parser.add_argument("--dir", help="where the files are (the system's temporary folder)")
    parser.add_argument("--keep", action="store_true", help="keep the files")
    options = parser.parse_args()
    report = Report(f"bad disks under real processes, seed {options.seed}")
    with Workshop("baddisks", parent=options.dir, keep=options.keep) as shop:
        good = report.step("the disks lose what was not flushed, and fail when told to", prove, shop)
        test = Test(shop, options.seed)
        steps = [
            ("the nodes start", test.begin),
            (f"the power fails {CUTS} times on one node and its disks", test.power_fails),
            ("what the primary's disk cannot read is had from the other one", test.primary_cannot_read),
            ("a primary whose disk refuses writes makes place, and its copy is made anew", test.primary_cannot_write),
            ("the power fails everywhere: what was flushed is there", test.all_power_fails),
            ("both disks are equal", test.finish),
        ]
        for what, act in steps:
            good = good and report.step(what, act)
        if not good:
            print(test.nodes.logs(), flush=True)
    return report.close()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
