#!/usr/bin/env bash
# Submit a training run to a Ray cluster's job server and follow it to its end.
#   cluster/submit.sh CONFIG [section.key=value …]
# Submitted again, the job continues the run that an earlier one left in its run folder.
# RAY_API_SERVER_ADDRESS (default http://127.0.0.1:8265) is the job server; the exit status is the job's.
set -euo pipefail
if [ $# -lt 1 ]; then
  echo "usage: cluster/submit.sh CONFIG [section.key=value …]" >&2
  exit 2
fi
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
config="$1"
if [ ! -f "$config" ]; then
  echo "cluster/submit.sh: $config: no such config file" >&2
  exit 2
fi
export RAY_API_SERVER_ADDRESS="${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}"
ray="$root/.venv/bin/ray"
[ -x "$ray" ] || ray=ray
# The checkout travels with the job (without environments and runs); nodes have the packages installed.
exec "$ray" job submit --working-dir "$root" \
  --runtime-env-json '{"excludes": [".venv", ".git", "runs", "tests"]}' \
  -- python -m topd_ray.cli train --resume "$@"
