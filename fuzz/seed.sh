#!/usr/bin/env bash
# Gives the fuzzer the images of testdata to start from, and what it found in earlier campaigns.
set -euo pipefail
cd "$(dirname "$0")"
for packed in seeds/*.tar.xz; do
    target=$(basename "$packed" .tar.xz)
    mkdir -p "corpus/$target"
    tar -xJf "$packed" -C "corpus/$target"
done
for target in detect qcow2; do
    mkdir -p "corpus/$target"
    find ../testdata/qcow2 -name '*.qcow2' -size -200k -exec cp -t "corpus/$target" {} +
done
mkdir -p corpus/vmdk corpus/vmdk_descriptor
find ../testdata/vmdk -name '*.vmdk' -size -400k -exec cp -t corpus/vmdk {} +
find ../testdata/vmdk -name '*.vmdk' -size -8k -exec cp -t corpus/vmdk_descriptor {} +
for target in qcow qed parallels vhd vdi; do
    for corpus in "$target" detect; do
        mkdir -p "corpus/$corpus"
        find "../testdata/$target" -name "*.$target" -size -200k -exec cp -t "corpus/$corpus" {} +
    done
done
mkdir -p corpus/container
for target in detect container; do
    find ../testdata/kinds -type f -size -64k ! -name manifest.json -exec cp -t "corpus/$target" {} +
done
for folder in ../testdata/parallels/bundles/*/; do
    for target in detect container parallels; do
        cp "${folder}DiskDescriptor.xml" "corpus/$target/$(basename "$folder").xml"
    done
done
for target in stream stream_source; do
    mkdir -p "corpus/$target"
    find ../testdata -type f -size -8k ! -name '*.md' ! -name '*.py' ! -name '*.json' -exec cp --backup=numbered -t "corpus/$target" {} +
done
mkdir -p corpus/plan
for target in '"raw","options":[]' '"vhd","options":[["subformat","fixed"],["force_size","on"]]' \
    '"vmdk","options":[["subformat","twoGbMaxExtentFlat"]]' '"vdi","options":[["static","on"]]'; do
    part='"data":9,"sample":"00112233445566778899aabbccddeeff"'
    printf '{"version":1,"source":{"format":"raw","virtual_size":2097152,"file":{"size":1,"modified_seconds":2,"modified_nanoseconds":3}},"target":{"format":%s,"virtual_size":2097152,"sparse_size":4096,"target_is_zero":false,"sync":true},"parts":[{"start":0,"len":1048576,%s},{"start":1048576,"len":1048576,%s}]}' \
        "$target" "$part" "$part" >"corpus/plan/$(printf %s "$target" | md5sum | cut -c -8)"
done
for corpus in ova detect; do
    mkdir -p "corpus/$corpus"
    find ../testdata/ova -name '*.ov[af]' -size -80k -exec cp -t "corpus/$corpus" {} +
done
for target in iso partitions fat; do
    mkdir -p "corpus/$target"
done
cp -t corpus/iso ../testdata/content/*.iso
cp -t corpus/partitions ../testdata/content/{gpt,mbr-logical}.img
cp -t corpus/fat ../testdata/content/{esp-fat12.img,os-release.ext4}
cp -t corpus/detect ../testdata/content/*.{iso,img,ext4}
mkdir -p corpus/check
for format in qcow2 vmdk vhd vdi vhdx qcow qed parallels; do
    find "../testdata/$format" -type f -size -100k ! -name '*.md' ! -name '*.py' ! -name '*.json' -exec cp --backup=numbered -t corpus/check {} +
done
mkdir -p corpus/repair
find ../testdata/qcow2 -name '*.qcow2' -size -200k -exec cp -t corpus/repair {} +
