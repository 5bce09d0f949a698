#!/usr/bin/env python3
"""Compares NBD servers under fio's nbd engine and prints our ratio to the best of the others.

    scripts/bench-nbd.py --ours 'lifeboat=COMMAND …{image}…{socket}…' [--ours …] [--dir DIR] [options]

Every server gets an image of its own in DIR (made the same way: fully written with random bytes and synced, for sparse, unsynced
and written images differ fourfold), serves it on {socket} for the whole run, and may keep files in {folder}. An export is found
under the empty name unless --export names one. Rounds are interleaved: each row visits every server once per round, in
changing order, with dirty pages written back in between; medians are printed. A command is split like a shell would, and is
ready when its socket accepts. Others: nbdkit file, qemu-nbd with threads, qemu-nbd with io_uring where it runs.

On a machine with other work, run it under `chrt -r 5`: servers and clients then do not wait for anybody else.

Needs fio with the nbd engine; nbdkit and qemu-nbd, as far as present, are what we are compared with.
"""

import argparse
import itertools
import json
import os
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

OTHERS = {
    "nbdkit-file": "nbdkit -f -U {socket} file {image}",
    "qemu-threads": "qemu-nbd -t -e 8 -f raw --cache=writeback --aio=threads --discard=unmap -k {socket} {image}",
    "qemu-io_uring": "qemu-nbd -t -e 8 -f raw --cache=writeback --aio=io_uring --discard=unmap -k {socket} {image}",
}
MODES = {"read": "randread", "write": "randwrite", "mixed": "randrw"}


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", action="append", required=True, metavar="NAME=COMMAND")
    parser.add_argument("--export", default="", help="name of our export (default: the empty name)")
    parser.add_argument("--dir", help="folder for images, sockets and logs (default: a temporary one)")
    parser.add_argument("--size", type=int, default=1024, help="MiB per image (default 1024)")
    parser.add_argument("--runtime", type=float, default=2, help="seconds per measurement (default 2)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bs", default="4k,256k")
    parser.add_argument("--modes", default="read,write,mixed")
    parser.add_argument("--depths", default="1,16")
    parser.add_argument("--only-ours", action="store_true", help="measure without the others")
    parser.add_argument("--against", metavar="NAME", help="one of ours: the ratios are to it")
    parser.add_argument("--floor", type=float, help="fail if a ratio is below this")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers to FILE")
    return parser.parse_args()


class Server:
    """A server process with its image."""

    def __init__(self, name, command, ours, folder, size):
        self.name, self.ours = name, ours
        self.folder = os.path.join(folder, name)
        os.makedirs(self.folder, exist_ok=True)
        self.socket = os.path.join(self.folder, "s")
        self.image = os.path.join(self.folder, "disk.img")
        make_image(self.image, size)
        words = dict(socket=self.socket, image=self.image, folder=self.folder)
        self.command = [word.format(**words) for word in shlex.split(command)]
        self.process = None

    def start(self):
        """Starts the server; false if it does not come up."""
        log = open(os.path.join(self.folder, "log"), "wb")
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(self.socket)
                    return True
                except OSError:
                    time.sleep(0.05)
        return False

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def said(self):
        with open(os.path.join(self.folder, "log"), errors="replace") as log:
            return log.read().strip()[-400:]


def make_image(path, size):
    """A fully written, synced image, all of it in the page cache, in pages of 4 KiB.

    Large writes would leave the cache in large folios here and in small ones there, as memory happens to be; a small write into
    a large folio costs several times as much, and images would differ more than servers do.
    """
    with open(path, "wb", buffering=0) as image:
        for _ in range(size):
            data = os.urandom(1 << 20)
            for at in range(0, len(data), 4096):
                image.write(data[at:at + 4096])
        os.fsync(image.fileno())


def measure(server, export, bs, mode, depth, runtime):
    """One fio run; operations per second."""
    os.sync()
    command = [
        "fio", "--name=bench", "--ioengine=nbd", f"--uri=nbd+unix:///{export}?socket={server.socket}",
        f"--rw={MODES[mode]}", f"--bs={bs}", f"--iodepth={depth}", "--time_based", f"--runtime={runtime}",
        "--ramp_time=0.3", "--norandommap", "--randrepeat=0", "--output-format=json",
    ]
    result = subprocess.run(command, capture_output=True, text=True, cwd=server.folder)
    start = result.stdout.find("{")
    if result.returncode != 0 or start < 0:
        sys.exit(f"fio failed on {server.name}: {result.stderr.strip() or result.stdout.strip()}\n{server.said()}")
    job = json.loads(result.stdout[start:])["jobs"][0]
    return job["read"]["iops"] + job["write"]["iops"]


def start_all(args, folder):
    """All servers that come up; ours must."""
    wanted = [(*spec.split("=", 1), True) for spec in args.ours]
    if not args.only_ours:
        wanted += [(name, command, False) for name, command in OTHERS.items() if shutil.which(command.split()[0])]
    servers = []
    try:
        for name, command, ours in wanted:
            server = Server(name, command, ours, folder, args.size)
            servers.append(server)
            if server.start():
                continue
            if ours:
                raise SystemExit(f"{name} did not start: {server.said()}")
            print(f"without {name}: {server.said() or 'did not start'}", file=sys.stderr)
            server.stop()
            servers.remove(server)
    except BaseException:
        stop_all(servers)
        raise
    return servers


def stop_all(servers):
    for server in servers:
        server.stop()


def run(args, servers):
    """Medians by row; a row is (bs, mode, depth)."""
    rows = list(itertools.product(args.bs.split(","), args.modes.split(","), args.depths.split(",")))
    names = [server.name for server in servers]
    print(f"{'':22}" + "".join(f"{name:>16}" for name in names) + "    ratio to the best other")
    medians, lowest = {}, None
    for bs, mode, depth in rows:
        samples = {name: [] for name in names}
        for round_number in range(args.rounds):
            turn = round_number % len(servers)
            for server in servers[turn:] + servers[:turn]:
                export = args.export if server.ours else ""
                samples[server.name].append(measure(server, export, bs, mode, depth, args.runtime))
        row = {name: statistics.median(values) for name, values in samples.items()}
        compared = [s.name for s in servers if (s.name == args.against if args.against else not s.ours)]
        others = [row[name] for name in compared]
        measured = [s.name for s in servers if s.ours and s.name not in compared]
        ratios = {name: row[name] / max(others) for name in measured} if others else {}
        told = "  ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
        print(f"{bs:>5} {mode:>6} depth {depth:>2}  " + "".join(f"{row[name]:16.0f}" for name in names) + "    " + told)
        sys.stdout.flush()
        medians[f"{bs} {mode} {depth}"] = {"iops": row, "ratio": ratios}
        lowest = min([*ratios.values(), *([] if lowest is None else [lowest])], default=lowest)
    return medians, lowest


def main():
    args = options()
    if not shutil.which("fio"):
        sys.exit("fio is not installed (apt-get install fio)")
    folder = tempfile.mkdtemp(prefix="bench-nbd-", dir=args.dir)
    servers = []
    try:
        servers = start_all(args, folder)
        medians, lowest = run(args, servers)
    finally:
        stop_all(servers)
        shutil.rmtree(folder, ignore_errors=True)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(medians, file, indent=1)
    if lowest is not None:
        print(f"lowest ratio {lowest:.2f}")
        if args.floor is not None and lowest < args.floor:
            sys.exit(f"below the floor of {args.floor}")


if __name__ == "__main__":
    main()
