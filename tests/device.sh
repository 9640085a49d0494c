#!/usr/bin/env bash
# Builds on a machine with a CUDA GPU, checks every kernel and whole models against the CPU backend, looks for bad memory
# accesses and races on a short set, then measures. Needs nvcc, a C++20 compiler and CMake 3.25; none of the packages that
# the rest of Ballast needs.
#
# usage: tests/device.sh [--json DIR] [--out FILE] [--no-bench]
#   --json DIR   where nlohmann/json.hpp is, if the compiler does not find it by itself
#   --out FILE   the measurements, bench/gpu.json by default
# exit 1 when a check fails; 77 without a GPU, after building everything
set -euo pipefail
cd "$(dirname "$0")/.."

json= out=bench/gpu.json bench=yes
while [ $# -gt 0 ]; do
  case $1 in
    --json) json=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --no-bench) bench=; shift ;;
    *) sed -n '2,10p' "$0"; exit 2 ;;
  esac
done

command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin
build=build/device
generator=
command -v ninja >/dev/null && generator="-G Ninja"
cmake -S . -B $build $generator -DCMAKE_BUILD_TYPE=Release -DBALLAST_CUDA=ON -DBALLAST_KERNELS_ONLY=ON -DBALLAST_TESTS=OFF \
  ${json:+-DBALLAST_JSON="$json"} >$build.log 2>&1 || { cat $build.log; exit 1; }
cmake --build $build -j "$(nproc)" --target device_check device_bench >>$build.log 2>&1 || { tail -40 $build.log; exit 1; }
echo "built: device_check, device_bench"

if ! nvidia-smi -L 2>/dev/null; then
  $build/device_check . || true
  exit 77
fi
$build/device_check .

# Bad accesses, reads of memory that nothing wrote, and races in shared memory. Some machines do not allow it.
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck initcheck racecheck; do
    if compute-sanitizer --tool $tool --error-exitcode 9 --log-file $build/$tool.log $build/device_check . --short \
      >$build/$tool.out 2>&1; then
      echo "$tool: nothing found"
    elif grep -qi -e "not supported" -e "unable to" $build/$tool.log $build/$tool.out; then
      echo "$tool: skipped, it does not work on this machine"
    else
      tail -20 $build/$tool.log $build/$tool.out
      exit 1
    fi
  done
else
  echo "compute-sanitizer: skipped, it is not installed"
fi

[ -n "$bench" ] || exit 0
nvidia-smi --query-gpu=name,clocks.sm,clocks.mem,temperature.gpu,power.draw --format=csv || true
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
$build/device_bench "$commit" "$(date -u +%Y-%m-%d)" "$out"
