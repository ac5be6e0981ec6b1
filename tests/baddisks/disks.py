"""A disk that can fail: a file behind nbdkit's filters, mounted by nbdfuse, with a loop device on it.

```text
   holdfast --O_DIRECT--> /dev/loopN --> nbdfuse --> nbdkit [ error | cache | delay ] --> FILE.medium
                                                               ^ volatile: what was not flushed is lost when nbdkit is killed
```

The replica is told a symbolic link, which names the loop device of the moment.
"""

import mmap
import os
import signal

from harness import Failure, run, stop, wait_until


class Disk:
    """One disk. It is plugged in when it is made."""

    def __init__(self, shop, name, size, *, delay="1ms"):
        self.shop, self.size, self.delay = shop, size, delay
        self.path = shop.folder / name
        self.medium = shop.folder / f"{name}.medium"
        self.mount = shop.folder / f"{name}.mount"
        self.socket = shop.folder / f"{name}.nbdkit"
        self.bad = {what: shop.folder / f"{name}.{what}.bad" for what in ("pread", "pwrite")}
        with open(self.medium, "wb") as medium:
            medium.truncate(size)
        self.mount.touch()
        self.loop = self.kit = self.fuse = None
        shop.undo(self.unplug)
        self.plug()

    def plug(self):
        """The power comes on: what the medium has is there."""
        self.socket.unlink(missing_ok=True)
        errors = [f"error-{what}-{key}={value}" for what, trigger in self.bad.items()
                  for key, value in (("rate", "100%"), ("file", trigger))]
        self.kit = self.shop.start(
            ["nbdkit", "-f", "-U", self.socket, "--filter=error", "--filter=cache", "--filter=delay", "file", self.medium,
             "cache=writeback", f"wdelay={self.delay}", "error=EIO", *errors], log=f"{self.path.name}.nbdkit.log")
        wait_until(self.socket.exists, f"nbdkit to serve {self.path.name}", 10, alive=[self.kit])
        self.fuse = self.shop.start(["nbdfuse", self.mount, "--unix", self.socket], log=f"{self.path.name}.nbdfuse.log")
        wait_until(lambda: self.mount.stat().st_size == self.size, f"nbdfuse to mount {self.path.name}", 10, alive=[self.fuse])
        device = run(["losetup", "--find", "--show", "--direct-io=on", self.mount]).stdout.strip()
        self.loop = os.open(device, os.O_RDONLY)
        # It goes with the last one who has it open, whatever happens to this process.
        run(["losetup", "--detach", device])
        link = self.path.with_suffix(self.path.suffix + ".new")
        link.symlink_to(device)
        link.rename(self.path)

    def cut(self):
        """The power goes: what was not flushed is lost. Whoever uses the disk must be dead."""
        self.kit.send_signal(signal.SIGKILL)
        self.kit.wait(10)
        self._let_go()

    def unplug(self):
        """As at the end of a day: nothing is lost."""
        self._let_go()
        if self.kit:
            stop(self.kit)

    def _let_go(self):
        if self.loop is not None:
            os.close(self.loop)
            self.loop = None
        run(["umount", "--lazy", self.mount], check=False)
        if self.fuse and self.fuse.poll() is None:
            stop(self.fuse)

    def fail(self, what):
        """From now on each request of this kind (`pread`, `pwrite`) is an error."""
        self.bad[what].touch()

    def heal(self):
        for trigger in self.bad.values():
            trigger.unlink(missing_ok=True)


def write(disk, offset, byte, flush):
    """Past the page cache, into the cache of the disk, and from there to its medium if it is flushed."""
    page = mmap.mmap(-1, 4096)
    page.write(bytes([byte]) * 4096)
    file = os.open(disk.path, os.O_RDWR | os.O_DIRECT)
    try:
        os.pwrite(file, page, offset)
        if flush:
            os.fsync(file)
    finally:
        os.close(file)


def prove(shop):
    """A cut loses what was not flushed and nothing else, and errors are errors: else the test would prove nothing."""
    disk = Disk(shop, "proof", 1 << 20)
    write(disk, 0, 1, True)
    disk.fail("pwrite")
    try:
        write(disk, 4096, 2, True)
    except OSError:
        pass
    else:
        raise Failure("a write went through that was to fail")
    disk.heal()
    write(disk, 8192, 3, False)
    disk.cut()
    disk.plug()
    kept = disk.medium.read_bytes()
    if kept[:4096] != b"\1" * 4096:
        raise Failure("what was flushed is gone")
    if any(kept[8192:12288]):
        raise Failure("what was not flushed is still there: there is no cache to lose")
    disk.unplug()
    return "flushed: kept; not flushed: lost; told to fail: failed"
