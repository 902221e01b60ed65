#!/usr/bin/env bash
# For a GPU machine without a package index: the optional packages of bench/gpu.py, kernels to compare with, are packed
# where there is an index and unpacked where there is none. Nothing of the product needs them.
#
#   bash bench/gpu_wheels.sh pack FOLDER [heads] [cute]   FOLDER gets SET.tar.xz in pieces of 50 MiB: SET.tar.xz.00, ...
#   bash bench/gpu_wheels.sh unpack FOLDER                adds the pieces to /tmp/wheels and unpacks what is whole there
#   bash bench/gpu.sh OUT --wheels /tmp/wheels/site       uses them, in the parts that compare kernels only
#
# heads  0.5 MB  liger-kernel, cut-cross-entropy: pure Python, they need torch and triton
# cute   72 MB   FlashAttention 4; what it and Liger's kernel for Hopper need: nvidia-cutlass-dsl with CUDA 13, quack
# The machine is taken to have Python 3.12 on x86-64, torch, triton, einops, protobuf and cuda-bindings.
heads="liger-kernel==0.8.5 cut-cross-entropy==25.1.1"
cute="flash-attn-4==4.0.0b36 quack-kernels==0.6.5 apache-tvm-ffi==0.1.15.post2 torch-c-dlpack-ext==0.1.5
nvidia-cutlass-dsl==4.8.1 nvidia-cutlass-dsl-libs-base==4.8.1 nvidia-cutlass-dsl-libs-core==4.8.1
nvidia-cutlass-dsl-libs-cu13==4.8.1"

if [ "$1" = pack ]; then
  set -euo pipefail
  folder=$2; shift 2; mkdir -p "$folder"
  platforms=(); for n in 39 35 34 31 28 27 24 17; do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
  for set in "${@:-heads}"; do
    site=$(mktemp -d)
    # shellcheck disable=SC2086
    python3 -m pip install -q --no-deps --no-compile --only-binary=:all: --python-version 3.12 --implementation cp \
      "${platforms[@]}" --platform manylinux2014_x86_64 --target "$site" ${!set}
    tar -C "$site" --sort=name --owner=0 --group=0 -cf - . | xz -T0 -6 | split -b 50M -d - "$folder/$set.tar.xz."
    rm -rf "$site"
  done
  ls -l "$folder"
elif [ "$1" = unpack ]; then
  mkdir -p /tmp/wheels/pieces && cp "$2"/*.tar.xz.* /tmp/wheels/pieces/
  for set in heads cute; do  # Python's own lzma: xz need not be there. A set that lacks a piece says so and is left
    ls /tmp/wheels/pieces/$set.* >/dev/null 2>&1 && cat /tmp/wheels/pieces/$set.* | python3 -c '
import lzma, sys, tarfile
try:
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|xz") as archive:
        archive.extractall("/tmp/wheels/site", filter="data")
except (EOFError, lzma.LZMAError, tarfile.TarError) as error:
    print(sys.argv[1], "is not whole yet:", error)' $set
  done
else
  sed -n '2,12p' "${BASH_SOURCE[0]}"
fi
