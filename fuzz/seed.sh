#!/usr/bin/env bash
# Gives the fuzzer the images of testdata to start from.
set -euo pipefail
cd "$(dirname "$0")"
for target in detect qcow2; do
    mkdir -p "corpus/$target"
    find ../testdata/qcow2 -name '*.qcow2' -size -200k -exec cp -t "corpus/$target" {} +
done
mkdir -p corpus/vmdk corpus/vmdk_descriptor
find ../testdata/vmdk -name '*.vmdk' -size -400k -exec cp -t corpus/vmdk {} +
find ../testdata/vmdk -name '*.vmdk' -size -8k -exec cp -t corpus/vmdk_descriptor {} +
