#!/usr/bin/python3
"""Every illegal request, and the exact error it must get; then proof that the connection is still in step.

    illegal_requests.py URI [--read-only]

URI names an export of at least 64 MiB, writable unless --read-only is given; its first 128 KiB are overwritten. Judged through
libnbd with its own checks switched off (Debian's python3-libnbd). Prints `ok NAME` or `FAIL NAME: why` per case; exits 1 if any
failed. Options that libnbd would never send go over a plain socket (Unix URIs only).
"""

import errno
import socket
import struct
import sys
import urllib.parse

import nbd

MIB = 1 << 20
failures = 0


def report(name, problem):
    global failures
    if problem:
        failures += 1
        print(f"FAIL {name}: {problem}")
    else:
        print(f"ok {name}")


def connect(uri, structured=True, contexts=True):
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    if contexts:
        h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(uri)
    h.set_strict_mode(0)
    return h


def refused(h, name, expected, call):
    """`call` must fail with `expected`, and the connection must go on."""
    try:
        call()
        problem = f"was carried out, expected {errno.errorcode[expected]}"
    except nbd.Error as error:
        got = error.errnum
        problem = None if got == expected else f"{errno.errorcode.get(got, got)}, expected {errno.errorcode[expected]}"
    try:
        h.pread(512, 0)
    except nbd.Error as error:
        problem = f"the connection was lost: {error}"
    report(name, problem)


def allowed(name, call):
    try:
        call()
        report(name, None)
    except nbd.Error as error:
        report(name, str(error))


def ignore(*_):
    return 0


def ranges(h, how):
    size = h.get_size()
    block = bytearray(512)
    far = (1 << 63) - 512
    for where, offset in [("across the end", size - 256), ("at the end", size), ("behind the end", size + 4096), ("far behind", far)]:
        changes = [
            ("write", errno.ENOSPC, lambda o=offset: h.pwrite(block, o)),
            ("zero", errno.ENOSPC, lambda o=offset: h.zero(512, o)),
            ("trim", errno.EINVAL, lambda o=offset: h.trim(512, o)),
        ]
        looks = [
            ("read", errno.EINVAL, lambda o=offset: h.pread(512, o)),
            ("cache", errno.EINVAL, lambda o=offset: h.cache(512, o)),
            ("block status", errno.EINVAL, lambda o=offset: h.block_status(512, o, ignore)),
        ]
        for command, expected, call in changes + looks:
            refused(h, f"{how}: {command} {where}", expected, call)


def flags(h, how):
    """Each flag on each command; FUA is legal on all of them."""
    block = bytearray(512)
    df, req_one = nbd.CMD_FLAG_DF, nbd.CMD_FLAG_REQ_ONE
    no_hole, fast = nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO
    commands = {
        "read": (lambda f: h.pread(512, 0, flags=f), {df} if h.can_df() else set()),
        "write": (lambda f: h.pwrite(block, 0, flags=f), set()),
        "flush": (lambda f: h.flush(flags=f), set()),
        "trim": (lambda f: h.trim(512, 0, flags=f), set()),
        "cache": (lambda f: h.cache(512, 0, flags=f), set()),
        "zero": (lambda f: h.zero(512, 0, flags=f), {no_hole} | ({fast} if h.can_fast_zero() else set())),
        "block status": (lambda f: h.block_status(4096, 0, ignore, flags=f), {req_one}),
    }
    if not h.can_trim():
        del commands["trim"]
    for command, (call, own) in commands.items():
        for bit in range(1, 16):
            flag = 1 << bit
            if bit == 5 or flag in own:
                continue  # 5 is a payload length, which changes what libnbd sends
            refused(h, f"{how}: {command} with flag {bit}", errno.EINVAL, lambda c=call, f=flag: c(f))
        for flag in {nbd.CMD_FLAG_FUA} | own:
            if command == "zero" and flag == fast:
                continue  # may be refused with ENOTSUP, by right
            allowed(f"{how}: {command} with its flag {flag}", lambda c=call, f=flag: c(f))


def lengths(h, how):
    size = h.get_size()
    refused(h, f"{how}: block status of nothing", errno.EINVAL, lambda: h.block_status(0, 0, ignore))
    refused(h, f"{how}: zero past the end by length", errno.ENOSPC, lambda: h.zero((1 << 32) - 1, size - 512))
    big = min(size, 50 * MIB)
    allowed(f"{how}: read of {big} bytes", lambda: h.pread(big, 0))


def drained(h, how):
    """A refused write's payload is read off the stream, whatever its size."""
    size = h.get_size()
    for length in [1, 4096, MIB - 1, MIB, 3 * MIB + 7, 33 * MIB]:
        refused(h, f"{how}: payload of {length} bytes is drained", errno.ENOSPC, lambda n=length: h.pwrite(bytearray(n), size))


def data_survives(h, how):
    written = bytes(range(256)) * 256
    h.pwrite(written, 1)
    report(f"{how}: data after all that", None if h.pread(len(written), 1) == written else "other bytes came back")


def read_only(uri):
    h = connect(uri)
    report("read-only: says so", None if h.is_read_only() else "the export is writable")
    report("read-only: offers no trim", "offers it" if h.can_trim() else None)
    report("read-only: offers no zero", "offers it" if h.can_zero() else None)
    block = bytearray(512)
    refused(h, "read-only: write", errno.EPERM, lambda: h.pwrite(block, 0))
    refused(h, "read-only: large write", errno.EPERM, lambda: h.pwrite(bytearray(3 * MIB), 0))
    refused(h, "read-only: zero", errno.EPERM, lambda: h.zero(512, 0))
    refused(h, "read-only: trim", errno.EPERM, lambda: h.trim(512, 0))
    allowed("read-only: flush", h.flush)
    allowed("read-only: cache", lambda: h.cache(512, 0))


def options(uri):
    """Options no well-behaved client sends, over a plain socket."""
    parts = urllib.parse.urlsplit(uri)
    path = urllib.parse.parse_qs(parts.query).get("socket", [None])[0]
    if path is None:
        return
    name = urllib.parse.unquote(parts.path[1:]).encode()
    unsup, invalid, unknown, too_big = (0x80000001, 0x80000003, 0x80000006, 0x80000009)
    go = struct.pack(">I", len(name)) + name
    contexts = struct.pack(">I", len(name)) + name + struct.pack(">I", 1)
    cases = [
        ("unknown option", 77, b"x" * 1000, unsup),
        ("STARTTLS", 5, b"", unsup),
        ("EXTENDED_HEADERS", 11, b"", unsup),
        ("PEEK_EXPORT", 4, b"", unsup),
        ("LIST with data", 3, b"x", invalid),
        ("STRUCTURED_REPLY with data", 8, b"x", invalid),
        ("INFO without data", 6, b"", invalid),
        ("INFO cut short", 6, go + b"\0", invalid),
        ("GO with trailing data", 7, go + b"\0\0\0", invalid),
        ("GO with a name longer than the option", 7, struct.pack(">I", 500) + b"abc\0\0", invalid),
        ("GO with a name of 4097 bytes", 7, struct.pack(">I", 4097) + b"n" * 4097 + b"\0\0", invalid),
        ("GO with another name", 7, struct.pack(">I", 4) + b"nope" + b"\0\0", unknown),
        ("SET_META_CONTEXT before STRUCTURED_REPLY", 10, contexts + struct.pack(">I", 5) + b"base:", invalid),
        ("an option of 100 KiB", 7, b"x" * 102400, too_big),
    ]
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)
        s.settimeout(10)
        take(s, 18)
        s.sendall(struct.pack(">I", 3))
        for case, option, payload, expected in cases:
            s.sendall(b"IHAVEOPT" + struct.pack(">II", option, len(payload)) + payload)
            echoed, kind, length = struct.unpack(">8xIII", take(s, 20))
            text = take(s, length)
            problem = None if (echoed, kind) == (option, expected) else f"answered {kind:#x}"
            if len(text) > 4096:
                problem = f"an error text of {len(text)} bytes"
            report(f"option: {case}", problem)
        s.sendall(b"IHAVEOPT" + struct.pack(">II", 2, 0))
        report("option: ABORT is acknowledged", None if struct.unpack(">8xIII", take(s, 20)) == (2, 1, 0) else "it is not")
    for case, hello in [("client flags that were not offered", struct.pack(">I", 7)), ("no magic", struct.pack(">I", 3) + b"x" * 16)]:
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(path)
            s.settimeout(10)
            take(s, 18)
            s.sendall(hello)
            try:
                report(f"option: {case} ends the connection", "it goes on" if s.recv(1) else None)
            except ConnectionResetError:
                report(f"option: {case} ends the connection", None)


def take(s, length):
    data = b""
    while len(data) < length:
        piece = s.recv(length - len(data))
        if not piece:
            raise SystemExit("FAIL the server hung up during the handshake")
        data += piece
    return data


def main():
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    uri = sys.argv[1]
    if "--read-only" in sys.argv[2:]:
        read_only(uri)
    else:
        for how, structured in [("structured", True), ("simple", False)]:
            h = connect(uri, structured)
            ranges(h, how)
            if structured:
                flags(h, how)
                lengths(h, how)
            drained(h, how)
            data_survives(h, how)
            h.shutdown()
        h = connect(uri, contexts=False)
        refused(h, "no context: block status", errno.EINVAL, lambda: h.block_status(512, 0, ignore))
        h.shutdown()
    options(uri)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
