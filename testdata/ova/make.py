#!/usr/bin/env python3
"""Makes every archive under testdata/ova anew, and the manifest that says what is in them.

    testdata/ova/make.py        # Python 3.9, standard library, and testdata/vmdk as it is

The archives are laid out by Python's tarfile, or header by header where tarfile cannot, in the ways of
several producers. What a disk holds is known before it is packed: blockform is never asked.
"""
import gzip
import hashlib
import io
import json
import os
import struct
import tarfile

HERE = os.path.dirname(os.path.abspath(__file__))
VMDK = os.path.join(HERE, "..", "vmdk", "good")
GOOD, BAD = os.path.join(HERE, "good"), os.path.join(HERE, "bad")
IMAGES, BADS = [], []
STREAM_URI = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
RAW_URI = "http://example.org/specifications/raw"


def vmdk(name):
    with open(os.path.join(VMDK, name), "rb") as f:
        return f.read()


def known(name):
    with open(os.path.join(VMDK, "..", "manifest.json")) as f:
        entry = next(e for e in json.load(f)["images"] if e["file"] == name)
    return entry["virtual_size"], entry["sha256"]


def noise(n, seed):
    out = b"".join(hashlib.sha256(b"%d %d" % (seed, i)).digest() for i in range(n // 32 + 1))
    return out[:n]


def sha(data):
    return hashlib.sha256(data).hexdigest()


def disk(i, capacity, uri=STREAM_URI, more="", units="byte"):
    return (f'<Disk ovf:capacity="{capacity}" ovf:capacityAllocationUnits="{units}" ovf:diskId="vmdisk{i}" '
            f'ovf:fileRef="file{i}" ovf:format="{uri}" {more}/>')


def ovf(files, disks, head='<?xml version="1.0" encoding="UTF-8"?>'):
    """The layout of ovftool: attributes with prefixes, elements without."""
    files = "".join(f"<File {f}/>" for f in files)
    items = "".join(
        f'<Item><rasd:AddressOnParent>{i}</rasd:AddressOnParent><rasd:ElementName>disk{i}</rasd:ElementName>'
        f'<rasd:HostResource>ovf:/disk/vmdisk{i + 1}</rasd:HostResource><rasd:InstanceID>{9 + i}</rasd:InstanceID>'
        f'<rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>' for i in range(len(disks)))
    return f'''{head}
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" xmlns:vmw="http://www.vmware.com/schema/ovf" xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
<References>{files}</References>
<DiskSection><Info>Virtual disk information</Info>{"".join(disks)}</DiskSection>
<VirtualSystem ovf:id="vm"><Info>A virtual machine</Info><Name>golden</Name>
<OperatingSystemSection ovf:id="36" vmw:osType="otherLinuxGuest"><Info>os</Info></OperatingSystemSection>
<VirtualHardwareSection><Info>hardware</Info><System><vssd:ElementName>Virtual Hardware Family</vssd:ElementName><vssd:InstanceID>0</vssd:InstanceID><vssd:VirtualSystemIdentifier>golden</vssd:VirtualSystemIdentifier><vssd:VirtualSystemType>vmx-09</vssd:VirtualSystemType></System>
<Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
<Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>512</rasd:VirtualQuantity></Item>
<Item><rasd:Address>0</rasd:Address><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceSubType>lsilogic</rasd:ResourceSubType><rasd:ResourceType>6</rasd:ResourceType></Item>
{items}<vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/></VirtualHardwareSection>
</VirtualSystem></Envelope>
'''.encode()


def file(i, href, size=None, more=""):
    size = "" if size is None else f' ovf:size="{size}"'
    return f'ovf:href="{href}" ovf:id="file{i}"{size} {more}'


def tar(members, form=tarfile.USTAR_FORMAT, end=b"\0" * 1024):
    """Members are names and bytes, or whole TarInfos, or raw blocks."""
    out = io.BytesIO()
    for m in members:
        if isinstance(m, bytes):
            out.write(m)
            continue
        if isinstance(m, tarfile.TarInfo):
            info, data = m, b""
        else:
            info, data = tarfile.TarInfo(m[0]), m[1]
            info.size = len(data)
        out.write(info.tobuf(form, "utf-8", "surrogateescape"))
        out.write(data + b"\0" * (-len(data) % 512))
    return out.getvalue() + end


def header(name, size, kind=b"0", change=None):
    h = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    h[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    h[156:157] = kind
    if change:
        change(h)
    h[148:156] = b" " * 8
    h[148:156] = b"%06o\0 " % sum(h)
    return bytes(h)


def pax(records, kind=b"x"):
    text = b""
    for key, value in records:
        body = b" %s=%s\n" % (key.encode(), value.encode())
        n = len(body) + len(str(len(body)))
        n = len(body) + len(str(n))
        text += str(n).encode() + body
    return header("PaxHeader", len(text), kind) + text + b"\0" * (-len(text) % 512)


def mf(files, form="SHA256({})= {}\n"):
    algorithm = form.split("(")[0].strip().lower().replace("-", "")
    return "".join(form.format(n, hashlib.new(algorithm, d).hexdigest()) for n, d in files).encode()


def good(name, data, size, digest, **more):
    with open(os.path.join(GOOD, name), "wb") as f:
        f.write(data)
    IMAGES.append({"file": name, "virtual_size": size, "sha256": digest, **more})


def bad(name, data, kind, error, **more):
    with open(os.path.join(BAD, name), "wb") as f:
        f.write(data)
    BADS.append({"file": name, "kind": kind, "error": error, **more})


def main():
    for folder in (GOOD, BAD):
        for name in os.listdir(folder):
            os.remove(os.path.join(folder, name))
    stream, odd = vmdk("stream.vmdk"), vmdk("stream-odd.vmdk")
    (size, digest), (odd_size, odd_digest) = known("stream.vmdk"), known("stream-odd.vmdk")

    text = ovf([file(1, "g-disk1.vmdk", len(stream))], [disk(1, size // 1024, units="byte * 2^10")])
    one = [("g.ovf", text), ("g-disk1.vmdk", stream)]
    sums = mf(one, "SHA1({})= {}\n")
    good("ovftool.ova", tar([one[0], ("g.mf", sums), one[1]]), size, digest, verify=True)
    sums = mf(one[::-1], "SHA512 ({}) = {}\r\n")
    good("manifest-last.ova", tar(one + [("g.mf", sums)], tarfile.GNU_FORMAT), size, digest, verify=True)
    good("no-end.ova", tar(one, end=b""), size, digest, warning="no end marker")
    good("trailing.ova", tar(one, end=b"\0" * 1024 + b"more"), size, digest)
    good("disk-first.ova", tar(one[::-1]), size, digest, format="ova", warning="not the first")

    # VirtualBox's own layout of version 0.9.
    old = f'''<?xml version="1.0"?>
<Envelope ovf:version="0.9" xmlns="http://www.vmware.com/schema/ovf/1/envelope" xmlns:ovf="http://www.vmware.com/schema/ovf/1/envelope" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:rasd="r">
  <References><File ovf:id="file1" ovf:href="v-disk001.vmdk"/></References>
  <Section xsi:type="ovf:DiskSection_Type"><Info>List of the virtual disks</Info>
    <Disk ovf:capacity="{size}" ovf:diskId="vmdisk1" ovf:fileRef="file1" ovf:format="http://www.vmware.com/specifications/vmdk.html#sparse"/></Section>
  <Content xsi:type="ovf:VirtualSystem_Type" ovf:id="v"><Info>A virtual machine</Info></Content>
</Envelope>'''.encode()
    good("virtualbox-09.ova", tar([("v.ovf", old), ("v-disk001.vmdk", stream)]), size, digest)

    # Everything with a prefix, long names by pax, and a descriptor in UTF-16.
    spaced = "a rather long folder/" * 6 + "my disk.vmdk"
    href = spaced.replace(" ", "%20")
    pre = f'''<e:Envelope xmlns:e="http://schemas.dmtf.org/ovf/envelope/2"><e:References><e:File e:href="{href}" e:id="f"/></e:References>
<e:DiskSection><e:Disk e:capacity="{size}" e:diskId="d" e:fileRef="f" e:format="{STREAM_URI}"/></e:DiskSection></e:Envelope>'''
    for form, name in ((tarfile.PAX_FORMAT, "pax.ova"), (tarfile.GNU_FORMAT, "gnu.ova")):
        long = "x" * 120 + ".ovf"
        data = pre.encode() if form == tarfile.PAX_FORMAT else b"\xff\xfe" + pre.encode("utf-16-le")
        good(name, tar([(long, data), (spaced, stream)], form), size, digest)

    base256 = b"\x80" + b"\0" * 3 + struct.pack(">Q", len(stream))
    good("base256.ova", tar([one[0], header("g-disk1.vmdk", base256) + stream + b"\0" * (-len(stream) % 512)]), size, digest)

    two = ovf([file(1, "a.vmdk"), file(2, "b.vmdk"), file(3, "c.iso")], [disk(1, size), disk(2, odd_size)])
    iso = b"\0" * 0x8000 + b"\1CD001\1" + noise(2041, 5)
    two = [("t.ovf", two), ("a.vmdk", stream), ("b.vmdk", odd), ("c.iso", iso)]
    two = tar(two)
    good("two-disks.ova", two, size, digest, disk="0")
    for choice, entry in (("1", (odd_size, odd_digest)), ("b.vmdk", (odd_size, odd_digest)),
                          ("vmdisk1", (size, digest)), ("c.iso", (len(iso), sha(iso)))):
        IMAGES.append({"file": "two-disks.ova", "virtual_size": entry[0], "sha256": entry[1], "disk": choice})

    # Packed, and in chunks.
    raw = noise(3000, 1) + bytes(2000) + noise(600, 2) + bytes(544)
    packed = gzip.compress(raw, mtime=0)
    z = [("z.ovf", ovf([file(1, "z.raw.gz", len(packed), 'ovf:compression="gzip"')], [disk(1, len(raw), RAW_URI)]))]
    good("gzip.ova", tar(z + [("z.raw.gz", packed)]), len(raw), sha(raw))
    zs = gzip.compress(stream, mtime=0)
    named = ("n.ovf", ovf([file(1, "n.vmdk.gz", len(zs))], [disk(1, size)]))
    good("gzip-by-name.ova", tar([named, ("n.vmdk.gz", zs)]), size, digest)
    parts = [(f"c.vmdk.{i:09}", stream[at:at + 4096]) for i, at in enumerate(range(0, len(stream), 4096))]
    c = ("c.ovf", ovf([file(1, "c.vmdk", len(stream), 'ovf:chunkSize="4096"')], [disk(1, size)]))
    good("chunks.ova", tar([c] + parts + [("c.mf", mf([c] + parts))]), size, digest, verify=True)
    parts = [(f"z.raw.gz.{i:09}", packed[at:at + 1000]) for i, at in enumerate(range(0, len(packed), 1000))]
    cz = ("z.ovf", ovf([file(1, "z.raw.gz", None, 'ovf:compression="gzip" ovf:chunkSize="1000"')], [disk(1, len(raw), RAW_URI)]))
    good("chunks-gzip.ova", tar([cz] + parts), len(raw), sha(raw))

    # A raw disk with holes, as GNU tar stores it: four ways.
    pieces = [(0, raw[:3072]), (4608, raw[4608:5632])]
    raw_ovf = ("s.ovf", ovf([file(1, "s.raw", len(raw))], [disk(1, len(raw), RAW_URI)]))
    stored = b"".join(d for _, d in pieces)
    assert len(stored) % 512 == 0 and len(raw) % 512 == 0

    def old_sparse(h):
        at = 386
        h[257:265] = b"ustar  \0"
        h[345:500] = bytes(155)
        for start, d in pieces + [(len(raw), b"")]:
            h[at:at + 24] = b"%011o\0%011o\0" % (start, len(d))
            at += 24
        h[483:495] = b"%011o\0" % len(raw)
    assert len(raw) == 6144
    sparse = header("s.raw", len(stored), b"S", old_sparse) + stored
    good("sparse-gnu.ova", tar([raw_ovf, sparse]), len(raw), sha(raw))
    pairs = [n for start, d in pieces for n in (start, len(d))]
    records = [("GNU.sparse.size", str(len(raw))), ("GNU.sparse.numblocks", "2")]
    for start, d in pieces:
        records += [("GNU.sparse.offset", str(start)), ("GNU.sparse.numbytes", str(len(d)))]
    good("sparse-0.0.ova", tar([raw_ovf, pax(records), header("s.raw", len(stored)) + stored]), len(raw), sha(raw))
    records = [("GNU.sparse.size", str(len(raw))), ("GNU.sparse.numblocks", "2"), ("GNU.sparse.name", "s.raw"),
               ("GNU.sparse.map", ",".join(map(str, pairs)))]
    good("sparse-0.1.ova", tar([raw_ovf, pax(records), header("GNUSparseFile.0/s.raw", len(stored)) + stored]), len(raw), sha(raw))
    table = "\n".join(map(str, [2] + pairs)).encode() + b"\n"
    table += bytes(-len(table) % 512)
    one_zero = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", "s.raw"),
                ("GNU.sparse.realsize", str(len(raw)))]
    body = table + stored
    good("sparse-1.0.ova", tar([raw_ovf, pax(one_zero), header("GNUSparseFile.0/s.raw", len(body)) + body]), len(raw), sha(raw))

    # A disk of several files, in a folder, and a child with its parent.
    flat = noise(8192, 3)
    lines = b'# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 16 FLAT "flat.bin" 0\n'
    split = ovf([file(1, "disks/d.vmdk"), file(2, "disks/flat.bin")], [disk(1, 8192)])
    folder = tarfile.TarInfo("disks/")
    folder.type = tarfile.DIRTYPE
    good("split.ova", tar([("x.ovf", split), folder, ("./disks/d.vmdk", lines), ("./disks/flat.bin", flat)]), 8192, sha(flat), warning="no disk data base")
    child = lines.replace(b"parentCID=ffffffff", b'parentCID=12345678\nparentFileNameHint="d.vmdk"').replace(b"RW 16 FLAT \"flat.bin\" 0", b"RW 16 ZERO")
    pair = ovf([file(1, "d.vmdk"), file(2, "flat.bin"), 'ovf:href="child.vmdk" ovf:id="file3"'],
               [disk(1, 8192), disk(3, 8192, more='ovf:parentRef="vmdisk1"')])
    good("child.ova", tar([("x.ovf", pair), ("d.vmdk", lines), ("flat.bin", flat), ("child.vmdk", child)]), 8192, sha(bytes(8192)), warning="no disk data base")

    # A descriptor that stands alone, and what it names.
    alone = ovf([file(1, "alone-disk1.vmdk", len(stream))], [disk(1, size)])
    good("alone.ovf", alone, size, digest, needs=["alone-disk1.vmdk"])
    with open(os.path.join(GOOD, "alone-disk1.vmdk"), "wb") as f:
        f.write(stream)

    # What has to be refused.
    small = noise(1024, 4)

    def simple(href="r.raw", members=None, uri=RAW_URI, capacity=1024, head=None, size=None, more="", **rest):
        text = ovf([file(1, href, size, more)], [disk(1, capacity, uri)], *([head] if head else []))
        return tar([("r.ovf", text)] + (members if members is not None else [("r.raw", small)]), **rest)

    whole = simple()
    bad("cut-in-disk.ova", whole[:-1024 - 512], "Malformed", "cut short within")
    bad("cut-in-header.ova", whole[:-1024 - 1024 - 100], "Malformed", "cut short within a header")
    bad("checksum.ova", whole[:-2048 - 10] + b"\1" + whole[-2048 - 9:], "Malformed", "chksum")
    for name, href in (("up", "../r.raw"), ("root", "/etc/passwd"), ("url", "http://127.0.0.1/r.raw"),
                       ("file-url", "file:///etc/passwd"), ("drive", "C:\\r.raw")):
        bad(f"href-{name}.ova", simple(href), "Unsupported", "outside of the package")
    bad("href-escaped.ova", simple("%2e%2e/r.raw"), "Denied", "which is not allowed")
    bad("href-missing.ova", simple("other.raw"), "Denied", "which is not allowed")
    bad("name-up.ova", simple("r.raw", [("../r.raw", small)]), "Denied", "which is not allowed")
    bad("twice.ova", simple(members=[("r.raw", small), ("./r.raw", small[::-1])]), "Malformed", "two files called")
    for name, kind in (("symlink", tarfile.SYMTYPE), ("hardlink", tarfile.LNKTYPE), ("fifo", tarfile.FIFOTYPE), ("folder", tarfile.DIRTYPE)):
        info = tarfile.TarInfo("r.raw")
        info.type, info.linkname = kind, "/etc/passwd"
        bad(f"{name}.ova", simple(members=[info]), "Malformed", "is a link, a folder or a device")
    bad("link-size.ova", simple(members=[header("r.raw", 1024, b"2") + small]), "Malformed", "which has no bytes")
    bad("size-max.ova", simple(members=[header("r.raw", b"\x80" + b"\0" * 3 + b"\xff" * 8) + small]), "Malformed", "larger than any file")
    bad("size-negative.ova", simple(members=[header("r.raw", b"\xff" * 12) + small]), "Malformed", "is not a number")
    bad("size-8g.ova", simple(members=[header("r.raw", b"77777777777\0") + small]), "Malformed", "cut short within")
    bad("pax-bad.ova", simple(members=[header("p", 20, b"x") + b"99 path=r.raw\n".ljust(512, b"\0"), ("r.raw", small)]), "Malformed", "not whole")
    bad("pax-long.ova", simple(members=[header("p", 1 << 30, b"x"), ("r.raw", small)]), "Malformed", "too long")
    bad("pax-global.ova", simple(members=[pax([("path", "r.raw")], b"g"), ("r.raw", small)]), "Malformed", "one name or size")
    sparse_bad = [("GNU.sparse.size", "8192"), ("GNU.sparse.map", "4096,1024,0,0")]
    bad("sparse-order.ova", simple(members=[pax(sparse_bad), ("r.raw", small)]), "Malformed", "without sense")
    sparse_bad = [("GNU.sparse.major", "9"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "8192")]
    bad("sparse-9.ova", simple(members=[pax(sparse_bad), ("r.raw", small)]), "Malformed", "unknown kind of sparse")
    bad("volume.ova", simple(members=[header("r.raw", 1024, b"M") + small]), "Malformed", "several volumes")
    bad("two-descriptors.ova", simple(members=[("r.raw", small), ("other.ovf", text)]), "Malformed", "two descriptors")
    bad("entity.ova", simple(head='<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>'), "Malformed", "document type")
    bad("no-xml.ova", tar([("r.ovf", b"<Envelope><References>")]), "Malformed", "is not well-formed XML")
    bad("no-disks.ova", tar([("r.ovf", b"<Envelope/>")]), "DiskNotChosen", "has no disks")
    bad("several.ova", two, "DiskNotChosen", "the appliance has 2 disks (")
    bad("short.ova", simple(size=4096), "Malformed", "has 4096 bytes, and there are 1024")
    bad("raw-is-qcow2.ova", simple(members=[("r.raw", (b"QFI\xfb\0\0\0\3" + bytes(504)) * 2)]), "Malformed", "raw and qcow2 at once")
    bad("no-format.ova", simple(uri="http://example.org/unheard-of"), "Malformed", "in no known format")
    bad("nested.ova", simple(members=[("r.raw", whole)], uri="http://example.org/ova"), "InvalidInput", "within an appliance")
    bad("bzip2.ova", simple(more='ovf:compression="bzip2"'), "Unsupported", "bzip2")
    bad("no-gzip.ova", simple(more='ovf:compression="gzip"'), "Malformed", "no gzip header")
    zipped = gzip.compress(small * 40, mtime=0)
    gz = 'ovf:compression="gzip"'
    bad("gzip-cut.ova", simple(members=[("r.raw", zipped[:-20])], more=gz), "Malformed", "cut short")
    bad("gzip-sum.ova", simple(members=[("r.raw", zipped[:-6] + b"\0\0" + zipped[-4:])], more=gz), "Malformed", "sum and length")
    bad("gzip-trailing.ova", simple(members=[("r.raw", zipped + b"more")], more=gz), "Malformed", "no gzip header")
    chunky = 'ovf:chunkSize="512"'
    bad("chunk-missing.ova", simple(members=[("r.raw.000000000", small[:512])], size=1024, more=chunky), "Denied", "r.raw.000000001")
    bad("chunk-short.ova", simple(members=[("r.raw.000000000", small[:500]), ("r.raw.000000001", small[500:])], size=1024, more=chunky), "Malformed", "they differ")
    bad("chunk-many.ova", simple(members=[], size=1 << 40, more='ovf:chunkSize="1"'), "Malformed", "chunks")
    outside = lines.replace(b'"flat.bin"', b'"/etc/passwd"')
    bad("extent-outside.ova", simple(members=[("r.raw", outside)], uri=STREAM_URI), "Denied", "which is not allowed")
    upward = lines.replace(b'"flat.bin"', b'"../../secret"')
    bad("extent-up.ova", simple(members=[("r.raw", upward)], uri=STREAM_URI), "Denied", "which is not allowed")
    # Only against the manifest.
    r = [("r.ovf", ovf([file(1, "r.raw")], [disk(1, 1024, RAW_URI)])), ("r.raw", small)]
    lying = mf([r[0], ("r.raw", small[::-1])])
    bad("manifest-digest.ova", tar(r + [("r.mf", lying)]), "Malformed", "has the digest", verify=True)
    bad("manifest-file.ova", tar(r + [("r.mf", mf(r + [("gone.raw", small)]))]), "Malformed", "does not have", verify=True)
    bad("manifest-part.ova", tar(r + [("r.mf", mf(r[:1]))]), "Malformed", "does not speak of", verify=True)
    bad("manifest-no-ovf.ova", tar(r + [("r.mf", mf(r[1:]))]), "Malformed", "does not speak of the descriptor", verify=True)
    bad("manifest-twice.ova", tar(r + [("r.mf", mf(r + [("./r.raw", small)]))]), "Malformed", "more than once", verify=True)
    bad("manifest-none.ova", tar(r), "InvalidInput", "no manifest", verify=True)
    bad("manifest-md5.ova", tar(r + [("r.mf", mf(r, "MD5({})= {}\n"))]), "Unsupported", "MD5", verify=True)
    bad("manifest-words.ova", tar(r + [("r.mf", b"hello\n")]), "Malformed", "has the line", verify=True)

    with open(os.path.join(HERE, "manifest.json"), "w") as f:
        f.write('{\n"images": [\n' + ",\n".join(map(json.dumps, IMAGES)))
        f.write('\n],\n"bad": [\n' + ",\n".join(map(json.dumps, BADS)) + "\n]\n}\n")


main()
