#!/usr/bin/python3
"""Sends what no client should, and holds the server to the exact error.

    illegal_requests.py URI READ_ONLY_URI

libnbd is told not to protect the server (strict mode 0); what it cannot say at all, and extended headers, which older ones do not
know, go over a socket by hand. After every refusal the same connection must still work: a refused request never leaves the
stream out of step.
"""

import errno
import socket
import struct
import sys
import urllib.parse

import nbd

checks = 0
wrong = []


def expect(what, wanted, got):
    global checks
    checks += 1
    name = lambda number: errno.errorcode.get(number, str(number))
    if got != wanted:
        wrong.append(f"{what}: {name(wanted)} wanted, {name(got)} came")


def attempt(what, wanted, handle, call):
    try:
        call(handle)
        got = 0
    except nbd.Error as error:
        got = error.errnum
    expect(what, wanted, got)
    try:
        handle.pread(512, 0)
    except nbd.Error as error:
        wrong.append(f"after {what}: the connection is lost: {error}")


def connect(uri, structured=True):
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    handle.set_request_structured_replies(structured)
    handle.add_meta_context("base:allocation")
    handle.connect_uri(uri)
    return handle


def by_libnbd(uri, structured):
    handle = connect(uri, structured)
    size = handle.get_size()
    nothing = lambda *_: 0
    many = bytearray(b"x" * 8192)
    past = [
        ("read across the end", errno.EINVAL, lambda h: h.pread(8192, size - 4096)),
        ("read from the end", errno.EINVAL, lambda h: h.pread(1, size)),
        ("read far past the end", errno.EINVAL, lambda h: h.pread(4096, 2**62)),
        ("read where offset and length overflow", errno.EINVAL, lambda h: h.pread(4096, 2**64 - 2048)),
        ("write across the end", errno.ENOSPC, lambda h: h.pwrite(many, size - 4096)),
        ("write from the end", errno.ENOSPC, lambda h: h.pwrite(many, size)),
        ("write where offset and length overflow", errno.ENOSPC, lambda h: h.pwrite(many, 2**64 - 4096)),
        ("zero across the end", errno.ENOSPC, lambda h: h.zero(8192, size - 4096)),
        ("zero of 4 GiB", errno.ENOSPC, lambda h: h.zero(2**32 - 1, 1)),
        ("trim across the end", errno.EINVAL, lambda h: h.trim(8192, size - 4096)),
        ("trim far past the end", errno.EINVAL, lambda h: h.trim(4096, 2**62)),
        ("cache across the end", errno.EINVAL, lambda h: h.cache(8192, size - 4096)),
    ]
    flags = [
        ("write with an unknown flag", errno.EINVAL, lambda h: h.pwrite(many, 0, 0x4000)),
        ("read with an unknown flag", errno.EINVAL, lambda h: h.pread(512, 0, 0x4000)),
        ("trim with an unknown flag", errno.EINVAL, lambda h: h.trim(512, 0, 0x4000)),
        ("zero with an unknown flag", errno.EINVAL, lambda h: h.zero(512, 0, 0x4000)),
        ("flush with an unknown flag", errno.EINVAL, lambda h: h.flush(0x4000)),
    ]
    fine = [
        ("read with FUA", 0, lambda h: h.pread(512, 0, nbd.CMD_FLAG_FUA)),
        ("trim with FUA", 0, lambda h: h.trim(512, 0, nbd.CMD_FLAG_FUA)),
        ("read of the last byte", 0, lambda h: h.pread(1, size - 1)),
        ("write of the last byte", 0, lambda h: h.pwrite(b"y", size - 1)),
    ]
    if structured:
        past.append(("block status across the end", errno.EINVAL, lambda h: h.block_status(8192, size - 4096, nothing)))
        flags.append(("block status with DF", errno.EINVAL, lambda h: h.block_status(512, 0, nothing, nbd.CMD_FLAG_DF)))
        fine.append(("read with DF", 0, lambda h: h.pread_structured(65536, 0, nothing, nbd.CMD_FLAG_DF)))
    for check in past + flags + fine:
        attempt(check[0], check[1], handle, check[2])
    handle.shutdown()


def read_only(uri):
    handle = connect(uri)
    if not handle.is_read_only():
        wrong.append("the read-only export does not say so")
    attempt("write to a read-only export", errno.EPERM, handle, lambda h: h.pwrite(b"x" * 512, 0))
    attempt("zero on a read-only export", errno.EPERM, handle, lambda h: h.zero(512, 0))
    attempt("trim on a read-only export", errno.EPERM, handle, lambda h: h.trim(512, 0))
    attempt("flush of a read-only export", 0, handle, lambda h: h.flush())
    handle.shutdown()


class ByHand:
    """A client with simple replies that can say anything."""

    request_magic, request_form = 0x25609513, ">IHHQQI"

    def __init__(self, uri):
        parts = urllib.parse.urlsplit(uri)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(urllib.parse.parse_qs(parts.query)["socket"][0])
        self.name = urllib.parse.unquote(parts.path.lstrip("/")).encode()
        assert self.take(16) == b"NBDMAGICIHAVEOPT"
        offered = struct.unpack(">H", self.take(2))[0]
        self.socket.sendall(struct.pack(">I", offered & 3))
        self.negotiate()
        self.option(1, self.name)
        self.size, self.flags = struct.unpack(">QH", self.take(10))

    def negotiate(self):
        pass

    def option(self, number, payload=b""):
        self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", number, len(payload)) + payload)

    def ask(self, number, payload=b""):
        """Sends an option; the type of its last reply."""
        self.option(number, payload)
        while True:
            magic, option, kind, length = struct.unpack(">QIII", self.take(20))
            assert (magic, option) == (0x3E889045565A9, number), "the option's reply is out of step"
            self.take(length)
            if kind == 1 or kind >= 2**31:
                return kind

    def take(self, length):
        data = b""
        while len(data) < length:
            piece = self.socket.recv(length - len(data))
            assert piece, "the server hung up"
            data += piece
        return data

    def send(self, kind, flags, offset, length, payload):
        header = struct.pack(self.request_form, self.request_magic, flags, kind, 77, offset, length)
        self.socket.sendall(header + payload)

    def request(self, kind, flags=0, offset=0, length=0, payload=b""):
        self.send(kind, flags, offset, length, payload)
        magic, number, cookie = struct.unpack(">IIQ", self.take(16))
        assert (magic, cookie) == (0x67446698, 77), "the reply is out of step"
        return number

    def works(self, after):
        got = self.request(0, length=512)
        expect(f"a read after {after}", 0, got)
        self.take(512)


class Extended(ByHand):
    """A client with extended headers; what it reads, and the extents it is told, stay in `chunks`."""

    request_magic, request_form = 0x21E41C71, ">IHHQQQ"

    def negotiate(self):
        export = struct.pack(">I", len(self.name)) + self.name
        contexts = export + struct.pack(">II", 1, 15) + b"base:allocation"
        expect("extended headers with a payload", 2**31 + 3, self.ask(11, b"x"))
        expect("extended headers", 1, self.ask(11))
        expect("extended headers again", 2**31 + 3, self.ask(11))
        expect("structured replies behind extended headers", 2**31 + 10, self.ask(8))
        expect("STARTTLS where there is none", 2**31 + 1, self.ask(5))
        expect("a context that nobody has", 1, self.ask(10, export + struct.pack(">II", 1, 22) + b"qemu:dirty-bitmap:none"))
        expect("contexts", 1, self.ask(10, contexts))

    def request(self, kind, flags=0, offset=0, length=0, payload=b""):
        self.send(kind, flags, offset, length, payload)
        self.chunks, number = [], 0
        while True:
            magic, last, form, cookie, repeated, size = struct.unpack(">IHHQQQ", self.take(32))
            assert (magic, cookie) == (0x6E8A278C, 77), "the reply is out of step"
            expect("the offset that a chunk repeats", offset, repeated)
            body = self.take(size)
            if form == 0x8001:
                number = struct.unpack(">I", body[:4])[0]
            else:
                self.chunks.append((form, body))
            if last & 1:
                return number

    def works(self, after):
        expect(f"a read after {after}", 0, self.request(0, length=512))


PAYLOAD = 1 << 5


def extended(uri):
    client = Extended(uri)
    expect("the flag that block status may choose contexts", 1 << 12, client.flags & 1 << 12)
    far = 2**64 - 1
    nospace = [("write", 1, PAYLOAD), ("zero", 6, 0)]
    invalid = [("read", 0, 0), ("trim", 4, 0), ("cache", 5, 0), ("block status", 7, 0)]
    for wanted, kinds in ((errno.ENOSPC, nospace), (errno.EINVAL, invalid)):
        for what, kind, flags in kinds:
            payload = b"x" * 8192 if flags else b""
            places = [(client.size - 4096, 8192), (client.size, 8192), (far - 100, 8192)]
            # Lengths past 32 bits, where no payload follows.
            places += [] if payload else [(4096, far), (0, 2**32 + client.size), (far, far)]
            for offset, length in places:
                expect(f"extended {what} at {offset} of {length}", wanted, client.request(kind, flags, offset, length, payload))
                client.works(f"extended {what}")
    for kind in (0, 3, 4, 5, 6, 8, 99):
        got = client.request(kind, PAYLOAD, 0, 4096, b"p" * 4096)
        expect(f"command {kind} with a payload", errno.EINVAL, got)
        client.works(f"command {kind} with a payload")
    choices = [b"", b"1234567", struct.pack(">Q", 512), struct.pack(">QI", 512, 9), struct.pack(">QII", 512, 1, 1)]
    choices += [struct.pack(">QI", 0, 1), struct.pack(">QI", far, 1), struct.pack(">QI", 512, 1) + b"x", b"y" * 200000]
    for choice in choices:
        got = client.request(7, PAYLOAD, 0, len(choice), choice)
        expect(f"block status of {len(choice)} bytes {choice[:20]}", errno.EINVAL, got)
        client.works("block status with a bad choice")
    expect("block status", 0, client.request(7, 0, 0, client.size))
    told = client.chunks
    expect("block status of a chosen context", 0, client.request(7, PAYLOAD, 0, 12, struct.pack(">QI", client.size, 1)))
    if told != client.chunks or [form for form, _ in told] != [6]:
        wrong.append(f"block status is not one chunk of 64-bit extents: {told[:1]} {client.chunks[:1]}")
    expect("a write of 49.9 MB", 0, client.request(1, PAYLOAD, 4096, 49900000, b"v" * 49900000))
    expect("a write that does not say it has a payload", 0, client.request(1, 0, 0, 512, b"u" * 512))
    got = client.request(1, PAYLOAD, 0, client.size + 1, b"t" * (client.size + 1))
    expect("a payload larger than the disk", errno.ENOSPC, got)
    client.works("a payload larger than the disk")
    # What nobody would read to its end cannot be refused: the connection ends, and nothing else.
    client.send(1, PAYLOAD, 0, 2**40, b"")
    try:
        client.take(1)
        wrong.append("a payload of a terabyte was answered")
    except (AssertionError, ConnectionResetError):
        pass
    Extended(uri).works("the end of another connection")


def by_hand(uri):
    client = ByHand(uri)
    for kind in (7, 8, 99, 0xFFFF):
        # 7 is BLOCK_STATUS, which no one may ask who did not negotiate structured replies.
        expect(f"command {kind}", errno.EINVAL, client.request(kind, length=512))
        client.works(f"command {kind}")
    expect("DF without structured replies", errno.EINVAL, client.request(0, flags=4, length=512))
    client.works("DF without structured replies")
    # The payload of a refused write is read all the same.
    payload = b"z" * 1048576
    got = client.request(1, offset=2**63, length=len(payload), payload=payload)
    expect("a big write far past the end", errno.ENOSPC, got)
    client.works("a big write far past the end")
    got = client.request(1, flags=0x8000, length=len(payload), payload=payload)
    expect("a big write with an unknown flag", errno.EINVAL, got)
    client.works("a big write with an unknown flag")
    # Clients in the wild send more than the 32 MiB that are advertised.
    payload = b"w" * 49900000
    expect("a write of 49.9 MB", 0, client.request(1, offset=4096, length=len(payload), payload=payload))
    client.works("a write of 49.9 MB")
    client.socket.close()


def main():
    uri, read_only_uri = sys.argv[1:]
    for structured in (True, False):
        by_libnbd(uri, structured)
    read_only(read_only_uri)
    by_hand(uri)
    extended(uri)
    for line in wrong:
        print(line)
    print(f"{checks} checks, {len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


main()
