#!/usr/bin/env python3
"""Makes every image under testdata/ anew, and the manifest that says what is in them.

    testdata/make.py            # needs qemu-img and qemu-io 10.0.2, mke2fs; Python 3.9, standard library

What an image holds is never taken from blockform: `qemu-img convert -O raw` says what the guest sees
and `qemu-img map` where it lies. README.md lists the commands, as this script ran them.
"""
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
GOOD = os.path.join(HERE, "qcow2", "good")
BAD = os.path.join(HERE, "qcow2", "bad")
RAW = os.path.join(HERE, "raw")
COMMANDS = {}
SECRET = "--object secret,id=s,data=password"


def run(line, cwd, about, quiet=False):
    """Runs one line of shell in a folder, and keeps it for the README."""
    if not quiet:
        COMMANDS.setdefault(about, []).append(line)
    done = subprocess.run(line, shell=True, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{line}\n{done.stdout}{done.stderr}")
    return done.stdout


def noise(seed, size):
    """Bytes that nothing can pack, the same on every machine."""
    out, counter = bytearray(), 0
    while len(out) < size:
        out += hashlib.sha256(f"{seed}/{counter}".encode()).digest()
        counter += 1
    return bytes(out[:size])


def prose(seed, size):
    """Bytes that pack to about a half."""
    words = noise(seed, size)
    return bytes(b"blockform image data "[b % 21] for b in words)


def io(file, *commands, options=""):
    """One qemu-io process for each command: one process that discards and packs can corrupt."""
    for command in commands:
        run(f"qemu-io {options} -c '{command}' {file}".replace("  ", " "), GOOD, file)


def create(file, size, options="", more=""):
    line = f"qemu-img create -q -f qcow2 {more} -o {options} {file} {size}" if options else \
        f"qemu-img create -q -f qcow2 {more} {file} {size}"
    run(" ".join(line.split()), GOOD, file)


def inputs(folder):
    """Guest disks to convert from."""
    tree = os.path.join(folder, "tree")
    os.makedirs(tree)
    with open(os.path.join(tree, "hello.txt"), "w") as f:
        f.write("Hello from a small disk.\n" * 20)
    with open(os.path.join(tree, "notes.txt"), "w") as f:
        f.write("A file system, so that this is a disk as people have them.\n" * 100)
    run("E2FSPROGS_FAKE_TIME=1700000000 mke2fs -q -t ext2 -b 1024 -N 16 -m 0 "
        "-U 6f1d2c3b-0000-4000-8000-000000000001 -E hash_seed=6f1d2c3b-0000-4000-8000-000000000002,root_owner=0:0 "
        "-L blockform -d tree ext2.raw 1024", folder, "ext2.raw")
    mixed = bytearray(100 * 1024 + 512)
    for i in range(0, len(mixed), 8192):
        kind = i // 8192 % 4
        part = noise(i, 8192) if kind == 0 else prose(i, 8192) if kind in (1, 2) else bytes(8192)
        mixed[i:i + 8192] = part[:len(mixed[i:i + 8192])]
    with open(os.path.join(folder, "mixed.raw"), "wb") as f:
        f.write(mixed)


SOME = ["write -P 0x11 0 4k", "write -P 0x22 20k 9k", "write -P 0x33 100k 512", "write -P 0x44 255k 1k"]


def make_good(temp):
    run(f"qemu-img convert -f raw -O qcow2 {temp}/ext2.raw plain.qcow2", GOOD, "plain.qcow2")
    create("empty.qcow2", "1M", "cluster_size=4k")
    create("size-0.qcow2", "0", "cluster_size=4k")
    create("size-odd.qcow2", "100864", "cluster_size=4k")
    io("size-odd.qcow2", "write -P 0x51 98304 2560", "write -P 0x52 0 512")
    create("v2.qcow2", "256k", "compat=0.10,cluster_size=4k")
    io("v2.qcow2", *SOME)
    run(f"qemu-img convert -f raw -O qcow2 -c -o compat=0.10,cluster_size=4k {temp}/mixed.raw v2-zlib.qcow2", GOOD, "v2-zlib.qcow2")
    for size in ("512", "1k", "4k", "16k"):
        create(f"cluster-{size}.qcow2", "256k", f"cluster_size={size}")
        io(f"cluster-{size}.qcow2", *SOME)
    for bits in (1, 2, 4, 8, 32, 64):
        create(f"refcount-{bits}.qcow2", "256k", f"cluster_size=1k,refcount_bits={bits}")
        io(f"refcount-{bits}.qcow2", *SOME)
    # Holes, zeros that own a cluster and zeros that own none.
    create("zero.qcow2", "256k", "cluster_size=4k")
    io("zero.qcow2", "write -P 0x61 0 64k", "write -z 8k 8k", "write -z -u 24k 8k", "discard 40k 8k", "write -z -u 128k 16k")
    create("preallocated.qcow2", "64k", "cluster_size=4k,preallocation=metadata")
    io("preallocated.qcow2", "write -P 0x62 4k 4k")
    create("full.qcow2", "64k", "cluster_size=4k,preallocation=full")
    io("full.qcow2", "write -P 0x63 8k 1k")
    # Packed clusters.
    for codec in ("zlib", "zstd"):
        run(f"qemu-img convert -f raw -O qcow2 -c -o cluster_size=4k,compression_type={codec} {temp}/mixed.raw {codec}.qcow2", GOOD, f"{codec}.qcow2")
        create(f"{codec}-mixed.qcow2", "256k", f"cluster_size=16k,compression_type={codec}")
        io(f"{codec}-mixed.qcow2", "write -c -P 0x71 0 16k", "write -P 0x72 16k 16k", "write -c -P 0x73 32k 16k",
           "write -P 0x74 36k 512", "write -c -P 0x75 240k 16k", "discard 16k 16k")
    # Subclusters.
    create("extended.qcow2", "256k", "cluster_size=16k,extended_l2=on")
    io("extended.qcow2", "write -P 0x81 0 16k", "write -P 0x82 17k 1k", "write -P 0x83 31k 2k", "write -z 4k 1k",
       "write -z -u 64k 16k", "write -z 80k 512", "write -P 0x84 90k 512", "discard 0 2k", "write -P 0x85 255k 512")
    for codec in ("zlib", "zstd"):
        create(f"extended-{codec}.qcow2", "256k", f"cluster_size=16k,extended_l2=on,compression_type={codec}")
        io(f"extended-{codec}.qcow2", "write -c -P 0x86 0 16k", "write -P 0x87 32k 1k", "write -c -P 0x88 48k 16k", "write -P 0x89 49k 512")
    # Backing files.
    create("base.qcow2", "128k", "cluster_size=4k")
    io("base.qcow2", "write -P 0xb1 0 32k", "write -P 0xb2 120k 8k")
    create("overlay-longer.qcow2", "256k", "cluster_size=4k", "-b base.qcow2 -F qcow2")
    io("overlay-longer.qcow2", "write -P 0xa1 4k 4k", "write -z 8k 4k", "write -P 0xa2 200k 1k", "discard 16k 4k")
    create("overlay-shorter.qcow2", "64k", "cluster_size=4k", "-b base.qcow2 -F qcow2")
    io("overlay-shorter.qcow2", "write -P 0xa3 30k 1k")
    create("overlay-v2.qcow2", "128k", "cluster_size=4k,compat=0.10", "-b base.qcow2 -F qcow2")
    io("overlay-v2.qcow2", "write -P 0xa4 0 512")
    create("overlay-extended.qcow2", "160k", "cluster_size=16k,extended_l2=on", "-b base.qcow2 -F qcow2")
    io("overlay-extended.qcow2", "write -P 0xa5 1k 512", "write -z 20k 1k", "discard 24k 1k", "write -c -P 0xa6 112k 16k")
    with open(os.path.join(GOOD, "base.raw"), "wb") as f:
        f.write(noise("base.raw", 50_000))
    COMMANDS["base.raw"] = ["# noise('base.raw', 50000) of make.py"]
    create("overlay-raw.qcow2", "64k", "cluster_size=4k", "-b base.raw -F raw")
    io("overlay-raw.qcow2", "write -P 0xa7 5k 512", "write -z 44k 8k")
    create("chain-0.qcow2", "128k", "cluster_size=4k")
    io("chain-0.qcow2", "write -P 0xc0 0 64k")
    create("chain-1.qcow2", "96k", "cluster_size=8k", "-b chain-0.qcow2 -F qcow2")
    io("chain-1.qcow2", "write -P 0xc1 8k 16k", "write -z 32k 8k", "write -P 0xc1 88k 8k")
    create("chain-2.qcow2", "128k", "cluster_size=4k", "-b chain-1.qcow2 -F qcow2")
    io("chain-2.qcow2", "write -P 0xc2 12k 4k", "write -P 0xc2 36k 512")
    # Data files.
    create("data-file.qcow2", "64k", "cluster_size=4k,data_file=data-file.bin")
    io("data-file.qcow2", "write -P 0xd1 0 12k", "write -P 0xd2 40k 4k", "write -z 4k 4k")
    create("data-file-raw.qcow2", "64k", "cluster_size=4k,data_file=data-file-raw.bin,data_file_raw=on")
    io("data-file-raw.qcow2", "write -P 0xd3 0 8k", "write -P 0xd4 60k 4k", "write -z 4k 2k")
    # Snapshots: the second is of a smaller disk than the active one.
    create("snapshots.qcow2", "128k", "cluster_size=4k")
    io("snapshots.qcow2", "write -P 0xe1 0 16k")
    run("qemu-img snapshot -c first snapshots.qcow2", GOOD, "snapshots.qcow2")
    io("snapshots.qcow2", "write -P 0xe2 8k 16k", "write -c -P 0xe3 64k 4k")
    run("qemu-img snapshot -c \"second one\" snapshots.qcow2", GOOD, "snapshots.qcow2")
    run("qemu-img resize -q snapshots.qcow2 256k", GOOD, "snapshots.qcow2")
    io("snapshots.qcow2", "write -P 0xe4 200k 8k", "write -P 0xe5 0 512")
    # Metadata that is not about the guest's bytes.
    create("bitmaps.qcow2", "256k", "cluster_size=4k")
    run("qemu-img bitmap --add -g 32k bitmaps.qcow2 nightly", GOOD, "bitmaps.qcow2")
    run("qemu-img bitmap --add --disable bitmaps.qcow2 weekly", GOOD, "bitmaps.qcow2")
    io("bitmaps.qcow2", "write -P 0xf1 0 8k", "write -P 0xf2 200k 4k")
    create("shrunk.qcow2", "4M", "cluster_size=512")
    io("shrunk.qcow2", "write -P 0xf3 0 4k", "write -P 0xf4 3M 4k")
    run("qemu-img resize -q --shrink shrunk.qcow2 64k", GOOD, "shrunk.qcow2")
    # Encrypted: described, never read.
    crypt = f"encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=plain64,cluster_size=4k"
    create("luks.qcow2", "64k", crypt, SECRET)
    create("aes.qcow2", "64k", "encrypt.format=aes,encrypt.key-secret=s,cluster_size=4k", SECRET)
    for name, form in (("luks", "luks"), ("aes", "aes")):
        run(f"qemu-io {SECRET} --image-opts -c 'write -P 0x90 0 8k' "
            f"driver=qcow2,encrypt.format={form},encrypt.key-secret=s,file.filename={name}.qcow2", GOOD, f"{name}.qcow2")
    # Patched by hand.
    patched("dirty.qcow2", "cluster-1k.qcow2", "incompatible_features |= 1 (dirty)", lambda b: or_u64(b, 72, 1))
    patched("corrupt.qcow2", "cluster-1k.qcow2", "incompatible_features |= 2 (corrupt)", lambda b: or_u64(b, 72, 2))
    patched("unknown-compatible.qcow2", "cluster-1k.qcow2", "compatible_features |= 1 << 40", lambda b: or_u64(b, 80, 1 << 40))
    patched("unknown-autoclear.qcow2", "cluster-1k.qcow2", "autoclear_features |= 1 << 41", lambda b: or_u64(b, 88, 1 << 41))
    patched("unknown-extension.qcow2", "cluster-1k.qcow2", "an extension 0x12345678 of 9 bytes before all others", add_extension)
    patched("header-104.qcow2", "cluster-1k.qcow2", "header_length 104, as QEMU wrote it before 5.1", short_header)


def or_u64(b, at, bits):
    struct.pack_into(">Q", b, at, struct.unpack_from(">Q", b, at)[0] | bits)


def add_extension(b):
    new = struct.pack(">II", 0x12345678, 9) + b"something".ljust(16, b"\0")
    b[112:1024] = (new + b[112:1024])[:1024 - 112]


def short_header(b):
    struct.pack_into(">I", b, 100, 104)
    b[104:1024] = b[112:1024] + bytes(8)


def patched(file, base, what, patch, folder=GOOD):
    with open(os.path.join(GOOD, base), "rb") as f:
        image = bytearray(f.read())
    image = patch(image) or image
    with open(os.path.join(folder, file), "wb") as f:
        f.write(image)
    COMMANDS.setdefault(file, []).append(f"# {base}, patched by make.py: {what}")


def layout(image):
    """Where the tables of an image with one L1 table and 8-byte L2 entries are."""
    bits, = struct.unpack_from(">I", image, 20)
    l1_size, l1, refs, _, nsnap, snaps = struct.unpack_from(">IQQIIQ", image, 36)
    l2 = [(struct.unpack_from(">Q", image, l1 + 8 * i)[0]) & 0x00fffffffffffe00 for i in range(l1_size)]
    return dict(cluster=1 << bits, l1=l1, refs=refs, l2=l2, snaps=snaps)


def entry(image, guest):
    """The file offset of the L2 entry of a guest offset."""
    at = layout(image)
    per = at["cluster"] // 8
    index = guest // at["cluster"]
    return at["l2"][index // per] + index % per * 8


BAD_LIST = []


def bad(file, base, what, when, kind, error, patch):
    """when: `open` or `read`; kind: the variant of the error; error: words of its message."""
    patched(file, base, what, patch, BAD)
    BAD_LIST.append(dict(file=f"qcow2/bad/{file}", when=when, kind=kind, error=error))


def put(fmt, at, value):
    return lambda b: struct.pack_into(">" + fmt, b, at, value)


def make_bad():
    base, packed, zstd, ext, snap, bitmaps = ("bad-base.qcow2", "bad-zlib.qcow2", "bad-zstd.qcow2", "bad-extended.qcow2", "bad-snapshots.qcow2", "bad-bitmaps.qcow2")
    create(base, "32k", "cluster_size=512")
    io(base, "write -P 0x11 0 1k", "write -P 0x12 20k 512")
    for codec in ("zlib", "zstd"):
        create(f"bad-{codec}.qcow2", "16k", f"cluster_size=4k,compression_type={codec}")
        io(f"bad-{codec}.qcow2", "write -c -P 0x71 0 4k")
    create(ext, "64k", "cluster_size=16k,extended_l2=on")
    io(ext, "write -P 0x81 1k 1k")
    create(snap, "16k", "cluster_size=512")
    io(snap, "write -P 0xe1 0 1k")
    run(f"qemu-img snapshot -c first {snap}", GOOD, snap)
    create(bitmaps, "16k", "cluster_size=4k")
    run(f"qemu-img bitmap --add {bitmaps} nightly", GOOD, bitmaps)

    M, U, L = "Malformed", "Unsupported", "LimitExceeded"
    bad("version-4.qcow2", base, "version = 4", "open", U, "version 4", put("I", 4, 4))
    bad("version-0.qcow2", base, "version = 0", "open", U, "version 0", put("I", 4, 0))
    bad("cluster-bits-8.qcow2", base, "cluster_bits = 8", "open", M, "cluster_bits", put("I", 20, 8))
    bad("cluster-bits-22.qcow2", base, "cluster_bits = 22", "open", M, "cluster_bits", put("I", 20, 22))
    bad("cluster-bits-max.qcow2", base, "cluster_bits = 2^32 - 1", "open", M, "cluster_bits", put("I", 20, 0xffffffff))
    bad("size-over-l1.qcow2", base, "size = 1 TiB", "open", M, "l1_size", put("Q", 24, 1 << 40))
    bad("size-max.qcow2", base, "size = 2^64 - 1", "open", M, "", put("Q", 24, (1 << 64) - 1))
    bad("crypt-method-3.qcow2", base, "crypt_method = 3", "open", U, "encryption method 3", put("I", 32, 3))
    bad("l1-size-max.qcow2", base, "l1_size = 2^32 - 1", "open", M, "L1 table", put("I", 36, 0xffffffff))
    bad("l1-unaligned.qcow2", base, "l1_table_offset += 8", "open", M, "l1_table_offset", lambda b: put("Q", 40, layout(b)["l1"] + 8)(b))
    bad("l1-past-end.qcow2", base, "l1_table_offset = 1 GiB", "open", M, "L1 table", put("Q", 40, 1 << 30))
    bad("l1-offset-max.qcow2", base, "l1_table_offset = 2^64 - 512", "open", M, "L1 table", put("Q", 40, (1 << 64) - 512))
    bad("refcount-order-7.qcow2", base, "refcount_order = 7", "open", M, "refcount_order", put("I", 96, 7))
    bad("header-length-96.qcow2", base, "header_length = 96", "open", M, "header_length", put("I", 100, 96))
    bad("header-length-odd.qcow2", base, "header_length = 113", "open", M, "header_length", put("I", 100, 113))
    bad("header-length-max.qcow2", base, "header_length = 2^32 - 8", "open", M, "header_length", put("I", 100, 0xfffffff8))
    bad("unknown-incompatible.qcow2", base, "incompatible_features |= 1 << 63", "open", U, "bit 63", lambda b: or_u64(b, 72, 1 << 63))
    bad("compression-type-2.qcow2", base, "incompatible_features |= 8, compression_type = 2", "open", U, "compression type 2",
        lambda b: (or_u64(b, 72, 8), put("B", 104, 2)(b)) and None)
    bad("compression-bit-only.qcow2", base, "incompatible_features |= 8 with compression_type 0", "open", M, "compression_type", lambda b: or_u64(b, 72, 8))
    bad("compression-type-only.qcow2", base, "compression_type = 1 without its bit", "open", M, "compression_type", put("B", 104, 1))
    bad("data-file-unnamed.qcow2", base, "incompatible_features |= 4 without the extension", "open", M, "data file", lambda b: or_u64(b, 72, 4))
    bad("extension-too-long.qcow2", base, "an extension of 2^32 - 1 bytes", "open", M, "header extension", put("Q", 112, 0x12345678ffffffff))
    bad("backing-name-too-long.qcow2", base, "a backing file name of 1,024 bytes at 112", "open", M, "backing_file_size",
        lambda b: (put("Q", 8, 112)(b), put("I", 16, 1024)(b)) and None)
    bad("backing-name-outside.qcow2", base, "a backing file name of 16 bytes at 4 GiB", "open", M, "backing_file_offset",
        lambda b: (put("Q", 8, 1 << 32)(b), put("I", 16, 16)(b)) and None)
    bad("backing-name-in-header.qcow2", base, "a backing file name of 16 bytes at byte 0x40", "open", M, "backing_file_offset",
        lambda b: (put("Q", 8, 0x40)(b), put("I", 16, 16)(b)) and None)
    bad("snapshots-too-many.qcow2", snap, "nb_snapshots = 65,537", "open", L, "snapshots", put("I", 60, 65537))
    bad("snapshot-table-past-end.qcow2", snap, "snapshots_offset = 1 GiB", "open", M, "snapshot", put("Q", 64, 1 << 30))
    bad("snapshot-table-unaligned.qcow2", snap, "snapshots_offset += 8", "open", M, "snapshot", lambda b: put("Q", 64, layout(b)["snaps"] + 8)(b))
    bad("snapshot-name-too-long.qcow2", snap, "the first snapshot's name_size = 65,535", "open", M, "snapshot", lambda b: put("H", layout(b)["snaps"] + 14, 65535)(b))
    bad("snapshot-extra-too-long.qcow2", snap, "the first snapshot's extra_data_size = 2^32 - 1", "open", M, "snapshot",
        lambda b: put("I", layout(b)["snaps"] + 36, 0xffffffff)(b))
    bad("bitmaps-too-many.qcow2", bitmaps, "nb_bitmaps = 2^32 - 1", "open", M, "bitmap", lambda b: put("I", find_extension(b, 0x23852875), 0xffffffff)(b))
    bad("bitmap-directory-past-end.qcow2", bitmaps, "bitmap_directory_offset = 1 GiB", "open", M, "bitmap",
        lambda b: put("Q", find_extension(b, 0x23852875) + 16, 1 << 30)(b))
    bad("l2-unaligned.qcow2", ext, "L1 entry += 512 where clusters are 16 KiB", "read", M, "L1", lambda b: put("Q", layout(b)["l1"], 1 << 63 | layout(b)["l2"][0] + 512)(b))
    bad("l2-past-end.qcow2", base, "first L1 entry = 1 GiB", "read", M, "L", lambda b: put("Q", layout(b)["l1"], 1 << 63 | 1 << 30)(b))
    bad("l2-is-header.qcow2", ext, "first L1 entry points at the L1 table", "read", M, "L", lambda b: put("Q", layout(b)["l1"], 1 << 63 | layout(b)["l1"])(b))
    bad("l1-reserved.qcow2", base, "first L1 entry has bit 1 set", "read", M, "L1", lambda b: or_u64(b, layout(b)["l1"], 2))
    bad("cluster-past-end.qcow2", base, "first L2 entry = 1 GiB", "read", M, "past the end", lambda b: put("Q", entry(b, 0), 1 << 63 | 1 << 30)(b))
    bad("cluster-far-past-end.qcow2", base, "first L2 entry = 2^55", "read", M, "past the end", lambda b: put("Q", entry(b, 0), 1 << 63 | 1 << 55)(b))
    bad("cluster-unaligned.qcow2", ext, "first L2 entry += 512 where clusters are 16 KiB", "read", M, "L2",
        lambda b: put("Q", layout(b)["l2"][0], struct.unpack_from(">Q", b, layout(b)["l2"][0])[0] + 512)(b))
    bad("cluster-is-header.qcow2", base, "first L2 entry points at the refcount table", "read", M, "L2", lambda b: put("Q", entry(b, 0), 1 << 63 | layout(b)["refs"])(b))
    bad("cluster-is-l1.qcow2", base, "first L2 entry points at the L1 table", "read", M, "L2", lambda b: put("Q", entry(b, 0), 1 << 63 | layout(b)["l1"])(b))
    bad("cluster-is-own-l2.qcow2", base, "first L2 entry points at its own table", "read", M, "L2", lambda b: put("Q", entry(b, 0), 1 << 63 | layout(b)["l2"][0])(b))
    bad("cluster-twice.qcow2", base, "second L2 entry is the first", "read", M, "L2", lambda b: put("Q", entry(b, 512), struct.unpack_from(">Q", b, entry(b, 0))[0])(b))
    bad("l2-reserved.qcow2", base, "first L2 entry has bit 2 set", "read", M, "L2", lambda b: or_u64(b, entry(b, 0), 4))
    bad("subclusters-both.qcow2", ext, "subcluster 2 is both stored and zero", "read", M, "L2", lambda b: or_u64(b, layout(b)["l2"][0] + 8, 1 << 34))
    bad("subclusters-unstored.qcow2", ext, "stored subclusters in an entry without a cluster", "read", M, "L2", lambda b: put("Q", layout(b)["l2"][0], 0)(b))
    for codec, file in (("zlib", packed), ("zstd", zstd)):
        at = lambda b: struct.unpack_from(">Q", b, entry(b, 0))[0]
        host = lambda b: at(b) & ((1 << 58) - 1)
        bad(f"{codec}-garbage.qcow2", file, "the packed bytes are 0xff", "read", M, "", lambda b: b.__setitem__(slice(host(b), host(b) + 64), b"\xff" * 64))
        bad(f"{codec}-past-end.qcow2", file, "the descriptor's offset = 2^40", "read", M, "", lambda b: put("Q", entry(b, 0), 1 << 62 | 1 << 40)(b))
        bad(f"{codec}-cut.qcow2", file, "cut off 10 bytes into the packed cluster", "read", M, "", lambda b: b[:host(b) + 10])
    bad("cut-in-header.qcow2", base, "cut off at byte 71", "open", M, "header", lambda b: b[:71])
    bad("cut-in-extensions.qcow2", base, "cut off at byte 150", "open", M, "", lambda b: b[:150])
    bad("cut-before-l1.qcow2", base, "cut off where the L1 table starts", "open", M, "L1 table", lambda b: b[:layout(b)["l1"]])
    bad("cut-before-data.qcow2", base, "cut off where the first data cluster starts", "read", M, "past the end",
        lambda b: b[:struct.unpack_from(">Q", b, entry(b, 0))[0] & 0x00fffffffffffe00])
    for file in (base, packed, zstd, ext, snap, bitmaps):
        os.remove(os.path.join(GOOD, file))


def find_extension(b, kind):
    at = struct.unpack_from(">I", b, 100)[0]
    while True:
        found, size = struct.unpack_from(">II", b, at)
        if found == kind:
            return at + 8
        at += 8 + (size + 7) // 8 * 8


def make_raw():
    with open(os.path.join(RAW, "odd.raw"), "wb") as f:
        f.write(noise("odd", 12_345))
    open(os.path.join(RAW, "empty.raw"), "wb").close()
    with open(os.path.join(RAW, "one.raw"), "wb") as f:
        f.write(b"\x01")
    for file in ("odd.raw", "empty.raw", "one.raw"):
        COMMANDS[f"raw/{file}"] = ["# written by make_raw() of make.py"]


def truth(folder, file, format, temp):
    """What qemu-img says that the guest sees."""
    out = os.path.join(temp, "out.raw")
    about = "manifest.json"
    info = json.loads(run(f"qemu-img info -U --output=json -f {format} {file}", folder, about, True))
    # qemu-img rounds a raw disk up to whole sectors; a raw disk is as long as its file.
    size = os.path.getsize(os.path.join(folder, file)) if format == "raw" else info["virtual-size"]
    e = dict(file=os.path.relpath(os.path.join(folder, file), HERE), format=format, virtual_size=size)
    if info.get("encrypted"):
        return dict(e, encrypted=info["format-specific"]["data"]["encrypt"]["format"])
    if format == "raw":
        with open(os.path.join(folder, file), "rb") as f:
            e["sha256"] = hashlib.sha256(f.read()).hexdigest()
        return e
    run(f"qemu-img convert -U -f {format} -O raw {file} {out}", folder, about, True)
    with open(out, "rb") as f:
        e["sha256"] = hashlib.sha256(f.read()).hexdigest()
    check = subprocess.run(["qemu-img", "check", "-U", "-q", file], cwd=folder).returncode
    if check and file not in ("dirty.qcow2", "corrupt.qcow2"):
        sys.exit(f"{file}: qemu-img check exits {check}")
    data = info.get("format-specific", {}).get("data", {})
    chain = json.loads(run(f"qemu-img info -U --output=json --backing-chain {file}", folder, about, True))
    e["needs"] = sorted([i["filename"] for i in chain[1:]] + ([data["data-file"]] if "data-file" in data else []))
    # qemu-img looks for holes in the file, too, and where they are depends on how it was checked out.
    if all(n.endswith(".qcow2") for n in e["needs"]) and file != "preallocated.qcow2":
        e["map"] = json.loads(run(f"qemu-img map -U --output=json {file}", folder, about, True))
    for s in info.get("snapshots", []):
        run(f"qemu-img convert -U -f {format} -O raw -l snapshot.id={s['id']} {file} {out}", folder, about, True)
        with open(out, "rb") as f:
            content = f.read()
        size = 128 << 10  # qemu-img pads a snapshot to the active size; both of ours were taken at 128 KiB
        assert content[size:] == bytes(len(content) - size)
        digest = hashlib.sha256(content[:size]).hexdigest()
        e.setdefault("snapshots", []).append(dict(id=s["id"], name=s["name"], virtual_size=size, sha256=digest))
    return e


def readme(version):
    with open(os.path.join(HERE, "README.md"), "w") as f:
        f.write(f"""# Test images

Small images with a known content, all made by `make.py` with {version}.
`manifest.json` says of each what the guest sees (`virtual_size`, `sha256` of the whole disk, `map` as
`qemu-img map --output=json` prints it, the same for each of the `snapshots`) and which other files it
`needs`. None of that was taken from blockform: `qemu-img convert -O raw` and `qemu-img map` said so.

- `raw/`: raw disks.
- `qcow2/good/`: what has to be read, and two encrypted images that have to be described.
- `qcow2/bad/`: what has to be refused. `bad` in the manifest says when (`open` or `read`), with which
  variant of `Error` (`kind`) and with which words.

No image has clusters of 2 MiB: it would be 10 MB long. `tests/interop` makes such images as it runs.
The encrypted images' password is `password`; their key material is random, and snapshots and the files
in the file system of `plain.qcow2` are dated, so a second run of the script changes those images.

## Commands

Run in `qcow2/good/`, each in this order. `TEMP/ext2.raw` is a file system made by

    {COMMANDS.pop("ext2.raw")[0]}

and `TEMP/mixed.raw` is 102,912 bytes of noise, text and zeros in turn, see `inputs()`. Files called
`bad-*.qcow2` are what some files of `bad/` were patched from; they were removed again.
""")
        for name, lines in COMMANDS.items():
            f.write(f"\n### {name}\n\n" + "".join(f"    {line}\n" for line in lines))


def main():
    version = subprocess.run(["qemu-img", "--version"], capture_output=True, text=True).stdout.split("\n")[0]
    for folder in (GOOD, BAD, RAW):
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
    with tempfile.TemporaryDirectory() as temp:
        inputs(temp)
        make_raw()
        make_good(temp)
        make_bad()
        images = [truth(RAW, f, "raw", temp) for f in sorted(os.listdir(RAW))]
        images += [truth(GOOD, f, "qcow2", temp) for f in sorted(os.listdir(GOOD)) if f.endswith(".qcow2")]
        for lines in COMMANDS.values():
            lines[:] = [line.replace(temp, "TEMP") for line in lines]
    with open(os.path.join(HERE, "manifest.json"), "w") as f:
        f.write("{\n\"images\": [\n" + ",\n".join(json.dumps(i) for i in images) + "\n],\n\"bad\": [\n")
        f.write(",\n".join(json.dumps(i) for i in BAD_LIST) + "\n]\n}\n")
    readme(version)


main()
