#!/usr/bin/env python3
"""Makes the images of the old formats under testdata/ anew, as make.py makes those of qcow2.

    testdata/make_old.py        # needs qemu-img and qemu-io 10.0.2; Python 3.9, standard library

It replaces what manifest.json and README.md say of qcow, QED and Parallels, and leaves the rest.
"""
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
FORMATS = ("qcow", "qed", "parallels")
MARK = "\n## Commands for qcow, QED and Parallels\n"
COMMANDS, BAD = {}, []
SOME = ["write -P 0x11 0 4k", "write -P 0x22 20k 9k", "write -P 0x33 100k 512", "write -P 0x44 255k 1k"]


def folder(file):
    return os.path.join(HERE, os.path.dirname(file))


def run(line, cwd, about=None, ok=(0,)):
    if about:
        COMMANDS.setdefault(about, []).append(line)
    done = subprocess.run(line, shell=True, cwd=cwd, capture_output=True, text=True)
    if done.returncode not in ok:
        sys.exit(f"{line}\n{done.stdout}{done.stderr}")
    return done.stdout


def good(file, size, options="", more="", io=()):
    """An image made by qemu-img; `file` is FORMAT/NAME."""
    form, name = file.split("/")
    file = f"{form}/good/{name}"
    options = f"-o {options}" if options else ""
    run(" ".join(f"qemu-img create -q -f {form} {more} {options} {name} {size}".split()), folder(file), file)
    for command in io:
        run(f"qemu-io -f {form} -c '{command}' {name}", folder(file), file)


def read(file):
    with open(os.path.join(HERE, file), "rb") as f:
        return bytearray(f.read())


def write(file, image, what):
    with open(os.path.join(HERE, file), "wb") as f:
        f.write(image)
    COMMANDS.setdefault(file, []).append(f"# {what}")


def put(fmt, at, value):
    """A patch: `value` at byte `at`, which may depend on the image."""
    def patch(b):
        where = at(b) if callable(at) else at
        struct.pack_into(fmt, b, where, value(b) if callable(value) else value)
    return patch


def get(fmt, b, at):
    return struct.unpack_from(fmt, b, at)[0]


def patched(file, base, what, patch):
    image = read(base)
    image = patch(image) or image
    write(file, image, f"{base}, patched by make_old.py: {what}")


def bad(file, base, what, when, kind, error, patch):
    form = base.split("/")[0]
    file = f"{form}/bad/{file}.{form}"
    patched(file, base, what, patch)
    BAD.append(dict(file=file, when=when, kind=kind, error=error))


def guest(seed, size):
    """Bytes that pack a little, and differ in every cluster."""
    return b"".join(hashlib.sha256(f"{seed}/{i // 3}".encode()).digest() for i in range(size // 32))


# ------------------------------------------------------------------ qcow

def qcow(cluster_bits, l2_bits, size, clusters):
    """An image by hand: `clusters` is a list of guest cluster, bytes and whether they are packed."""
    cluster, table = 1 << cluster_bits, 8 << l2_bits
    span = cluster << l2_bits
    l1 = [0] * -(-size // span)
    image = bytearray(struct.pack(">IIQIIQBBHIQ", 0x514649fb, 1, 0, 0, 0, size, cluster_bits, l2_bits, 0, 0, 48))
    image += bytes(8 * len(l1))

    def pad():
        image.extend(bytes(-len(image) % cluster))
    for number, data, packed in clusters:
        i, j = divmod(number, 1 << l2_bits)
        if not l1[i]:
            pad()
            l1[i] = len(image)
            struct.pack_into(">Q", image, 48 + 8 * i, l1[i])
            image += bytes(table)
        if packed:
            deflate = zlib.compressobj(9, zlib.DEFLATED, -12)
            data = deflate.compress(data) + deflate.flush()
            entry = 1 << 63 | len(data) << (63 - cluster_bits) | len(image)
        else:
            pad()
            entry = len(image)
        struct.pack_into(">Q", image, l1[i] + 8 * j, entry)
        image += data
    # QEMU reads whole sectors.
    image.extend(bytes(-len(image) % 512))
    return image


def l2(b):
    return get(">Q", b, get(">Q", b, 40))


def make_qcow():
    good("qcow/empty.qcow", "1M")
    good("qcow/some.qcow", "256k", io=SOME)
    good("qcow/size-odd.qcow", "100864", io=["write -P 0x51 98304 2560", "write -P 0x52 0 512"])
    good("qcow/base.qcow", "128k", io=["write -P 0xb1 0 32k", "write -P 0xb2 120k 8k"])
    good("qcow/overlay.qcow", "256k", more="-b base.qcow -F qcow", io=["write -P 0xa1 4k 4k", "write -P 0xa2 200k 1k"])
    write("qcow/good/base.raw", guest("base.raw", 50_016)[:50_000], "guest('base.raw', 50016)[:50000] of make_old.py")
    good("qcow/overlay-raw.qcow", "64k", more="-b base.raw -F raw", io=["write -P 0xa7 5k 512"])
    good("qcow/aes.qcow", "64k", "encrypt.format=aes,encrypt.key-secret=s", "--object secret,id=s,data=password")
    small = [(n, guest(n, 512), n % 2 == 1) for n in (0, 1, 2, 63, 64, 65, 129)]
    write("qcow/good/zlib-512.qcow", qcow(9, 6, 70_144, small), "qcow(9, 6, …) of make_old.py")
    large = [(n, guest(n, 65536) if n == 1 else bytes([n]) * 65536, n != 1) for n in (0, 1, 3)]
    write("qcow/good/zlib-64k.qcow", qcow(16, 13, 300_032, large), "qcow(16, 13, …) of make_old.py")

    some, packed, aes = "qcow/good/some.qcow", "qcow/good/zlib-512.qcow", "qcow/good/aes.qcow"
    M, U = "Malformed", "Unsupported"
    bad("cluster-bits-8", some, "cluster_bits = 8", "open", M, "cluster_bits", put(">B", 32, 8))
    bad("cluster-bits-17", some, "cluster_bits = 17", "open", M, "cluster_bits", put(">B", 32, 17))
    bad("l2-bits-5", some, "l2_bits = 5", "open", M, "l2_bits", put(">B", 33, 5))
    bad("l2-bits-255", some, "l2_bits = 255", "open", M, "l2_bits", put(">B", 33, 255))
    bad("size-1", some, "size = 1", "open", M, "size", put(">Q", 24, 1))
    bad("size-max", some, "size = 2^64 - 1", "open", M, "L1 table", put(">Q", 24, (1 << 64) - 1))
    bad("crypt-method-2", some, "crypt_method = 2", "open", U, "encryption method 2", put(">I", 36, 2))
    bad("aes-read", aes, "nothing: it is encrypted", "read", U, "AES", lambda b: None)
    bad("l1-in-header", some, "l1_table_offset = 40", "open", M, "header", put(">Q", 40, 40))
    bad("l1-past-end", some, "l1_table_offset = 1 GiB", "open", M, "past the end", put(">Q", 40, 1 << 30))
    bad("backing-name-too-long", some, "a backing file name of 1,024 bytes", "open", M, "backing_file_size",
        lambda b: (put(">Q", 8, 4096)(b), put(">I", 16, 1024)(b)) and None)
    bad("backing-name-past-end", some, "a backing file name at 1 GiB", "open", M, "backing_file_offset",
        lambda b: (put(">Q", 8, 1 << 30)(b), put(">I", 16, 8)(b)) and None)
    bad("l2-past-end", some, "first L1 entry = 1 GiB", "read", M, "past the end", put(">Q", 48, 1 << 30))
    bad("l2-is-header", some, "first L1 entry = 8", "read", M, "not a multiple", put(">Q", 48, 8))
    bad("l2-twice", packed, "second L1 entry = the first", "read", M, "another entry", put(">Q", 56, l2))
    bad("cluster-past-end", some, "first L2 entry = 1 GiB", "read", M, "past the end", put(">Q", l2, 1 << 30))
    bad("cluster-unaligned", some, "first L2 entry += 512", "read", M, "start of a cluster", put(">Q", l2, lambda b: get(">Q", b, l2(b)) + 512))
    bad("cluster-is-l2", some, "first L2 entry = the L2 table", "read", M, "L2 table", put(">Q", l2, l2))
    bad("cluster-twice", some, "second L2 entry = the first", "read", M, "two entries", put(">Q", lambda b: l2(b) + 8, lambda b: get(">Q", b, l2(b))))
    second = lambda b: l2(b) + 8
    host = lambda b: get(">Q", b, second(b)) & (1 << 54) - 1
    bad("zlib-twice", packed, "third L2 entry = the second", "read", M, "two entries", put(">Q", lambda b: l2(b) + 16, lambda b: get(">Q", b, second(b))))
    bad("zlib-past-end", packed, "second L2 entry's offset = 2^40", "read", M, "past the end", put(">Q", second, 1 << 63 | 100 << 54 | 1 << 40))
    bad("zlib-is-l2", packed, "second L2 entry's offset = the L2 table", "read", M, "L2 table", put(">Q", second, lambda b: 1 << 63 | 100 << 54 | l2(b)))
    bad("zlib-size-0", packed, "second L2 entry's size = 0", "read", M, "compressed cluster", put(">Q", second, lambda b: 1 << 63 | host(b)))
    bad("zlib-garbage", packed, "the packed bytes are 0xff", "read", M, "compressed cluster", lambda b: b.__setitem__(slice(host(b), host(b) + 64), b"\xff" * 64))
    bad("cut-in-header", some, "cut off at byte 47", "open", M, "header", lambda b: b[:47])
    bad("cut-in-data", some, "cut off 1,000 bytes before the end", "read", M, "past the end", lambda b: b[:-1000])


# ------------------------------------------------------------------ QED

def qed_l2(b):
    return get("<Q", b, get("<Q", b, 40))


def make_qed():
    # QEMU makes images with tables of one cluster, and then refuses them.
    small = "cluster_size=4k,table_size=2"
    good("qed/empty.qed", "1M", small)
    good("qed/size-0.qed", "0", small)
    good("qed/some.qed", "256k", small, io=SOME)
    good("qed/tables-4.qed", "256k", "cluster_size=8k,table_size=4", io=SOME)
    good("qed/two-tables.qed", "5M", small, io=["write -P 0x11 0 4k", "write -P 0x12 4092k 8k", "write -P 0x13 5116k 4k"])
    good("qed/zero.qed", "256k", small, io=["write -P 0x61 0 32k", "write -z 8k 8k", "write -z 128k 16k"])
    good("qed/base.qed", "128k", small, io=["write -P 0xb1 0 32k", "write -P 0xb2 120k 8k"])
    good("qed/overlay.qed", "256k", small, "-b base.qed -F qed", io=["write -P 0xa1 4k 4k", "write -z 8k 4k", "write -P 0xa2 200k 1k"])
    write("qed/good/base.raw", guest("base.raw", 50_016)[:50_000], "guest('base.raw', 50016)[:50000] of make_old.py")
    good("qed/overlay-raw.qed", "64k", small, "-b base.raw -F raw", io=["write -P 0xa7 5k 512"])
    some = "qed/good/some.qed"
    patched("qed/good/need-check.qed", some, "features |= 2 (need check)", put("<Q", 16, 2))
    patched("qed/good/unknown-compatible.qed", some, "compat_features and autoclear_features = 2^64 - 1",
            lambda b: (put("<Q", 24, (1 << 64) - 1)(b), put("<Q", 32, (1 << 64) - 1)(b)) and None)

    M, U, two = "Malformed", "Unsupported", "qed/good/two-tables.qed"
    bad("unknown-feature", some, "features |= 1 << 7", "open", U, "bit 7", put("<Q", 16, 1 << 7))
    bad("cluster-size-2k", some, "cluster_size = 2,048", "open", M, "cluster_size", put("<I", 4, 2048))
    bad("cluster-size-odd", some, "cluster_size = 4,097", "open", M, "cluster_size", put("<I", 4, 4097))
    bad("cluster-size-128m", some, "cluster_size = 128 MiB", "open", M, "cluster_size", put("<I", 4, 1 << 27))
    bad("table-size-0", some, "table_size = 0", "open", M, "table_size", put("<I", 8, 0))
    bad("table-size-3", some, "table_size = 3", "open", M, "table_size", put("<I", 8, 3))
    bad("header-size-0", some, "header_size = 0", "open", M, "header_size", put("<I", 12, 0))
    bad("header-size-max", some, "header_size = 2^32 - 1", "open", M, "header", put("<I", 12, 0xffffffff))
    bad("size-odd", some, "image_size = 1,000", "open", M, "image_size", put("<Q", 48, 1000))
    bad("size-max", some, "image_size = 2^64 - 512", "open", M, "image_size", put("<Q", 48, (1 << 64) - 512))
    bad("l1-unaligned", some, "l1_table_offset += 512", "open", M, "l1_table_offset", put("<Q", 40, 4096 + 512))
    bad("l1-past-end", some, "l1_table_offset = 1 GiB", "open", M, "past the end", put("<Q", 40, 1 << 30))
    bad("l1-is-header", some, "l1_table_offset = 0", "open", M, "header", put("<Q", 40, 0))
    bad("backing-name-too-long", some, "a backing file name of 1,024 bytes", "open", M, "backing_filename_size",
        lambda b: put("<Q", 16, 1)(b) or struct.pack_into("<II", b, 56, 64, 1024))
    bad("backing-name-outside", some, "a backing file name past the header's cluster", "open", M, "backing_filename_offset",
        lambda b: put("<Q", 16, 1)(b) or struct.pack_into("<II", b, 56, 4090, 16))
    bad("l2-past-end", some, "first L1 entry = 1 GiB", "read", M, "past the end", put("<Q", 4096, 1 << 30))
    bad("l2-unaligned", some, "first L1 entry += 512", "read", M, "not a multiple", put("<Q", 4096, lambda b: qed_l2(b) + 512))
    bad("l2-is-l1", some, "first L1 entry = the L1 table", "read", M, "L1 table", put("<Q", 4096, 4096))
    bad("l2-twice", two, "second L1 entry = the first", "read", M, "another entry", put("<Q", 4104, qed_l2))
    bad("cluster-past-end", some, "first L2 entry = 1 GiB", "read", M, "past the end", put("<Q", qed_l2, 1 << 30))
    bad("cluster-unaligned", some, "first L2 entry += 512", "read", M, "start of a cluster", put("<Q", qed_l2, lambda b: get("<Q", b, qed_l2(b)) + 512))
    bad("cluster-is-header", some, "sixth L2 entry = 2, which is no offset", "read", M, "start of a cluster", put("<Q", lambda b: qed_l2(b) + 40, 2))
    bad("cluster-is-l2", some, "first L2 entry = the L2 table", "read", M, "L2 table", put("<Q", qed_l2, qed_l2))
    bad("cluster-twice", some, "second L2 entry = the first", "read", M, "two entries", put("<Q", lambda b: qed_l2(b) + 8, lambda b: get("<Q", b, qed_l2(b))))
    bad("cut-in-header", some, "cut off at byte 63", "open", M, "header", lambda b: b[:63])
    bad("cut-in-data", some, "cut off 1,000 bytes before the end", "read", M, "past the end", lambda b: b[:-1000])


# ------------------------------------------------------------------ Parallels

def parallels(magic, tracks, sectors, clusters, data_off=None, features=None):
    """An image by hand: `clusters` are guest clusters in the order in which they lie in the file."""
    entries = -(-sectors // tracks)
    extended = magic == b"WithouFreSpacExt"
    start = -(-(64 + 4 * entries) // 512)
    if extended:
        start = -(-start // tracks) * tracks
    bat, data = [0] * entries, b""
    for place, number in enumerate(clusters):
        sector = start + place * tracks
        bat[number] = sector // tracks if extended else sector
        data += guest(number, tracks * 512)
    ext_off = 0
    if features is not None:
        ext_off = start + len(clusters) * tracks
        features = features.ljust(tracks * 512 - 24, b"\0")
        data += struct.pack("<Q", 0xab234cef23dcea87) + hashlib.md5(features).digest() + features
    head = struct.pack("<16sIIIIIQIIIQ", magic, 2, 16, 8, tracks, entries, sectors, 0x312e3276,
                       start if data_off is None else data_off, 0, ext_off)
    return bytearray((head + struct.pack(f"<{entries}I", *bat)).ljust(start * 512, b"\0") + data)


def bitmap(sectors, granularity, entries):
    data = struct.pack("<Q16sII", sectors, bytes(range(16)), granularity, len(entries)) + struct.pack(f"<{len(entries)}Q", *entries)
    return struct.pack("<QQII", 0x20385fae252cb34a, 0, len(data), 0) + data + bytes(24)


def make_parallels():
    OLD, EXT = b"WithoutFreeSpace", b"WithouFreSpacExt"
    good("parallels/empty.parallels", "1M", "cluster_size=4k")
    good("parallels/some.parallels", "256k", "cluster_size=4k", io=SOME)
    by_hand = "parallels(…) of make_old.py"
    write("parallels/good/sectors-63.parallels", parallels(OLD, 63, 300, [3, 0, 4]), by_hand)
    write("parallels/good/no-data-off.parallels", parallels(OLD, 8, 100, [0, 5, 2, 12], data_off=0), by_hand)
    write("parallels/good/size-odd.parallels", parallels(EXT, 8, 101, [12, 3, 4]), by_hand)
    write("parallels/good/bitmap.parallels", parallels(EXT, 8, 96, [1, 2], features=bitmap(96, 8, [1])), by_hand)
    some, old, ext = "parallels/good/some.parallels", "parallels/good/no-data-off.parallels", "parallels/good/bitmap.parallels"
    patched("parallels/good/in-use.parallels", some, "in_use = 0x746f6e59", put("<I", 44, 0x746f6e59))
    patched("parallels/good/old-writer.parallels", old, "in_use = 0, the upper half of nb_sectors set",
            lambda b: put("<I", 40, 7)(b) or put("<I", 44, 0)(b))

    M, U = "Malformed", "Unsupported"
    bad("version-3", some, "version = 3", "open", U, "version 3", put("<I", 16, 3))
    bad("tracks-0", some, "tracks = 0", "open", M, "tracks", put("<I", 28, 0))
    bad("tracks-max", some, "tracks = 2^32 - 1", "open", M, "tracks", put("<I", 28, 0xffffffff))
    bad("bat-too-short", some, "nb_bat_entries = 1", "open", M, "nb_bat_entries", put("<I", 32, 1))
    bad("bat-past-end", some, "nb_bat_entries = 2^32 - 1", "open", M, "nb_bat_entries", put("<I", 32, 0xffffffff))
    bad("size-max", some, "nb_sectors = 2^64 - 1", "open", M, "nb_bat_entries", put("<Q", 36, (1 << 64) - 1))
    bad("cluster-past-end", some, "first BAT entry = 2^32 - 1", "read", M, "past the end", put("<I", 64, 0xffffffff))
    bad("cluster-before-data", some, "data_off = 16", "read", M, "before the data area", put("<I", 48, 16))
    bad("cluster-twice", some, "second BAT entry = the first", "read", M, "another's", put("<I", 68, lambda b: get("<I", b, 64)))
    bad("cluster-overlaps", old, "second BAT entry = the first + 4 sectors", "read", M, "another's", put("<I", 68, lambda b: get("<I", b, 64) + 4))
    bad("cluster-is-extension", ext, "first BAT entry = the extension", "read", M, "another's", put("<I", 64, lambda b: get("<Q", b, 56) // 8))
    bad("extension-past-end", ext, "ext_off = 2^40", "open", M, "ext_off", put("<Q", 56, 1 << 40))
    bad("extension-magic", ext, "the extension's magic = 0", "open", M, "magic", put("<Q", lambda b: get("<Q", b, 56) * 512, 0))
    bad("extension-checksum", ext, "a bit of the extension flipped", "open", M, "check_sum", put("<B", lambda b: get("<Q", b, 56) * 512 + 60, 1))
    bad("cut-in-header", some, "cut off at byte 63", "open", M, "header", lambda b: b[:63])
    bad("cut-in-bat", some, "cut off at byte 100", "open", M, "BAT", lambda b: b[:100])
    bad("cut-in-data", ext, "cut off before its last cluster of data", "open", M, "ext_off", lambda b: b[:-8192])
    bad("cut-in-last-cluster", old, "cut off 1,000 bytes before the end", "read", M, "past the end", lambda b: b[:-3000])


# ------------------------------------------------------------------ what is true of them

def truth(file, temp):
    form, _, name = file.split("/")
    cwd, out = folder(file), os.path.join(temp, "out.raw")
    info = json.loads(run(f"qemu-img info -U --output=json -f {form} {name}", cwd))
    e = dict(file=file, format=form, virtual_size=info["virtual-size"])
    if info.get("encrypted"):
        return dict(e, encrypted="aes")
    run(f"qemu-img convert -U -f {form} -O raw {name} {out}", cwd)
    with open(out, "rb") as f:
        e["sha256"] = hashlib.sha256(f.read()).hexdigest()
    chain = json.loads(run(f"qemu-img info -U --output=json --backing-chain -f {form} {name}", cwd))
    e["needs"] = sorted(i["filename"] for i in chain[1:])
    # qemu-img looks for holes in the file, too, and where they are depends on how it was checked out.
    if all(n.endswith(f".{form}") for n in e["needs"]):
        e["map"] = json.loads(run(f"qemu-img map -U --output=json -f {form} {name}", cwd))
    return e


def main():
    for form in FORMATS:
        for kind in ("good", "bad"):
            shutil.rmtree(os.path.join(HERE, form, kind), ignore_errors=True)
            os.makedirs(os.path.join(HERE, form, kind))
    make_qcow(), make_qed(), make_parallels()
    images = []
    with tempfile.TemporaryDirectory() as temp:
        for form in FORMATS:
            names = sorted(os.listdir(os.path.join(HERE, form, "good")))
            images += [truth(f"{form}/good/{n}", temp) for n in names if n.endswith(f".{form}")]
    path = os.path.join(HERE, "manifest.json")
    with open(path) as f:
        old = json.load(f)
    kept = lambda key: [e for e in old[key] if e["file"].split("/")[0] not in FORMATS]
    with open(path, "w") as f:
        f.write("{\n\"images\": [\n" + ",\n".join(json.dumps(i) for i in kept("images") + images) + "\n],\n\"bad\": [\n")
        f.write(",\n".join(json.dumps(i) for i in kept("bad") + BAD) + "\n]\n}\n")
    path = os.path.join(HERE, "README.md")
    with open(path) as f:
        text = f.read().split(MARK)[0]
    with open(path, "w") as f:
        f.write(text + MARK + "\nMade by `make_old.py`. Run in the folder of each file, each in this order.\n")
        for name, lines in COMMANDS.items():
            f.write(f"\n### {name}\n\n" + "".join(f"    {line}\n" for line in lines))


main()
