"""Memory and start-up time of replicators with a large, sparse volume.

Measures the sandbox's start, each node's memory at rest, under load and after it, and how long a killed
secondary takes to answer again.
"""

import argparse
import os
import signal

import report
from fio import Workload, fio, nbd_target
from harness import Sandbox, Workshop, is_running, machine_facts, memory, wait_until

LIMIT_MIB, LIMIT_SECONDS = 200, 1.0


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench memory", description=__doc__)
    parser.add_argument("--size", default="1T", help="size of the volume (1T)")
    parser.add_argument("--journal-size", default="256M", help="size of each journal (256M)")
    parser.add_argument("--seconds", type=float, default=10, help="length of the load (10)")
    parser.add_argument("--dir", help="a folder on a file system that takes sparse files of that size (target/bench)")
    report.add_storing(parser, "memory")
    return parser.parse_args()


def mib(value):
    return value / (1 << 20)


def main():
    options = arguments()
    with Workshop("memory", parent=options.dir or str(report.ROOT / "target" / "bench")) as shop:
        facts = machine_facts()
        sandbox = Sandbox(shop, size=options.size, nodes=2, protocol="C", journal_size=options.journal_size,
                          ready_seconds=120)
        stages = {"at rest": {name: memory(pid) for name, pid in sandbox.pids.items()}}
        work = Workload("load", "", "randwrite", "4k", 32, "IOPS")
        load = fio(nbd_target(sandbox.uri), work, options.size, options.seconds,
                   # Over the whole volume; without a map of blocks already written, which fio would keep for 1 TiB.
                   ["--norandommap", "--random_generator=tausworthe64"])
        stages["after load"] = {name: memory(pid) for name, pid in sandbox.pids.items()}
        node = sandbox.others()[0]
        os.kill(node["pid"], signal.SIGKILL)
        wait_until(lambda: not is_running(node["pid"]), "the secondary to die", 10)
        restart = sandbox.start_node(node)
        stages["after restart"] = {name: memory(pid) for name, pid in sandbox.pids.items()}
    rows = [[f"{name}, {stage}"] + [f"{mib(values[key]):.1f}" for key in ("VmRSS", "VmHWM", "VmLck")]
            for stage, nodes in stages.items() for name, values in nodes.items()]
    peak = max(mib(values["VmHWM"]) for nodes in stages.values() for values in nodes.values())

    def verdict(good):
        return "yes" if good else "NO"

    table = (f"A volume of {options.size}, two replicas, {load['ops']:,} random writes of 4 KiB over all of it.\n\n"
             + report.markdown(["node", "VmRSS MiB", "VmHWM MiB", "VmLck MiB"], rows) + "\n\n"
             + report.markdown(["figure", "value", "bound", "kept"], [
                 ["highest memory of a replicator, MiB", f"{peak:.1f}", str(LIMIT_MIB), verdict(peak < LIMIT_MIB)],
                 ["sandbox: from nothing to ready, s", f"{sandbox.ready_seconds:.3f}", "-", "-"],
                 ["replicator: from killed to answering, s", f"{restart:.3f}", f"{LIMIT_SECONDS:g}", verdict(restart < LIMIT_SECONDS)]]))
    results = {"stages": stages, "ready_seconds": sandbox.ready_seconds, "restart_seconds": restart, "load": load}
    report.publish("memory", "Memory and start-up of a large volume", facts, table, results, options)


if __name__ == "__main__":
    report.run(main)
