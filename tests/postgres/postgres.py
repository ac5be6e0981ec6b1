"""The main job on real input: PostgreSQL survives the death of the primary with nothing acknowledged lost."""

import argparse
import os
import pathlib
import pwd
import random
import shutil
import signal
import sys
import time

from harness import BACKENDS, Failure, Report, Workshop, is_running, open_backend, parse_size, run, stop, wait_until
from ledger import TABLE, Connection, Ledger, ServerError

PORT = 54329
PLACES = {"holdfast": "a replicated volume", "nbdkit": "a plain file (control)",
          "lying": "a server that ignores FLUSH (control, must fail)"}
# On the command line, not in a file on the volume: what a test writes there without fsync may be lost, rightly.
SETTINGS = {"listen_addresses": "", "shared_buffers": "32MB", "max_connections": "30", "min_wal_size": "32MB",
            "max_wal_size": "96MB", "checkpoint_timeout": "30s", "logging_collector": "off", "autovacuum_naptime": "5s",
            # On the volume, so that a killed server leaves nothing in the machine's shared memory.
            "dynamic_shared_memory_type": "mmap"}


def postgres_tools():
    """The folder of the newest PostgreSQL's programs."""
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if not found:
        raise Failure("no PostgreSQL server programs under /usr/lib/postgresql: apt-get install postgresql")
    return found[-1].parent


class Stack:
    """NBD export -> nbdfuse (a file) -> loop device -> ext4 mount. `down` takes apart whatever is up.

    The loop device is told to go as soon as it is mounted, so it ends with the mount; and the mounts live in
    a namespace of this test. So even a test that is killed leaves nothing behind.
    """

    def __init__(self, shop, name):
        self.shop, self.name = shop, name
        self.fuse = shop.folder / f"{name}-fuse"
        self.mountpoint = shop.folder / f"{name}-mnt"
        self.file = self.fuse / "disk"
        self.loop = self.process = None
        shop.undo(self.down)

    def attach(self, uri):
        """The export as a file."""
        self.fuse.mkdir()
        self.mountpoint.mkdir()
        self.process = self.shop.start(["nbdfuse", self.file, uri], log=f"{self.name}-nbdfuse.log")

        def size():
            try:
                return self.file.stat().st_size
            except OSError:
                return 0

        wait_until(size, "nbdfuse", 15, alive=[self.process])

    def mount(self):
        done = run(["losetup", "-f", "--show", "--direct-io=on", self.file], check=False, split=True)
        if done.returncode != 0:
            done = run(["losetup", "-f", "--show", self.file], split=True)
        self.loop = done.stdout.strip()
        try:
            direct = pathlib.Path(f"/sys/block/{os.path.basename(self.loop)}/loop/dio").read_text().strip()
            run(["mount", "-t", "ext4", "-o", "noatime", self.loop, self.mountpoint])
        finally:
            run(["losetup", "-d", self.loop])
        return f"{self.loop}, direct I/O {'on' if direct == '1' else 'off'}"

    def _released(self):
        """True when the loop device is no longer ours."""
        try:
            backing = pathlib.Path(f"/sys/block/{os.path.basename(self.loop)}/loop/backing_file").read_text()
        except OSError:
            return True
        return str(self.file) not in backing

    def unmount(self):
        run(["umount", self.mountpoint])
        wait_until(self._released, f"{self.loop} to be released", 15)

    def detach(self):
        """A clean end, everything written."""
        run(["umount", self.fuse])
        self.process.wait(15)

    def down(self):
        """Takes everything apart although the server below may be dead."""
        # Without nbdfuse the file answers with errors at once, so nothing hangs on it any more.
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        for place in (self.mountpoint, self.fuse):
            if f" {place} " in pathlib.Path("/proc/self/mounts").read_text():
                if run(["umount", place], check=False).returncode != 0:
                    run(["umount", "-l", place], check=False)
        if self.loop:
            wait_until(self._released, f"{self.loop} to be released", 15)


class Database:
    """One PostgreSQL server as the user postgres, its data in `data`, all else beside the volume."""

    def __init__(self, shop, data):
        self.shop, self.data, self.tools = shop, data, postgres_tools()
        self.process = None
        account = pwd.getpwnam("postgres")
        self.user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self.sockets = shop.folder / "pg-sockets"
        if not self.sockets.exists():
            self.sockets.mkdir()
            os.chown(self.sockets, account.pw_uid, account.pw_gid)
        self.socket = self.sockets / f".s.PGSQL.{PORT}"
        self.environment = {"PATH": f"{self.tools}:{os.environ['PATH']}", "PGHOST": str(self.sockets), "PGPORT": str(PORT),
                            "PGUSER": "postgres", "PGDATABASE": "postgres", "LC_ALL": "C.UTF-8", "HOME": "/"}

    def run(self, *words, **options):
        return run(words, env=self.environment, cwd="/", **self.user, **options)

    def create(self):
        self.data.mkdir()
        os.chown(self.data, self.user["user"], self.user["group"])
        self.run(self.tools / "initdb", "-k", "-A", "trust", "-U", "postgres", "-D", self.data)

    def start(self, log):
        """Starts the server; returns how long until it answered (recovery included)."""
        began = time.monotonic()
        # Its own child, not pg_ctl's: so that its death is seen and no zombie keeps its process id.
        self.process = self.shop.start(
            [self.tools / "postgres", "-D", self.data, "-p", PORT, "-k", self.sockets,
             *(word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}"))], log=log, cwd="/",
            env=self.environment, stop_signal=signal.SIGQUIT, **self.user)
        # Whatever way the test ends: nothing is worth saving then.
        self.shop.undo(self.kill)
        wait_until(self._answers, "PostgreSQL to answer", 90, alive=[self.process])
        return time.monotonic() - began

    def _answers(self):
        try:
            connection = Connection(self.socket, timeout=5)
            connection.query("select 1")
            connection.close()
            return True
        except (OSError, ServerError):
            return False

    def query(self, text):
        connection = Connection(self.socket, timeout=60)
        try:
            return connection.query(text)
        finally:
            connection.close()

    def stop(self):
        code = stop(self.process, signal.SIGINT, 60)
        if code != 0:
            raise Failure(f"PostgreSQL ended with code {code}")

    def kill(self):
        """The machine is gone, as far as PostgreSQL can tell: all its processes die at once."""
        if self.process.poll() is not None:
            self.remove_shared_memory()
            return
        everyone = [self.process.pid]
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[1]) == self.process.pid:
                    everyone.append(int(entry.name))
        for pid in everyone:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait(10)
        wait_until(lambda: not any(is_running(pid) for pid in everyone), "PostgreSQL's processes to die", 30)
        self.remove_shared_memory()

    def remove_shared_memory(self):
        """The one System V segment that a killed server leaves behind: the one its first process created."""
        for line in pathlib.Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[4]) == self.process.pid:
                run(["ipcrm", "-m", fields[1]], check=False)

    def start_pgbench(self, seconds, log):
        return self.shop.start([self.tools / "pgbench", "-n", "-c", 4, "-j", 1, "-T", seconds], log=log, cwd="/",
                               env=self.environment, **self.user)

    def sums(self):
        """pgbench's invariant: all four sums are equal. And how many transactions there are."""
        row = self.query("select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches), "
                         "(select sum(tbalance) from pgbench_tellers), (select coalesce(sum(delta), 0) from pgbench_history), "
                         "(select count(*) from pgbench_history)")[0]
        if len(set(row[:4])) != 1:
            raise Failure(f"the sums of accounts, branches, tellers and history differ: {row[:4]}")
        return int(row[4])


class Test:
    def __init__(self, shop, report, options):
        self.shop, self.report, self.options = shop, report, options
        self.random = random.Random(options.seed)

    def start(self):
        self.backend = open_backend(self.options.backend, self.shop, size=self.options.size, protocol="C",
                                    journal_size=self.options.journal_size, keep=True)
        return ", ".join(f"{name} is process {pid}" for name, pid in self.backend.pids.items())

    def make_file_system(self):
        self.before = Stack(self.shop, "before")
        self.before.attach(self.backend.uri)
        run(["mkfs.ext4", "-q", "-F", self.before.file])
        return self.before.mount()

    def make_database(self):
        self.database = Database(self.shop, self.before.mountpoint / "pg")
        self.database.create()
        self.database.start("postgres-before.log")
        self.database.run(self.database.tools / "pgbench", "-i", "-q", "-s", self.options.scale)
        self.database.query(TABLE)
        self.database.query("create extension amcheck")
        return self.database.query("select version()")[0][0].split(" on ")[0]

    def load_and_kill(self):
        self.pgbench = self.database.start_pgbench(120, "pgbench-before.log")
        self.ledger = Ledger(self.database.socket, self.shop.folder / "acknowledged", 4, self.options.seed)
        began = time.monotonic()
        length = self.options.seconds + self.random.random()

        def enough():
            if self.ledger.ends:
                raise Failure(f"the load ended by itself: {self.ledger.ends}")
            return time.monotonic() - began > length and self.ledger.total() > 100

        wait_until(enough, f"{length:.1f} s of load with over 100 commits", length + 60, every=0.001,
                   alive=[self.pgbench, self.database.process])
        at_kill = self.ledger.total()
        self.killed = time.monotonic()
        self.backend.kill_primary()
        return f"after {length:.1f} s of load, {at_kill:,} acknowledged commits (and pgbench's)"

    def lose_machine(self):
        self.before.process.kill()
        self.before.process.wait(10)
        self.database.kill()
        if not self.ledger.join(30):
            raise Failure("sessions of the ledger hang")
        stop(self.pgbench)
        self.before.down()
        text = pathlib.Path(self.shop.folder / "acknowledged").read_text().splitlines()
        if len(text) != self.ledger.total():
            raise Failure(f"the file of acknowledged commits has {len(text)} lines, the sessions count {self.ledger.total()}")
        attempted = sum(self.ledger.attempted.values())
        return f"{self.ledger.total():,} commits acknowledged in all, {attempted - self.ledger.total()} in doubt"

    def promote(self):
        seconds = self.backend.promote_other()
        return f"{self.backend.primary['name']} serves after {seconds * 1000:.0f} ms"

    def mount_again(self):
        self.after = Stack(self.shop, "after")
        self.after.attach(self.backend.uri)
        self.after.mount()

    def recover(self):
        self.database = Database(self.shop, self.after.mountpoint / "pg")
        seconds = self.database.start("postgres-after.log")
        text = self.database.process.log.read_text()
        if "automatic recovery in progress" not in text:
            raise Failure("PostgreSQL did not recover: was it killed at all?")
        return f"in {seconds:.1f} s, {time.monotonic() - self.killed:.1f} s after the kill"

    def compare_ledger(self):
        rows = self.database.query("select session, number, payload from ledger")
        # Sequential scan and index must agree on what is there.
        count = int(self.database.query("set enable_seqscan = off; select count(*) from ledger where session >= 0")[0][0])
        wrong = self.ledger.check(rows)
        if count != len(rows):
            wrong.append(f"{len(rows)} rows by table, {count} by index")
        if wrong:
            raise Failure("\n".join(wrong))
        return f"{self.ledger.total():,} acknowledged, {len(rows):,} there, 0 lost, 0 wrong"

    def control_ledger(self):
        """The comparison itself must notice a lost row, a wrong one and a surplus one."""
        rows = [tuple(row) for row in self.database.query("select session, number, payload from ledger")]
        session, number, text = next(row for row in rows if row[1] == "1")
        damaged = [[row for row in rows if row[:2] != (session, number)], [(session, number, text[:-1]) if row[:2] == (session, number)
                   else row for row in rows], rows + [(session, str(10 ** 9), text)]]
        missed = [number for number, bad in enumerate(damaged) if not self.ledger.check(bad)]
        if missed:
            raise Failure(f"damage of kind {missed} was not noticed")

    def check_sums(self):
        return f"{self.database.sums():,} transactions of pgbench"

    def amcheck(self):
        self.database.run(self.database.tools / "pg_amcheck", "-d", "postgres", "--heapallindexed", "--parent-check", seconds=300)

    def work_on(self):
        before = self.database.sums()
        self.database.run(self.database.tools / "pgbench", "-n", "-c", 4, "-t", 50)
        after = self.database.sums()
        if after != before + 200:
            raise Failure(f"{after - before} transactions were added, expected 200")
        self.database.query("checkpoint")
        return "200 more transactions"

    def finish(self):
        self.database.stop()
        self.database.run(self.database.tools / "pg_checksums", "--check", "-D", self.database.data)
        self.after.unmount()
        return "no bad page checksum"

    def e2fsck(self):
        text = run(["e2fsck", "-fn", self.after.file]).stdout
        self.after.detach()
        return text.strip().splitlines()[-1].partition(": ")[2]

    def come_back(self):
        """The old primary returns and catches up."""
        node = self.backend.former
        seconds = self.backend.start_node(node)

        def level():
            status = self.backend.volume_status(self.backend.primary)
            return status and any(peer["node"] == node["name"] and peer["disk_state"] == "UpToDate"
                                  and peer["connection"] == "Established" and peer["member"] for peer in status["peers"])

        try:
            wait_until(level, f"{node['name']} to be UpToDate", 60)
        except Failure as failure:
            raise Failure(f"{failure}\nthe primary says: {self.backend.status(self.backend.primary)}\n"
                          f"{node['name']} says: {self.backend.status(node)}") from None
        return f"{node['name']} answered after {seconds * 1000:.0f} ms"

    def replicas_equal(self):
        self.backend.stop_all()
        first, *others = [node["disk"] for node in self.backend.nodes.values()]
        for other in others:
            run(["cmp", "-n", parse_size(self.options.size), first, other])
        return f"{len(others) + 1} copies of {self.options.size}"


def main():
    parser = argparse.ArgumentParser(prog="tests/postgres/run", description=__doc__)
    parser.add_argument("--backend", choices=list(BACKENDS), default="holdfast",
                        help="nbdkit: the control, the same steps on a plain file; lying: a server that ignores FLUSH, "
                             "on which the test must fail")
    parser.add_argument("--size", default="1G", help="size of the volume (1G)")
    parser.add_argument("--journal-size", default="256M", help="size of each journal (256M)")
    parser.add_argument("--scale", type=int, default=3, help="pgbench's scale (3: about 45 MiB)")
    parser.add_argument("--seconds", type=float, default=8, help="load before the kill (8)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="moment of the kill and the data")
    parser.add_argument("--dir", help="where the files are (the system's temporary folder)")
    parser.add_argument("--keep", action="store_true", help="keep the files")
    options = parser.parse_args()
    report = Report(f"PostgreSQL on ext4 on {PLACES[options.backend]}, seed {options.seed}")
    with Workshop("postgres", parent=options.dir, keep=options.keep) as shop:
        if shutil.disk_usage(shop.folder).free < 4 << 30:
            report.note("little space", f"under 4 GiB free in {shop.folder}")
        test = Test(shop, report, options)
        # Each step needs those before it, up to the checks, which stand alone.
        steps = [("the servers start", test.start), ("ext4 on a loop device over nbdfuse", test.make_file_system),
                 ("PostgreSQL, pgbench's tables, a ledger", test.make_database),
                 ("kill -9 of the primary under load", test.load_and_kill),
                 ("the database's machine is gone too", test.lose_machine), ("promotion", test.promote),
                 ("mounted again", test.mount_again), ("PostgreSQL recovers", test.recover)]
        checks = [("every acknowledged commit is there", test.compare_ledger),
                  ("that check notices damage", test.control_ledger), ("pgbench's sums agree", test.check_sums),
                  ("pg_amcheck --heapallindexed", test.amcheck), ("it works on", test.work_on),
                  ("clean stop, pg_checksums", test.finish), ("e2fsck -fn", test.e2fsck)]
        if options.backend == "holdfast":
            checks += [("the old primary returns", test.come_back), ("both disks are equal", test.replicas_equal)]
        good = all(report.step(what, action) for what, action in steps)
        if good:
            for what, action in checks:
                report.step(what, action)
        if report.failed:
            for log in sorted(shop.folder.glob("*.log")):
                tail = log.read_text(errors="replace").strip().splitlines()[-12:]
                if tail:
                    print(f"--- the end of {log.name}\n" + "\n".join(tail), flush=True)
    return report.close()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
