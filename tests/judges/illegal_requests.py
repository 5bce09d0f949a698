#!/usr/bin/python3
"""Sends what no client should, and holds the server to the exact error.

    illegal_requests.py URI READ_ONLY_URI

libnbd is told not to protect the server (strict mode 0); what it cannot say at all goes over a socket by hand. After every
refusal the same connection must still work: a refused request never leaves the stream out of step.
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

    def __init__(self, uri):
        parts = urllib.parse.urlsplit(uri)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(urllib.parse.parse_qs(parts.query)["socket"][0])
        name = urllib.parse.unquote(parts.path.lstrip("/")).encode()
        assert self.take(16) == b"NBDMAGICIHAVEOPT"
        offered = struct.unpack(">H", self.take(2))[0]
        self.socket.sendall(struct.pack(">I", offered & 3))
        self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", 1, len(name)) + name)
        self.take(10)

    def take(self, length):
        data = b""
        while len(data) < length:
            piece = self.socket.recv(length - len(data))
            assert piece, "the server hung up"
            data += piece
        return data

    def request(self, kind, flags=0, offset=0, length=0, payload=b""):
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, flags, kind, 77, offset, length) + payload)
        magic, number, cookie = struct.unpack(">IIQ", self.take(16))
        assert (magic, cookie) == (0x67446698, 77), "the reply is out of step"
        return number

    def works(self, after):
        got = self.request(0, length=512)
        expect(f"a read after {after}", 0, got)
        self.take(512)


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
    for line in wrong:
        print(line)
    print(f"{checks} checks, {len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


main()
