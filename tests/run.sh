#!/usr/bin/env bash
# Runs the tests; arguments go to pytest. Sets .venv up first.
#   bash tests/run.sh                     everything, two tests at a time, what is quick first
#   bash tests/run.sh quick               what is quick, and two minutes of drawn runs
#   bash tests/run.sh tests/unit -k order
EXTRA=dev
. "$(dirname "${BASH_SOURCE[0]}")/../launch/setup.sh"
quick=(tests/structure tests/unit)
case "$*" in
"")
  echo "all tests: about 50 minutes on two cores, of which the units take the first ten; bash tests/run.sh quick: ten" >&2
  set -- -n 2 --dist loadgroup tests/slurm "${quick[@]}" tests # the cluster's waits run beside what is quick
  ;;
quick)
  echo "the quick tests, and drawn runs: about ten minutes on two cores" >&2
  set -- -n 2 --dist loadgroup tests/promise/test_promise.py "${quick[@]}"
  ;;
esac
cd "$root" && exec "$python" -m pytest "$@"
