# What the batch scripts share; sourced, with `root` set.
# slurm/before.sh, if you make one, is sourced on every node first: module load, for example.
export SAMESTEP_BEFORE=${SAMESTEP_BEFORE:-$root/slurm/before.sh}
[[ ! -f $SAMESTEP_BEFORE ]] || . "$SAMESTEP_BEFORE"
. "$root/launch/setup.sh"
exec "$python" -m samestep job "$@"
