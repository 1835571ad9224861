#!/usr/bin/env bash
# Trains on every device of this machine: a process for each GPU, or without one for each CPU core.
#   bash launch/local.sh                                   the demo
#   bash launch/local.sh CONFIG [key=value …]              your own
#   bash launch/local.sh CONFIG --processes 2 --run NAME   two processes; the same NAME again resumes
# Exit codes: 0 done, 1 failed, 2 what was typed is wrong, 75 stopped and saved (run the same line again).
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
config=() words=() overrides=()
while (($#)); do
  case $1 in
    -h | --help) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --processes | --run) [[ $# -gt 1 ]] || { echo "samestep: $1: found nothing behind it; write $1 VALUE" >&2; exit 2; }
      words+=("$1" "$2"); shift ;;
    --processes=* | --run=*) words+=("$1") ;;
    *=*) overrides+=("$1") ;;
    -*) echo "samestep: $1: unknown option; write --processes N, --run NAME or key=value" >&2; exit 2 ;;
    *) config+=("$1") ;;
  esac
  shift
done
[[ ${#config[@]} -le 1 ]] || { echo "samestep: found two configs, ${config[*]}; write one, and key=value after it" >&2; exit 2; }
config=${config[0]:-$root/configs/stdlib.yaml}
plan=$("$python" -m samestep plan "$config" "${words[@]}" -- "${overrides[@]}") || exit $?
eval "$plan" # run, folder, processes, start
train=(-m samestep train "$config" --run "$run" "${overrides[@]}" "processes=$processes")
# A stop is sent to all of us: the run saves and ends, and how is said then. Under nohup HUP stays ignored. Only one that leads
# its terminal's session (field 6 is this shell, field 7 a terminal) gets HUP alone, and passes it on by dying of it.
read -ra stat 2>/dev/null </proc/$$/stat || stat=()
trap : TERM
((${stat[5]:-0} == $$ && ${stat[6]:-0} != 0)) || trap : HUP
if ((processes == 1)); then
  "$python" "${train[@]}"
else
  # Without a default config of the user's own: every value that matters is here.
  "$python" -m samestep launcher --multi_gpu --num_machines 1 --num_processes "$processes" --mixed_precision no \
    --dynamo_backend no --main_process_port 0 "${train[@]}"
fi
code=$?
"$python" -m samestep outcome "$folder" "$start" "$code"
