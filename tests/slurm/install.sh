#!/usr/bin/env bash
# Installs what the tests on a real SLURM cluster need, from Debian's packages; as root. Says nothing when it is all there.
set -euo pipefail
lacking=0
for program in slurmctld slurmd sbatch munged mungekey ip nsenter pgrep; do command -v "$program" >/dev/null || lacking=1; done
((lacking)) || exit 0
[[ $(id -u) == 0 ]] || { echo "SLURM is not installed, and only root can do that: its tests are left out"; exit 0; }
export DEBIAN_FRONTEND=noninteractive
apt-get -o Acquire::Retries=5 update -qq
apt-get -o Acquire::Retries=5 install -y -qq --no-install-recommends slurm-wlm munge iproute2 util-linux procps >/dev/null
# Debian starts these for a cluster of its own, which nobody asked for.
for service in munge slurmctld slurmd; do
  [[ ! -d /run/systemd/system ]] || systemctl disable --now --quiet "$service" 2>/dev/null || true
done
