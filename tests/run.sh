#!/usr/bin/env bash
# Runs the tests; arguments go to pytest. Sets .venv up first.
#   bash tests/run.sh                     everything
#   bash tests/run.sh tests/unit -k order
EXTRA=dev
. "$(dirname "${BASH_SOURCE[0]}")/../launch/setup.sh"
cd "$root" && exec "$python" -m pytest "$@"
