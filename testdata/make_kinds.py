#!/usr/bin/env python3
"""Makes the files under testdata/kinds and the bundles under testdata/parallels/bundles anew.

    testdata/make_kinds.py      # the tools that README.md names; Python 3.9, standard library

Files that no tool at hand makes are laid out byte by byte from the formats' descriptions. What is true
of a file is in manifest.json beside it: it was known before the file was written, or the tool that is
named said so, and never blockform.
"""
import bz2
import hashlib
import io
import json
import lzma
import os
import plistlib
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
KINDS, BUNDLES = os.path.join(HERE, "kinds"), os.path.join(HERE, "parallels", "bundles")
ENTRIES, DISKS = [], []
INNER = os.path.join(HERE, "qcow2", "good", "empty.qcow2")


def run(line, cwd, data=None):
    done = subprocess.run(line, shell=True, cwd=cwd, input=data, capture_output=True)
    if done.returncode:
        sys.exit(f"{line}\n{done.stdout}{done.stderr}")
    return done.stdout


def kind(name, made, how, match, format="raw", size=None, bad=None, **details):
    """A file called `name`: its bytes, or a command that writes it; what has to be told of it."""
    path = os.path.join(KINDS, "bad" if bad else "good", name)
    if isinstance(made, str):
        run(made.format(out=path), KINDS)
    else:
        with open(path, "wb") as f:
            f.write(made)
    if format == "raw" and size is None:
        size = os.path.getsize(path)
    folder = "bad" if bad else "good"
    entry = dict(file=f"kinds/{folder}/{name}", how=how if how else made.format(out=name), match=match, format=format,
                 virtual_size=size, details=details)
    if bad:
        entry["error"] = bad
    ENTRIES.append(entry)


def disk(size):
    """A disk with a partition table, so that something is to be found."""
    b = bytearray(hashlib.sha256(b"disk").digest() * (size // 32))
    b[440:512] = bytes(72)
    b[446:462] = bytes([0x80, 0, 2, 0, 0x83, 0, 9, 0]) + struct.pack("<II", 1, size // 512 - 1)
    b[510:512] = b"\x55\xaa"
    return bytes(b)


# ------------------------------------------------------------------ image formats

def koly(data, sectors, chunks, at=None):
    """A UDIF image: its data, a property list with one table of blocks, and the trailer."""
    mish = struct.pack(">4sIQQQIIIIIIII II", b"mish", 1, 0, sectors, 0, 0x208, 0, 0, 0, 0, 0, 0, 0, 2, 32)
    mish = mish.ljust(200, b"\0") + struct.pack(">I", len(chunks))
    for c in chunks:
        mish += struct.pack(">IIQQQQ", c[0], 0, *c[1:])
    blkx = [{"Attributes": "0x0050", "CFName": "whole disk", "Data": mish, "ID": "-1", "Name": "whole disk"}]
    xml = plistlib.dumps({"resource-fork": {"blkx": blkx}})
    head = struct.pack(">4sIIIQQQQQII", b"koly", 4, 512, 1, 0, 0, len(data), 0, 0, 1, 1) + bytes(range(16))
    trailer = bytearray(512)
    trailer[:len(head)] = head
    struct.pack_into(">QQ", trailer, 216, len(data), len(xml))
    struct.pack_into(">IQ", trailer, 488, 1, sectors if at is None else at)
    return data + xml + bytes(trailer)


def images():
    raw = disk(32768)
    end = (0xffffffff, 64, 0, 0, 0)
    plain = koly(raw, 64, [(1, 0, 64, 0, 32768), end])
    kind("raw.dmg", plain, "koly(…) of make_kinds.py: one chunk of raw data, whose start is the disk's", "dmg", "dmg", 32768, variant="UDIF", contents="whole disk")
    packed = zlib.compress(raw, 9)
    kind("zlib.dmg", koly(packed, 64, [(0x80000005, 0, 64, 0, len(packed)), end]), "koly(…): one chunk of zlib", "dmg", "dmg", 32768)
    for name, number, packed in (("bzip2", 6, bz2.compress(raw)), ("lzma", 8, lzma.compress(raw))):
        kind(f"{name}.dmg", koly(packed, 64, [(0x80000000 + number, 0, 64, 0, len(packed)), end]),
             f"koly(…): one chunk, and the file begins as {name} does", "dmg", "dmg", 32768)
    kind("size-max.dmg", koly(raw, 64, [end], at=1 << 60), "koly(…): 2^60 sectors", "dmg", "dmg", bad="sector_count")
    kind("encrypted.dmg", b"encrcdsa" + struct.pack(">I", 2) + bytes(500), "by hand: the signature and the version", "dmg", "dmg", None, variant="encrypted")
    sparse = struct.pack(">4sIIII", b"sprs", 3, 2048, 1, 4096).ljust(4096, b"\0")
    kind("bands.sparseimage", sparse, "by hand, from libmodi's description", "dmg", "dmg", 4096 * 512, variant="sparse image")
    kind("growing.bochs", "bximage -q -func=create -hd=10M -imgmode=growing {out}", None, "bochs", "bochs", None, subtype="Growing", version=2)
    b = open(os.path.join(KINDS, "good", "growing.bochs"), "rb").read()[:1024]
    kind("sparse.bochs", "bximage -q -func=create -hd=10M -imgmode=sparse {out}", None, "bochs", "bochs", 10321920, subtype="Sparse", version=2)
    kind("version-1.bochs", b[:64] + struct.pack("<I", 0x10000) + b[68:84] + struct.pack("<Q", 1 << 20) + b[92:], "growing.bochs with a header of version 1", "bochs", "bochs", 1 << 20, version=1)
    kind("version-9.bochs", b[:64] + struct.pack("<I", 0x90000) + b[68:], "growing.bochs, version = 9", "bochs", "bochs", bad="version")
    kind("cut.bochs", b[:80], "growing.bochs, cut off at byte 80", "bochs", "bochs", bad="needs 96 bytes")
    with open(os.path.join(KINDS, "disk.raw"), "wb") as f:
        f.write(raw)
    kind("disk.cloop", "create_compressed_fs -q -B 16384 disk.raw {out}", None, "cloop", "cloop", 32768)
    b = open(os.path.join(KINDS, "good", "disk.cloop"), "rb").read()
    kind("block-size-7.cloop", b[:128] + struct.pack(">I", 7) + b[132:], "disk.cloop, block_size = 7", "cloop", "cloop", bad="block_size")
    with tempfile.TemporaryDirectory() as temp:
        run(f"ewfacquirestream -q -t {temp}/x -c best -C case -D d -e e -E 1 -N n -m fixed -M logical -P 512 -S 1500000000 < disk.raw", KINDS)
        ewf = open(f"{temp}/x.E01", "rb").read()
    kind("disk.E01", ewf, "ewfacquirestream -t x -c best < disk.raw", "ewf", "ewf", 32768, variant="EWF (E01)", segment=1)
    b = bytearray(ewf)
    b[13 + 72] ^= 1
    kind("checksum.E01", bytes(b), "disk.E01 with a bit of the first descriptor's checksum flipped", "ewf", "ewf", bad="checksum")
    kind("disk.Ex01", b"EVF2\r\n\x81\0" + struct.pack("<BBHI16s", 2, 1, 1, 1, bytes(16)) + bytes(100), "by hand: the file header", "ewf", "ewf", None, version="2.1")
    kind("files.L01", b"LVF\x09\r\n\xff\0" + ewf[8:4096], "disk.E01 with the signature of a logical one, cut off", "ewf", "ewf", None, variant="logical EWF (L01)")
    asif = struct.pack(">4sIIIQQ16sQQIHHQ", b"shdw", 1, 512, 0, 0x200, 0x20200, bytes(range(16)), 8192, 1 << 33, 1 << 20, 512, 0, 0)
    kind("disk.asif", asif.ljust(512, b"\0"), "by hand, from the header as dissect.hypervisor has it", "asif", "asif", 8192 * 512)
    kind("size-max.asif", asif[:48] + struct.pack(">Q", 1 << 60) + asif[56:].ljust(512, b"\0"), "disk.asif, sector_count = 2^60", "asif", "asif", bad="sector_count")
    kind("block-0.asif", asif[:68] + b"\0\0" + asif[70:].ljust(512, b"\0"), "disk.asif, block_size = 0", "asif", "asif", bad="block_size")
    kind("disk.simg", "img2simg disk.raw {out}", None, "android-sparse", "android-sparse", 32768, version="1.0", blocks=8)
    b = open(os.path.join(KINDS, "good", "disk.simg"), "rb").read()
    kind("block-0.simg", b[:12] + bytes(4) + b[16:], "disk.simg, blk_sz = 0", "android-sparse", "android-sparse", bad="blk_sz")
    for name, devices, size in (("one", [("drive-scsi0", 1 << 30)], 1 << 30), ("two", [("drive-scsi0", 1 << 30), ("drive-\x1b[2J", 1 << 20)], None)):
        blobs, table = b"\0", b""
        for device, bytes_ in [("", 0)] + devices + [("vmstate", 4096)]:
            table += struct.pack(">IIQQQ", len(blobs) if device else 0, 0, bytes_ if device else 0, 0, 0)
            if device:
                blobs += struct.pack("<H", len(device) + 1) + device.encode() + b"\0"
        vma = struct.pack(">4sI16sQ16sIII", b"VMA\0", 1, bytes(range(16)), 1500000000, bytes(16), 12288, len(blobs), 12288 + 512)
        vma = vma.ljust(4096, b"\0") + table.ljust(8192, b"\0") + blobs.ljust(512, b"\0")
        kind(f"{name}.vma", vma, "by hand, from the header as pve-qemu has it", "vma", "vma", size)
    os.remove(os.path.join(KINDS, "disk.raw"))


# ------------------------------------------------------------------ archives and packed files

def tar(*members, format=tarfile.USTAR_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as t:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return out.getvalue()


OVF = b"<?xml version='1.0'?>\n<Envelope xmlns='http://schemas.dmtf.org/ovf/envelope/1'/>\n"


def archives():
    image = open(INNER, "rb").read()
    hand = "tar(…) of make_kinds.py"
    kind("files.tar", tar(("a", b"x"), ("b", b"y" * 600)), hand, "tar")
    long = "d/" * 60 + "name"
    kind("gnu.tar", tar((long, b"x"), format=tarfile.GNU_FORMAT), hand + ", GNU's long names", "tar")
    kind("pax.tar", tar((long + "é", b"x"), format=tarfile.PAX_FORMAT), hand + ", pax", "tar")
    kind("ovf-second.tar", tar(("m.mf", b""), ("m.ovf", OVF)), hand, "tar")
    kind("machine.xva", tar(("ova.xml", b"<value/>"), ("Ref:1/00000000", b"")), hand, "xva", "xva", None)
    layer = "0123456789abcdef" * 4
    kind("docker.tar", tar((layer + "/VERSION", b"1.0"), (layer + "/layer.tar", b""), ("manifest.json", b"[]")), hand, "docker-archive")
    kind("oci.tar", tar(("blobs/sha256/" + layer, b""), ("index.json", b"{}"), ("oci-layout", b"{}")), hand, "oci-archive")
    packers = dict(gz="gzip -9n", xz="xz -9", bz2="bzip2 -9", zst="zstd -19q", lz4="lz4 -9q", lzma="xz --format=lzma -9")
    for ending, command in packers.items():
        match = dict(gz="gzip", bz2="bzip2", zst="zstd").get(ending, ending)
        kind(f"empty.qcow2.{ending}", run(f"{command} -c", KINDS, image), f"{command} -c ../qcow2/good/empty.qcow2", match, inside="qcow2")
    kind("legacy.lz4", run("lz4 -lq -c", KINDS, image), "lz4 -lq -c ../qcow2/good/empty.qcow2", "lz4", inside="qcow2", legacy=True)
    zst = run("zstd -19q -c", KINDS, image)
    skip = struct.pack("<II", 0x184d2a5e, 5) + b"hello"
    kind("skippable.zst", skip + skip[:4] + bytes(4) + zst, "two skippable frames before empty.qcow2.zst", "zstd", inside="qcow2")
    kind("twice.xz.gz", run("xz -9 -c | gzip -9n", KINDS, image), "xz -9 -c ../qcow2/good/empty.qcow2 | gzip -9n", "gzip", inside="xz")
    kind("cut.gz", run("gzip -9n -c", KINDS, image)[:30], "empty.qcow2.gz, cut off at byte 30", "gzip")
    with tempfile.TemporaryDirectory() as temp:
        shutil.copy(INNER, temp)
        for name, level in (("deflated", "-9"), ("stored", "-0")):
            data = run(f"zip -qX {level} - empty.qcow2", temp) if level == "-9" else None
            if data is None:
                run(f"head -c 3000 empty.qcow2 > x && zip -qX -0 s.zip x", temp)
                data = open(f"{temp}/s.zip", "rb").read()
            kind(f"{name}.zip", data, f"zip -qX {level}", "zip", inside="qcow2", members=1)
        with open(f"{temp}/container.description", "w") as f:
            f.write("aff4://x")
        run("zip -qX0 c.aff4 container.description", temp)
        kind("disk.aff4", open(f"{temp}/c.aff4", "rb").read(), "zip -qX0 disk.aff4 container.description", "aff4", "aff4", None)
        os.makedirs(f"{temp}/kernel/x86/microcode")
        for name in ("kernel/x86/microcode/GenuineIntel.bin", "init"):
            with open(f"{temp}/{name}", "w") as f:
                f.write(name)
        for form, variant in (("newc", "newc"), ("crc", "crc"), ("odc", "odc"), ("bin", "binary, little-endian")):
            made = run(f"echo init | cpio --reproducible -o -H {form} 2>/dev/null", temp)
            kind(f"{form}.cpio", made, f"echo init | cpio --reproducible -o -H {form}", "cpio", variant=variant)
            if form == "newc":
                init = made
        early = run("find kernel | sort | cpio --reproducible -o -H newc 2>/dev/null", temp)
        kind("early.cpio", early + run("zstd -q -c", temp, init), "microcode, and then an initial root packed with zstd", "cpio", microcode=True, next="zstd")
        with open(f"{temp}/init.gz", "wb") as f:
            f.write(run("gzip -9n", temp, init))
        run("SOURCE_DATE_EPOCH=1500000000 mkimage -A arm64 -O linux -T ramdisk -C gzip -n 'root of all' -d init.gz u", temp)
        kind("ramdisk.uimage", open(f"{temp}/u", "rb").read(), "mkimage -A arm64 -O linux -T ramdisk -C gzip -n 'root of all' -d init.gz", "uimage",
             architecture="aarch64", type="ramdisk", compression="gzip", inside="gzip")


# ------------------------------------------------------------------ kernels

def pe(machine, subsystem=10, at=64):
    return struct.pack("<4sHHIIIHH", b"PE\0\0", machine, 1, 0, 0, 0, 112, 0) + struct.pack("<H66xH", 0x20b, subsystem) + bytes(44)


def kernels():
    hand = "by hand, from the kernel's documentation"
    for name, flags, arch, efi in (("x86_64", 1, "x86_64", True), ("i386", 0, "i386", False)):
        b = bytearray(2048)
        struct.pack_into("<B", b, 0x1f1, 3)
        b[0x1fe:0x200] = b"\x55\xaa"
        struct.pack_into("<H4sHIHHBB", b, 0x200, 0x66eb, b"HdrS", 0x20f, 0, 0x1000, 0x300, 0, 1)
        struct.pack_into("<BBH", b, 0x234, 1, 21, flags)
        text = b"6.1.0-blockform (somebody@example.org) #1\0"
        b[0x500:0x500 + len(text)] = text
        if efi:
            b[:2] = b"MZ"
            struct.pack_into("<I", b, 0x3c, 64)
            b[64:64 + len(pe(0x8664))] = pe(0x8664)
        kind(f"{name}.bzimage", bytes(b), hand, "bzimage", architecture=arch, version="6.1.0-blockform (somebody@example.org) #1",
             **{"boot-protocol": "2.15", "variant": "bzImage", "efi-stub": efi})
    head = lambda magic, magic2, flags=10, version=0, start=b"MZ\0\x14": start + struct.pack("<IQQQIIQ8s4sI", 0, 0x80000, 1 << 20, flags, version, 0, 0, magic, magic2, 64)
    kind("arm64.image", head(bytes(8), b"ARM\x64") + pe(0xaa64), hand, "arm64-image", architecture="aarch64", endianness="little", **{"page-size": "4 KiB", "efi-stub": True, "image-size": 1 << 20})
    kind("arm64-be.image", head(bytes(8), b"ARM\x64", 7, 0, bytes(4)) + bytes(64), hand, "arm64-image", endianness="big", **{"page-size": "64 KiB", "efi-stub": False})
    kind("riscv.image", head(b"RISCV\0\0\0", b"RSC\x05", 0, 2) + pe(0x5064), hand, "riscv-image", architecture="riscv", **{"header-version": "0.2"})
    kind("loongarch.image", head(bytes(8), b"\xcd\x23\x82\x81", 0) + pe(0x6264), hand, "loongarch-image", architecture="loongarch64")
    for order, endianness in (("<", "little"), (">", "big")):
        z = bytes(0x24) + struct.pack(order + "IIII", 0x016f2818, 0x8000, 0x8000 + 512, 0x04030201)
        kind(f"arm-{endianness}.zimage", z.ljust(512, b"\0"), hand, "zimage", endianness=endianness, **{"image-size": 512})
    z = struct.pack("<4s4sIIQ32sII", b"MZ\0\0", b"zimg", 512, 1000, 0, b"zstd22", 0, 64) + pe(0xaa64)
    kind("zboot.efi", z.ljust(1024, b"\0"), hand, "efi-zboot", architecture="aarch64", compression="zstd22", **{"payload-size": 1000})
    kind("application.efi", b"MZ".ljust(60, b"\0") + struct.pack("<I", 64) + pe(0x8664), "by hand, from the description of PE", "pe", architecture="x86_64", subsystem="EFI application")
    elf = lambda bits, order, machine: struct.pack(order + "16sHHI", b"\x7fELF" + bytes([bits, 1 if order == "<" else 2, 1]), 2, machine, 1).ljust(64, b"\0")
    kind("x86_64.elf", elf(2, "<", 62), "by hand, from the description of ELF", "elf", architecture="x86_64", type="executable", endianness="little", bits=64)
    kind("s390.elf", elf(2, ">", 22), "by hand, from the description of ELF", "elf", architecture="s390", endianness="big")
    kind("board.dtb", struct.pack(">4sIIIIII", b"\xd0\x0d\xfe\xed", 64, 56, 60, 40, 17, 16).ljust(64, b"\0"), "by hand, from the specification of device trees", "fdt", version=17)


# ------------------------------------------------------------------ bundles of Parallels

ROOT = "{5fbaabe3-6958-40ff-92a7-860e329aab41}"
NONE = "{00000000-0000-0000-0000-000000000000}"
GUID = [ROOT] + [f"{{{n:08x}-1111-2222-3333-444444444444}}" for n in range(1, 4)]
TRACKS = 8


def guest(seed):
    return hashlib.sha256(str(seed).encode()).digest() * (TRACKS * 512 // 32)


def expandable(sectors, clusters):
    """An image in which the clusters of a list are recorded, and the guest's bytes of them."""
    entries = -(-sectors // TRACKS)
    start = -(-(64 + 4 * entries) // (TRACKS * 512)) * TRACKS
    bat, data = [0] * entries, b""
    for place, (number, bytes_) in enumerate(clusters):
        bat[number] = start // TRACKS + place
        data += bytes_
    head = struct.pack("<16sIIIIIQIIIQ", b"WithouFreSpacExt", 2, 16, 8, TRACKS, entries, sectors, 0x312e3276, start, 0, 0)
    return (head + struct.pack(f"<{entries}I", *bat)).ljust(start * 512, b"\0") + data


def descriptor(sectors, storages, shots, top=None, extra="", blocksize=TRACKS):
    xml = ["<?xml version='1.0' encoding='UTF-8'?>", '<Parallels_disk_image Version="1.0">', "    <Disk_Parameters>",
           f"        <Disk_size>{sectors}</Disk_size>", f"        <Cylinders>1</Cylinders><Heads>1</Heads><Sectors>{sectors}</Sectors>",
           "        <PhysicalSectorSize>4096</PhysicalSectorSize><LogicSectorSize>512</LogicSectorSize>", "        <Padding>0</Padding>",
           f"        <Encryption><Engine>{NONE}</Engine><Data></Data></Encryption>{extra}", "    </Disk_Parameters>", "    <StorageData>"]
    for start, end, images in storages:
        xml += ["        <Storage>", f"            <Start>{start}</Start><End>{end}</End><Blocksize>{blocksize}</Blocksize>"]
        xml += [f"            <Image><GUID>{g}</GUID><Type>{t}</Type><File>{f}</File></Image>" for g, t, f in images]
        xml += ["        </Storage>"]
    xml += ["    </StorageData>", "    <Snapshots>"] + ([f"        <TopGUID>{top}</TopGUID>"] if top else [])
    xml += [f"        <Shot><GUID>{g}</GUID><ParentGUID>{p}</ParentGUID></Shot>" for g, p in shots]
    return "\n".join(xml + ["    </Snapshots>", "</Parallels_disk_image>", ""])


def bundle(name, files, want, snapshots=None):
    folder = os.path.join(BUNDLES, name)
    os.makedirs(folder)
    for file, data in files.items():
        with open(os.path.join(folder, file), "wb") as f:
            f.write(data.encode() if isinstance(data, str) else data)
    DISKS.append(dict(file=f"parallels/bundles/{name}/DiskDescriptor.xml", virtual_size=len(want), sha256=hashlib.sha256(want).hexdigest(),
                      needs=sorted(f for f in files if f != "DiskDescriptor.xml"), snapshots=snapshots or {}))


def flat(sectors, *layers):
    want = bytearray(sectors * 512)
    for clusters in layers:
        for number, data in clusters:
            at = number * TRACKS * 512
            want[at:at + len(data)] = data[:len(want) - at]
    return bytes(want)


def bundles():
    one = [(0, guest(1)), (5, guest(2))]
    shot = [(GUID[0], NONE)]
    bundle("expanding.hdd", {"DiskDescriptor.xml": descriptor(100, [(0, 100, [(ROOT, "Compressed", f"e.hdd.0.{ROOT}.hds")])], shot),
                             f"e.hdd.0.{ROOT}.hds": expandable(100, one)}, flat(100, one))
    raw = disk(20480)
    bundle("plain.hdd", {"DiskDescriptor.xml": descriptor(40, [(0, 40, [(ROOT, "Plain", "p.hds")])], shot), "p.hds": raw}, raw)
    # Parts that are listed in another order than they come in, one of them plain.
    two = [(1, guest(3))]
    parts = [(64, 100, [(ROOT, "Compressed", "s.1.hds")]), (0, 24, [(ROOT, "Compressed", "s.0.hds")]), (24, 64, [(ROOT, "Plain", "p.hds")])]
    first = [(0, guest(4)), (2, guest(5))]
    bundle("split.hdd", {"DiskDescriptor.xml": "\ufeff" + descriptor(100, parts, shot), "s.0.hds": expandable(24, first), "s.1.hds": expandable(36, two), "p.hds": raw},
           flat(24, first) + raw + flat(36, two))
    # Three states over each other in two parts; a fourth one leads elsewhere.
    states = [[(0, guest(10)), (1, guest(11)), (2, guest(12))], [(1, guest(13)), (7, guest(14))], [(2, guest(15)), (3, guest(16))], [(0, guest(17))]]
    sizes = [(0, 64), (64, 100)]
    shots = [(GUID[1], NONE), (GUID[2], GUID[1]), (GUID[3], GUID[1]), (ROOT, GUID[2])]
    order = [GUID[1], GUID[2], ROOT, GUID[3]]
    cut = lambda clusters, n, sectors: [((number, data) if n == 0 else (number, guest((n, data)))) for number, data in clusters if number < -(-sectors // TRACKS)]
    files, storages, layers = {}, [], []
    for n, (start, end) in enumerate(sizes):
        listed, layer = [], {}
        for g, clusters in zip(order, states):
            here = cut(clusters, n, end - start)
            file = f"d.{n}.{g}.hds"
            files[file] = expandable(end - start, here)
            listed.append((g, "Compressed", file))
            layer[g] = here
        storages.append((start, end, listed))
        layers.append(layer)
    whole = lambda chain: b"".join(flat(end - start, *(layer[g] for g in chain)) for (start, end), layer in zip(sizes, layers))
    sha = lambda chain: hashlib.sha256(whole(chain)).hexdigest()
    snapshots = {GUID[1]: sha([GUID[1]]), GUID[2]: sha([GUID[1], GUID[2]]), GUID[3]: sha([GUID[1], GUID[3]])}
    top = [GUID[1], GUID[2], ROOT]
    bundle("snapshots.hdd", dict(files, **{"DiskDescriptor.xml": descriptor(100, storages, shots)}), whole(top), snapshots)
    bundle("top.hdd", dict(files, **{"DiskDescriptor.xml": descriptor(100, storages, shots, top=GUID[3])}), whole([GUID[1], GUID[3]]), snapshots)


def main():
    shutil.rmtree(KINDS, ignore_errors=True)
    shutil.rmtree(BUNDLES, ignore_errors=True)
    os.makedirs(os.path.join(KINDS, "good"))
    os.makedirs(os.path.join(KINDS, "bad"))
    images(), archives(), kernels(), bundles()
    for e in ENTRIES:
        # QEMU has the last word on what it knows.
        if e["format"] in ("dmg", "bochs", "cloop") and "error" not in e and e["details"].get("variant") not in ("encrypted", "sparse image"):
            info = json.loads(run(f"qemu-img info --output=json -f {e['format']} {os.path.join(HERE, e['file'])}", KINDS))
            assert e["virtual_size"] in (None, info["virtual-size"]), e
            e["virtual_size"] = info["virtual-size"]
    for path, list_ in ((KINDS, ENTRIES), (BUNDLES, DISKS)):
        with open(os.path.join(path, "manifest.json"), "w") as f:
            f.write("[\n" + ",\n".join(json.dumps(e, ensure_ascii=True) for e in list_) + "\n]\n")


main()
