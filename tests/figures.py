#!/usr/bin/env python3
"""Runs the proofs of trust in full and renews the table of figures in SECURITY.md.

    tests/figures.py                    all of it, which takes some hours
    tests/figures.py faults sweep       some of it
    tests/figures.py --log FILE...      what earlier runs printed

Figures that were not measured stay as they are; those of the fuzzing are what fuzz/campaign.py counted.
Python 3.9, cargo, qemu-img, qemu-io and strace.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "SECURITY.md"
EXECUTIONS = ROOT / "fuzz" / "executions.tsv"
START, END = "<!-- figures -->\n", "<!-- end of figures -->\n"

# What each test prints as `figure: NAME: NUMBER`, and what it found while it was made.
ROWS = [
    ("Calls of the storage that failed, over every pair of formats, one thread and four",
     ["fault points, 1 thread", "fault points, 4 threads"],
     "a file cut short while it was read gave zeros (`faults`)"),
    ("Calls that failed while files, streams and one of two targets were written",
     ["fault points, into files", "fault points, into streams", "fault points, one of two targets"],
     "nothing"),
    ("Calls that failed under who compares, measures, maps and digests",
     ["fault points of the other verbs"],
     "nothing"),
    ("Interruptions and short counts survived",
     ["interruptions and short counts", "system calls that were interrupted"],
     "an interrupted flush or fallocate ended the work (`faults`)"),
    ("System calls of the commands that failed",
     ["system calls that failed"],
     "an unfinished file that stayed; a destination that could not be examined counted as absent (`syscalls`)"),
    ("Kills, each followed by a look at what is left, or by going on",
     ["kills", "kills and resumptions"],
     "nothing"),
    ("Machines that stopped and lost what was not synced, and went on",
     ["machines that stopped and went on"],
     "nothing"),
    ("Crash states of new images and of those in place of older ones",
     ["crash states of new images", "crash states in place of an old image"],
     "the older image's header over the newer one's data (`crashes`)"),
    ("Files cut: every length of the metadata, every 4 KiB of data",
     ["truncated files"],
     "a VMDK descriptor cut between two extents was a smaller disk, and said nothing (`sweep`)"),
    ("Flipped bits of the metadata that a reader looks at: every one of every format",
     ["flipped bits"],
     "no panic; entries of qcow2 for clusters of others (`qcow2_tables`); VMDK tables unlike their copies, or in a "
     "stream without their markers (`vmdk`); a VDI read from beside its blocks (`sweep`); what goes unnoticed is "
     "counted in `tests/damage.tsv`"),
    ("Images made by QEMU at random, read byte for byte as QEMU reads them",
     ["differential images"],
     "nothing"),
    ("Images written at random, read by QEMU as they were written",
     ["written images"],
     "nothing"),
    ("Looks at one image by 8 threads at once",
     ["reads by 8 threads at once"],
     "nothing"),
    ("Conversions stopped at a random moment",
     ["conversions stopped at a random moment"],
     "nothing"),
    ("Executions of each fuzz target, at least (`fuzz/README.md` has them one by one)",
     ["least executions of a fuzz target"],
     "a qcow2 file cut short that grew when it was repaired (`repair`); a VMDK stream whose header and footer differ, of "
     "128 PiB (`vmdk`); of two VMDK grain tables another one salvaged than read (`salvage`); a window of a stream that was "
     "filled before anything came; no crash of the library"),
    ("Executions of all fuzz targets",
     ["executions of all fuzz targets"],
     "the same"),
]

# In which test program each proof is.
TESTS = {"faults": "damage", "syscalls": "syscalls", "crashes": "damage", "sweep": "damage",
         "differential": "interop", "written": "interop", "threads": "convert"}


def measure(test):
    """What a test prints when it does all that it can."""
    env = dict(os.environ, BLOCKFORM_THOROUGH="1", BLOCKFORM_IMAGES="10000", BLOCKFORM_RENEW="1")
    # Linking with optimization takes longer than it saves.
    env.update(CARGO_PROFILE_RELEASE_LTO="off", CARGO_PROFILE_RELEASE_CODEGEN_UNITS="16")
    cargo = ["cargo", "test", "--release", "--locked", "--test", TESTS[test]]
    if test == "syscalls":
        subprocess.run(["cargo", "build", "--release", "--locked", "--examples"], cwd=ROOT, env=env, check=True)
    names = [] if TESTS[test] == test else [test + "::"]
    command = cargo + ["--", "--nocapture", "--test-threads=1"] + names
    run = subprocess.run(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if run.returncode != 0:
        sys.exit(f"{run.stdout}\n{test} failed")
    return run.stdout


def figures(text):
    found = {}
    for name, number in re.findall(r"figure: ([^:\n]+): (\d+)$", text, re.M):
        found.setdefault(name, []).append(int(number))
    # A test that was cut into runs tells its part in each.
    return {name: sum(numbers) for name, numbers in found.items()}


def fuzzing():
    rows = [line.split("\t") for line in EXECUTIONS.read_text().splitlines()[1:]]
    counts = [int(count) for _, count in rows]
    return {"least executions of a fuzz target": min(counts), "executions of all fuzz targets": sum(counts)}


def table(found, before):
    lines = ["| what | how many | faults that were found (and the test of the repair) |", "|---|---:|---|"]
    for label, names, told in ROWS:
        known = [found[name] for name in names if name in found]
        number = f"{sum(known):,}" if len(known) == len(names) else before.get(label, "not measured")
        lines.append(f"| {label} | {number} | {told} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", help=" ".join(TESTS))
    parser.add_argument("--log", nargs="+", default=[], type=pathlib.Path)
    arguments = parser.parse_args()
    if unknown := set(arguments.tests) - set(TESTS):
        parser.error(f"no such test: {', '.join(sorted(unknown))}")
    texts = [path.read_text(errors="replace") for path in arguments.log]
    if not arguments.log:
        texts = [measure(test) for test in arguments.tests or TESTS]
    page = PAGE.read_text()
    head, rest = page.split(START)
    old, tail = rest.split(END)
    before = dict(re.findall(r"^\| (.+?) \| ([\d,]+) \|", old, re.M))
    PAGE.write_text(head + START + table({**figures("\n".join(texts)), **fuzzing()}, before) + END + tail)


if __name__ == "__main__":
    main()
