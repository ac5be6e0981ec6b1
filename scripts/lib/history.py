"""Clients on both data nodes that write and read stamped blocks all along, and the check of what they saw.

The check knows nothing of the cluster. Each block is a register, each write a value of its own; it looks at what was
asked and answered when. Clocks: one, CLOCK_MONOTONIC, since all of it runs on one machine.
"""

import bisect
import collections
import itertools
import random
import socket
import struct
import threading
import time
from dataclasses import dataclass

from harness import VOLUME

BLOCK = 4096
SLOTS = 48
_OPTION_GO, _REPLY_ACK, _REPLY_INFO = 7, 1, 3
_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3


class Nbd:
    """The smallest NBD client there can be, over a unix socket."""

    def __init__(self, path, seconds=120):
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(seconds)

    def open(self):
        """Connects. Where no primary is, the server does not let it."""
        self.socket.connect(self.path)
        if self._take(18)[:16] != b"NBDMAGICIHAVEOPT":
            raise ConnectionError("not an NBD server")
        name = VOLUME.encode()
        go = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        # Fixed newstyle, no zeroes.
        self.socket.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", _OPTION_GO, len(go)) + go)
        kind = _REPLY_INFO
        while kind == _REPLY_INFO:
            _, _, kind, length = struct.unpack(">QIII", self._take(20))
            self._take(length)
        if kind != _REPLY_ACK:
            raise ConnectionError("the export is not available")

    def _take(self, count):
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise ConnectionError("the server is gone")
            data += more
        return data

    def _ask(self, command, offset, length, payload=b""):
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, command, 1, offset, length) + payload)
        magic, error, _ = struct.unpack(">IIQ", self._take(16))
        if magic != 0x67446698:
            raise ConnectionError("the server's reply is not understood")
        if error:
            raise OSError(error, f"the server answers with error {error}")

    def write(self, offset, data):
        self._ask(_WRITE, offset, len(data), data)

    def read(self, offset, length):
        self._ask(_READ, offset, length)
        return self._take(length)

    def flush(self):
        self._ask(_FLUSH, 0, 0)

    def break_off(self):
        """From another thread: whoever waits for an answer gets an error."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self):
        self.socket.close()


@dataclass(slots=True)
class Operation:
    """Something that a client asked for. `value` of a read that was not answered is None."""

    node: str
    is_write: bool
    slot: int
    value: int
    begun: float
    # None if it was never answered: it may have happened or not, at any time after it began.
    ended: float


def stamped(value):
    return struct.pack("<Q", value) * (BLOCK // 8)


def value_of(block):
    """The value of a block; None if it holds pieces of several."""
    value = struct.unpack_from("<Q", block)[0]
    return value if block == stamped(value) else None


class Clients:
    """A writer and a reader on each of the data nodes. They take what the node there gives them, and never stop trying."""

    def __init__(self, nodes, sockets, *, pause=0.002, retry=0.005, readers=True):
        self.pause, self.retry = pause, retry
        self.operations = []
        self.corrupt = []
        self._values = itertools.count(1)
        self._stop = threading.Event()
        self._connections = {}
        work = [(self._write, node) for node in nodes] + [(self._read, node) for node in nodes if readers]
        self._threads = [threading.Thread(target=self._work, args=(step, node, sockets[node]), daemon=True)
                         for step, node in work]
        for thread in self._threads:
            thread.start()

    def _work(self, step, node, path):
        me = threading.current_thread()
        dice = random.Random(f"{node} {step.__name__}")
        while not self._stop.is_set():
            client = self._connections[me] = Nbd(path)
            try:
                client.open()
                while not self._stop.is_set():
                    step(client, node, dice.randrange(SLOTS))
                    if self.pause:
                        self._stop.wait(self.pause)
            except OSError:
                self._stop.wait(self.retry)
            finally:
                client.close()

    def _write(self, client, node, slot):
        value = next(self._values)
        operation = Operation(node, True, slot, value, time.monotonic(), None)
        self.operations.append(operation)
        client.write(slot * BLOCK, stamped(value))
        operation.ended = time.monotonic()
        if value % 16 == 0:
            client.flush()

    def _read(self, client, node, slot):
        begun = time.monotonic()
        block = client.read(slot * BLOCK, BLOCK)
        ended = time.monotonic()
        value = value_of(block)
        if value is None:
            self.corrupt.append(f"slot {slot} at {node} holds pieces of several writes")
        else:
            self.operations.append(Operation(node, False, slot, value, begun, ended))

    def last_answer(self, since=0.0):
        """When the newest write was acknowledged, if one was after `since`."""
        for operation in reversed(self.operations[-200:]):
            if operation.is_write and operation.ended and operation.ended > since:
                return operation.ended
        return None

    def stop(self):
        """Ends the clients; what they wait for is broken off."""
        self._stop.set()
        end = time.monotonic() + 10
        while any(thread.is_alive() for thread in self._threads) and time.monotonic() < end:
            for connection in list(self._connections.values()):
                connection.break_off()
            for thread in self._threads:
                thread.join(0.05)

    def read_all(self, node, path):
        """Reads every slot once, as one more client."""
        client = Nbd(path, 30)
        try:
            client.open()
            for slot in range(SLOTS):
                self._read(client, node, slot)
        finally:
            client.close()


def acknowledged(operations):
    return [operation for operation in operations if operation.is_write and operation.ended is not None]


def pauses(operations):
    """The gaps between one acknowledged write and the next, the longest first, with when each began."""
    times = sorted(operation.ended for operation in acknowledged(operations))
    return sorted(((after - before, before) for before, after in itertools.pairwise(times)), reverse=True)


def faults(operations):
    """What no set of registers, each with one value at a time, could have answered. Empty if all is well."""
    slots = collections.defaultdict(list)
    for operation in operations:
        slots[operation.slot].append(operation)
    return [fault for slot, of_slot in sorted(slots.items()) for fault in _faults_of(slot, of_slot)]


def _faults_of(slot, operations):
    writes = {operation.value: operation for operation in operations if operation.is_write}
    reads = sorted((operation for operation in operations if not operation.is_write), key=lambda read: read.ended)
    # When a write was surely over: it was answered, or somebody had read it.
    over = {value: write.ended for value, write in writes.items() if write.ended is not None}
    found = []
    for read in reads:
        if read.value == 0:
            continue
        write = writes.get(read.value)
        if write is None or write.begun > read.ended:
            found.append(f"slot {slot} at {read.node}: {read.value} is read, which nobody had written there")
        else:
            over[read.value] = min(over.get(read.value, read.ended), read.ended)
    # Of the writes that were over at a moment, the one that was begun last.
    ordered = sorted((end, writes[value].begun, value) for value, end in over.items() if value in writes)
    ends = [end for end, _, _ in ordered]
    newest = list(itertools.accumulate(((begun, value) for _, begun, value in ordered), max))
    for read in reads:
        before = bisect.bisect_left(ends, read.begun)
        if not before:
            continue
        begun, value = newest[before - 1]
        # What was read is old if it was over before another began that was over before it was asked for.
        if begun > over.get(read.value, 0.0) and value != read.value:
            found.append(f"slot {slot} at {read.node}: {read.value} is read although {value} was written over it "
                         f"{read.begun - over[value]:.3f} s before")
    return found


def reigns(operations):
    """How many times at least whoever answers must have changed, plus one: answers of two nodes that cannot have come
    from one and the same."""
    answered = sorted((operation.ended, operation.begun, operation.node) for operation in operations
                      if operation.ended is not None)
    count, node, over = 0, None, 0.0
    for ended, begun, other in answered:
        if other != node and begun > over:
            count, node, over = count + 1, other, ended
    return count
