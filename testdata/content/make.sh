#!/usr/bin/env bash
# Makes the images of this folder, in the current directory. What they hold is in README.md.
set -euo pipefail
export LC_ALL=C MTOOLS_SKIP_CHECK=1 E2FSPROGS_FAKE_TIME=1700000000 SOURCE_DATE_EPOCH=1700000000
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A program for UEFI that consists of headers alone: of this machine, and signed or not.
program() {
    python3 - "$1" "$2" "$3" <<'PY'
import struct, sys
file, machine, signed = sys.argv[1], int(sys.argv[2], 16), sys.argv[3] == "signed"
stub = b"MZ" + bytes(58) + struct.pack("<I", 128) + bytes(64)
directories = [(0, 0)] * 16
if signed:
    directories[4] = (512, 8)
optional = struct.pack("<H", 0x20b) + bytes(106) + struct.pack("<I", 16)
optional += b"".join(struct.pack("<II", *d) for d in directories)
coff = b"PE\0\0" + struct.pack("<HHIIIHH", machine, 0, 0, 0, 0, len(optional), 0x22)
with open(file, "wb") as out:
    out.write((stub + coff + optional).ljust(520, b"\0"))
PY
}
program "$work/BOOTX64.EFI" 8664 signed
program "$work/BOOTAA64.EFI" aa64 plain

# FAT12 by mtools, with a long name in a directory.
mformat -C -i esp-fat12.img -v ESP -N 12345678 -T 64 -h 2 -s 16 ::
mmd -i esp-fat12.img ::/EFI ::/EFI/BOOT ::/EFI/a-vendor-with-a-long-name
mcopy -i esp-fat12.img "$work/BOOTX64.EFI" "$work/BOOTAA64.EFI" ::/EFI/BOOT

mkdir -p "$work/tree"
head -c 2048 /dev/zero > "$work/tree/bios.img"
cp esp-fat12.img "$work/tree/efi.img"
genisoimage -quiet -no-pad -R -J -V BOTH -b bios.img -no-emul-boot -eltorito-alt-boot -e efi.img \
    -no-emul-boot -o bios-efi.iso "$work/tree"

truncate -s 64k mbr-logical.img
printf '%s\n' 'label: dos' 'label-id: 0x12345678' 'start=8, size=16, type=83, bootable' \
    'start=32, size=80, type=5' 'start=40, size=16, type=82' 'start=64, size=16, type=8e' |
    sfdisk -q mbr-logical.img

truncate -s 128k gpt.img
printf '%s\n' 'label: gpt' 'label-id: 11111111-2222-3333-4444-555555555555' 'first-lba: 34' \
    'start=40, size=64, type=U, name=esp, uuid=AAAAAAAA-0000-0000-0000-000000000001' \
    'start=104, size=64, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=root, uuid=AAAAAAAA-0000-0000-0000-000000000002' |
    sfdisk -q gpt.img
dd if=esp-fat12.img of=gpt.img bs=512 seek=40 count=64 conv=notrunc status=none

mkdir -p "$work/root/etc" "$work/root/usr/lib"
printf 'NAME="A system"\nID=debian\nVERSION_ID="12"\n' > "$work/root/usr/lib/os-release"
ln -s ../usr/lib/os-release "$work/root/etc/os-release"
truncate -s 128k "$work/ext4.img"
mke2fs -q -t ext4 -O ^has_journal -b 1024 -N 16 -m 0 -L rootfs -U 6f1d2c3b-0000-4000-8000-000000000001 \
    -E hash_seed=6f1d2c3b-0000-4000-8000-000000000002,root_owner=0:0 -d "$work/root" "$work/ext4.img"
cp "$work/ext4.img" os-release.ext4
