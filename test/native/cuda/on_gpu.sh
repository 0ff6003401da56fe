#!/bin/sh
# Builds and runs one test of the CUDA engine: on_gpu.sh BUILD_FOLDER PROGRAM [NVCC]
# Exits with 77, which CTest reports as skipped, and the reason, where it cannot run. The test is built here and not with all else, since a machine
# without a GPU has no use for it.
set -eu
build=$1 program=$2 nvcc=${3:-}
skip() {
  echo "skipped: $1"
  exit 77
}
[ -n "$nvcc" ] || skip "no nvcc, or the CUDA engine is switched off (TINYLLAMA_CUDA)"
nvidia-smi -L > /dev/null 2>&1 || ls /dev/nvidia[0-9]* > /dev/null 2>&1 || skip "no NVIDIA GPU on this machine"
cmake --build "$build" --parallel --target "$program"
exec "$build/programs/$program"
