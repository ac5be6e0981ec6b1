"""Plays the record that tests/lab/replay made of a replica's disks, entry by entry, and asks at every point what the
replica holds: after each entry, and in the middle of each write longer than a sector, since the power may go there. It must
be every write that was durable by then, and no other. `holdfast extract` tells it, which recovers as a start does.

  replay.py RECORD BEFORE     $HOLDFAST is the command
"""

import os
import subprocess
import sys
import tempfile

# As in tests/lab/replay.
DISK_BYTES = 32 << 20
WRITES, BLOCKS, BLOCK_BYTES = 20, 8, 4096

SECTOR = 512
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
SHOWN = 10  # failures told one by one


class Illegal(Exception):
    """What the replica holds is not what it must hold."""


class Record:
    """What dm-log-writes has written: a head, then entries of a sector each, with their data behind them."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.bytes = file.read()
        self.count = self.number(16)

    def number(self, at):
        return int.from_bytes(self.bytes[at:at + 8], "little")

    def __iter__(self):
        at = SECTOR
        for _ in range(self.count):
            sector, sectors, flags, length = (self.number(at + 8 * field) for field in range(4))
            at += SECTOR
            if flags & MARK:
                yield flags, sector, self.bytes[at - SECTOR + 32:at - SECTOR + 32 + length]
            else:
                yield flags, sector, self.bytes[at:at + sectors * SECTOR]
            at += sectors * SECTOR


class Replica:
    """Its disk and its journal, as images."""

    def __init__(self, folder, before):
        self.paths = [os.path.join(folder, name) for name in ("disk", "journal")]
        with open(before, "rb") as file:
            contents = file.read(DISK_BYTES), file.read()
        for path, content in zip(self.paths, contents):
            with open(path, "wb") as file:
                file.write(content)
        self.files = [open(path, "r+b", buffering=0) for path in self.paths]

    def put(self, sector, data):
        offset = sector * SECTOR
        file, offset = (self.files[1], offset - DISK_BYTES) if offset >= DISK_BYTES else (self.files[0], offset)
        os.pwrite(file.fileno(), data, offset)

    def check(self, durable):
        """Raises Illegal unless the numbers are as they must be. Before the first mark nothing is known of them."""
        words = ["extract", "--disk", self.paths[0], "--journal", self.paths[1], "--length", str(BLOCKS * BLOCK_BYTES)]
        done = subprocess.run([os.environ["HOLDFAST"], *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        if done.returncode != 0:
            raise Illegal(f"exit code {done.returncode}: {done.stderr.decode().strip()}")
        if durable is None:
            return
        for block in range(BLOCKS):
            found = done.stdout[block * BLOCK_BYTES:(block + 1) * BLOCK_BYTES].strip(b" \n\0")
            last = max(0, durable - (durable - block) % BLOCKS)
            allowed = {str(last).encode()}
            if (durable + 1) % BLOCKS == block:
                allowed.add(str(durable + 1).encode())
            if found not in allowed:
                raise Illegal(f"block {block} holds {found[:20]!r}, not {last}")


def points(record, replica):
    """Plays everything; at each point, where that is and how many numbers are durable."""
    durable = None
    for index, (flags, sector, data) in enumerate(record, start=1):
        if flags & MARK:
            # The last mark is the mapper's own, and no number.
            durable = int(data) if data.isdigit() else durable
        elif flags & DISCARD:
            sys.exit(f"entry {index} is a discard, which is not played here")
        elif len(data) > SECTOR:
            half = len(data) // SECTOR // 2 * SECTOR
            replica.put(sector, data[:half])
            yield f"half of entry {index}", durable
            replica.put(sector, data)
        elif data:
            replica.put(sector, data)
        yield f"entry {index}", durable


def main():
    record = Record(sys.argv[1])
    flushes = sum(1 for flags, _, _ in record if flags & (FLUSH | FUA))
    wrong, count, durable = [], 0, None
    with tempfile.TemporaryDirectory() as folder:
        replica = Replica(folder, sys.argv[2])
        for where, durable in points(record, replica):
            count += 1
            try:
                replica.check(durable)
            except Illegal as error:
                wrong.append(f"{where}, durable up to number {durable}: {error}")
    if durable != WRITES or flushes < WRITES // 2:
        wrong.append(f"the record is not whole: the last mark is {durable}, and there are {flushes} flushes")
    print(f"        {record.count} entries with {flushes} flushes: {count} points")
    for text in wrong[:SHOWN]:
        print(f"  FAIL  {text}")
    print(f"{'FAIL' if wrong else 'PASS'}: {count - min(count, len(wrong))} passed, {len(wrong)} failed")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
