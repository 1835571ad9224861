"""The tests' own cluster is a guest: whatever other cluster the machine has goes on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from cluster import NODES, Cluster


def test_two_clusters_at_once(cluster: Cluster, tmp_path: Path) -> None:
    other = Cluster(tmp_path / "other")
    try:
        other.up()
        for one in (cluster, other, cluster):
            assert sorted(one.ask("srun", "--nodes=4", "--quiet", "hostname").split()[-4:]) == list(NODES)
        network = (other.folder / "network").read_text()
        controller = int((other.folder / "slurmctld.pid").read_text())
    finally:
        other.down()
    assert sorted(cluster.ask("srun", "--nodes=4", "--quiet", "hostname").split()[-4:]) == list(NODES)
    assert network not in subprocess.run("ip link; ip netns", shell=True, capture_output=True, text=True, check=True).stdout
    assert not Path(f"/proc/{controller}").exists()
    assert os.listdir(tmp_path) == []
