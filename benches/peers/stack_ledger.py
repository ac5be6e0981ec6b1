"""A service on a file system, for the benchmark of stacks: a ledger that answers over TCP when a line is durable.

    stack_ledger.py FILE PORT

A client says `put N` and hears `ok N`, or says `all` and hears every line there is and then `end`.
"""

import os
import socketserver
import sys


def main():
    path, port = sys.argv[1], int(sys.argv[2])
    ledger = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)

    class Clerk(socketserver.StreamRequestHandler):
        def handle(self):
            for line in self.rfile:
                words = line.split()
                if words[0] == b"put":
                    os.write(ledger, words[1] + b"\n")
                    os.fsync(ledger)
                    self.wfile.write(b"ok " + words[1] + b"\n")
                else:
                    with open(path, "rb") as lines:
                        self.wfile.write(lines.read() + b"end\n")

    socketserver.ThreadingTCPServer.allow_reuse_address = True
    socketserver.ThreadingTCPServer.daemon_threads = True
    with socketserver.ThreadingTCPServer(("0.0.0.0", port), Clerk) as server:
        server.serve_forever()


main()
