#!/usr/bin/env python3
"""Measures what tracking costs where it may cost most. Called by scripts/bench, which builds what is needed.

    scripts/bench-tracking.py compare|cut|blocked --lifeboat BINARY --examples FOLDER [--dir DIR] [--rounds N] [--scale 1/16]

    compare   a disk of 4 GiB whose first half is marked is opened as after a power loss (under another mount, which needs root): only
              what is marked may be read, and at 0.8 or more of the speed of reading and hashing by itself
    cut       eight disks under full load: the 99.9th percentile of the writes that meet a cut is at most 1 ms above that of the
              others
    blocked   a store that stops answering (a SeaweedFS that is stopped): the 99th percentile of the guest's writes is at most
              1.15 times that with the store well

Rounds are interleaved and medians printed; fails if a bound is missed.
"""

import argparse
import fractions
import importlib.machinery
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime

HERE = os.path.dirname(os.path.abspath(__file__))
MIB, GIB = 1 << 20, 1 << 30
REGION = 4 * MIB


def load(name):
    """Another script of this folder as a module."""
    loader = importlib.machinery.SourceFileLoader(name.replace("-", "_"), os.path.join(HERE, name + ".py"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


MEMORY = load("bench-memory")


def said(site, *command):
    command = [site.lifeboat, "--config", site.config, "--json", *command]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def newest_job(site):
    return max(said(site, "jobs")["jobs"], key=lambda job: job["started"])


def seconds(job):
    begin, end = (datetime.fromisoformat(job[key].replace("Z", "+00:00")[:26].rstrip("+") + "+00:00") for key in ("started", "ended"))
    return (end - begin).total_seconds()


def compare(options):
    size = int(4 * GIB * options.scale) // (2 * REGION) * 2 * REGION
    site = MEMORY.Site(os.path.abspath(options.lifeboat), options.dir, size, "24h")
    ours, alone, marked = [], [], size // 2
    try:
        with open(site.image, "r+b") as image:
            for _ in range(size // MIB):
                image.write(os.urandom(MIB))
        site.start()
        site.run("wait", "m", "--for", "protected", "--timeout", "30m")
        for round_ in range(options.rounds):
            client = MEMORY.Client(site.socket)
            for region in range(marked // REGION):
                client.write(region * REGION + 4096 * round_, random.randbytes(4096))
            client.close()
            for role, number in (("proxy", signal.SIGKILL), ("uploader", signal.SIGTERM)):
                site.daemons[role].send_signal(number)
                site.daemons[role].wait(60)
            # To the proxy, another mount is another page cache.
            mount = 'mount --bind "$0" "$0" && exec "$@"'
            site.start_one("proxy", "unshare", "-m", "sh", "-c", mount, site.folder)
            site.start_one("uploader")
            site.run("wait", "m", "--for", "protected", "--timeout", "30m")
            job = newest_job(site)
            assert "mounted anew" in job["cause"], job
            # A region that was marked ahead, or that something else has marked, is one too many.
            assert marked <= job["bytes_done"] <= marked + 16 * REGION, (marked, job)
            ours.append(job["bytes_done"] / seconds(job) / MIB)
            tool = os.path.join(options.examples, "read_and_hash")
            took = float(subprocess.run([tool, site.image, str(marked)], check=True, capture_output=True).stdout)
            alone.append(marked / took / MIB)
            print(f"round {round_}: read {job['bytes_done'] // MIB} MiB of {size // MIB}, shipped {job['bytes_shipped'] // MIB} MiB, "
                  f"{ours[-1]:.0f} MiB/s; reading and hashing alone {alone[-1]:.0f} MiB/s", flush=True)
        site.stop()
    finally:
        site.remove()
    ratio = statistics.median(ours) / statistics.median(alone)
    print(f"compare {statistics.median(ours):.0f} MiB/s, alone {statistics.median(alone):.0f} MiB/s, ratio {ratio:.2f}")
    return ratio >= 0.8


def cut(options):
    folder = tempfile.mkdtemp(prefix="cut-", dir=options.dir)
    rounds = {"met": [], "others": []}
    try:
        for _ in range(options.rounds):
            tool = os.path.join(options.examples, "cut_latency")
            length = str(max(2, int(20 * options.scale)))
            out = subprocess.run([tool, folder, length], check=True, capture_output=True, text=True).stdout
            for line in out.splitlines():
                what, count, *percentiles = line.split()
                rounds[what].append([int(value) for value in percentiles])
                print(f"{what:<8} {count:>10} writes, p50 {percentiles[0]:>6} us, p99 {percentiles[1]:>6} us, "
                      f"p99.9 {percentiles[2]:>6} us", flush=True)
    finally:
        shutil.rmtree(folder)
    met, others = (statistics.median(row[2] for row in rounds[what]) for what in ("met", "others"))
    print(f"p99.9 of writes that meet a cut {met:.0f} us, of others {others:.0f} us: {met - others:+.0f} us")
    return met - others <= 1000


def free_port():
    while True:
        with socket.socket() as probe, socket.socket() as above:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            try:
                if port < 50_000:
                    above.bind(("127.0.0.1", port + 10_000))
                    return port
            except OSError:
                pass


class Weed:
    """A SeaweedFS with a bucket."""

    def __init__(self, folder):
        port = free_port()
        os.mkdir(folder)
        with open(os.path.join(folder, "log"), "wb") as log:
            lab = os.path.join(HERE, "lab")
            self.process = subprocess.Popen([lab, "s3", folder, str(port)], stdout=log, stderr=log, start_new_session=True)
        self.url = f"http://127.0.0.1:{port}"
        put = ["curl", "-sf", "-o", "/dev/null", "-X", "PUT", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user", "l:l"]
        deadline = time.monotonic() + 90
        while subprocess.run([*put, self.url + "/bucket1"], check=False).returncode:
            assert time.monotonic() < deadline, "SeaweedFS did not get ready"
            time.sleep(0.5)

    def signal(self, number):
        os.killpg(self.process.pid, number)


def fio(site, folder, length):
    """The 99th percentile of 4 KiB writes, in microseconds."""
    command = ["fio", "--name=bench", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={site.socket}", "--rw=randwrite",
               "--bs=4k", "--iodepth=4", "--rate_iops=8000", "--time_based", f"--runtime={length}", "--norandommap",
               "--randrepeat=0", "--output-format=json"]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
    job = json.loads(result.stdout[result.stdout.index("{"):])["jobs"][0]["write"]
    return job["clat_ns"]["percentile"]["99.000000"] / 1000, job["iops"]


def blocked(options):
    folder = tempfile.mkdtemp(prefix="blocked-", dir=options.dir)
    weed = None
    site = MEMORY.Site(os.path.abspath(options.lifeboat), folder, GIB, "1s")
    samples = {"well": [], "blocked": []}
    length = max(2, int(5 * options.scale))
    try:
        weed = Weed(os.path.join(folder, "weed"))
        with open(site.config, encoding="utf-8") as config:
            text = config.read().replace(f"file://{site.folder}/vault", "s3://bucket1/bench")
        text = text.replace("[policy]\n", '[policy]\nretry = ["1s"]\nlog_limit = "4 GiB"\n')
        with open(site.config, "w", encoding="utf-8") as config:
            config.write(text)
        os.environ.update(AWS_ACCESS_KEY_ID="l", AWS_SECRET_ACCESS_KEY="l", AWS_ENDPOINT_URL=weed.url, AWS_REGION="us-east-1")
        with open(site.image, "r+b") as image:
            for _ in range(GIB // 4096):
                image.write(os.urandom(4096))
        site.start()
        site.run("wait", "m", "--for", "protected", "--timeout", "10m")
        fio(site, folder, 2)
        for round_ in range(2 * options.rounds):
            what = "well" if round_ % 2 == 0 else "blocked"
            # The load is the same: nothing of an earlier round is left to ship.
            site.run("cut", "m", "--timeout", "5m")
            os.sync()
            if what == "blocked":
                weed.signal(signal.SIGSTOP)
                time.sleep(1.5)
            samples[what].append(fio(site, folder, length))
            if what == "blocked":
                logged = said(site, "status")["machines"][0]["disks"][0]
                weed.signal(signal.SIGCONT)
                print(f"         behind: {logged['log_bytes'] // MIB} MiB in the log, {logged['state']}")
            print(f"{what:<8} p99 {samples[what][-1][0]:7.0f} us at {samples[what][-1][1]:.0f} writes a second", flush=True)
        site.stop()
    finally:
        if weed:
            weed.signal(signal.SIGCONT)
            weed.signal(signal.SIGTERM)
            weed.process.wait(60)
        site.remove()
        shutil.rmtree(folder, ignore_errors=True)
    well, away = (statistics.median(p99 for p99, _ in samples[what]) for what in ("well", "blocked"))
    print(f"p99 with the store well {well:.0f} us, blocked {away:.0f} us, ratio {away / well:.2f}")
    return away <= 1.15 * well


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["compare", "cut", "blocked"])
    parser.add_argument("--lifeboat", required=True, help="the binary")
    parser.add_argument("--examples", required=True, help="the folder of the built examples")
    parser.add_argument("--dir", help="where the scratch folders are made (default: that of temporary files)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=fractions.Fraction, default=1, help="less data, the same loads: 1/16")
    options = parser.parse_args()
    measures = {"compare": compare, "cut": cut, "blocked": blocked}
    sys.exit(0 if measures[options.what](options) else 1)


if __name__ == "__main__":
    main()
