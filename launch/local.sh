#!/usr/bin/env bash
# Trains on every device of this machine: `samestep launch`, in a .venv that is made first. Its words are the same.
#   bash launch/local.sh                                   the demo
#   bash launch/local.sh CONFIG [key=value …]              your own
#   bash launch/local.sh CONFIG --processes 2 --run NAME   two processes; the same NAME again resumes
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$python" -m samestep launch "$@"
