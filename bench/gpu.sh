#!/usr/bin/env bash
# Where a step's time goes on one GPU, with GPT-2's small model in bf16, and a verdict: `bash bench/gpu.sh`, nine minutes at most.
#   bash bench/gpu.sh --tiny         the same in small, on a CPU too: to see that it runs
# Prints one line of JSON a figure; what there was no time for is said. PYTHON=… names another Python than .venv's.
if [[ -z ${PYTHON:-} ]]; then
  . "$(dirname "${BASH_SOURCE[0]}")/../launch/setup.sh"
  PYTHON=$python
fi
exec "$PYTHON" "$(dirname "${BASH_SOURCE[0]}")/gpu.py" "$@"
