#!/usr/bin/env python3
"""Fuzzes every target until each was executed often enough, and keeps what it found of the code.

    fuzz/campaign.py                             ten million executions of each target
    fuzz/campaign.py --seconds 3600              what an hour is enough for
    fuzz/campaign.py --jobs 4                    four targets side by side
    fuzz/campaign.py --executions 1e8 qcow2      more of one
    fuzz/campaign.py --minimise                  only packs the corpus anew
    fuzz/campaign.py --table                     only writes the table of fuzz/README.md

Executions are added up in fuzz/executions.tsv, slice by slice, so that it can be stopped at any moment and
goes on where it was. It builds without the address sanitizer, which has nothing to find in safe code, and
without the tracing of comparisons in all slices but the first of each: both cost more than they show. The target that
will take longest comes first.
Inputs that show code that no smaller one shows are packed into fuzz/seeds/TARGET.tar.xz, which fuzz/seed.sh
unpacks. Python 3.9, cargo-fuzz.
"""

import argparse
import concurrent.futures
import io
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

FUZZ = pathlib.Path(__file__).resolve().parent
FIGURES = FUZZ / "executions.tsv"
PAGE = FUZZ / "README.md"
START, END = "<!-- executions -->\n", "<!-- end of executions -->\n"
# Seconds of a target at a time, and bytes of an input.
SLICE = 120
LONGEST = 80_000
# Executions of which the counts of each edge are looked at, too.
COUNTED = 2_000_000
# Executions a second, of a target that did not run yet.
USUAL = 10_000
adding = threading.Lock()


class Finding(Exception):
    pass


def targets():
    return sorted(path.stem for path in (FUZZ / "fuzz_targets").glob("*.rs"))


def figures():
    counts = dict.fromkeys(targets(), 0)
    if FIGURES.exists():
        for line in FIGURES.read_text().splitlines()[1:]:
            target, count = line.split("\t")
            if target in counts:
                counts[target] = int(count)
    return counts


def add(target, count):
    """Adds to a target's figure and returns it."""
    with adding:
        counts = figures()
        counts[target] += count
        rows = [f"{name}\t{counts[name]}\n" for name in sorted(counts)]
        fresh = FIGURES.with_suffix(".part")
        fresh.write_text("target\texecutions\n" + "".join(rows))
        fresh.replace(FIGURES)
        return counts[target]


def build(compares):
    """Builds all targets one way and returns the folder of the programs."""
    folder = FUZZ / "target" / ("campaign-compares" if compares else "campaign")
    command = ["cargo", "fuzz", "build", "-s", "none", "--target-dir", str(folder)]
    subprocess.run(command + ([] if compares else ["--no-trace-compares"]), cwd=FUZZ.parent, check=True,
                   env={**os.environ, "RUSTC_BOOTSTRAP": "1"})
    return next(folder.glob("*/release"))


def run(program, target, before, most):
    """Runs a target for a while, at most so often, and returns how often it was executed; a finding ends the target."""
    corpus, artifacts = FUZZ / "corpus" / target, FUZZ / "artifacts" / target
    corpus.mkdir(parents=True, exist_ok=True)
    artifacts.mkdir(parents=True, exist_ok=True)
    command = [str(program / target), str(corpus), f"-artifact_prefix={artifacts}/",
               f"-max_total_time={SLICE}", f"-runs={most}",
               "-rss_limit_mb=2048", "-timeout=10", "-print_final_stats=1", "-reload=0", f"-max_len={LONGEST}",
               # What is fast is chosen more often.
               "-entropic_scale_per_exec_time=1",
               # How often each edge is taken makes the corpus several times larger, and slow.
               f"-use_counters={int(before < COUNTED)}"]
    # Otherwise the pages of each larger buffer are fetched from the kernel anew for each execution.
    memory = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env={**os.environ, **memory})
    count = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    found = re.search(r"Test unit written to (\S+)", done.stderr)
    if done.returncode != 0 and found and "ERROR: libFuzzer: timeout" in done.stderr:
        # On a machine with much else to do everything takes long now and then.
        again = subprocess.run([str(program / target), "-timeout=10", found[1]], capture_output=True)
        if again.returncode == 0:
            os.remove(found[1])
            return int(count[1])
    if done.returncode != 0:
        raise Finding(f"{done.stderr[-6000:]}\n{target}: a finding; the input is in {artifacts}")
    return int(count[1])


def minimise(program, target):
    """Packs the fewest inputs that show as much as all of them do, the same bytes for the same inputs."""
    corpus = FUZZ / "corpus" / target
    if not corpus.exists() or not any(corpus.iterdir()):
        return
    with tempfile.TemporaryDirectory() as scratch:
        kept = pathlib.Path(scratch) / "kept"
        kept.mkdir()
        subprocess.run([str(program / target), "-set_cover_merge=1", "-rss_limit_mb=2048", "-timeout=10",
                        str(kept), str(corpus)], capture_output=True, check=True, cwd=scratch)
        (FUZZ / "seeds").mkdir(exist_ok=True)
        packed = FUZZ / "seeds" / f"{target}.tar.xz"
        files = sorted(kept.iterdir())
        with tarfile.open(packed, "w:xz", preset=9) as archive:
            for path in files:
                entry = tarfile.TarInfo(path.name)
                entry.size = path.stat().st_size
                archive.addfile(entry, io.BytesIO(path.read_bytes()))
        # What goes on starts from these.
        shutil.rmtree(corpus)
        corpus.mkdir()
        for path in files:
            shutil.copy(path, corpus)
    print(f"{target}: {len(files)} inputs, {packed.stat().st_size} bytes packed", flush=True)


def table():
    rows = "".join(f"| `{target}` | {count:,} |\n" for target, count in figures().items())
    text = PAGE.read_text()
    before, rest = text.split(START)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{START}| target | executions |\n|---|---:|\n{rows}{END}{after}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--executions", type=float, default=1e7)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minimise", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    chosen = options.targets or targets()
    if options.table:
        return table()
    subprocess.run([str(FUZZ / "seed.sh")], check=True)
    program = build(False)
    findings = []
    if not options.minimise:
        end = time.monotonic() + options.seconds
        left = [target for target in chosen if figures()[target] < options.executions]
        tracing = program if all(figures()[target] for target in left) else build(True)

        speed = {}

        def seconds_left(target):
            return (options.executions - figures()[target]) / speed.get(target, USUAL)

        def one_slice(target):
            """Whether the target wants another after it."""
            done, begun = figures()[target], time.monotonic()
            count = run(program if done else tracing, target, done, math.ceil(options.executions - done))
            speed[target] = count / (time.monotonic() - begun)
            total = add(target, count)
            print(f"{target}: {count} more, {total} in all", flush=True)
            return total < options.executions

        with concurrent.futures.ThreadPoolExecutor(options.jobs) as jobs:
            running = {}
            while left or running:
                # What takes longest is first, or it would be alone in the end.
                left.sort(key=seconds_left, reverse=True)
                while left and len(running) < options.jobs and time.monotonic() < end:
                    target = left.pop(0)
                    running[jobs.submit(one_slice, target)] = target
                if not running:
                    break
                done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    target = running.pop(future)
                    try:
                        if future.result():
                            left.append(target)
                    except Finding as finding:
                        findings.append(target)
                        print(finding, flush=True)
    for target in chosen:
        minimise(program, target)
    table()
    if findings:
        sys.exit(f"findings: {', '.join(findings)}")


if __name__ == "__main__":
    main()
