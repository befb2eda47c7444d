#!/usr/bin/env python3
"""Times the reading of two builds of the commands against each other, pair by pair: did a change make it slower?

    git worktree add ../before COMMIT && (cd ../before && cargo build --release --examples)
    cargo build --release --examples
    python3 benches/before.py ../before/target/release/examples target/release/examples

Prints the median of the ratios of the times, new by old: 1.03 is 3 % slower. Needs Python 3.9 or newer and
qemu-img, which makes the images, from what is under --data (200 MB of /usr by default).
"""
import argparse
import pathlib
import random
import statistics
import subprocess
import tempfile
import time

IMAGES = {
    "raw": ["-O", "raw"],
    "qcow2": ["-O", "qcow2"],
    "qcow2, 4 KiB clusters": ["-O", "qcow2", "-o", "cluster_size=4k"],
    "qcow2, extended L2": ["-O", "qcow2", "-o", "extended_l2=on,cluster_size=128k"],
    "qcow2, zlib": ["-O", "qcow2", "-c"],
    "qcow2, zstd": ["-O", "qcow2", "-c", "-o", "compression_type=zstd"],
    "VMDK": ["-O", "vmdk"],
    "VMDK, streamOptimized": ["-O", "vmdk", "-o", "subformat=streamOptimized"],
    "VHD": ["-O", "vpc", "-o", "force_size=on"],
    "VHDX": ["-O", "vhdx"],
    "VDI": ["-O", "vdi"],
}


def disk(path, data, size):
    """A disk of files, with holes and zeros between them."""
    rng = random.Random(1)
    with open(path, "wb") as out:
        files = sorted(p for p in pathlib.Path(data).rglob("*") if p.is_file() and not p.is_symlink())
        rng.shuffle(files)
        for file in files:
            if out.tell() >= size:
                break
            out.write(file.read_bytes()[:4 << 20])
            gap = rng.choice([70_000, 2_000_000]) if rng.random() < 0.01 else 0
            out.seek(-(-(out.tell() + gap) // 4096) * 4096)
        out.truncate(size)


def timed(command):
    begun = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL)
    assert done.returncode == 0, command
    return time.perf_counter() - begun


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=pathlib.Path)
    parser.add_argument("new", type=pathlib.Path)
    parser.add_argument("--data", default="/usr")
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="a part of the names of the images")
    parser.add_argument("--dir", default="/dev/shm")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        folder = pathlib.Path(folder)
        raw = folder / "disk.raw"
        disk(raw, options.data, options.mib << 20)
        for name, flags in IMAGES.items():
            if options.only not in name:
                continue
            image = folder / "image"
            subprocess.run(["qemu-img", "convert", "-f", "raw", *flags, raw, image], check=True)
            format = flags[1] if flags[1] != "vpc" else "vhd"
            cells = {
                "compared with raw": lambda bin: [bin / "img", "compare", "-f", format, "-F", "raw", image, raw],
                "converted to raw": lambda bin: [bin / "img-convert", "-f", format, "-t", "unsafe", image, folder / "out"],
                "described": lambda bin: [bin / "img-info", *(["-f", "raw"] if format == "raw" else []), image],
            }
            for what, command in cells.items():
                rounds = options.rounds * (10 if what == "described" else 1)
                pairs = []
                for _ in range(rounds + 1):
                    pairs.append((timed(command(options.old)), timed(command(options.new))))
                ratio = statistics.median(new / old for old, new in pairs[1:])
                print(f"{name}, {what}: {ratio:.3f}", flush=True)
            image.unlink()


if __name__ == "__main__":
    main()
