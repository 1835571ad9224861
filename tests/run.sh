#!/usr/bin/env bash
# Runs the tests; arguments go to pytest. Sets .venv up first.
#   bash tests/run.sh                     everything, two tests at a time
#   bash tests/run.sh tests/unit -k order
EXTRA=dev
. "$(dirname "${BASH_SOURCE[0]}")/../launch/setup.sh"
(($#)) || set -- -n 2 --dist loadgroup tests/slurm tests # those on the cluster first, for they wait the longest
cd "$root" && exec "$python" -m pytest "$@"
