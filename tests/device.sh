#!/usr/bin/env bash
# Builds on a machine with a CUDA GPU, checks every kernel and whole models against the CPU backend, looks for bad memory
# accesses and races on a short set, then measures. Needs nvcc, a C++20 compiler and CMake 3.25; none of the packages that
# the rest of Ballast needs.
#
# usage: tests/device.sh [options] [STEP...]
#   STEP          build, check, sanitize, bench; all of them by default. Without build, build/device holds the programs already:
#                 those of another machine do, as long as it was made with --arch
#   --json DIR    where nlohmann/json.hpp is, if the compiler does not find it by itself
#   --arch LIST   CMAKE_CUDA_ARCHITECTURES; by default what nvidia-smi says, or all
#   --out FILE    the measurements, bench/gpu.json by default; the table goes beside it, ending in .md
#   --logs DIR    everything that was said, build/device by default
#   --commit ID   what was built, where git does not know
# exit 1 when anything failed, after all steps; 77 without a GPU, after building everything
set -euo pipefail
cd "$(dirname "$0")/.."

json= arch= commit= out=bench/gpu.json build=build/device
logs=$build
steps=()
while [ $# -gt 0 ]; do
  case $1 in
    --json) json=$(realpath "$2"); shift 2 ;;
    --arch) arch=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --logs) logs=$2; shift 2 ;;
    --commit) commit=$2; shift 2 ;;
    build | check | sanitize | bench) steps+=("$1"); shift ;;
    *) sed -n '2,16p' "$0"; exit 2 ;;
  esac
done
[ ${#steps[@]} -gt 0 ] || steps=(build check sanitize bench)
mkdir -p "$build" "$logs" "$(dirname "$out")"
PATH=$PATH:/usr/local/cuda/bin

# Where Python's packages have parts of CUDA that the toolkit lacks.
find_cuda() {
  find -L /usr/local/cuda/ "$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))' 2>/dev/null || echo .)" \
    -name "$1" -print -quit 2>/dev/null || true
}

# log NAME COMMAND...: its status, and its words in a file as well, so that they outlive a time limit.
log() {
  local file=$logs/$1.log
  shift
  "$@" 2>&1 | tee -a "$file"
}

step_build() {
  local options=() capability header
  command -v ninja >/dev/null && options+=(-G Ninja)
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | tr -cd 0-9 || true)
  [ "$capability" != 90 ] || capability=90a  # the only one with instructions of its own
  [ -n "$arch" ] || [ -z "$capability" ] || arch=$capability-real
  [ -z "$arch" ] || options+=("-DCMAKE_CUDA_ARCHITECTURES=$arch")
  [ -z "$json" ] || options+=("-DBALLAST_JSON=$json")
  header=$(dirname "$(command -v nvcc)")/../include/cublasLt.h
  if [ ! -f "$header" ] && header=$(find_cuda cublasLt.h) && [ -n "$header" ]; then
    options+=("-DCMAKE_CUDA_FLAGS=-I$(dirname "$header")" "-DCUDA_cublasLt_LIBRARY=$(find_cuda 'libcublasLt.so*')")
  fi
  local words=$logs/build.log
  SECONDS=0
  cmake -S . -B $build "${options[@]}" -DCMAKE_BUILD_TYPE=Release -DBALLAST_CUDA=ON -DBALLAST_KERNELS_ONLY=ON \
    -DBALLAST_TESTS=OFF >"$words" 2>&1 || { tail -40 "$words"; return 1; }
  cmake --build $build -j "$(nproc)" --target device_check device_bench >>"$words" 2>&1 || { tail -40 "$words"; return 1; }
  echo "built: device_check, device_bench, in $SECONDS s"
}

# A process for each part: a kernel that fails takes its process with it, and the others are still worth knowing.
step_check() {
  local part parts status failed=0
  parts=$($build/device_check --parts) || return 1
  for part in $parts; do
    SECONDS=0 status=0
    log check timeout -k 10 300 $build/device_check . "$part" || status=$?
    [ $status -ne 77 ] || return 77
    [ $status -eq 0 ] || { failed=1; echo "FAILED $part: exit $status" | tee -a "$logs/check.log"; }
    echo "$part: $SECONDS s"
  done
  return $failed
}

# Bad accesses, reads of memory that nothing wrote, and races in shared memory. Some machines do not allow it.
step_sanitize() {
  local tool status options failed=0 words
  if ! command -v compute-sanitizer >/dev/null; then
    echo "compute-sanitizer: skipped, it is not installed"
    return
  fi
  for tool in memcheck initcheck racecheck; do
    words=$logs/$tool.log
    options=()
    # Rows of which kernels fill a part are fetched whole.
    [ $tool != initcheck ] || options=(--check-api-memory-access no)
    SECONDS=0 status=0
    timeout -k 10 170 compute-sanitizer --tool $tool "${options[@]}" --error-exitcode 9 --print-limit 20 \
      $build/device_check . --short >"$words" 2>&1 || status=$?
    if [ $status -eq 0 ]; then
      echo "$tool: nothing found, $SECONDS s"
    elif grep -qi -e "device not supported" -e "unable to" "$words"; then
      echo "$tool: skipped, it does not work on this machine"
    else
      failed=1
      echo "FAILED $tool: exit $status"
      tail -30 "$words"
    fi
  done
  return $failed
}

# The table and the file grow as it goes, so that a time limit leaves what was measured before.
step_bench() {
  nvidia-smi --query-gpu=name,clocks.sm,clocks.mem,temperature.gpu,power.draw --format=csv || true
  [ -n "$commit" ] || commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
  $build/device_bench "$commit" "$(date -u +%Y-%m-%d)" "$out" | tee "${out%.json}.md"
}

failed=0
for step in "${steps[@]}"; do
  if [ "$step" != build ] && ldd $build/device_check 2>/dev/null | grep -q "libcublasLt.*not found"; then
    library=$(find_cuda 'libcublasLt.so.*')
    export LD_LIBRARY_PATH=$(dirname "$library")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  fi
  status=0
  step_"$step" || status=$?
  [ $status -ne 77 ] || exit 77
  [ $status -eq 0 ] || { failed=1; echo "FAILED step $step"; }
  [ $status -eq 0 ] || [ "$step" != build ] || exit 1
done
exit $failed
