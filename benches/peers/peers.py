"""Holdfast beside its peers, on one machine, under one client (fio's nbd engine).

Systems alternate within each round, so that a slow phase of the machine meets all of them.
"""

import argparse
import shutil
import statistics

import report
from fio import WORKLOADS, Workload, figure, fio, nbd_target
from harness import Failure, Workshop, cpu_seconds, human, machine_facts, parse_size, steal_ticks
from systems import SYSTEMS, USUAL

# What each system keeps on the images' file system, in volumes.
COPIES = {"nbdkit": 1, "mirror": 2, "quorum": 2, "holdfast": 2, "checksums": 2, "bookmarks": 2}
# Which of them have journals.
OURS = ("holdfast", "checksums", "bookmarks")


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench peers", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4, help="length of one measurement (4)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each system and workload (3)")
    parser.add_argument("--size", default="1G", help="size of the volume (1G)")
    parser.add_argument("--journal-size", default="1G", help="Holdfast's journal (1G, so that it wraps while the volume is filled)")
    parser.add_argument("--only", default="", help="systems, separated by commas: " + ", ".join(SYSTEMS))
    parser.add_argument("--workloads", default="", help="workloads, separated by commas: " + ", ".join(w.name for w in WORKLOADS))
    parser.add_argument("--dir", help="where the images are (/dev/shm)")
    parser.add_argument("--disk", action="store_true", help="images on the disk under target/, with O_DIRECT where the system can")
    parser.add_argument("--qemu-aio", default="io_uring", choices=["threads", "io_uring"], help="how qemu does file I/O without O_DIRECT (io_uring, the faster)")
    parser.add_argument("--quorum-reads", default="fifo", choices=["fifo", "quorum"], help="qemu's quorum: read the local child, or both and compare (fifo)")
    report.add_storing(parser, None, "peers-shm or peers-disk")
    options = parser.parse_args()
    options.direct = options.disk
    options.only = [name for name in options.only.split(",") if name] or [kind.name for kind in USUAL]
    wanted = [name for name in options.workloads.split(",") if name]
    for name in options.only:
        if name not in SYSTEMS:
            parser.error(f"no system {name!r}; there are: {', '.join(SYSTEMS)}")
    for name in wanted:
        if name not in {work.name for work in WORKLOADS}:
            parser.error(f"no workload {name!r}; there are: {', '.join(w.name for w in WORKLOADS)}")
    options.works = [work for work in WORKLOADS if not wanted or work.name in wanted]
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    return options


def check_space(folder, options):
    need = sum(COPIES[name] for name in options.only) * parse_size(options.size)
    need += 2 * parse_size(options.journal_size) * sum(name in OURS for name in options.only)
    free = shutil.disk_usage(folder).free
    if free < need * 1.05:
        raise Failure(f"the images need {human(need)}, {folder} has {human(free)} free: try a smaller --size, or --only")


def measure(system, work, options):
    before = {name: cpu_seconds(pid) for name, pid in system.pids.items()}
    result = fio(nbd_target(system.uri), work, options.size, options.seconds)
    result["cpu_us_per_op"] = {name: (cpu_seconds(pid) - before[name]) * 1e6 / max(1, result["ops"])
                               for name, pid in system.pids.items()}
    return result


def tables(results, options):
    """results[workload][system] = list of results by round."""

    def values(work, name):
        return [figure(work, result) for result in results[work.name].get(name, ())]

    parts = []
    rows = []
    for name in options.only:
        rows.append([name] + [report.spread(values(work, name)) for work in options.works])
    parts.append(report.markdown(["system"] + [f"{work.title}, {work.unit}" for work in options.works], rows))
    others = ["nbdkit", "mirror"]
    if sum(name in OURS for name in options.only) > 1:
        others.append("holdfast")
    for other in others:
        if other not in options.only or len(options.only) < 2:
            continue
        rows = []
        for name in options.only:
            if name == other:
                continue
            row = [name]
            for work in options.works:
                found = report.paired_ratio(values(work, name), values(work, other))
                row.append("-" if not found else f"{found[0]:.2f} ({found[1]:.2f} .. {found[2]:.2f})")
            rows.append(row)
        parts.append(f"Ratios against {other}:\n\n" + report.markdown(["system"] + [w.title for w in options.works], rows))
    rows = []
    for work in options.works:
        for name in options.only:
            done = results[work.name].get(name, ())
            if not done:
                continue
            cpu = [statistics.median(r["cpu_us_per_op"][p] for r in done) for p in done[0]["cpu_us_per_op"]]
            rows.append([f"{work.title}, {name}",
                         " + ".join(f"{p} {c:.1f}" for p, c in zip(done[0]["cpu_us_per_op"], cpu)),
                         f"{sum(cpu):.1f}",
                         f"{statistics.median(r['fio_cpu_us_per_op'] for r in done):.1f}",
                         report.number(statistics.median(r["lat_us"]["p50"] for r in done)),
                         report.number(statistics.median(r["lat_us"]["p99"] for r in done))])
    parts.append("CPU microseconds for each operation by process, and latency in microseconds:\n\n" + report.markdown(
        ["workload, system", "by process", "sum", "fio", "p50", "p99"], rows))
    return "\n\n".join(parts)


def main():
    options = arguments()
    place = options.dir or (str(report.ROOT / "target" / "bench") if options.disk else "/dev/shm")
    label = options.label or ("peers-disk" if options.disk else "peers-shm")
    results = {work.name: {name: [] for name in options.only} for work in options.works}
    with Workshop("bench", parent=place) as shop:
        check_space(shop.folder, options)
        facts = machine_facts()
        steal = steal_ticks()
        systems = {}
        for name in options.only:
            print(f"starting {name}", flush=True)
            systems[name] = SYSTEMS[name](shop, shop.folder / name, options.size, options)
            # Written once from end to end before anything is measured: no holes, no first-touch costs.
            fio(nbd_target(systems[name].uri), Workload("fill", "", "write", "1m", 8, ""), options.size)
        for turn in range(options.rounds):
            for work in options.works:
                order = options.only[turn % len(options.only):] + options.only[:turn % len(options.only)]
                for name in order:
                    result = measure(systems[name], work, options)
                    results[work.name][name].append(result)
                    print(f"round {turn + 1}/{options.rounds}  {work.title:22} {name:9} "
                          f"{report.number(figure(work, result)):>9} {work.unit}", flush=True)
        differences = {name: system.check_replicas() for name, system in systems.items()}
        now = steal_ticks()
        facts["steal_percent"] = 100 * (now[0] - steal[0]) / max(1, now[1] - steal[1])
    where = ("on disk, O_DIRECT (nbdkit has none: page cache, advised to drop)" if options.disk else f"on {place}")
    heading = (f"Images {where}, {options.size}, {options.rounds} rounds of {options.seconds:g} s, "
               "all systems and fio on this machine.")
    table = heading + "\n\n" + tables(results, options)
    report.publish("peers", "Holdfast beside its peers", facts, table, {"results": results, "differences": differences}, options,
                   label)
    for name, difference in differences.items():
        if difference:
            print(f"WRONG: {name}: {difference}")
    return 1 if any(differences.values()) else 0


if __name__ == "__main__":
    report.run(main)
