#!/usr/bin/env python3
"""Measures the most memory that `lifeboat proxy` and `lifeboat uploader` ever held (VmHWM), each in a process of its own.

    scripts/bench-memory.py --lifeboat BINARY [--dir DIR] [--scale 1/16] [--only payloads,changes,initial,compare]

Four loads, each with fresh processes, a fresh disk and a folder as vault:

    payloads   16 connections write and read with payloads of 32 MiB while points are taken every two seconds
    changes    an 8 GiB disk gets 2 GiB of 4 KiB writes at random places, which one point then takes
    initial    the first copy of a disk that holds 4 GiB
    compare    a fresh uploader that compares the whole of such a disk with the vault, and finds nothing to ship

Prints a table and fails if a bound is broken: the proxy 64 MiB and 100 MiB for each TiB of disks, the uploader 300 MiB.
Needs nothing but Python, and about 14 GiB of room in DIR at full scale.
"""

import argparse
import fractions
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading

MIB = 1 << 20
GIB = 1 << 30
PAYLOAD = 32 * MIB
READ, WRITE, DISCONNECT = 0, 1, 2


class Client:
    """A plain NBD client over a Unix socket."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        magic, option, flags = struct.unpack(">8s8sH", self.take(18))
        assert (magic, option) == (b"NBDMAGIC", b"IHAVEOPT"), (magic, option)
        # No zeroes after EXPORT_NAME; the empty name is the only export.
        self.socket.sendall(struct.pack(">I8sII", flags & 3, b"IHAVEOPT", 1, 0))
        self.size, self.flags = struct.unpack(">QH", self.take(10))

    def take(self, count):
        data = bytearray(count)
        view = memoryview(data)
        while view:
            got = self.socket.recv_into(view)
            if not got:
                raise EOFError("the server hung up")
            view = view[got:]
        return data

    def header(self, kind, offset, length):
        return struct.pack(">IHHQQI", 0x25609513, 0, kind, 0, offset, length)

    def replies(self, count):
        for _ in range(count):
            magic, error, _ = struct.unpack(">IIQ", self.take(16))
            assert (magic, error) == (0x67446698, 0), (hex(magic), error)

    def write(self, offset, data):
        self.socket.sendall(self.header(WRITE, offset, len(data)))
        self.socket.sendall(data)
        self.replies(1)

    def read(self, offset, length):
        self.socket.sendall(self.header(READ, offset, length))
        self.replies(1)
        return self.take(length)

    def close(self):
        self.socket.sendall(self.header(DISCONNECT, 0, 0))
        self.socket.close()


class Site:
    """One machine with one disk, its daemons and its vault, in a folder that vanishes."""

    def __init__(self, lifeboat, folder, size, interval):
        self.lifeboat, self.size = lifeboat, size
        self.folder = tempfile.mkdtemp(prefix="memory-", dir=folder)
        self.image = os.path.join(self.folder, "disk.img")
        self.socket = os.path.join(self.folder, "disk.sock")
        self.config = os.path.join(self.folder, "lifeboat.toml")
        self.daemons = {}
        with open(self.image, "wb") as image:
            image.truncate(size)
        with open(self.config, "w", encoding="utf-8") as config:
            config.write(f'''state_dir = "{self.folder}/state"
[vault]
url = "file://{self.folder}/vault"
encryption = "none"
[policy]
interval = "{interval}"
[[machine]]
name = "m"
[[machine.disk]]
name = "disk"
path = "{self.image}"
listen = "unix:{self.socket}"
''')

    def start(self):
        for role in ("proxy", "uploader"):
            self.start_one(role)

    def start_one(self, role, *before):
        command = [*before, self.lifeboat, role, "--config", self.config]
        daemon = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.daemons[role] = daemon
        assert daemon.stdout.readline() == b"ready\n", f"the {role} did not get ready"

    def restart(self, role):
        self.daemons[role].send_signal(signal.SIGTERM)
        assert self.daemons[role].wait(60) == 0, f"the {role} ended badly"
        self.start_one(role)

    def run(self, *command):
        subprocess.run([self.lifeboat, "--config", self.config, "--json", *command], check=True, stdout=subprocess.DEVNULL)

    def peaks(self):
        return {role: peak(daemon.pid) for role, daemon in self.daemons.items()}

    def stop(self):
        for daemon in self.daemons.values():
            daemon.send_signal(signal.SIGTERM)
        for role, daemon in self.daemons.items():
            assert daemon.wait(60) == 0, f"the {role} ended with {daemon.returncode}"

    def remove(self):
        for daemon in self.daemons.values():
            if daemon.poll() is None:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder)


def peak(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def payloads(site, scale):
    site.start()
    site.run("wait", "m", "--for", "protected", "--timeout", "5m")
    failures = []

    def connection(number):
        try:
            client, data = Client(site.socket), random.Random(number).randbytes(PAYLOAD)
            for round_ in range(max(1, int(8 * scale))):
                offset = (number * 8 + round_ % 8) * PAYLOAD % site.size
                client.write(offset, data)
                client.read(offset, PAYLOAD)
            client.close()
        except Exception as error:  # told below, in the thread that counts
            failures.append(error)

    threads = [threading.Thread(target=connection, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    site.run("cut", "m")


def changes(site, scale):
    site.start()
    site.run("wait", "m", "--for", "protected", "--timeout", "5m")
    client, source = Client(site.socket), random.Random(1)
    noise, batch = source.randbytes(64 * MIB), 64
    for _ in range(int(2 * GIB * scale) // 4096 // batch):
        out = bytearray()
        for _ in range(batch):
            at = source.randrange(len(noise) - 4096)
            out += client.header(WRITE, source.randrange(site.size // 4096) * 4096, 4096)
            out += noise[at : at + 4096]
        client.socket.sendall(out)
        client.replies(batch)
    client.close()
    site.run("cut", "m")


def initial(site, scale):
    with open(site.image, "r+b") as image:
        for _ in range(int(4 * GIB * scale) // MIB):
            image.write(os.urandom(MIB))
    site.start()
    site.run("wait", "m", "--for", "protected", "--timeout", "30m")


def compare(site, scale):
    initial(site, scale)
    site.restart("uploader")
    site.run("resync", "m")
    site.run("cut", "m", "--timeout", "30m")


LOADS = {"payloads": (payloads, 4 * GIB, "2s"), "changes": (changes, 8 * GIB, "24h"), "initial": (initial, 8 * GIB, "30s"),
         "compare": (compare, 8 * GIB, "24h")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lifeboat", required=True, help="the binary")
    parser.add_argument("--dir", help="where the scratch folders are made (default: that of temporary files)")
    parser.add_argument("--scale", type=fractions.Fraction, default=1, help="less data, the same loads: 1/16")
    parser.add_argument("--only", default=",".join(LOADS), help="loads, separated by commas")
    options = parser.parse_args()
    broken = False
    print(f"{'load':<10} {'role':<9} {'peak MiB':>9} {'bound MiB':>10}")
    for name in options.only.split(","):
        load, size, interval = LOADS[name]
        site = Site(os.path.abspath(options.lifeboat), options.dir, size, interval)
        try:
            load(site, options.scale)
            peaks = site.peaks()
            site.stop()
        finally:
            site.remove()
        bounds = {"proxy": 64 * MIB + 100 * MIB * size // (1 << 40), "uploader": 300 * MIB}
        for role, held in peaks.items():
            over = held > bounds[role]
            broken |= over
            print(f"{name:<10} {role:<9} {held / MIB:>9.1f} {bounds[role] / MIB:>10.1f}{'  BROKEN' if over else ''}", flush=True)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
