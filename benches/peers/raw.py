"""Random writes on a real disk: Holdfast, with both replicas on that disk, beside fio on a raw file there.

The raw file is the ceiling: one O_DIRECT write for each operation, nothing replicated, no journal. Holdfast
writes each byte four times to the same disk here: two journals, two copies.
"""

import argparse
import os
import pathlib
import statistics

import report
from fio import Workload, figure, file_target, fio, nbd_target
from harness import Failure, Sandbox, Workshop, cpu_seconds, machine_facts, parse_size, steal_ticks
from systems import preallocate

ENGINES = ["io_uring", "libaio"]


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench raw", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="length of one measurement (5)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each (3)")
    parser.add_argument("--size", default="1G", help="size of the file and the volume (1G)")
    parser.add_argument("--journal-size", default="1G", help="Holdfast's journal (1G)")
    parser.add_argument("--depths", default="1,32", help="queue depths, separated by commas (1,32)")
    parser.add_argument("--block", default="4k", help="size of a write (4k)")
    parser.add_argument("--fsync", type=int, default=0, help="a flush after every so many writes (0: none)")
    parser.add_argument("--dir", help="a folder on the disk (target/bench)")
    parser.add_argument("--only", default="", help="of " + ", ".join(ENGINES + ["holdfast"]))
    report.add_storing(parser, "raw")
    options = parser.parse_args()
    options.only = [name for name in options.only.split(",") if name] or [*ENGINES, "holdfast"]
    for name in options.only:
        if name not in [*ENGINES, "holdfast"]:
            parser.error(f"no system {name!r}; there are: {', '.join(ENGINES)}, holdfast")
    try:
        depths = [int(word) for word in options.depths.split(",")]
    except ValueError:
        parser.error(f"--depths {options.depths!r}: not numbers separated by commas")
    options.works = [Workload(f"randwrite-qd{depth}", f"{options.block} randwrite qd{depth}", "randwrite", options.block,
                              depth, "IOPS") for depth in depths]
    return options


def main():
    options = arguments()
    place = options.dir or str(report.ROOT / "target" / "bench")
    extra = [f"--fsync={options.fsync}"] if options.fsync else []
    fill = Workload("fill", "", "write", "1m", 8, "")
    results = {work.name: {name: [] for name in options.only} for work in options.works}
    with Workshop("raw", parent=place) as shop:
        if is_in_memory(shop.folder):
            raise Failure(f"{shop.folder} is in memory, not on a disk: name a folder on a disk with --dir")
        facts, steal = machine_facts(), steal_ticks()
        targets, pids = {}, {}
        for name in options.only:
            if name == "holdfast":
                sandbox = Sandbox(shop, size=options.size, nodes=2, protocol="C", journal_size=options.journal_size)
                targets[name], pids[name] = nbd_target(sandbox.uri), sandbox.pids
                fio(targets[name], fill, options.size)
            else:
                path = shop.folder / f"raw-{name}"
                preallocate(path, parse_size(options.size))
                targets[name], pids[name] = file_target(path, name), {}
                fio(targets[name], fill, options.size)
            os.sync()
        for turn in range(options.rounds):
            for work in options.works:
                start = turn % len(options.only)
                for name in options.only[start:] + options.only[:start]:
                    before = {node: cpu_seconds(pid) for node, pid in pids[name].items()}
                    result = fio(targets[name], work, options.size, options.seconds, extra)
                    result["cpu_us_per_op"] = {node: (cpu_seconds(pid) - before[node]) * 1e6 / max(1, result["ops"])
                                               for node, pid in pids[name].items()}
                    results[work.name][name].append(result)
                    print(f"round {turn + 1}/{options.rounds}  {work.title:20} {name:9} "
                          f"{report.number(figure(work, result)):>9} {work.unit}", flush=True)
        now = steal_ticks()
        facts["steal_percent"] = 100 * (now[0] - steal[0]) / max(1, now[1] - steal[1])
    rows = []
    for work in options.works:
        raw = [name for name in options.only if name != "holdfast"]
        for name in options.only:
            done = results[work.name][name]
            values = [figure(work, result) for result in done]
            ratio = report.paired_ratio(values, [figure(work, result) for result in results[work.name][raw[0]]]) if raw else None
            cpu = " + ".join(f"{node} {statistics.median(r['cpu_us_per_op'][node] for r in done):.1f}" for node in pids[name])
            rows.append([f"{work.title}, {name}", report.spread(values), report.ratio(ratio and ratio[0]),
                         report.number(statistics.median(r["lat_us"]["p50"] for r in done)),
                         report.number(statistics.median(r["lat_us"]["p99"] for r in done)), cpu or "-"])
    flushes = f", a flush after every {options.fsync} writes" if options.fsync else ", no flushes"
    table = (f"Random writes of {options.block} on a disk, O_DIRECT{flushes}, {options.size}, {options.rounds} rounds of "
             f"{options.seconds:g} s.\n\n" + report.markdown(
                 ["workload, system", "IOPS", f"ratio to {next((n for n in options.only if n != 'holdfast'), '-')}",
                  "p50 µs", "p99 µs", "CPU µs each op by node"], rows))
    report.publish("raw", "Random writes on a real disk", facts, table, {"results": results}, options)


def is_in_memory(folder):
    """Whether a folder is on tmpfs or the like."""
    best, kind = "", ""
    for line in pathlib.Path("/proc/self/mounts").read_text().splitlines():
        _, where, what = line.split()[:3]
        if (str(folder) + "/").startswith(where.rstrip("/") + "/") and len(where) >= len(best):
            best, kind = where, what
    return kind in ("tmpfs", "ramfs")


if __name__ == "__main__":
    report.run(main)
