#!/usr/bin/env bash
# Fuzzes every target: run.sh BUILD_FOLDER [INPUTS]. New inputs and findings stay in BUILD_FOLDER/findings.
set -euo pipefail
build=$1 inputs=${2:-1000000}
cd "$(dirname "$0")/../.."
for target in tests/fuzz/*_fuzz.cpp; do
  name=$(basename "$target" .cpp)
  mkdir -p "$build/findings/$name"
  "$build/$name" -runs="$inputs" -max_len=4096 -timeout=20 -rss_limit_mb=4096 -artifact_prefix="$build/findings/$name-" \
    "$build/findings/$name" "tests/fuzz/corpus/${name%_fuzz}"
done
