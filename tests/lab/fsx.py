#!/usr/bin/python3 -IS
"""Does to one file what applications do, in an order that its seed gives, and compares with a copy in memory: writes and
reads through the page cache, past it and through memory maps; truncation both ways, holes, zeroes; syncs, reopening, and
caches dropped in between. After fsx of Apple and the BSDs.

  fsx.py FILE SEED OPERATIONS
"""

import mmap
import os
import sys
from random import Random

LONGEST = 256 * 1024  # bytes of the file, at most
PAGE = 4096  # what direct I/O is a multiple of
STEPS_SHOWN = 20


class Differs(Exception):
    """The file does not hold what was written."""


class Subject:
    """The file, and what it should hold."""

    def __init__(self, path, random):
        self.path, self.random = path, random
        self.expected = bytearray()
        self.steps = []
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)

    def place(self):
        """A range within what the file may become."""
        offset = self.random.randrange(LONGEST)
        return offset, self.random.randrange(1, min(LONGEST - offset, 64 * 1024) + 1)

    def inside(self):
        """A range within the file, none if that is empty."""
        size = len(self.expected)
        if size == 0:
            return None
        offset = self.random.randrange(size)
        return offset, self.random.randrange(1, size - offset + 1)

    def note(self, *words):
        self.steps.append(" ".join(str(word) for word in words))

    def put(self, offset, data):
        end = offset + len(data)
        if end > len(self.expected):
            self.expected.extend(bytes(end - len(self.expected)))
        self.expected[offset:end] = data

    def check(self, offset, found):
        wanted = self.expected[offset:offset + len(found)]
        if found == wanted:
            return
        at = next(at for at, (is_, should) in enumerate(zip(found, wanted)) if is_ != should)
        raise Differs(f"byte {offset + at} is {found[at]} and not {wanted[at]}")

    # --- what is done to it -----------------------------------------------------------------------------------

    def write(self):
        offset, length = self.place()
        self.note("write", offset, length)
        data = self.random.randbytes(length)
        written = 0
        while written < length:
            written += os.pwrite(self.file, data[written:], offset + written)
        self.put(offset, data)

    def write_direct(self):
        offset = self.random.randrange(LONGEST // PAGE) * PAGE
        length = self.random.randrange(1, 9) * PAGE
        self.note("write past the cache", offset, length)
        data = self.random.randbytes(length)
        with mmap.mmap(-1, length) as aligned:
            aligned[:] = data
            file = os.open(self.path, os.O_WRONLY | os.O_DIRECT)
            try:
                if os.pwrite(file, aligned, offset) != length:
                    raise Differs("a write past the cache was short")
            finally:
                os.close(file)
        self.put(offset, data)

    def write_mapped(self):
        place = self.inside()
        if place is None:
            return
        offset, length = place
        self.note("write mapped", offset, length)
        data = self.random.randbytes(length)
        with mmap.mmap(self.file, len(self.expected)) as mapped:
            mapped[offset:offset + length] = data
            if self.random.random() < 0.5:
                mapped.flush()
        self.put(offset, data)

    def read(self):
        place = self.inside()
        if place is None:
            return
        offset, length = place
        self.note("read", offset, length)
        found = os.pread(self.file, length, offset)
        if len(found) != length:
            raise Differs(f"{len(found)} bytes were read and not {length}")
        self.check(offset, found)

    def read_mapped(self):
        place = self.inside()
        if place is None:
            return
        offset, length = place
        self.note("read mapped", offset, length)
        with mmap.mmap(self.file, len(self.expected), prot=mmap.PROT_READ) as mapped:
            self.check(offset, mapped[offset:offset + length])

    def truncate(self):
        size = self.random.randrange(LONGEST + 1)
        self.note("truncate", size)
        os.ftruncate(self.file, size)
        has = len(self.expected)
        self.expected = self.expected[:size] + bytearray(max(0, size - has))

    def zero(self):
        place = self.inside()
        if place is None:
            return
        offset, length = place
        how = self.random.choice(["--punch-hole", "--zero-range"])
        self.note(how, offset, length)
        words = ["fallocate", how, "-o", str(offset), "-l", str(length), self.path]
        child = os.posix_spawn("/usr/bin/fallocate", words, os.environ)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != 0:
            raise Differs(f"fallocate {how} ended with {status}")
        self.put(offset, bytes(length))

    def sync(self):
        self.note("sync")
        os.fsync(self.file)

    def reopen(self):
        self.note("reopen")
        os.close(self.file)
        self.file = os.open(self.path, os.O_RDWR)

    def forget(self):
        """What is read next comes from the device."""
        self.note("sync and drop caches")
        os.fsync(self.file)
        with open("/proc/sys/vm/drop_caches", "wb") as file:
            file.write(b"1")

    def whole(self):
        self.note("read it all")
        size = os.fstat(self.file).st_size
        if size != len(self.expected):
            raise Differs(f"it has {size} bytes and not {len(self.expected)}")
        self.check(0, os.pread(self.file, LONGEST + PAGE * 16, 0))

    def run(self, operations):
        often = [self.write, self.write_direct, self.write_mapped, self.read, self.read_mapped] * 4
        seldom = [self.truncate, self.zero, self.sync, self.reopen, self.forget, self.whole]
        for _ in range(operations):
            self.random.choice(often + seldom)()
        self.forget()
        self.whole()


def main():
    path, seed, operations = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    subject = Subject(path, Random(seed))
    try:
        subject.run(operations)
    except Differs as error:
        steps = "\n  ".join(subject.steps[-STEPS_SHOWN:])
        sys.exit(f"fsx, seed {seed}, step {len(subject.steps)}: {error}. The last steps:\n  {steps}")
    print(f"fsx: {len(subject.steps)} steps, seed {seed}, {len(subject.expected)} bytes in the end")


if __name__ == "__main__":
    main()
