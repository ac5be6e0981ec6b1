"""A volume as a block device, for the benchmark of stacks: nbdfuse makes the export a file, a loop device makes that a
device, and FOLDER/loop is a link to it. For kernels that have neither nbd nor ublk.

    stack_disk.py start NBD_SOCKET FOLDER     comes back when the device is there
    stack_disk.py stop FOLDER

Direct I/O: a page cache between loop device and nbdfuse would have to be written back by a nbdfuse that is being killed.
"""

import ctypes
import os
import pathlib
import signal
import subprocess
import sys
import time

# Of ext2, 3 and 4, in the superblock.
MAGIC_AT, MAGIC = 1080, b"\x53\xef"
PR_SET_PDEATHSIG = 1
START_WITHIN_SECONDS = 20


def die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def hold(socket, folder):
    """Makes the device and stays. With this process nbdfuse ends, and the device is gone when nobody uses it any more."""
    file = folder / "file"
    file.touch()
    fuse = subprocess.Popen(["nbdfuse", file, f"nbd+unix:///r0?socket={socket}"], preexec_fn=die_with_parent)
    while not file.stat().st_size:
        if fuse.poll() is not None:
            sys.exit(f"nbdfuse ended with code {fuse.returncode}")
        time.sleep(0.002)
    attach = ["losetup", "--find", "--show", "--direct-io=on", file]
    device = subprocess.run(attach, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    held = os.open(device, os.O_RDONLY)
    subprocess.run(["losetup", "--detach", device], check=True)
    if os.pread(held, len(MAGIC), MAGIC_AT) != MAGIC:
        subprocess.run(["mkfs.ext4", "-q", device], check=True)
    (folder / "loop").symlink_to(device)
    sys.exit(fuse.wait())


def start(socket, folder):
    stop(folder)
    # Of this mount namespace alone, and gone with it.
    subprocess.run(["mount", "-t", "tmpfs", "stand", folder], check=True)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        hold(socket, folder)
    (folder / "pid").write_text(str(pid))
    deadline = time.monotonic() + START_WITHIN_SECONDS
    while not (folder / "loop").exists():
        if os.waitpid(pid, os.WNOHANG)[0] or time.monotonic() > deadline:
            sys.exit("there is no device")
        time.sleep(0.002)


def stop(folder):
    pid = folder / "pid"
    if pid.exists():
        try:
            os.kill(int(pid.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass
        subprocess.run(["umount", "--lazy", folder / "file"], check=False)
        subprocess.run(["umount", "--lazy", folder], check=True)


if sys.argv[1] == "start":
    start(sys.argv[2], pathlib.Path(sys.argv[3]))
else:
    stop(pathlib.Path(sys.argv[2]))
