#!/usr/bin/env python3
"""Makes every image under testdata/vmdk anew, and the manifest that says what is in them.

    testdata/vmdk/make.py       # needs qemu-img and qemu-io 10.0.2; Python 3.9, standard library

What an image holds is never taken from blockform: it is computed from what was written, and qemu-img
has to agree wherever it can read the image. README.md lists the commands, as this script ran them.
"""
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
GOOD, BAD = os.path.join(HERE, "good"), os.path.join(HERE, "bad")
COMMANDS, IMAGES, BADS = {}, [], []
S, GRAIN = 512, 65536


def run(line, about=None):
    if about:
        COMMANDS.setdefault(about, []).append(line)
    done = subprocess.run(line, shell=True, cwd=GOOD, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{line}\n{done.stdout}{done.stderr}")
    return done.stdout


def put(folder, name, data, how):
    with open(os.path.join(folder, name), "wb") as f:
        f.write(data)
    COMMANDS.setdefault(name, []).append("# by make.py: " + how)


def get(name):
    with open(os.path.join(GOOD, name), "rb") as f:
        return bytearray(f.read())


def text(seed, size):
    """Bytes that pack well, and are the same everywhere."""
    unit = f"{seed} is what this sector holds. ".encode()
    return (unit * (size // len(unit) + 1))[:size]


def fill(size, *parts):
    guest = bytearray(size)
    for at, data in parts:
        guest[at:at + len(data)] = data
    return bytes(guest)


def good(file, guest, needs=(), qemu=True, note=""):
    """qemu: whether qemu-img reads it; a text says how it is wrong."""
    e = dict(file=file, virtual_size=len(guest), sha256=hashlib.sha256(guest).hexdigest(), needs=list(needs))
    if qemu is True:
        with tempfile.NamedTemporaryFile(suffix=".raw") as f:
            run(f"qemu-img convert -f vmdk -O raw {file} {f.name}")
            with open(f.name, "rb") as raw:
                assert raw.read() == guest, file
        e["info"] = json.loads(run(f"qemu-img info -f vmdk --output=json {file}"))["format-specific"]["data"]
        for x in e["info"]["extents"]:
            x["filename"] = os.path.basename(x["filename"])
    else:
        e["qemu"] = qemu
    if note:
        e["note"] = note
    IMAGES.append(e)


def bad(file, data, when, kind, error, how):
    put(BAD, file, data, how)
    BADS.append(dict(file=file, when=when, kind=kind, error=error))


def descriptor(create_type, lines, cid="12345678", parent="ffffffff", more="", hint=""):
    return (f'# Disk DescriptorFile\nversion=1\nCID={cid}\nparentCID={parent}\ncreateType="{create_type}"\n{hint}\n'
            "# Extent description\n" + "\n".join(lines) + '\n\n# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = "4"\n'
            'ddb.geometry.cylinders = "1"\nddb.geometry.heads = "16"\nddb.geometry.sectors = "63"\nddb.adapterType = "ide"\n' + more).encode()


def header(capacity, gd, flags=1, version=1, rgd=0, over_head=128, compress=0, desc=(1, 2), grain=128, gtes=512):
    return struct.pack("<4sIIQQQQIQQQB4sH", b"KDMV", version, flags, capacity, grain, desc[0], desc[1], gtes, rgd, gd,
                       over_head, 0, b"\n \r\n", compress).ljust(512, b"\0")


def stream(capacity, grains, order=None, footer=True, trailing=b"", name="stream.vmdk", level=6, lba=lambda n: n * 128, short_last=False):
    """A stream by VMware's layout, one grain table; `grains`: number to bytes of a grain."""
    text_ = descriptor("streamOptimized", [f'RDONLY {capacity} SPARSE "{name}"'])
    out = bytearray(header(capacity, (1 << 64) - 1, 0x30001, 3, compress=1) + text_.ljust(1024, b"\0"))
    out = out.ljust(8 * S, b"\0")
    out[64:72] = struct.pack("<Q", 8)
    table = [0] * 512
    for n in order or sorted(grains):
        data = grains[n]
        if short_last and (n + 1) * 128 > capacity:
            data = data[:(capacity - n * 128) * S]
        packed = zlib.compress(data, level)
        table[n] = len(out) // S
        out += struct.pack("<QI", lba(n), len(packed)) + packed
        out += bytes(-len(out) % S)

    def marker(sectors, kind):
        return struct.pack("<QII", sectors, 0, kind).ljust(S, b"\0")
    out += marker(4, 1)
    gt = len(out) // S
    out += struct.pack("<512I", *table) + marker(1, 2)
    gd = len(out) // S
    out += struct.pack("<I", gt).ljust(S, b"\0")
    if footer:
        foot = bytearray(header(capacity, gd, 0x30001, 3, compress=1))
        foot[64:72] = struct.pack("<Q", 8)
        out += marker(1, 3) + foot + marker(0, 0)
    return bytes(out) + trailing


def qemu_made():
    guest = fill(1 << 20, (0, text("first", 4096)), (300 << 10, text("second", 512)), ((1 << 20) - 512, text("last", 512)))
    raw = os.path.join(GOOD, "guest.raw")
    with open(raw, "wb") as f:
        f.write(guest)
    for s in ("monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "streamOptimized"):
        run(f"qemu-img convert -f raw -O vmdk -o subformat={s} guest.raw {s}.vmdk", f"{s}.vmdk")
        needs = sorted(n for n in os.listdir(GOOD) if n.startswith(s + "-"))
        good(f"{s}.vmdk", guest, needs)
    os.remove(raw)
    put(GOOD, "renamed.vmdk", get("monolithicSparse.vmdk"), "a copy of monolithicSparse.vmdk, whose descriptor names that")
    good("renamed.vmdk", guest)
    put(GOOD, "crlf.vmdk", get("monolithicFlat.vmdk").replace(b"\n", b"\r\n"), "monolithicFlat.vmdk with CRLF at the end of its lines")
    good("crlf.vmdk", guest, ["monolithicFlat-flat.vmdk"])
    # A child, with zeros recorded over its parent's data.
    run("qemu-img create -q -f vmdk -b monolithicSparse.vmdk -F vmdk -o zeroed_grain=on child.vmdk", "child.vmdk")
    for c in ("write -P 0x61 64k 4k", "write -z 256k 64k"):
        run(f"qemu-io -f vmdk -c '{c}' child.vmdk", "child.vmdk")
    child = bytearray(guest)
    child[64 << 10:68 << 10] = b"\x61" * 4096
    child[256 << 10:320 << 10] = bytes(64 << 10)
    good("child.vmdk", bytes(child), ["monolithicSparse.vmdk"])
    return guest


def hand_made(guest):
    flat = text("flat extent", 16 * S)
    put(GOOD, "flat.bin", flat, "16 sectors of text")

    def of(name, create_type, lines, guest, needs, qemu, note="", **more):
        put(GOOD, name, descriptor(create_type, lines, **more), "the descriptor; see hand_made()")
        good(name, guest, needs, qemu, note)
    # The three ways to say that there is nothing to write to, which qemu-img passes over.
    of("kinds.vmdk", "custom", ['RW 4 FLAT "flat.bin" 0', "RW 8 ZERO", 'RDONLY 4 FLAT "flat.bin" 8', "NOACCESS 2 ZERO", 'RW 2 FLAT "flat.bin" 4'],
       flat[:4 * S] + bytes(8 * S) + flat[8 * S:12 * S] + bytes(2 * S) + flat[4 * S:6 * S], ["flat.bin"],
       "refuses the type, and passes over RDONLY, NOACCESS and ZERO in others")
    of("rdonly.vmdk", "twoGbMaxExtentFlat", ['RW 4 FLAT "flat.bin" 0', 'RDONLY 4 FLAT "flat.bin" 4', "RW 4 ZERO", 'RW 4 FLAT "flat.bin" 12'],
       flat[:8 * S] + bytes(4 * S) + flat[12 * S:], ["flat.bin"], "passes over the second and the third extent: a shorter disk, in silence")
    of("vmfs-offset.vmdk", "vmfs", ['RW 8 VMFS "flat.bin" 8'], flat[8 * S:], ["flat.bin"], "refuses the offset")
    of("blank-line.vmdk", "monolithicFlat", ["", '  RW 16 FLAT "flat.bin" 0  '], flat, ["flat.bin"], "counts the extent twice")
    put(GOOD, "café.bin", flat, "the same")
    put(GOOD, "latin.vmdk", descriptor("monolithicFlat", ['RW 16 FLAT "X" 0']).replace(b"X", b"caf\xe9.bin").replace(
        b"CID=1", b'encoding="windows-1252"\nCID=1', 1), "a name in windows-1252")
    good("latin.vmdk", flat, ["café.bin"], "takes the name for bytes")
    # Streams.
    a, b, c = text("grain a", GRAIN), text("grain b", GRAIN), text("grain c", GRAIN)
    disk = a + bytes(GRAIN) + b + c
    grains = {0: a, 2: b, 3: c}
    put(GOOD, "stream.vmdk", stream(512, grains), "a stream by the specification")
    good("stream.vmdk", disk)
    put(GOOD, "stream-trailing.vmdk", stream(512, grains, trailing=b"\0" * 10240), "the same, and 20 sectors of zeros")
    good("stream-trailing.vmdk", disk, (), "refuses the footer")
    put(GOOD, "stream-trailing-odd.vmdk", stream(512, grains, trailing=b"junk" * 33), "the same, and 132 bytes")
    good("stream-trailing-odd.vmdk", disk, (), "refuses the footer")
    put(GOOD, "stream-order.vmdk", stream(512, grains, order=[3, 0, 2]), "the same, the last grain first")
    good("stream-order.vmdk", disk)
    noise = b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(GRAIN // 32))
    put(GOOD, "stream-stored.vmdk", stream(512, {1: noise}, level=0), "a grain that is longer packed than not")
    good("stream-stored.vmdk", bytes(GRAIN) + noise + bytes(2 * GRAIN))
    odd = stream(130, {0: a, 1: b}, short_last=True)
    put(GOOD, "stream-odd.vmdk", odd, "130 sectors, the last grain packed as short as it is")
    good("stream-odd.vmdk", a + b[:2 * S])
    # The redundant directory, where the first is damaged.
    image = get("monolithicSparse.vmdk")
    gd, = struct.unpack_from("<Q", image, 56)
    image[gd * S:gd * S + 4] = b"\xff\xff\xff\xff"
    put(GOOD, "redundant.vmdk", image, "monolithicSparse.vmdk, the first entry of its grain directory 2^32 - 1")
    good("redundant.vmdk", guest, (), "fails to read")
    image = get("monolithicSparse.vmdk")
    gt, = struct.unpack_from("<I", image, gd * S)
    image[gt * S:gt * S + 4] = b"\xff\xff\xff\x7f"
    put(GOOD, "redundant-table.vmdk", image, "monolithicSparse.vmdk, the first entry of its grain table 2^31 - 1")
    good("redundant-table.vmdk", guest, (), "reads zeros past the end of the file")
    # COWD: grains of one sector, as ESXi makes them.
    cowd = bytearray(struct.pack("<4s7I", b"COWD", 1, 3, 5000, 1, 4, 2, 71).ljust(4 * S, b"\0"))
    cowd += struct.pack("<2I", 5, 37).ljust(S, b"\0")
    tables = [0] * 8192
    tables[0], tables[7], tables[4999] = 69, 70, 71
    cowd += struct.pack("<8192I", *tables)
    cowd += text("cowd 0", S) + text("cowd 7", S) + text("cowd 4999", S)
    put(GOOD, "cowd-delta.bin", cowd, "a COWD extent of 5,000 sectors, three of them written")
    sectors = fill(5000 * S, (0, text("cowd 0", S)), (7 * S, text("cowd 7", S)), (4999 * S, text("cowd 4999", S)))
    of("cowd.vmdk", "vmfsSparse", ['RW 5000 VMFSSPARSE "cowd-delta.bin"'], sectors, ["cowd-delta.bin"], True)
    # seSparse: nobody saw one of a real host; this is what QEMU's reader takes.
    se = bytearray(struct.pack("<26Q", 0xcafebabe, 0x200000001, 64, 8, 64, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 2, 1, 3, 64, 0, 0, 0, 0, 72, 0).ljust(S, b"\0"))
    se += struct.pack("<4Q", 0xcafecafe, 0, 0, 0).ljust(S, b"\0")
    se += struct.pack("<Q", 0x10000000 << 32).ljust(S, b"\0")
    entries = [0] * 4096
    entries[0], entries[1], entries[2], entries[7] = 3 << 60 | 1 << 48, 2 << 60, 1 << 60, 3 << 60
    se += struct.pack("<4096Q", *entries)
    se = se.ljust(72 * S, b"\0") + text("se at 7", 4096) + text("se at 0", 4096)
    put(GOOD, "se-sparse.bin", se, "a seSparse extent of 8 grains")
    of("se.vmdk", "seSparse", ['RW 64 SESPARSE "se-sparse.bin"'], fill(64 * S, (0, text("se at 0", 4096)), (7 * 4096, text("se at 7", 4096))), ["se-sparse.bin"], True)
    return stream(512, grains), bytes(se)


def make_bad(whole_stream, se):
    base, M, U, D = get("monolithicSparse.vmdk"), "Malformed", "Unsupported", "Detached"
    gd, = struct.unpack_from("<Q", base, 56)
    gt, = struct.unpack_from("<I", base, gd * S)
    rgd, = struct.unpack_from("<Q", base, 48)

    def patch(fmt, *places, image=base):
        b = bytearray(image)
        for at, value in places:
            struct.pack_into("<" + fmt, b, at, value)
        return b
    no_second = patch("I", (8, 1))
    bad("version-4.vmdk", patch("I", (4, 4)), "open", U, "version 4", "version = 4")
    bad("text-transfer.vmdk", patch("I", (73, 0x0a0a200a)), "open", M, "end_line_chars", "transferred as text")
    bad("grain-0.vmdk", patch("Q", (20, 0)), "open", M, "grain_size", "grainSize = 0")
    bad("grain-3.vmdk", patch("Q", (20, 3)), "open", M, "grain_size", "grainSize = 3")
    bad("gtes-0.vmdk", patch("I", (44, 0)), "open", M, "num_gtes_per_gt", "numGTEsPerGT = 0")
    bad("gtes-max.vmdk", patch("I", (44, 0xffffffff)), "open", M, "num_gtes_per_gt", "numGTEsPerGT = 2^32 - 1")
    bad("capacity-max.vmdk", patch("Q", (12, (1 << 64) - 1)), "open", M, "capacity", "capacity = 2^64 - 1")
    bad("capacity-60p.vmdk", patch("Q", (12, 1 << 53)), "open", "LimitExceeded", "grain directory", "capacity = 4 EiB")
    bad("descriptor-max.vmdk", patch("Q", (28, (1 << 64) - 1)), "open", M, "descriptor", "descriptorOffset = 2^64 - 1")
    bad("algorithm-2.vmdk", patch("H", (77, 2)), "open", U, "compression algorithm 2", "compressAlgorithm = 2")
    bad("gd-past-end.vmdk", patch("Q", (56, 1 << 40), image=no_second), "open", M, "grain directory", "gdOffset = 2^40, no redundant directory")
    bad("gd-is-header.vmdk", patch("Q", (56, 0), image=no_second), "open", M, "grain directory", "gdOffset = 0, likewise")
    bad("gt-past-end.vmdk", patch("I", (gd * S, 1 << 30), image=no_second), "open", M, "grain table at byte", "the first grain table at 512 GiB, likewise")
    bad("gt-is-1.vmdk", patch("I", (gd * S, 1), image=no_second), "open", M, "overlaps", "the first entry of the grain directory = 1, likewise")
    bad("grain-past-end.vmdk", patch("I", (gt * S, 1 << 30), image=no_second), "read", M, "the file ends at", "the first grain at 512 GiB, likewise")
    bad("grain-is-descriptor.vmdk", patch("I", (gt * S, 1), image=no_second), "read", M, "metadata", "the first grain at sector 1, likewise")
    bad("grain-is-table.vmdk", patch("I", (gt * S, gt), image=no_second), "read", M, "metadata", "the first grain where its table is, likewise")
    first = struct.unpack_from("<I", base, gt * S)[0]
    bad("grain-twice.vmdk", patch("I", (gt * S + 4, first), image=no_second), "read", M, "so does another", "two entries for one grain, likewise")
    bad("cut-in-header.vmdk", base[:300], "open", M, "512 bytes", "the first 300 bytes")
    bad("cut-in-table.vmdk", base[:gt * S + 100], "open", M, "", "cut off in a grain table")
    bad("cut-in-grain.vmdk", base[:len(base) - 1000], "read", M, "the file ends at", "the last 1,000 bytes cut off")
    bad("no-descriptor.vmdk", patch("Q", (28, 0), (36, 0)), "open", U, "an extent file", "without a descriptor: one file of several")
    w = whole_stream
    bad("stream-cut.vmdk", w[:len(w) - 3 * S], "open", M, "footer", "the footer and the end cut off")
    bad("stream-no-end.vmdk", w[:len(w) - S], "open", M, "footer", "the end cut off")
    grain = 8 * S
    bad("stream-footer-loop.vmdk", w[:len(w) - 2 * S + 56] + b"\xff" * 8 + w[len(w) - 2 * S + 64:], "open", M, "gd_offset", "the footer sends to the footer")
    bad("stream-lba.vmdk", stream(512, {0: text("a", GRAIN)}, lba=lambda n: 128), "read", M, "expected here", "a grain that says to be another")
    bad("stream-size-0.vmdk", patch("I", (grain + 8, 0), image=w), "read", M, "no grain", "a grain of 0 bytes")
    bad("stream-size-max.vmdk", patch("I", (grain + 8, 0xffffffff), image=w), "read", M, "size", "a grain of 4 GiB")
    size, = struct.unpack_from("<I", w, grain + 8)
    bad("stream-checksum.vmdk", patch("B", (grain + 12 + size - 1, w[grain + 12 + size - 1] ^ 1), image=w), "read", M, "zlib", "one bit of a grain's checksum")
    bad("stream-short.vmdk", stream(512, {0: b"short"}), "read", M, "holds 5 of", "a grain of five bytes")
    bad("stream-long.vmdk", stream(512, {0: bytes(GRAIN + 1)}), "read", M, "goes on", "a grain of a byte too many")
    d = descriptor
    bad("child-alone.vmdk", d("monolithicFlat", ["RW 8 ZERO"], parent="0badcafe") and patch_descriptor(base, b"parentCID=ffffffff", b"parentCID=0badcafe"),
        "read", D, "0badcafe", "a parent's CID, and no name for it")
    uuid = b'ddb.uuid.parent="11111111-2222-3333-4444-555555555555"\n'
    bad("virtualbox-child.vmdk", patch_descriptor(base, b"# The Disk Data Base", uuid + b"# The Disk Data Base"), "read", D, "11111111",
        "a parent by UUID alone, as VirtualBox has it")
    bad("encrypted.vmdk", b'.encoding = "UTF-8"\nencryption.keySafe = "vmware:key/list/x"\nencryption.data = "x"\n', "open", U, "encryption", "as Workstation encrypts a descriptor")
    bad("device.vmdk", d("fullDevice", ['RW 8 FLAT "/dev/sda" 0']), "open", U, "device", "a physical disk")
    bad("device-extent.vmdk", d("monolithicFlat", ['RW 8 FLAT "/dev/sda" 0']), "open", U, "device", "a flat extent that is a device")
    bad("rdm.vmdk", d("vmfsRawDeviceMap", ['RW 8 VMFSRDM "x-rdm.vmdk"']), "open", U, "device", "a raw device mapping")
    bad("no-extents.vmdk", d("monolithicFlat", []), "open", M, "no extents", "no extent lines")
    bad("no-type.vmdk", d("monolithicFlat", ["RW 8 ZERO"]).replace(b"createType", b"creatType"), "open", M, "createType", "no createType")
    bad("odd-kind.vmdk", d("custom", ['RW 8 VSANSPARSE "x"']), "open", U, "VSANSPARSE", "an extent of vSAN")
    bad("noaccess.vmdk", d("custom", ['NOACCESS 8 FLAT "x" 0']), "read", U, "NOACCESS", "an extent that nobody may read")
    bad("ctk.vmdk", b"\xa2\x72\x19\xf6".ljust(512, b"\0"), "open", U, "change-tracking", "a change-tracking file")
    bad("se-alone.vmdk", se, "open", U, "descriptor", "a seSparse extent alone")


def patch_descriptor(image, old, new):
    b = bytearray(image)
    end = 21 * S
    text_ = bytes(b[S:end]).rstrip(b"\0").replace(old, new)
    b[S:end] = text_.ljust(end - S, b"\0")
    return b


def main():
    for folder in (GOOD, BAD):
        os.makedirs(folder, exist_ok=True)
        for name in os.listdir(os.fsencode(folder)):
            os.remove(os.path.join(os.fsencode(folder), name))
    guest = qemu_made()
    make_bad(*hand_made(guest))
    with open(os.path.join(HERE, "manifest.json"), "w") as f:
        rows = lambda entries: ",\n".join(json.dumps(e, ensure_ascii=False) for e in entries)
        f.write('{\n"images": [\n%s\n],\n"bad": [\n%s\n]\n}\n' % (rows(IMAGES), rows(BADS)))
    version = run("qemu-img --version").splitlines()[0]
    with open(os.path.join(HERE, "README.md"), "w") as f:
        f.write(f"""# VMDK test images

Made by `make.py` with {version}. `manifest.json` says what the guest sees of each file in
`good/` (computed from what was written; qemu-img agrees unless `qemu` says how it does not), and what has
to become of those in `bad/`: `when` it has to fail (`open` or `read`), with which variant of `Error`
(`kind`) and which words. No seSparse extent of a real host was seen: ours is what QEMU's reader takes.

## Commands

Run in `good/`. `guest.raw` is what `qemu_made()` fills in; it is not kept.
""")
        for name, lines in COMMANDS.items():
            f.write(f"\n### {name}\n\n" + "".join(f"    {line}\n" for line in lines))


main()
