#!/usr/bin/env bash
# Trains as one process on the CPU, without a launcher: breakpoint() and pdb work anywhere in your code.
#   bash launch/debug.sh CONFIG [key=value …]
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,3s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0; fi
# Nothing is computed again: a breakpoint in the loss is met once for each micro-batch.
exec "$python" -m samestep train "${@:-$root/configs/seed.yaml}" device=cpu audit=false
