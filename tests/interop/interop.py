"""Foreign NBD clients against one export: each check is small, independent, and says what it saw."""

import argparse
import errno
import hashlib
import json
import os
import random
import subprocess
import sys
import threading

import nbd

from harness import Failure, Report, Workshop, human, open_backend, parse_size, run

MIB = 1 << 20
SECTOR = 512
KIB = 1 << 10
ZERO_FLAG = 2  # NBD_STATE_ZERO of base:allocation


def expect(condition, message):
    if not condition:
        raise Failure(message)


def damage(handle, at):
    """Changes one byte, by whole sectors as the export wants it."""
    start = at // SECTOR * SECTOR
    sector = handle.pread(SECTOR, start)
    sector[at - start] ^= 0xFF
    handle.pwrite(sector, start)


class Client:
    """One libnbd connection, closed at the end; without libnbd's own checks, so that the server's are met."""

    def __init__(self, uri, *, strict=False, structured=True, contexts=("base:allocation",), flags=None):
        self.handle = nbd.NBD()
        if not strict:
            self.handle.set_strict_mode(0)
        self.handle.set_request_structured_replies(structured)
        for context in contexts:
            self.handle.add_meta_context(context)
        if flags is not None:
            self.handle.set_handshake_flags(flags)
        self.uri = uri

    def __enter__(self):
        self.handle.connect_uri(self.uri)
        return self.handle

    def __exit__(self, *_):
        try:
            self.handle.shutdown()
        except nbd.Error:
            pass


def refused(action, *accepted):
    """The errno with which `action` was refused; a failure if it was not, or with another one."""
    try:
        action()
    except nbd.Error as error:
        expect(error.errnum in accepted, f"refused with {error.errno or error.errnum}, expected one of "
                                         f"{[errno.errorcode[number] for number in accepted]}: {error.string}")
        return errno.errorcode[error.errnum]
    raise Failure("was accepted, must be refused")


def extents(handle, offset, length):
    """The map of a range as [(offset, length, flags)], asked for until the range is covered."""
    found = []
    while length > 0:
        step = []

        def chunk(context, start, entries, _error, step=step):
            if context == "base:allocation":
                position = start
                for size, flags in zip(entries[::2], entries[1::2]):
                    step.append((position, size, flags))
                    position += size

        handle.block_status(min(length, 1 << 30), offset, chunk)
        expect(step and step[0][0] == offset, f"block status at {offset} answers {step[:2]}")
        covered = sum(size for _, size, _ in step)
        expect(covered > 0, f"block status at {offset} makes no progress")
        found += step
        offset += covered
        length -= covered
    return found


class Interop:
    def __init__(self, shop, backend, options):
        self.shop, self.backend, self.uri = shop, backend, backend.uri
        self.size = parse_size(options.size)
        self.seed = options.seed
        self.random = random.Random(options.seed)
        self.is_holdfast = backend.backend == "holdfast"

    def path(self, name):
        return self.shop.folder / name

    # --- libnbd's tools ---------------------------------------------------------------------------------

    def nbdinfo(self):
        text = run(["nbdinfo", self.uri]).stdout
        facts = json.loads(run(["nbdinfo", "--json", self.uri], split=True).stdout)
        export = facts["exports"][0]
        expect(export["export-size"] == self.size, f"size {export['export-size']}, expected {self.size}")
        expect(not export["is_read_only"], "the export says it is read-only")
        wanted = ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn"]
        if self.is_holdfast:
            wanted += ["can_df", "can_cache", "can_fast_zero"]
        missing = [flag for flag in wanted if not export[flag]]
        expect(not missing, f"flags are missing: {missing}")
        expect("base:allocation" in export["contexts"], f"contexts: {export['contexts']}")
        expect(facts["structured"], "no structured replies")
        # nbdkit's file plugin of Debian 12 announces no block sizes.
        expect(not self.is_holdfast or export.get("block_size_minimum"), f"no block sizes announced:\n{text}")
        self.minimum = export.get("block_size_minimum") or 1
        return (f"{human(export['export-size'])}, blocks {export.get('block_size_minimum')}/"
                f"{export.get('block_size_preferred')}/{export.get('block_size_maximum')}")

    def nbdinfo_list(self):
        server = self.uri.replace("/r0?", "/?")
        exports = json.loads(run(["nbdinfo", "--list", "--json", server], split=True).stdout)["exports"]
        names = [export["export-name"] for export in exports]
        expect(names, "the list of exports is empty")
        expect(not self.is_holdfast or "r0" in names, f"exports are {names}, expected r0")
        return ", ".join(repr(name) for name in names)

    def nbdinfo_map(self):
        parts = json.loads(run(["nbdinfo", "--map", "--json", self.uri], split=True).stdout)
        end = 0
        for part in parts:
            expect(part["offset"] == end, f"the map has a gap or an overlap at {end}: {part}")
            end += part["length"]
        expect(end == self.size, f"the map ends at {end}, the export at {self.size}")
        run(["nbdinfo", "--map", "--totals", self.uri])
        return f"{len(parts)} extents"

    def nbdinfo_can(self):
        for question in ("flush", "fua", "trim", "zero", "multi-conn", "write", "connect"):
            done = run(["nbdinfo", "--can", question, self.uri], check=False)
            expect(done.returncode == 0, f"--can {question}: exit code {done.returncode}")
        expect(run(["nbdinfo", "--is", "read-only", self.uri], check=False).returncode == 2, "--is read-only: not 'no'")

    def nbdcopy(self):
        source, back = self.path("source"), self.path("back")
        with open(source, "wb") as file:
            file.truncate(self.size)
            for _ in range(24):
                file.seek(self.random.randrange(self.size // 4096 - 512) * 4096)
                file.write(self.random.randbytes(MIB))
        run(["nbdcopy", "--connections=4", "--requests=32", "--flush", source, self.uri])
        run(["nbdcopy", self.uri, back])
        sums = []
        for path in (source, back):
            with open(path, "rb") as file:
                sums.append(hashlib.file_digest(file, "sha256").hexdigest())
        expect(sums[0] == sums[1], "what came back differs from what went in")
        # Through a pipe nbdcopy uses other code (no seeking): the same sum must come out.
        pipe = subprocess.run(["nbdcopy", self.uri, "-"], stdout=subprocess.PIPE, check=True, timeout=120).stdout
        expect(hashlib.sha256(pipe).hexdigest() == sums[0], "what came through a pipe differs")
        back.unlink()
        return f"sha256 {sums[0][:16]}"

    # --- libnbd from Python (what nbdsh offers) -------------------------------------------------------------

    def nbdsh(self):
        script = ("h.pwrite(b'nbd!' * 128, 4096); h.flush(); "
                  "assert h.pread(512, 4096) == b'nbd!' * 128; print('fine')")
        text = run(["nbdsh", "-u", self.uri, "-c", script]).stdout
        expect("fine" in text, text)

    def negotiation(self):
        seen = []
        with Client(self.uri) as handle:
            expect(handle.get_structured_replies_negotiated(), "structured replies were not negotiated")
            expect(handle.can_meta_context("base:allocation"), "base:allocation was not negotiated")
            seen.append(handle.get_protocol())
            if hasattr(handle, "get_extended_headers_negotiated"):
                on = handle.get_extended_headers_negotiated()
                expect(on or not self.is_holdfast, "this libnbd can do extended headers, the server did not agree")
                seen.append(f"extended headers {on}")
            else:
                seen.append("this libnbd has no extended headers")
        with Client(self.uri, structured=False, contexts=()) as handle:
            expect(not handle.get_structured_replies_negotiated(), "structured without being asked")
            handle.pwrite(b"simple reply".ljust(SECTOR), 8192)
            expect(handle.pread(SECTOR, 8192).strip() == b"simple reply", "wrong data by simple reply")
            refused(lambda: handle.pread(4096, self.size), errno.EINVAL)
            seen.append("simple replies")
        with Client(self.uri, structured=False, contexts=(), flags=0) as handle:
            # Without the fixed-newstyle flag a client has only NBD_OPT_EXPORT_NAME.
            expect(handle.get_size() == self.size, "wrong size by NBD_OPT_EXPORT_NAME")
            expect(handle.pread(SECTOR, 8192).strip() == b"simple reply", "wrong data by NBD_OPT_EXPORT_NAME")
            seen.append("old export name option")
        return ", ".join(seen)

    def options(self):
        handle = nbd.NBD()
        handle.set_opt_mode(True)
        handle.add_meta_context("base:allocation")
        handle.connect_uri(self.uri)
        names, contexts = [], []
        handle.opt_list(lambda name, _text: names.append(name))
        handle.opt_list_meta_context(contexts.append)
        expect("base:allocation" in contexts, f"contexts on offer: {contexts}")
        handle.opt_info()
        expect(handle.get_size() == self.size, "wrong size by NBD_OPT_INFO")
        if self.is_holdfast:
            handle.set_export_name("no-such-volume")
            try:
                handle.opt_info()
            except nbd.Error:
                pass
            else:
                raise Failure("NBD_OPT_INFO for an export that does not exist was answered")
            handle.set_export_name("r0")
        handle.opt_go()
        handle.pread(512, 0)
        handle.shutdown()
        aborted = nbd.NBD()
        aborted.set_opt_mode(True)
        aborted.connect_uri(self.uri)
        aborted.opt_abort()
        return f"exports {names}"

    def commands(self):
        """Each command once, with its flags."""
        seen = []
        base = 16 * MIB
        with Client(self.uri) as handle:
            data = self.random.randbytes(MIB)
            handle.pwrite(data, base, nbd.CMD_FLAG_FUA)
            handle.flush()
            expect(handle.pread(MIB, base) == data, "wrong data after a write with FUA")
            chunks = []
            handle.pread_structured(MIB, base, lambda part, at, kind, _error: chunks.append((at, len(part), kind)))
            expect(sum(length for _, length, kind in chunks if kind == nbd.READ_DATA) == MIB,
                   f"chunks do not cover the read: {chunks}")
            if handle.can_df():
                parts = []
                handle.pread_structured(256 * KIB, base, lambda part, *_: parts.append(part), nbd.CMD_FLAG_DF)
                expect(len(parts) == 1, f"{len(parts)} chunks in spite of the DF flag")
            if handle.can_cache():
                handle.cache(MIB, base)
                seen.append("cache")
            for name, flags in (("zero", 0), ("no-hole", nbd.CMD_FLAG_NO_HOLE), ("FUA", nbd.CMD_FLAG_FUA),
                                ("fast", nbd.CMD_FLAG_FAST_ZERO)):
                if flags == nbd.CMD_FLAG_FAST_ZERO and not handle.can_fast_zero():
                    seen.append("no fast zero")
                    continue
                handle.pwrite(data[:256 * KIB], base)
                before = data[:256 * KIB]
                try:
                    handle.zero(128 * KIB, base + 64 * KIB, flags)
                    after = before[:64 * KIB] + bytes(128 * KIB) + before[192 * KIB:]
                    seen.append(name)
                except nbd.Error as error:
                    expect(flags == nbd.CMD_FLAG_FAST_ZERO and error.errnum == errno.ENOTSUP, f"zero ({name}): {error.string}")
                    after = before
                    seen.append(f"{name} not supported")
                expect(handle.pread(256 * KIB, base) == after, f"wrong data after zero ({name})")
            handle.pwrite(data, base)
            handle.trim(256 * KIB, base + 512 * KIB, nbd.CMD_FLAG_FUA)
            expect(handle.pread(512 * KIB, base) == data[:512 * KIB], "trim changed data before its range")
            expect(handle.pread(256 * KIB, base + 768 * KIB) == data[768 * KIB:], "trim changed data behind its range")
            first = handle.pread(256 * KIB, base + 512 * KIB)
            expect(handle.pread(256 * KIB, base + 512 * KIB) == first, "a trimmed range reads differently each time")
            expect(set(first) == {0} or first == data[512 * KIB:768 * KIB], "a trimmed range reads as neither zeros nor the old data")
            seen.append("trim reads as zeros" if set(first) == {0} else "trim leaves the data")
            handle.trim(64 * MIB, 64 * MIB)
            handle.zero(64 * MIB, 64 * MIB)
            expect(not any(handle.pread(MIB, 96 * MIB)), "a large zero left data")
        return ", ".join(seen)

    def block_status(self):
        """What the map calls zero must read as zero."""
        base = 32 * MIB
        with Client(self.uri) as handle:
            handle.pwrite(self.random.randbytes(4 * MIB), base)
            handle.zero(MIB, base + MIB)
            handle.trim(MIB, base + 3 * MIB)
            found = extents(handle, base, 8 * MIB)
            for offset, length, flags in found:
                while flags & ZERO_FLAG and length > 0:
                    step = min(length, MIB)
                    expect(not any(handle.pread(step, offset)), f"the map says zero at {offset}, the data says otherwise")
                    offset, length = offset + step, length - step
            one = []
            handle.block_status(MIB, base, lambda _c, _o, entries, _e: one.extend(entries), nbd.CMD_FLAG_REQ_ONE)
            expect(len(one) == 2, f"REQ_ONE got {len(one) // 2} extents")
            zero = sum(length for _, length, flags in found if flags & ZERO_FLAG)
        return f"{len(found)} extents, {human(zero)} of zeros"

    def errors(self):
        """Requests that must be refused, after each of which the session goes on."""
        size, codes = self.size, set()
        writing = (errno.ENOSPC, errno.EINVAL)
        with Client(self.uri) as handle:
            codes.add(refused(lambda: handle.pread(4096, size), errno.EINVAL))
            codes.add(refused(lambda: handle.pread(8192, size - 4096), errno.EINVAL))
            codes.add(refused(lambda: handle.pread(4096, 1 << 62), errno.EINVAL))
            codes.add(refused(lambda: handle.pwrite(bytes(4096), size), *writing))
            codes.add(refused(lambda: handle.pwrite(bytes(8192), size - 4096), *writing))
            codes.add(refused(lambda: handle.pwrite(bytes(4096), (1 << 63) - 4096), *writing))
            codes.add(refused(lambda: handle.zero(8192, size - 4096), *writing))
            codes.add(refused(lambda: handle.trim(8192, size - 4096), *writing))
            if self.is_holdfast:
                # A flag that the command does not have.
                codes.add(refused(lambda: handle.pread_structured(512, 0, lambda *_: 0, nbd.CMD_FLAG_NO_HOLE), errno.EINVAL))
            handle.pwrite(b"still here".ljust(SECTOR), 0)
            expect(handle.pread(SECTOR, 0).strip() == b"still here", "the session is not usable after refused requests")
        return ", ".join(sorted(codes))

    def unaligned(self):
        base, size = 40 * MIB, 64 * KIB
        with Client(self.uri) as handle:
            minimum = handle.get_block_size(nbd.SIZE_MINIMUM) or 1
            if minimum > 1:
                code = refused(lambda: handle.pwrite(b"abc", base + 1), errno.EINVAL)
                return f"smallest block is {minimum}: {code}"
            model = bytearray(self.random.randbytes(size))
            handle.pwrite(bytes(model), base)
            for _ in range(200):
                at, length = self.random.randrange(size - 1), self.random.choice((1, 3, 511, 513, 4097))
                length = min(length, size - at)
                if self.random.random() < 0.25:
                    handle.zero(length, base + at)
                    model[at:at + length] = bytes(length)
                else:
                    part = self.random.randbytes(length)
                    handle.pwrite(part, base + at)
                    model[at:at + length] = part
            handle.flush()
            expect(handle.pread(size, base) == bytes(model), "wrong data after unaligned writes and zeros")
        return "200 writes and zeros at any byte"

    def large(self):
        with Client(self.uri) as handle:
            data = self.random.randbytes(32 * MIB)
            handle.pwrite(data, 0)
            expect(handle.pread(32 * MIB, 0) == data, "wrong data after a write of 32 MiB")
            try:
                handle.pwrite(data + bytes(MIB), 0)
                note = "33 MiB accepted"
                expect(handle.pread(MIB, 32 * MIB) == bytes(MIB), "33 MiB accepted but not written")
            except nbd.Error as error:
                note = f"33 MiB refused with {errno.errorcode.get(error.errnum, error.errnum)}"
                expect(not handle.aio_is_dead() and not handle.aio_is_closed(),
                       f"{note}, and the connection is gone")
            handle.pwrite(b"after".ljust(SECTOR), 0)
            expect(handle.pread(SECTOR, 0).strip() == b"after", "the session is not usable after 33 MiB")
        return note

    def model(self, count=1500):
        """Random commands beside a model in memory."""
        base, size = 48 * MIB, 4 * MIB
        chance = random.Random(self.seed)
        with Client(self.uri) as handle:
            model = bytearray(size)
            handle.zero(size, base)
            for number in range(count):
                length = chance.choice((1, 2, 8, 16, 64)) * 4096
                at = chance.randrange((size - length) // 4096 + 1) * 4096
                kind = chance.choice(("write", "write", "write", "fua", "zero", "zero-hole", "read", "read", "flush"))
                if kind in ("write", "fua"):
                    part = chance.randbytes(length)
                    handle.pwrite(part, base + at, nbd.CMD_FLAG_FUA if kind == "fua" else 0)
                    model[at:at + length] = part
                elif kind.startswith("zero"):
                    handle.zero(length, base + at, 0 if kind == "zero-hole" else nbd.CMD_FLAG_NO_HOLE)
                    model[at:at + length] = bytes(length)
                elif kind == "read":
                    expect(handle.pread(length, base + at) == bytes(model[at:at + length]),
                           f"step {number} (seed {self.seed}): wrong data at {base + at}, {length} bytes")
                else:
                    handle.flush()
            expect(handle.pread(size, base) == bytes(model), f"wrong data in the end (seed {self.seed})")
        return f"{count} commands, seed {self.seed}"

    def pipeline(self):
        """64 commands in flight on one connection, answered in any order."""
        base, count, length = 56 * MIB, 256, 64 * KIB
        with Client(self.uri) as handle:
            parts = [self.random.randbytes(length) for _ in range(count)]

            def all_of(start):
                waiting = []
                for number in range(count):
                    waiting.append(start(number))
                    while len(waiting) >= 64 or (number == count - 1 and waiting):
                        handle.poll(1000)
                        waiting = [cookie for cookie in waiting if not handle.aio_command_completed(cookie)]

            writing = [nbd.Buffer.from_bytearray(bytearray(part)) for part in parts]
            reading = [nbd.Buffer(length) for _ in range(count)]
            all_of(lambda number: handle.aio_pwrite(writing[number], base + number * length))
            handle.flush()
            all_of(lambda number: handle.aio_pread(reading[number], base + number * length))
            for number, buffer in enumerate(reading):
                expect(bytes(buffer.to_bytearray()) == parts[number], f"wrong data in part {number}")
        return f"{count} writes and reads of 64 KiB"

    def multi_conn(self):
        """What one connection was told is written, another one reads and flushes."""
        base = 80 * MIB
        with Client(self.uri) as one, Client(self.uri) as two:
            expect(one.can_multi_conn() and two.can_multi_conn(), "multi-conn is not announced")
            for turn in range(64):
                data = self.random.randbytes(4096)
                one.pwrite(data, base + turn * 12288)
                expect(two.pread(4096, base + turn * 12288) == data, f"connection 2 does not see write {turn} of connection 1")
                two.flush()
        failures = []

        def session(number):
            try:
                with Client(self.uri) as handle:
                    mine = base + (2 + number) * MIB
                    data = random.Random(number).randbytes(256 * KIB)
                    for _ in range(8):
                        handle.pwrite(data, mine)
                        handle.flush()
                        expect(handle.pread(256 * KIB, mine) == data, f"connection {number} reads wrong data")
            except Exception as error:  # handed to the main thread
                failures.append(f"connection {number}: {error}")

        threads = [threading.Thread(target=session, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expect(not failures, "\n".join(failures))
        return "2 and 8 connections"

    def vanishing_client(self):
        """Clients that disappear with requests under way; the others go on."""
        script = ("import nbd, os, sys; h = nbd.NBD(); h.connect_uri(sys.argv[1])\n"
                  "for n in range(8): h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(4 << 20)), (100 + 4 * n) << 20)\n"
                  "h.aio_pread(nbd.Buffer(4 << 20), 0)\n"
                  "os.kill(os.getpid(), 9)")
        with Client(self.uri) as witness:
            witness.pwrite(b"witness".ljust(SECTOR), 0)
            for _ in range(4):
                done = run([sys.executable, "-c", script, self.uri], check=False)
                expect(done.returncode == -9, f"the client did not get that far: {done.stdout}")
                witness.flush()
                expect(witness.pread(SECTOR, 0).strip() == b"witness", "another session suffers")
        with Client(self.uri) as handle:
            expect(handle.pread(SECTOR, 0).strip() == b"witness", "no new session")

    # --- qemu's tools -------------------------------------------------------------------------------------------

    def qemu_img(self):
        facts = json.loads(run(["qemu-img", "info", "--output=json", "-f", "raw", self.uri], split=True).stdout)
        expect(facts["virtual-size"] == self.size, f"qemu-img sees {facts['virtual-size']}")
        source = self.path("source")
        run(["qemu-img", "convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", source, self.uri])
        run(["qemu-img", "compare", "-f", "raw", "-F", "raw", source, self.uri])
        copy = self.path("qemu.qcow2")
        run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", self.uri, copy])
        run(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", copy, self.uri])
        run(["qemu-img", "map", "--output=json", "-f", "raw", self.uri])
        copy.unlink()
        # The control: the comparison does notice one changed byte.
        with Client(self.uri) as handle:
            damage(handle, 5 * MIB)
        done = run(["qemu-img", "compare", "-f", "raw", "-F", "raw", source, self.uri], check=False)
        expect(done.returncode == 1, f"the control: a changed byte was not noticed (exit code {done.returncode})")
        version = run(["qemu-img", "--version"]).stdout.splitlines()[0]
        return version.partition("version ")[2].split()[0]

    def qemu_io(self):
        words = []
        for command in ("write -P 0x5a 0 1M", "read -P 0x5a 0 1M", "write -f -P 0x33 8k 4k", "flush",
                        "read -P 0x33 8k 4k", "write -z 32k 4k", "read -P 0 32k 4k", "write -z -u 64k 64k",
                        "read -P 0 64k 64k", "write -P 0x11 1021 3", "read -P 0x11 1021 3", "discard 256k 256k",
                        "read -P 0x5a 512k 512k", "aio_write -P 0x77 2M 1M", "aio_write -P 0x78 3M 1M", "aio_flush",
                        "read -P 0x77 2M 1M", "read -P 0x78 3M 1M"):
            words += ["-c", command]
        text = run(["qemu-io", "-f", "raw", *words, self.uri]).stdout
        expect("failed" not in text.lower(), text)
        done = run(["qemu-io", "-f", "raw", "-c", "read -P 0x5b 600k 4k", self.uri], check=False)
        expect("verification failed" in done.stdout, "the control: a wrong pattern was not noticed")
        return f"{len(words) // 2} commands"

    # --- fio ------------------------------------------------------------------------------------------------------

    def fio(self):
        base = ["fio", "--name=v", "--ioengine=nbd", f"--uri={self.uri}", "--rw=randwrite", "--bsrange=4k-64k",
                "--size=64m", "--iodepth=16", "--fsync=64", "--verify=crc32c", "--verify_fatal=1", "--verify_dump=0", "--verify_state_save=0",
                f"--randseed={self.seed}"]
        run([*base, "--do_verify=1"])
        run([*base, "--verify_only=1"])
        with Client(self.uri) as handle:
            at = 20 * MIB + 123
            damage(handle, at)
        done = run([*base, "--verify_only=1"], check=False)
        expect(done.returncode != 0, "the control: a changed byte was not noticed")
        return "64 MiB written, verified at once and by a second session"

    # --- TCP and the other node ---------------------------------------------------------------------------------------

    def tcp(self):
        uri = self.backend.primary["nbd_tcp_uri"]
        run(["nbdinfo", uri])
        with Client(uri) as over_tcp, Client(self.uri) as over_unix:
            data = self.random.randbytes(MIB)
            over_tcp.pwrite(data, 120 * MIB)
            expect(over_unix.pread(MIB, 120 * MIB) == data, "a write over TCP is not seen over the unix socket")
        out = self.path("tcp")
        run(["nbdcopy", "--connections=4", uri, out])
        run(["qemu-img", "compare", "-f", "raw", "-F", "raw", out, self.uri])
        out.unlink()
        return uri

    def secondary_refuses(self):
        notes = []
        for node in self.backend.others():
            try:
                with Client(node["nbd_uri"]) as handle:
                    handle.pwrite(b"never", 0)
            except nbd.Error as error:
                notes.append(f"{node['name']}: {error.string}")
            else:
                raise Failure(f"the secondary {node['name']} took a write")
        return "; ".join(notes)

    # --- the end ------------------------------------------------------------------------------------------------------

    def snapshot(self):
        """What the export holds when all clients are gone; the replicas' disks must equal it."""
        run(["nbdcopy", "--flush", self.uri, self.path("final")])

    def replicas_equal(self):
        code = self.backend.stop()
        expect(code == 0, f"the server did not stop cleanly: exit code {code}")
        final = self.path("final")
        names = []
        for name, node in self.backend.nodes.items():
            size = os.path.getsize(node["disk"])
            expect(size >= self.size, f"the disk of {name} has {size} bytes, the volume {self.size}")
            run(["cmp", "-n", self.size, final, node["disk"]])
            names.append(name)
        if len(names) > 1:
            first, *rest = (node["disk"] for node in self.backend.nodes.values())
            for other in rest:
                run(["cmp", "-n", self.size, first, other])
        return "equal to the export and each other: " + ", ".join(names)


def main():
    parser = argparse.ArgumentParser(prog="tests/interop/run", description=__doc__)
    parser.add_argument("--backend", choices=["holdfast", "nbdkit"], default="holdfast",
                        help="nbdkit: the same steps against a plain file (tests the test)")
    parser.add_argument("--size", default="256M", help="size of the volume (256M, at least that)")
    parser.add_argument("--protocol", default="C", choices=["A", "B", "C"])
    parser.add_argument("--seed", type=int, default=20_26, help="seed of the data and the model test")
    parser.add_argument("--dir", help="where the files are (the system's temporary folder)")
    parser.add_argument("--only", default="", help="checks, separated by commas (default: all)")
    parser.add_argument("--keep", action="store_true", help="keep the files")
    options = parser.parse_args()
    if parse_size(options.size) < 256 * MIB:
        parser.error("--size must be at least 256M")
    report = Report(f"Foreign NBD clients against {options.backend}")
    with Workshop("interop", parent=options.dir, keep=options.keep) as shop:
        try:
            backend = open_backend(options.backend, shop, size=options.size, protocol=options.protocol,
                                   journal_size="128M", keep=True)
        except Failure as failure:
            report.fail("start", failure)
            return report.close()
        test = Interop(shop, backend, options)
        checks = [("nbdinfo", test.nbdinfo), ("nbdinfo --list", test.nbdinfo_list), ("nbdinfo --can, --is", test.nbdinfo_can),
                  ("nbdcopy there and back", test.nbdcopy), ("nbdinfo --map", test.nbdinfo_map), ("nbdsh", test.nbdsh),
                  ("negotiation", test.negotiation), ("options", test.options), ("commands", test.commands),
                  ("block status", test.block_status), ("errors", test.errors), ("unaligned", test.unaligned),
                  ("large requests", test.large), ("model", test.model), ("pipeline", test.pipeline),
                  ("multi-conn", test.multi_conn)]
        if options.backend == "holdfast":
            # nbdkit 1.32 dies of this one.
            checks.append(("vanishing clients", test.vanishing_client))
            checks.append(("secondary refuses", test.secondary_refuses))
        checks += [("qemu-img", test.qemu_img), ("qemu-io", test.qemu_io), ("fio verify", test.fio)]
        if "nbd_tcp_uri" in backend.primary:
            checks.append(("TCP", test.tcp))
        checks += [("last read of the export", test.snapshot), ("replicas after a clean stop", test.replicas_equal)]
        wanted = [name for name in options.only.split(",") if name]
        for name, check in checks:
            if wanted and name not in wanted:
                continue
            if not report.step(name, check) and not backend.serves():
                report.note("the server is gone; its last words", "\n" + backend.last_words())
                break
    return report.close()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
