#!/usr/bin/env bash
# Times samestep beside the loop that a beginner writes and beside the peers, in one interleaved run: `bash bench/run.sh`.
#   bash bench/run.sh --rounds 1 --only tiny     a first look
# The peers get an environment of their own, bench/.venv. Takes most of an hour; nothing else should run meanwhile.
. "$(dirname "${BASH_SOURCE[0]}")/../launch/setup.sh"
peers=$root/bench/.venv
if [[ ! -e $peers/.done ]]; then
  echo "setting up $peers (once, a few minutes)" >&2
  "${PYTHON:-python3}" -m venv "$peers" &&
    "$peers/bin/python" -m pip install -qq --disable-pip-version-check -c "$root/constraints.txt" \
      -r "$root/bench/peers.txt" >&2 && touch "$peers/.done" || exit 1
fi
exec "$python" "$root/bench/compare.py" --peers "$peers/bin/python" "$@"
