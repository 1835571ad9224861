#!/usr/bin/env bash
# Runs the tests; arguments go to pytest. Sets .venv up first.
#   bash tests/run.sh                     everything
#   bash tests/run.sh tests/unit -k order
EXTRA=dev
. "$(dirname "${BASH_SOURCE[0]}")/../launch/setup.sh"
cd "$root" || exit 1
(($# == 0)) || exec "$python" -m pytest "$@"
# Two at a time where nothing is timed; what is killed, hangs or runs on a cluster has the machine to itself.
"$python" -m pytest -n 2 tests/structure tests/unit tests/distributed || exit $?
exec "$python" -m pytest tests/chaos tests/slurm tests/gpu
