"""A client that knows what it was promised.

It speaks PostgreSQL's protocol itself, so that "acknowledged" means exactly: the server said the commit is
done. Each session inserts rows 1, 2, 3, ... of its own, one transaction each, and notes what it was told in
a file outside of the volume. After a crash the rows of a session must be 1..k without a gap, with k at
least the last acknowledged one and at most the last attempted one.
"""

import hashlib
import random
import socket
import struct
import threading
import time

TABLE = """
create table ledger (session int not null, number int not null, payload text not null, primary key (session, number));
create index ledger_payload on ledger (md5(payload));
"""


class ServerError(Exception):
    pass


class Connection:
    """Just enough of PostgreSQL's protocol, version 3: no password, simple queries, text rows."""

    def __init__(self, path, user="postgres", database="postgres", timeout=30):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        self.socket.connect(str(path))
        self.stream = self.socket.makefile("rb")
        words = b"\0".join(word.encode() for word in ("user", user, "database", database)) + b"\0\0"
        self.socket.sendall(struct.pack("!II", len(words) + 8, 196608) + words)
        self._answer()

    def close(self):
        self.socket.close()

    def _answer(self):
        """Reads up to ReadyForQuery; the rows, or the first error."""
        rows, error = [], None
        while True:
            head = self.stream.read(5)
            if len(head) < 5:
                raise ConnectionError(error or "the server closed the connection")
            kind, length = head[:1], struct.unpack("!I", head[1:])[0] - 4
            body = self.stream.read(length)
            if len(body) < length:
                raise ConnectionError(error or "the server closed the connection")
            if kind == b"D":
                rows.append(self._row(body))
            elif kind == b"E" and error is None:
                fields = {part[:1]: part[1:].decode(errors="replace") for part in body.split(b"\0") if part}
                error = f"{fields.get(b'S')}: {fields.get(b'M')}"
            elif kind == b"R" and body[:4] != bytes(4):
                raise ServerError("the server wants a password")
            elif kind == b"Z":
                if error:
                    raise ServerError(error)
                return rows

    @staticmethod
    def _row(body):
        values, at = [], 2
        for _ in range(struct.unpack("!H", body[:2])[0]):
            length = struct.unpack("!i", body[at:at + 4])[0]
            at += 4
            values.append(None if length < 0 else body[at:at + length].decode())
            at += max(0, length)
        return values

    def query(self, text):
        data = text.encode() + b"\0"
        self.socket.sendall(b"Q" + struct.pack("!I", len(data) + 4) + data)
        return self._answer()


def payload(seed, session, number):
    word = hashlib.md5(f"{seed}/{session}/{number}".encode()).hexdigest()
    return word * random.Random(f"{seed}/{session}/{number}").choice((1, 1, 2, 8, 40))


class Ledger:
    """Some sessions, each a thread. `acknowledged` and `attempted` map a session to its last number."""

    def __init__(self, path, log, sessions, seed):
        self.path, self.seed = path, seed
        self.log = open(log, "a", buffering=1)
        self.acknowledged = {number: 0 for number in range(sessions)}
        self.attempted = dict(self.acknowledged)
        self.ends = {}
        self.last_ack = time.monotonic()
        self.stopping = False
        self.threads = [threading.Thread(target=self._session, args=(number,), daemon=True) for number in range(sessions)]
        for thread in self.threads:
            thread.start()

    def _session(self, session):
        try:
            connection = Connection(self.path)
            while not self.stopping:
                number = self.acknowledged[session] + 1
                self.attempted[session] = number
                connection.query(f"insert into ledger values ({session}, {number}, '{payload(self.seed, session, number)}')")
                self.log.write(f"{session} {number}\n")
                self.acknowledged[session] = number
                self.last_ack = time.monotonic()
            connection.close()
        except (OSError, ServerError) as error:
            self.ends[session] = str(error)

    def total(self):
        return sum(self.acknowledged.values())

    def join(self, seconds):
        """True when all sessions have ended."""
        self.stopping = True
        end = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self.threads)

    def check(self, rows):
        """Compares rows [(session, number, payload)] with what was promised: a list of what is wrong."""
        wrong = []
        found = {session: {} for session in self.acknowledged}
        for session, number, text in rows:
            found.setdefault(int(session), {})[int(number)] = text
        for session, numbers in found.items():
            acknowledged = self.acknowledged.get(session, 0)
            lost = [number for number in range(1, acknowledged + 1) if number not in numbers]
            if lost:
                wrong.append(f"session {session}: {len(lost)} of {acknowledged} acknowledged rows are lost, the first is {lost[0]}")
            if numbers and (min(numbers) < 1 or max(numbers) != len(numbers)):
                wrong.append(f"session {session}: the rows have gaps")
            if numbers and max(numbers) > self.attempted.get(session, 0):
                wrong.append(f"session {session}: row {max(numbers)} was never written")
            bad = [number for number, text in numbers.items() if text != payload(self.seed, session, number)]
            if bad:
                wrong.append(f"session {session}: {len(bad)} rows have wrong content, the first is {bad[0]}")
        return wrong
