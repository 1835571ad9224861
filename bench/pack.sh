#!/usr/bin/env bash
# Packs wheels for a GPU machine that reaches no package index: bash bench/pack.sh [MB], by default 64 in all, into bench/wheels.
# For each it says what it weighs, and whether it still fits; there: pip install --no-index --no-deps bench/wheels/*.whl
# PLATFORM=manylinux_2_28_aarch64 and PYTHON_VERSION=3.12 name another machine's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
room=$((${1:-64} * 1000000))
folder=wheels
mkdir -p "$folder"
for package in nvidia-cudnn-frontend flash-attn-4 nvidia-cutlass-dsl-libs-base triton; do # what is most worth knowing first
  found=$(mktemp -d)
  if ! python3 -m pip download -qq --no-deps --only-binary :all: --dest "$found" --python-version "${PYTHON_VERSION:-3.11}" \
    --platform "${PLATFORM:-manylinux_2_28_x86_64}" --platform any "$package" 2>/dev/null; then
    echo "$package: no wheel for this platform"
  else
    wheel=$(ls "$found"/*.whl)
    size=$(stat -c %s "$wheel")
    if ((size <= room)); then
      mv "$wheel" "$folder"
      room=$((room - size))
      echo "$(basename "$wheel"): $((size / 1000000)) MB, packed; $((room / 1000000)) MB left"
    else
      echo "$(basename "$wheel"): $((size / 1000000)) MB, and $((room / 1000000)) MB are left: not packed"
    fi
  fi
  rm -r "$found"
done
