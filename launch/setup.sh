#!/usr/bin/env bash
# Makes .venv beside the project from pinned constraints, once; says nothing when there is nothing to do.
# Sourced by the other scripts: sets `root` and `python`. EXTRA=dev adds the tools for development.
# Where there is no source (`samestep init` laid this out), it takes the Python that samestep is installed in.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python
unset PYTHONDONTWRITEBYTECODE # without bytecode on disk every start would compile torch anew, for several seconds
[[ ${PYTHONHASHSEED:-random} != random ]] || export PYTHONHASHSEED=0 # the order of a set is the same in every process and start
if [[ ! -d $root/src/samestep ]]; then
  python=${PYTHON:-python3}
  if ! "$python" -c 'import samestep.cli' 2>/dev/null; then
    echo "samestep: found no samestep in $python; write PYTHON=PATH before the command, of a Python that has it" >&2
    exit 2
  fi
  return 0
fi
stamp=$root/.venv/.samestep-${EXTRA:-run}
wanted=$(cat "$root/constraints.txt" "$root/pyproject.toml" | cksum)
stamps=("$stamp" "$root/.venv/.samestep-dev") # what serves development serves a run too
if [[ $(cat "${stamps[@]}" 2>/dev/null) != *"$wanted"* ]]; then
  base=${PYTHON:-python3}
  if ! "$base" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
    echo "samestep: found $("$base" --version 2>/dev/null || echo "no $base"); it needs Python 3.11 to 3.13: write PYTHON=python3.12 before the command" >&2
    exit 2
  fi
  echo "setting up $root/.venv (once, about a minute)" >&2
  [[ -x $root/.venv/bin/pip ]] || "$base" -m venv "$root/.venv" || exit 1
  # Not compiling to bytecode halves the time: only what is imported is ever compiled.
  "$python" -m pip install -qq --disable-pip-version-check --no-compile -c "$root/constraints.txt" \
    -e "$root${EXTRA:+[$EXTRA]}" >&2 || exit 1
  echo "$wanted" >"$stamp"
fi
