"""fio as the client: one short job, its figures."""

import collections
import json

from harness import Failure, run

Workload = collections.namedtuple("Workload", "name title rw block depth unit")

WORKLOADS = [
    Workload("randwrite-qd32", "4 KiB randwrite qd32", "randwrite", "4k", 32, "IOPS"),
    Workload("randwrite-qd1", "4 KiB randwrite qd1", "randwrite", "4k", 1, "IOPS"),
    Workload("seqwrite", "1 MiB seq write qd8", "write", "1m", 8, "MiB/s"),
    Workload("randread-qd32", "4 KiB randread qd32", "randread", "4k", 32, "IOPS"),
]


def nbd_target(uri):
    return ["--ioengine=nbd", f"--uri={uri}"]


def file_target(path, engine):
    return [f"--ioengine={engine}", f"--filename={path}", "--direct=1"]


def fio(target, work, size, seconds=None, extra=()):
    """Runs fio; with `seconds` for that long, without them once over `size`. Returns its figures."""
    command = ["fio", f"--name={work.name}", *target, f"--rw={work.rw}", f"--bs={work.block}",
               f"--iodepth={work.depth}", f"--size={size}", "--randrepeat=0", "--output-format=json", *extra]
    if seconds:
        command += ["--time_based", f"--runtime={seconds}"]
    text = run(command, seconds=(seconds or 60) + 120).stdout
    try:
        # The nbd engine prints a greeting before the JSON.
        job = json.loads(text[text.index("\n{") if not text.startswith("{") else 0:])["jobs"][0]
    except (ValueError, KeyError, IndexError):
        raise Failure(f"fio's output is not understood:\n{text[:2000]}") from None
    if job["error"]:
        raise Failure(f"fio reports error {job['error']}:\n{text[:2000]}")
    way = job["read" if "read" in work.rw else "write"]
    percentiles = way["clat_ns"].get("percentile", {})
    return {
        "iops": way["iops"],
        "mib_s": way["bw_bytes"] / (1 << 20),
        "ops": way["total_ios"],
        "seconds": way["runtime"] / 1000,
        "lat_us": {"mean": way["clat_ns"]["mean"] / 1000,
                   "p50": percentiles.get("50.000000", 0) / 1000,
                   "p99": percentiles.get("99.000000", 0) / 1000,
                   "max": way["clat_ns"]["max"] / 1000},
        "fio_cpu_us_per_op": (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] * 1000
                             / max(1, way["total_ios"]),
    }


def figure(work, result):
    """The one number a workload is about."""
    return result["mib_s"] if work.unit == "MiB/s" else result["iops"]
