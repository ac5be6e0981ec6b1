"""How fast copies are brought level, compared and mended, beside what the disks and the line can do by themselves.

Two replicas on one machine. A copy that is made anew is brought level at rest, in turns with a plain copy of the same disk over
TCP; then under a client. Both are verified, in turns with reading both disks. The primary is killed with a full journal.
With checksums a block is damaged, and read; then another one, and searched for.
"""

import argparse
import concurrent.futures
import json
import mmap
import os
import signal
import statistics
import threading
import time

import report
from fio import Workload, fio, nbd_target
from harness import VOLUME, Failure, Sandbox, Workshop, human, is_running, machine_facts, nbd_size, parse_size, run, wait_until
from history import Nbd
from systems import free_port, preallocate

BLOCK = 4096
FILL = Workload("fill", "", "write", "1m", 8, "MiB/s")
CLIENT = Workload("client", "", "randwrite", "4k", 1, "IOPS")
LOAD = Workload("load", "", "randwrite", "4k", 32, "IOPS")


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench repair", description=__doc__)
    parser.add_argument("--size", default="1G", help="size of the volume, all of it written (1G)")
    parser.add_argument("--journal-size", default="256M", help="size of each journal (256M)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each (3)")
    parser.add_argument("--seconds", type=float, default=5, help="length of the load before a kill (5)")
    parser.add_argument("--dir", help="a folder on the disk (target/bench)")
    report.add_storing(parser, "repair")
    return parser.parse_args()


def timed(act, *words):
    began = time.monotonic()
    act(*words)
    return time.monotonic() - began


class Pair:
    """Two nodes, full of data."""

    def __init__(self, shop, options, extra=(), name="pair"):
        self.shop, self.size = shop, parse_size(options.size)
        self.box = Sandbox(shop, size=options.size, journal_size=options.journal_size, folder=shop.folder / name,
                           log=f"{name}.log", extra=("--on-peer-loss", "continue", *extra))
        self.a, self.b = self.box.primary, self.box.others()[0]
        self.wait_level()
        fio(nbd_target(self.box.uri), FILL, options.size)
        self.wait_level()

    def wait_level(self):
        def level():
            here, there = self.box.volume_status(self.a), self.box.volume_status(self.b)
            return (here and there and here["peers"][0]["member"] and there["disk_state"] == "UpToDate"
                    and here["applied"] == there["applied"] == here["journaled"])

        wait_until(level, "both copies to be level", 300)

    def kill(self, node):
        os.kill(node["pid"], signal.SIGKILL)
        wait_until(lambda: not is_running(node["pid"]), f"{node['name']} to die", 10, every=0.002)
        # It need not end well.
        self.box.restarted = [process for process in self.box.restarted if process.pid != node["pid"]]

    def make_anew(self):
        """The copy of b is lost; nothing is under way."""
        self.kill(self.b)
        config = self.box.folder / "holdfast.toml"
        self.box.command("create", VOLUME, "--config", config, "--node", self.b["name"], "--force")
        os.sync()

    def fill_anew(self):
        self.box.start_node(self.b)
        self.wait_level()

    def waited(self, *words):
        """A command that is waited for, at the primary; what it reports."""
        done = self.box.command(*words, VOLUME, "--wait", "--json", "--control", self.a["control"], seconds=600)
        return json.loads(done.stdout)

    def damage(self, block):
        """A block of the primary's disk is another one, past all caches."""
        page = mmap.mmap(-1, BLOCK)
        page.write(os.urandom(BLOCK))
        file = os.open(self.a["disk"], os.O_RDWR | os.O_DIRECT)
        try:
            os.pwrite(file, page, block * BLOCK)
        finally:
            os.close(file)

    def mended(self):
        return self.box.volume_status(self.a)["counters"]["mended_blocks"]


def plain_copy(shop, pair):
    """The primary's disk over TCP to a file that has room, synced."""
    target, port = shop.folder / "plain", free_port()
    preallocate(target, pair.size)
    os.sync()
    server = shop.start(["nbdkit", "-f", "-i", "127.0.0.1", "-p", port, "-r", "file", pair.a["disk"], "cache=none"], log="nbdkit.log")
    uri = f"nbd://127.0.0.1:{port}"
    wait_until(lambda: nbd_size(uri), "nbdkit to serve", 10, alive=[server])
    took = timed(lambda: run(["nbdcopy", "--flush", uri, target], seconds=300))
    server.terminate()
    server.wait(10)
    target.unlink()
    return took


def read_both(pair):
    """Both disks from end to end, at one time."""
    def read(node):
        run(["dd", f"if={node['disk']}", "of=/dev/null", "bs=1M", "iflag=direct"], seconds=300)

    with concurrent.futures.ThreadPoolExecutor(2) as both:
        list(both.map(read, (pair.a, pair.b)))


def under_a_client(pair, options):
    """The p99 of a client alone, and while a copy is brought level; and how long that takes then."""
    alone = fio(nbd_target(pair.box.uri), CLIENT, options.size, options.seconds)
    pair.make_anew()
    took, began = [], time.monotonic()
    # Processes are started by the main thread.
    pair.box.start_node(pair.b)
    filling = threading.Thread(target=lambda: (pair.wait_level(), took.append(time.monotonic() - began)))
    filling.start()
    both = fio(nbd_target(pair.box.uri), CLIENT, options.size, options.seconds)
    filling.join()
    return {"alone_us": alone["lat_us"]["p99"], "both_us": both["lat_us"]["p99"], "seconds": took[0]}


def recovery(pair, options):
    """From kill -9 of a primary with a full journal to the first write that it answers again."""
    fio(nbd_target(pair.box.uri), LOAD, options.size, options.seconds)
    used = pair.box.volume_status(pair.a)["ring"]["used_bytes"]
    pair.kill(pair.a)
    began = time.monotonic()
    pair.box.start_node(pair.a)
    wait_until(lambda: pair.box.command("promote", VOLUME, "--control", pair.a["control"], check=False).returncode == 0,
               "it to be promoted", 60)
    client = Nbd(pair.a["nbd_uri"].split("socket=")[1], 60)

    def opened():
        try:
            client.open()
        except OSError:
            return False
        return True

    wait_until(opened, "the export to open", 30)
    client.write(0, bytes(BLOCK))
    took = time.monotonic() - began
    client.close()
    pair.wait_level()
    return {"seconds": took, "ring_used_bytes": used}


def rot(pair):
    """A damaged block is read; another one is searched for."""
    client = Nbd(pair.a["nbd_uri"].split("socket=")[1], 60)
    client.open()
    last = pair.size // BLOCK - 1
    sound = client.read(last // 2 * BLOCK, BLOCK)
    pair.damage(last // 2)
    began = time.monotonic()
    read = client.read(last // 2 * BLOCK, BLOCK)
    took = time.monotonic() - began
    client.close()
    if read != sound:
        raise Failure("a damaged block was served")
    before = pair.mended()
    pair.damage(last)
    began = time.monotonic()
    found = pair.waited("scrub")
    wait_until(lambda: pair.mended() > before, "the block to be mended", 30)
    return {"read_seconds": took, "scrub_seconds": time.monotonic() - began, "bad_bytes": found["bad_bytes"]}


def measure(options):
    rounds = range(options.rounds)
    found = {key: [] for key in ("resync", "copy", "verify", "read", "client", "recovery", "rot")}
    with Workshop("repair", parent=options.dir or str(report.ROOT / "target" / "bench")) as shop:
        facts = machine_facts()
        pair = Pair(shop, options)
        for turn in rounds:
            print(f"round {turn + 1}/{options.rounds}", flush=True)
            found["copy"].append(plain_copy(shop, pair))
            pair.make_anew()
            found["resync"].append(timed(pair.fill_anew))
            found["read"].append(timed(read_both, pair))
            found["verify"].append(timed(pair.waited, "verify"))
            found["client"].append(under_a_client(pair, options))
            found["recovery"].append(recovery(pair, options))
        pair.box.stop_all()
        summed = Pair(shop, options, ("--checksums", "on"), "summed")
        found["rot"] = [rot(summed) for _ in rounds]
        summed.box.stop_all()
    return facts, found


def main():
    options = arguments()
    facts, found = measure(options)
    mib = parse_size(options.size) / (1 << 20)

    def speed(key):
        return [mib / seconds for seconds in found[key]]

    def paired(one, other, bound, *, lowest):
        median, low, high = report.paired_ratio(one, other)
        kept = median >= bound if lowest else median <= bound
        return [f"{median:.2f} ({low:.2f} .. {high:.2f})", f"{'at least' if lowest else 'at most'} {bound:g}", "yes" if kept else "NO"]

    def of(key, what, factor=1.0):
        return [one[what] * factor for one in found[key]]

    used = human(statistics.median(of("recovery", "ring_used_bytes")))
    rows = [
        ["a copy made anew, at rest, MiB/s", report.spread(speed("resync")), "", ""],
        ["a plain copy over TCP, MiB/s", report.spread(speed("copy")), "", ""],
        ["the one to the other", *paired(speed("resync"), speed("copy"), 0.8, lowest=True)],
        ["a client's p99 alone, µs", report.spread(of("client", "alone_us")), "", ""],
        ["a client's p99 meanwhile, µs", report.spread(of("client", "both_us")), "", ""],
        ["the one to the other", *paired(of("client", "both_us"), of("client", "alone_us"), 2, lowest=False)],
        ["verify, MiB/s", report.spread(speed("verify")), "", ""],
        ["reading both disks, MiB/s", report.spread(speed("read")), "", ""],
        ["the one to the other", *paired(speed("verify"), speed("read"), 0.8, lowest=True)],
        [f"from kill -9, {used} in the journal, to a write, ms", report.spread(of("recovery", "seconds", 1000)), "", ""],
        ["a damaged block is read, ms", report.spread(of("rot", "read_seconds", 1000)), "", ""],
        ["a damaged block is searched for and mended, ms", report.spread(of("rot", "scrub_seconds", 1000)), "", ""],
    ]
    table = (f"A volume of {options.size}, all of it written, two replicas on one disk, {options.rounds} rounds.\n\n"
             + report.markdown(["figure", "value", "bound", "kept"], rows))
    report.publish("repair", "Bringing level, comparing, mending", facts, table, {"found": found}, options)


if __name__ == "__main__":
    report.run(main)
