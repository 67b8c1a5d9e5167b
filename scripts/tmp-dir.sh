#!/usr/bin/env bash
# Prints where the tests' servers should have their files: in memory where there is room, so that a
# slow disk, or one that is busy with a build, does not hold them up.
set -euo pipefail

memory=/dev/shm
least_kib=$((4 * 1024 * 1024))
if [[ -w $memory ]] && (($(df --output=avail "$memory" | tail -n 1) >= least_kib)); then
  echo "$memory"
else
  echo "${TMPDIR:-/tmp}"
fi
