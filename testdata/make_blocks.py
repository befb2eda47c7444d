#!/usr/bin/env python3
"""make_blocks.py: makes vhd/ and vdi/ beside itself and their entries in manifest.json.

The images are laid out here, byte by byte, from the formats' descriptions; those called qemu-* are made
by qemu-img 10.0.2. What the guest sees is known before anything is written: no reader is asked."""
import hashlib, json, os, shutil, struct, subprocess
HERE = os.path.dirname(os.path.abspath(__file__)); os.chdir(HERE)
for f in ('vhd', 'vdi'):
    shutil.rmtree(f, ignore_errors=True)
    for d in ('good', 'bad'): os.makedirs(f'{f}/{d}')
images, bad = [], []

def noise(n, seed):
    out, k = b'', 0
    while len(out) < n: out += hashlib.sha256(b'%d %d' % (seed, k)).digest(); k += 1
    return out[:n]

def good(name, data, guest, needs=()):
    open(name, 'wb').write(data)
    images.append(dict(file=name, format=name.split('/')[0], virtual_size=len(guest), sha256=hashlib.sha256(guest).hexdigest(), needs=list(needs)))

def refuse(name, data, when, words, kind='Malformed'):
    open(name, 'wb').write(data)
    bad.append(dict(file=name, when=when, kind=kind, error=words))

# ---- VHD
def summed(b, at):
    b = bytearray(b); b[at:at + 4] = bytes(4); struct.pack_into('>I', b, at, ~sum(b) & 0xffffffff); return bytes(b)

def footer(size, kind=3, app=b'win ', chs=(0, 0, 0), offset=512, uuid=bytes(range(16)), time=7, current=None, version=0x10000, appver=0xa0000):
    f = struct.pack('>8sIIQI4sI4sQQHBBII16sB', b'conectix', 2, version, offset if kind != 2 else 2**64 - 1, time, app, appver, b'Wi2k',
                    size, size if current is None else current, *chs, kind, 0, uuid, 0).ljust(512, b'\0')
    return summed(f, 64)

def header(table, entries, bs, parent=bytes(16), ptime=0, name='', locs=()):
    h = struct.pack('>8sQQIIII16sII512s', b'cxsparse', 2**64 - 1, table, 0x10000, entries, bs, 0, parent, ptime, 0, name.encode('utf-16-be').ljust(512, b'\0'))
    for code, space, length, at in locs: h += struct.pack('>4sIIIQ', code, space, length, 0, at)
    return summed(h.ljust(1024, b'\0'), 36)

def vhd(guest, bs, kind=3, own=None, table_last=False, extra=0, lsb=False, short=False, pad=0, head=None, end=None, patch=None, parent=bytes(16), ptime=0, name='', locs=(), **kw):
    """own(sector): whether a sector is the image's own (differencing); blocks that are all zeros, or have none, are left out."""
    n = -(-len(guest) // bs); mlen = -(-(bs // 512) // 8); mlen = -(-mlen // 512) * 512
    pos = 1536; places = []
    for code, data in locs: places.append((code, 512, len(data), pos, data)); pos += 512
    tlen = -(-(n + extra) * 4 // 512) * 512
    table = pos
    if not table_last: pos += tlen
    pos += pad
    bat, body = [0xffffffff] * (n + extra), b''
    start = pos
    for i in range(n):
        d = guest[i * bs:(i + 1) * bs]
        m = bytearray(mlen); any_own = False
        for s in range(-(-len(d) // 512)):
            if own is None or own(i * bs // 512 + s):
                any_own = True; m[s // 8] |= (1 << s % 8) if lsb else 0x80 >> s % 8
        if not any_own or (own is None and not any(d)): continue
        if own is not None: d = b''.join(d[s * 512:s * 512 + 512] if own(i * bs // 512 + s) else b'\xee' * len(d[s * 512:s * 512 + 512]) for s in range(-(-len(d) // 512)))
        bat[i] = pos // 512
        if not (short and i == n - 1): d = d.ljust(bs, b'\0')
        body += bytes(m) + d; pos += mlen + len(d)
    if pos % 512: body += bytes(512 - pos % 512); pos += 512 - pos % 512
    if table_last: table = pos
    tab = struct.pack('>%dI' % len(bat), *bat).ljust(tlen, b'\xff')
    h = header(table, len(bat), bs, parent, ptime, name, [p[:4] for p in places])
    f = footer(len(guest), kind, **kw)
    out = (f if head is None else head) + h + b''.join(p[4].ljust(512, b'\0') for p in places)
    out += body if table_last else tab + b'\0' * (start - table - tlen) + body
    if table_last: out += tab
    out = bytearray(out + (f if end is None else end))
    for at, data in patch or (): out[at:at + len(data)] = data
    return bytes(out)

G = bytearray(14 * 4096 + 1536)
for at, n in ((0, 5000), (4096 * 3, 4096 * 2), (4096 * 7 + 512, 3000), (4096 * 14, 1536)): G[at:at + n] = noise(n, at)
G = bytes(G); F = footer(len(G))
broken = bytearray(F); broken[70] ^= 1; broken = bytes(broken)
v = 'vhd/good/'
good(v + 'fixed.vhd', G + footer(len(G), 2), G)
good(v + 'footer-511.vhd', G + footer(len(G), 2)[:511], G)
mbr = bytearray(G); mbr[446:462] = struct.pack('<BBBBBBBBII', 0x80, 1, 1, 0, 0x83, 1, 1, 0, 1, 100); mbr[510:512] = b'\x55\xaa'
good(v + 'fixed-with-mbr.vhd', bytes(mbr) + footer(len(G), 2), bytes(mbr))
inner = vhd(bytes(4096), 4096); good(v + 'fixed-holding-vhd.vhd', inner + footer(len(inner), 2), inner)
for bs in (512, 4096, 65536): good(v + 'blocks-%d.vhd' % bs, vhd(G, bs), G)
good(v + 'table-last.vhd', vhd(G, 4096, table_last=True), G)
good(v + 'table-longer-padded.vhd', vhd(G, 4096, extra=300, pad=3072), G)
good(v + 'last-block-short.vhd', vhd(G, 65536, short=True), G)
good(v + 'no-footer.vhd', vhd(G, 4096, end=b''), G)
good(v + 'footer-damaged.vhd', vhd(G, 4096, end=broken), G)
good(v + 'copy-damaged.vhd', vhd(G, 4096, head=broken), G)
good(v + 'size-vbox.vhd', vhd(G, 4096, app=b'vbox', chs=(1, 4, 17)), G)
good(v + 'size-by-geometry.vhd', vhd(G, 4096, app=b'vpc ', chs=(1, 4, 17)), G[:4 * 17 * 512])
good(v + 'original-size-differs.vhd', vhd(G, 4096, current=len(G) - 1024), G[:-1024])
own = lambda s: s % 7 in (0, 1, 4) or 30 < s < 60
N = noise(len(G), 99)
C = b''.join((N if own(s) else G)[s * 512:s * 512 + 512] for s in range(len(G) // 512))
le = lambda t: t.encode('utf-16-le'); U = bytes(range(16)); me = bytes(range(40, 56))
D = dict(kind=4, own=own, parent=U, ptime=7, uuid=me)
good(v + 'base.vhd', vhd(G, 4096), G)
def child(_, mid=N, **kw):
    k = dict(D); k.update(kw)
    return vhd(mid, 4096, **k)
for n, locs, name in (('w2ru', [(b'W2ku', le('C:\\gone\\base.vhd')), (b'W2ru', le('.\\base.vhd'))], 'elsewhere.vhd'), ('wi2r', [(b'Wi2r', b'base.vhd')], ''),
                      ('macx', [(b'MacX', b'file://./base.vhd\0')], ''), ('name-only', [], 'base.vhd'), ('gone-first', [(b'W2ru', le('gone.vhd'))], 'base.vhd')):
    good(v + 'child-%s.vhd' % n, child(n, locs=locs, name=name), C, ['base.vhd'])
good(v + 'child-lsb-first.vhd', child('x', locs=[(b'W2ru', le('base.vhd'))], lsb=True, app=b'tap\0', appver=1), C, ['base.vhd'])
own2 = lambda s: s % 11 == 3
C2 = b''.join((G[::-1] if own2(s) else C)[s * 512:s * 512 + 512] for s in range(len(G) // 512))
good(v + 'grandchild.vhd', vhd(G[::-1], 65536, kind=4, own=own2, parent=me, ptime=7, uuid=bytes(range(60, 76)), locs=[(b'W2ru', le('child-w2ru.vhd'))]), C2, ['child-w2ru.vhd', 'base.vhd'])
open(v + 'base.raw', 'wb').write(G)
good(v + 'child-over-raw.vhd', child('x', parent=bytes(16), ptime=0, locs=[(b'W2ru', le('base.raw'))]), C, ['base.raw'])
q = bytes(noise(3000, 5).ljust(34816, b'\0')); open('q.raw', 'wb').write(q)
for n, o in (('dynamic', 'subformat=dynamic'), ('fixed', 'subformat=fixed')):
    subprocess.run(['qemu-img', 'convert', '-f', 'raw', '-O', 'vpc', '-o', o, 'q.raw', v + 'qemu-%s.vhd' % n], check=True)
    good(v + 'qemu-%s.vhd' % n, open(v + 'qemu-%s.vhd' % n, 'rb').read(), q)

b = 'vhd/bad/'; P = lambda at, fmt, *a: [(at, struct.pack('>' + fmt, *a))]
def hp(**kw):
    """a header with other numbers, its checksum right"""
    k = dict(table=1536, entries=15, bs=4096); k.update(kw); return [(512, header(**k))]
refuse(b + 'checksums.vhd', vhd(G, 4096, head=broken, end=broken), 'open', 'checksum')
refuse(b + 'fixed-checksum.vhd', G + summed(footer(len(G), 2), 64)[:80] + b'\1' + bytes(431), 'open', 'checksum')
refuse(b + 'copies-contradict.vhd', vhd(G, 4096, head=footer(len(G) - 4096)), 'open', 'contradicts')
refuse(b + 'fixed-without-footer.vhd', footer(len(G), 2) + G, 'open', 'missing at the end')
refuse(b + 'fixed-short.vhd', G[4096:] + footer(len(G), 2), 'open', 'cut short')
for t in (0, 1, 5, 6): refuse(b + 'type-%d.vhd' % t, vhd(G, 4096, kind=t), 'open', 'disk_type')
refuse(b + 'version-2.vhd', vhd(G, 4096, version=0x20000), 'open', 'version', 'Unsupported')
refuse(b + 'header-checksum.vhd', vhd(G, 4096, patch=P(512 + 900, 'I', 1)), 'read', 'dynamic disk header')
refuse(b + 'header-cookie.vhd', vhd(G, 4096, patch=P(512, '4s', b'oops')), 'open', 'cookie')
refuse(b + 'header-past-end.vhd', vhd(G, 4096, offset=1 << 40), 'open', 'dynamic disk header')
refuse(b + 'header-in-copy.vhd', vhd(G, 4096, offset=256), 'open', 'lies in')
for s in (0, 256, 3000, 0x80000000, 0xffffffff): refuse(b + 'block-size-%x.vhd' % s, vhd(G, 4096, patch=hp(bs=s)), 'open', 'block_size')
refuse(b + 'table-short.vhd', vhd(G, 4096, patch=hp(entries=14)), 'open', 'max_table_entries')
refuse(b + 'table-huge.vhd', vhd(G, 4096, patch=hp(entries=0xffffffff)), 'open', 'block allocation table', 'LimitExceeded')
refuse(b + 'table-past-end.vhd', vhd(G, 4096, patch=hp(table=1 << 50)), 'open', 'block allocation table')
refuse(b + 'table-wraps.vhd', vhd(G, 4096, patch=hp(table=2**64 - 4)), 'open', 'block allocation table')
refuse(b + 'table-unaligned.vhd', vhd(G, 4096, patch=hp(table=1792)), 'open', 'not a multiple of a sector')
refuse(b + 'table-in-header.vhd', vhd(G, 4096, patch=hp(table=1024)), 'open', 'lies in')
refuse(b + 'block-in-header.vhd', vhd(G, 4096, patch=P(1536 + 4, 'I', 1)), 'open', 'points into the')
refuse(b + 'block-in-table.vhd', vhd(G, 4096, patch=P(1536 + 4, 'I', 3)), 'open', 'points into the')
refuse(b + 'block-twice.vhd', vhd(G, 4096, patch=P(1536 + 8, 'I', 4)), 'open', 'another block')
refuse(b + 'blocks-overlap.vhd', vhd(G, 4096, patch=P(1536 + 8, 'I', 6)), 'open', 'another block')
refuse(b + 'block-past-end.vhd', vhd(G, 4096, patch=P(1536 + 8, 'I', 100000)), 'read', 'past the end')
refuse(b + 'block-in-footer.vhd', vhd(G, 4096, patch=P(1536 + 8, 'I', (len(vhd(G, 4096)) - 1024) // 512)), 'open', 'points into the footer')
cut = vhd(G, 4096, end=b''); refuse(b + 'cut.vhd', cut[:-3000], 'read', 'past the end')
refuse(b + 'parent-nowhere.vhd', child('x', locs=[(b'Mac ', b'alias')]), 'open', 'name no parent')

# ---- VDI
def vdi(guest, bs=4096, kind=1, extra=0, version=0x10001, entries=None, off_map=512, off_data=None, size=None, more=0, uuid=bytes(range(1, 17)), modify=bytes(range(21, 37)), link=bytes(16), pmodify=bytes(16), own=None, hsize=400, disc=(), patch=(), short=False):
    n = -(-len(guest) // bs); body, m = b'', []
    for i in range(n):
        d = guest[i * bs:(i + 1) * bs]
        if i in disc: m.append(0xfffffffe); continue
        if (own is None and not any(d) and kind != 2) or (own is not None and not own(i)): m.append(0xffffffff); continue
        m.append(len(body) // (bs + extra)); body += b'\xdd' * extra + (d if short and i == n - 1 else d.ljust(bs, b'\0'))
    m += [0xffffffff] * more
    text = b'<<< made for a test >>>\n'.ljust(64, b'\0')
    if version >> 16 == 0:
        h = text + struct.pack('<II', 0xbeda107f, version) + struct.pack('<II256s4IQIII16s16s16s', kind, 0, b'', 0, 0, 0, 512, len(guest), bs, len(m), len(body) // bs, uuid, modify, link)
        h = h.ljust(420, b'\0'); assert len(h) == 420
        out = bytearray(h + struct.pack('<%dI' % len(m), *m) + body)
    else:
        if off_data is None: off_data = -(-(off_map + 4 * len(m)) // 512) * 512
        h = text + struct.pack('<II', 0xbeda107f, version) + struct.pack('<III256sII4II', hsize, kind, 0, b'a comment', off_map, off_data, 0, 0, 0, 512, 0)
        h += struct.pack('<QIIII16s16s16s16s', len(guest) if size is None else size, bs, extra, len(m) if entries is None else entries, len(body) // (bs + extra), uuid, modify, link, pmodify)
        out = bytearray(max(off_data, off_map + 4 * len(m))); out[:len(h)] = h; out[off_map:off_map + 4 * len(m)] = struct.pack('<%dI' % len(m), *m); out = out[:max(off_data, off_map + 4 * len(m))] + body
    for at, data in patch: out[at:at + len(data)] = data
    return bytes(out)
v = 'vdi/good/'
good(v + 'dynamic.vdi', vdi(G), G)
good(v + 'fixed.vdi', vdi(G, kind=2), G)
good(v + 'version-0.vdi', vdi(G, version=2), G)
good(v + 'extra.vdi', vdi(G, extra=512), G)
good(v + 'blocks-512.vdi', vdi(G, bs=512), G)
good(v + 'blocks-65536.vdi', vdi(G, bs=65536), G)
good(v + 'header-384.vdi', vdi(G, hsize=384), G)
good(v + 'map-longer.vdi', vdi(G, more=9, off_map=1536, off_data=8192), G)
good(v + 'odd-size.vdi', vdi(G[:-700]), G[:-700])
good(v + 'last-block-short.vdi', vdi(G, short=True), G)
Z = bytearray(G); Z[7 * 4096:8 * 4096] = bytes(4096)
good(v + 'discarded.vdi', vdi(G, disc=(7,)), bytes(Z))
U1, M1 = bytes(range(1, 17)), bytes(range(21, 37)); name = '{04030201-0605-0807-090a-0b0c0d0e0f10}.vdi'
good(v + name, vdi(G), G)
ownb = lambda i: i % 3 == 1
X = bytearray(G)
for i in range(15):
    if ownb(i): X[i * 4096:(i + 1) * 4096] = N[i * 4096:(i + 1) * 4096]
X[7 * 4096:8 * 4096] = bytes(4096); X[8 * 4096:9 * 4096] = bytes(4096); X = bytes(X)
for n, k in (('undo', 3), ('differencing', 4)):
    good(v + n + '.vdi', vdi(N, kind=k, own=ownb, disc=(7, 8), uuid=bytes(range(70 + k, 86 + k)), link=U1, pmodify=M1), X, [name])
subprocess.run(['qemu-img', 'convert', '-f', 'raw', '-O', 'vdi', 'q.raw', v + 'qemu-dynamic.vdi'], check=True)
good(v + 'qemu-dynamic.vdi', open(v + 'qemu-dynamic.vdi', 'rb').read(), q)
b = 'vdi/bad/'; L = lambda at, *a: [(at, struct.pack('<%dI' % len(a), *a))]
refuse(b + 'version-2.vdi', vdi(G, version=0x20000), 'open', 'version 2.0', 'Unsupported')
refuse(b + 'version-1-2.vdi', vdi(G, version=0x10002), 'open', 'version 1.2', 'Unsupported')
refuse(b + 'version-0-as-1.vdi', vdi(G, patch=L(68, 1)), 'open', 'image_type')
refuse(b + 'header-cut.vdi', vdi(G)[:300], 'open', 'needs 384 bytes')
refuse(b + 'header-small.vdi', vdi(G, hsize=200), 'open', 'header_size')
refuse(b + 'type-0.vdi', vdi(G, kind=0), 'open', 'image_type')
refuse(b + 'type-9.vdi', vdi(G, kind=9), 'open', 'image_type')
refuse(b + 'undo-without-parent.vdi', vdi(G, kind=3), 'open', 'uuid_linkage')
for s in (0, 3, 256, 0x80000000): refuse(b + 'block-size-%x.vdi' % s, vdi(G, patch=L(376, s)), 'open', 'block_size')
refuse(b + 'extra-huge.vdi', vdi(G, patch=L(380, 8192)), 'open', 'block_extra')
refuse(b + 'extra-cut.vdi', vdi(G, patch=L(380, 512)), 'read', 'past the end')
refuse(b + 'map-short.vdi', vdi(G, entries=14), 'open', 'blocks')
refuse(b + 'map-past-end.vdi', vdi(G, patch=L(340, 0xfffffe00)), 'open', 'past the end')
refuse(b + 'map-in-header.vdi', vdi(G, patch=L(340, 256)), 'open', 'offset_blocks')
refuse(b + 'map-huge.vdi', vdi(G, entries=0xffffffff), 'open', 'block map', 'LimitExceeded')
refuse(b + 'data-in-header.vdi', vdi(G, patch=L(344, 100)), 'open', 'offset_data')
refuse(b + 'data-in-map.vdi', vdi(G, patch=L(344, 512)), 'open', 'in the map itself')
refuse(b + 'block-twice.vdi', vdi(G, patch=L(516, 0)), 'open', "another entry's block")
refuse(b + 'block-past-end.vdi', vdi(G, patch=L(516, 5000)), 'read', 'past the end')
refuse(b + 'size-max.vdi', vdi(G, size=2**64 - 1), 'open', 'blocks')
refuse(b + 'cut.vdi', vdi(G)[:-2700], 'read', 'past the end')
os.remove('q.raw')
m = json.load(open('manifest.json'))
for key, new in (('images', images), ('bad', bad)):
    m[key] = [e for e in m[key] if e['file'].split('/')[0] not in ('vhd', 'vdi')] + new
open('manifest.json', 'w').write('{\n' + ',\n'.join('"%s": [\n%s\n]' % (k, ',\n'.join(map(json.dumps, v))) for k, v in m.items()) + '\n}\n')
