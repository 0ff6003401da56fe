#!/bin/sh
# Compiles the CUDA engine for one GPU and fails where a kernel's registers spill to memory: no_spills.sh SOURCE_FOLDER [NVCC [ARCHITECTURE]]
# No GPU is needed. Exits with 77, which CTest reports as skipped, where there is no nvcc.
set -eu
source=$1 nvcc=${2:-} architecture=${3:-sm_90a}
if [ -z "$nvcc" ]; then
  echo "skipped: there is no nvcc"
  exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$source"
for file in native/device/cuda/*.cu; do
  if ! "$nvcc" -std=c++20 -O3 -I. --expt-relaxed-constexpr "-arch=$architecture" -cubin -Xptxas -v "$file" -o "$folder/cubin" > "$folder/one" 2>&1; then
    cat "$folder/one"
    exit 1
  fi
  cat "$folder/one" >> "$folder/all"
done
# ptxas names a kernel, then tells its stack frame and spills, then its registers.
awk -v architecture="$architecture" '
  /Compiling entry function/ { kernel = $0; sub(/.*entry function ./, "", kernel); sub(/. for .*/, "", kernel); ++kernels }
  /bytes spill stores/ { checked += kernel != ""; if ($0 !~ / 0 bytes spill stores, 0 bytes spill loads/) { print "SPILLS " kernel ":" $0; ++spilling } kernel = "" }
  END {
    printf "%d kernels for %s, %d spill\n", kernels, architecture, spilling
    exit kernels == 0 || checked < kernels || spilling > 0
  }' "$folder/all"
