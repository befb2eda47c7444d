#!/usr/bin/env python3
"""Times img-convert, img-info and img-compare against qemu-img, pair by pair, and writes the table of
benches/README.md.

    cargo build --release --examples
    python3 benches/table.py                         # prints the table
    python3 benches/table.py --readme benches/README.md   # and puts it between its markers
    (cd benches/imago && cargo build --release)      # for the cells of that peer
    python3 benches/table.py --only 'pack' --scale 0.25 --rounds 3

Needs Python 3.9 or newer and qemu-img 10; cp is a peer too, and nbdcopy where it is installed (it is
given both ends as files served by qemu-nbd). Everything is generated: the same seed gives the same
inputs. The crate imago is one where benches/imago is built, and cells of the feature libdeflate are
measured where --libdeflate says where that build is. Ours and theirs run in turn (A B A B ...), so that a machine that slows down slows both, and the
ratio is the median of theirs/ours over the pairs: above 1 we are faster. qemu-img runs with the better
of its flag sets, its defaults or `-m 16` (with -W where it allows it). The first output of each cell is
compared with the source before anything is timed. Nothing waits for stable storage, on neither side.
"""
import argparse
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
BEGIN, END = "<!-- bench table: begin -->", "<!-- bench table: end -->"

# name, source, target format, options, packed
CONVERT = [
    ("copy raw → raw", "disk.raw", "raw", "", False),
    ("copy raw → qcow2", "disk.raw", "qcow2", "", False),
    ("copy qcow2 → raw", "disk.qcow2", "raw", "", False),
    ("copy qcow2 → qcow2", "disk.qcow2", "qcow2", "", False),
    ("copy raw → VMDK", "disk.raw", "vmdk", "", False),
    ("copy VMDK → raw", "disk.vmdk", "raw", "", False),
    ("copy raw → VHD", "disk.raw", "vpc", "force_size=on", False),
    ("copy VHD → raw", "disk.vpc", "raw", "", False),
    ("copy raw → VHDX", "disk.raw", "vhdx", "", False),
    ("copy VHDX → raw", "disk.vhdx", "raw", "", False),
    ("copy raw → VDI", "disk.raw", "vdi", "", False),
    ("copy VDI → raw", "disk.vdi", "raw", "", False),
    ("unpack zlib", "zlib.qcow2", "raw", "", False),
    ("unpack zstd", "zstd.qcow2", "raw", "", False),
    ("unpack streamOptimized", "stream.vmdk", "raw", "", False),
    ("pack zlib", "small.raw", "qcow2", "compression_type=zlib", True),
    ("pack zstd", "small.raw", "qcow2", "compression_type=zstd", True),
    ("pack streamOptimized", "small.raw", "vmdk", "subformat=streamOptimized", True),
    ("repack zlib → zlib", "zlib.qcow2", "qcow2", "compression_type=zlib", True),
    ("repack zstd → zstd", "zstd.qcow2", "qcow2", "compression_type=zstd", True),
    ("repack zlib → streamOptimized", "zlib.qcow2", "vmdk", "subformat=streamOptimized", True),
    ("sparse 64 GiB VHDX → raw", "sparse.vhdx", "raw", "", False),
    ("sparse 64 GiB VMDK → raw", "sparse.vmdk", "raw", "", False),
    ("sparse 1 TiB raw → qcow2", "tera.raw", "qcow2", "", False),
    ("sparse 1 TiB qcow2 → qcow2", "tera.qcow2", "qcow2", "", False),
    ("sparse 1 TiB qcow2 → raw", "tera.qcow2", "raw", "", False),
]
INFO = [("info qcow2", "disk.qcow2"), ("info VMDK", "disk.vmdk"), ("info 1 TiB", "tera.qcow2")]
COMPARE = [
    ("compare raw, qcow2", "disk.raw", "disk.qcow2"),
    ("compare zlib, raw", "zlib.qcow2", "disk.raw"),
    ("compare 1 TiB", "tera.raw", "tera.qcow2"),
]
# name, peer, source
PLAIN = [
    ("bare loop raw → raw", "loop", "disk.raw"),
    ("cp raw → raw", "cp", "disk.raw"),
    ("nbdcopy raw → raw", "nbdcopy", "disk.raw"),
    ("imago qcow2 → raw", "imago", "disk.qcow2"),
    ("imago zlib → raw", "imago", "zlib.qcow2"),
]
# Built with the feature libdeflate.
INFLATE = [
    ("unpack zlib, with libdeflate", "zlib.qcow2", "raw", "", False),
    ("unpack streamOptimized, with libdeflate", "stream.vmdk", "raw", "", False),
]
# name, source, formats: all in one read against as many runs, both of them ours.
MANY = [
    ("1 target in one read", "zlib.qcow2", ["raw"]),
    ("2 targets in one read", "zlib.qcow2", ["raw", "qcow2"]),
    ("5 targets in one read", "zlib.qcow2", ["raw", "qcow2", "vmdk", "vhdx", "vdi"]),
]
# How the sources are made: from what, and with which arguments of qemu-img convert.
MADE = {
    "disk.qcow2": ("disk.raw", ["-O", "qcow2"]),
    "disk.vmdk": ("disk.raw", ["-O", "vmdk"]),
    "disk.vpc": ("disk.raw", ["-O", "vpc", "-o", "force_size=on"]),
    "disk.vhdx": ("disk.raw", ["-O", "vhdx"]),
    "disk.vdi": ("disk.raw", ["-O", "vdi"]),
    "zlib.qcow2": ("disk.raw", ["-O", "qcow2", "-c"]),
    "zstd.qcow2": ("disk.raw", ["-O", "qcow2", "-c", "-o", "compression_type=zstd"]),
    "stream.vmdk": ("disk.raw", ["-O", "vmdk", "-o", "subformat=streamOptimized"]),
    "sparse.vhdx": ("sparse.raw", ["-O", "vhdx"]),
    "sparse.vmdk": ("sparse.raw", ["-O", "vmdk"]),
    "tera.qcow2": ("tera.raw", ["-O", "qcow2"]),
}


def watch(pid):
    """The peak memory of a running process in MiB, until it ends; 0 where it was not seen. What wait4
    tells would be at least the memory of this script, in whose place the process began."""
    peak = 0
    try:
        with open(f"/proc/{pid}/status") as status:
            while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                status.seek(0)
                found = re.search(r"VmHWM:\s*(\d+)", status.read())
                peak = int(found[1]) if found else peak
                time.sleep(0.0002)
    except (OSError, AttributeError):
        pass
    return peak / 1024


def format_of(name):
    return name.rsplit(".", 1)[1]


def like_a_disk(path, size, seed):
    """Runs of zeros, text and noise, some of it already compressed, as the disk of a system has them."""
    rng = random.Random(seed)
    words = [bytes(rng.choices(b"etaoinshrdlucmfw", k=rng.randint(2, 9))) for _ in range(4000)]
    with open(path, "wb") as file:
        file.truncate(size)
        at = 0
        while at < size:
            length = min(rng.choice((4, 16, 64, 256, 1024)) << 10, size - at)
            kind = rng.random()
            if kind < 0.55:
                text = b" ".join(rng.choices(words, k=length // 24 + 1))
                block = (text * (length // len(text) + 1))[:length]
            elif kind < 0.7:
                block = rng.randbytes(length)
            elif kind < 0.75:
                block = zlib.compress(rng.randbytes(length // 2), 1).ljust(length, b"\1")[:length]
            else:
                at += length
                continue
            file.seek(at)
            file.write(block)
            at += length


def islands(path, size, count, seed):
    rng = random.Random(seed)
    with open(path, "wb") as file:
        file.truncate(size)
        for _ in range(count):
            file.seek(rng.randrange(size >> 16) << 16)
            file.write(rng.randbytes(64 << 10))


class Bench:
    def __init__(self, args, work):
        self.args, self.work, self.watching = args, work, False
        self.tool = {name: os.path.join(os.path.abspath(args.bin), name)
                     for name in ("img-convert", "img-info", "img")}

    def path(self, name):
        return os.path.join(self.work, name)

    def source(self, name):
        """The source of this name, made if it is not there yet."""
        if os.path.exists(self.path(name)):
            return name
        if name in MADE:
            base, flags = MADE[name]
            self.source(base)
            self.run(["qemu-img", "convert", "-f", "raw", "-m", "16", *flags, base, name])
        elif name == "disk.raw":
            like_a_disk(self.path(name), int(2 * GIB * self.args.scale), 1)
        elif name == "small.raw":
            like_a_disk(self.path(name), int(GIB * self.args.scale / 2), 2)
        elif name == "sparse.raw":
            islands(self.path(name), 64 * GIB, 400, 3)
        elif name == "tera.raw":
            islands(self.path(name), TIB, 200, 4)
        return name

    def run(self, argv):
        """Wall and CPU seconds of one whole process, or its peak memory in MiB while that is watched."""
        with tempfile.TemporaryFile() as told:
            start = time.perf_counter()
            child = subprocess.Popen(argv, cwd=self.work, stdin=subprocess.DEVNULL,
                                     stdout=subprocess.DEVNULL, stderr=told)
            peak = watch(child.pid) if self.watching else 0
            _, status, usage = os.wait4(child.pid, 0)
            wall = time.perf_counter() - start
            child.returncode = os.waitstatus_to_exitcode(status)
            if child.returncode:
                told.seek(0)
                words = told.read(400).decode(errors="replace").strip()
                raise RuntimeError(f"{' '.join(argv)}: exit {child.returncode}: {words}")
        if self.watching:
            return peak
        return wall, usage.ru_utime + usage.ru_stime

    def fresh(self, argv, out):
        if os.path.exists(self.path(out)):
            os.remove(self.path(out))
        return self.run(argv)

    def size(self, name):
        return os.stat(self.path(name)).st_size

    def same(self, first, second):
        self.run(["qemu-img", "compare", "-f", format_of(first), "-F", format_of(second), first, second])

    def convert(self, name, source, target, options, packed):
        self.source(source)
        out = f"out.{target}"
        flags = (["-c"] if packed and target == "qcow2" else []) + (["-o", options] if options else [])
        ends = ["-f", format_of(source), "-O", target, *flags, source, out]
        ours = [self.tool["img-convert"], "-t", "unsafe", *ends]
        theirs = [["qemu-img", "convert", "-t", "unsafe", *more, *ends]
                  for more in ([], ["-m", "16"] + ([] if packed else ["-W"]))]
        self.fresh(ours, out)
        self.same(out, source)
        mine = self.size(out)
        best = min(theirs, key=lambda argv: self.fresh(argv, out)[0])
        ratio = mine / self.size(out) if packed else None
        row = self.pairs(name, lambda: self.fresh(ours, out), lambda: self.fresh(best, out), ratio)
        os.remove(self.path(out))
        return row

    def info(self, name, source):
        self.source(source)
        end = ["--output", "json", "-f", format_of(source), source]
        return self.pairs(name, lambda: self.run([self.tool["img-info"], *end]),
                          lambda: self.run(["qemu-img", "info", *end]), None, 4)

    def compare(self, name, first, second):
        self.source(first), self.source(second)
        end = ["-f", format_of(first), "-F", format_of(second), first, second]
        return self.pairs(name, lambda: self.run([self.tool["img"], "compare", *end]),
                          lambda: self.run(["qemu-img", "compare", *end]), None)

    def plain(self, name, peer, source):
        """A copy beside what else copies: what a machine can do at all, and another library."""
        self.source(source)
        out = "out.raw"
        ours = [self.tool["img-convert"], "-t", "unsafe", "-f", format_of(source), "-O", "raw", source, out]
        theirs = {
            "imago": [IMAGO, source, out],
            "loop": [sys.executable, "-c", LOOP, source, out],
            "cp": ["cp", "--sparse=auto", source, out],
            "nbdcopy": ["nbdcopy", source, out],
        }[peer]
        if not shutil.which(theirs[0]):
            raise Absent(f"{theirs[0]} is not installed")

        def copy():
            # nbdcopy wants a file to copy into.
            if peer == "nbdcopy":
                with open(self.path(out), "wb") as file:
                    file.truncate(self.size(source))
                return self.run(theirs)
            return self.fresh(theirs, out)

        copy()
        self.same(out, source)
        row = self.pairs(name, lambda: self.fresh(ours, out), copy, None)
        os.remove(self.path(out))
        return row

    def inflate(self, name, *cell):
        """A conversion by the build that has the feature libdeflate."""
        if not self.args.libdeflate:
            raise Absent("--libdeflate was not given")
        usual = self.tool["img-convert"]
        self.tool["img-convert"] = os.path.join(os.path.abspath(self.args.libdeflate), "img-convert")
        try:
            return self.convert(name, *cell)
        finally:
            self.tool["img-convert"] = usual

    def many(self, name, source, formats):
        """Several targets in one read against as many runs."""
        self.source(source)
        outs = [f"out.{form}" for form in formats]
        start = [self.tool["img-convert"], "-t", "unsafe", "-f", format_of(source)]
        also = [word for form, out in list(zip(formats, outs))[1:] for word in ("--also", f"{form}:{out}")]
        together = [*start, "-O", formats[0], *also, source, outs[0]]
        apart = [[*start, "-O", form, source, out] for form, out in zip(formats, outs)]

        def clean():
            for out in outs:
                if os.path.exists(self.path(out)):
                    os.remove(self.path(out))

        def one():
            clean()
            return self.run(together)

        def each():
            clean()
            runs = [self.run(argv) for argv in apart]
            return max(runs) if self.watching else tuple(map(sum, zip(*runs)))

        one()
        for out in outs:
            self.same(out, source)
        row = self.pairs(name, one, each, None)
        clean()
        return row

    def pairs(self, name, ours, theirs, size_ratio, more=1):
        self.watching = True
        # What ends at once may end unseen.
        memory = tuple(max(run() for _ in range(more * more)) for run in (ours, theirs))
        self.watching = False
        runs = [(ours(), theirs()) for _ in range(self.args.rounds * more)]
        middle = lambda side, what: statistics.median(run[side][what] for run in runs)
        return {
            "cell": name,
            "ratio": statistics.median(theirs[0] / ours[0] for ours, theirs in runs),
            "wall": (middle(0, 0), middle(1, 0)),
            "cpu": (middle(0, 1), middle(1, 1)),
            "memory": memory,
            "size": size_ratio,
        }


IMAGO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "imago", "target", "release", "imago-copy")


class Absent(Exception):
    """A peer that is not there."""


# Reads and writes, and nothing else: a mebibyte at a time, holes and zeros and all.
LOOP = """
import os, sys
source = os.open(sys.argv[1], os.O_RDONLY)
target = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
buffer = memoryview(bytearray(1 << 20))
at = 0
while n := os.preadv(source, [buffer], at):
    done = 0
    while done < n:
        done += os.pwrite(target, buffer[done:n], at + done)
    at += n
"""


def seconds(value):
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


def row_text(row):
    pair = lambda values, form: " / ".join(form(value) for value in values)
    size = "" if row["size"] is None else f"{row['size']:.3f}"
    return (f"| {row['cell']} | {row['ratio']:.2f} | {pair(row['wall'], seconds)} | "
            f"{pair(row['cpu'], seconds)} | {pair(row['memory'], lambda m: f'{m:.0f}' if m else '?')} | {size} |")


def machine():
    model = ""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            found = re.search(r"model name\s*: (.*)", file.read())
            model = f", {found[1].strip()}" if found else ""
    version = subprocess.run(["qemu-img", "--version"], capture_output=True, text=True).stdout
    return f"{os.cpu_count()} processors{model}; {version.split('(')[0].strip()}"


def table(rows):
    head = [
        f"Median ratios of the times of the peer and ours, above 1 being faster ({machine()}). Times, CPU and",
        "peak memory in MiB are ours / the peer's; the size is our file's by theirs.",
        "",
        "| | ratio | time | CPU | memory | size |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join(head + [row_text(row) for row in rows])


def put_into(readme, text):
    with open(readme, encoding="utf-8") as file:
        before, begin, rest = file.read().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{readme} has no lines {BEGIN} and {END}")
    with open(readme, "w", encoding="utf-8") as file:
        file.write(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release/examples", help="folder of the built commands")
    parser.add_argument("--only", default="", help="a regular expression over the names of cells")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="1 is 2 GiB for the large disk")
    parser.add_argument("--work", help="folder for the images (/dev/shm, else the temporary one)")
    parser.add_argument("--libdeflate", help="folder of the commands as built with that feature")
    parser.add_argument("--readme", help="puts the table between the markers of this file")
    args = parser.parse_args()
    if not shutil.which("qemu-img"):
        sys.exit("qemu-img is missing")
    for name in ("img-convert", "img-info", "img"):
        if not os.path.exists(os.path.join(args.bin, name)):
            sys.exit(f"{name} is not in {args.bin}: run cargo build --release --examples")
    memory = os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free > 16 * GIB * args.scale
    base = args.work or ("/dev/shm" if memory else None)
    rows, failed = [], 0
    with tempfile.TemporaryDirectory(dir=base, prefix="bench-") as work:
        bench = Bench(args, work)
        cells = [(bench.plain, cell) for cell in PLAIN] + [(bench.convert, cell) for cell in CONVERT]
        cells += [(bench.inflate, cell) for cell in INFLATE] + [(bench.many, cell) for cell in MANY]
        cells += [(bench.info, cell) for cell in INFO] + [(bench.compare, cell) for cell in COMPARE]
        for measure, cell in cells:
            if not re.search(args.only, cell[0]):
                continue
            try:
                rows.append(measure(*cell))
            except Absent as why:
                print(f"{cell[0]}: skipped, {why}", file=sys.stderr)
                continue
            except (RuntimeError, OSError) as problem:
                failed += 1
                print(f"{cell[0]}: {problem}", file=sys.stderr)
                continue
            print(row_text(rows[-1]), flush=True)
    text = table(rows)
    print(f"\n{text}")
    if args.readme and rows and not failed:
        put_into(args.readme, text)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
