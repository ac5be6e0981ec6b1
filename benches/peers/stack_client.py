"""A client of stack_ledger.py: puts one number after the other, and never stops trying. Says on standard output when each
was answered, by CLOCK_MONOTONIC, and at the end, when its standard input ends, which of them are not in the ledger.

    stack_client.py ADDRESS PORT
"""

import select
import socket
import sys
import time

# A connection that does not answer for so long is given up: whoever had it is gone.
PATIENCE_SECONDS = 0.25


def connect():
    stream = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=PATIENCE_SECONDS)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


def ended():
    return bool(select.select([sys.stdin], [], [], 0)[0])


def everything():
    """All numbers in the ledger."""
    while True:
        try:
            with connect() as stream:
                stream.settimeout(10)
                stream.sendall(b"all\n")
                lines = []
                for line in stream.makefile("rb"):
                    if line == b"end\n":
                        return {int(line) for line in lines}
                    lines.append(line)
        except OSError:
            time.sleep(0.01)


def main():
    stream, number, answered = None, 0, set()
    while not ended():
        try:
            stream = stream or connect()
            number += 1
            stream.sendall(b"put %d\n" % number)
            if stream.recv(64) != b"ok %d\n" % number:
                raise ConnectionError("another answer")
            answered.add(number)
            print(f"{time.monotonic():.6f}", flush=True)
            time.sleep(0.002)
        except OSError:
            stream = None
            time.sleep(0.005)
    print("lost", *sorted(answered - everything()), flush=True)


main()
