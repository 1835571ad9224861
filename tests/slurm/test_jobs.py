"""Jobs on a real cluster: whatever it does to them, the finished weights are one undisturbed process's."""

from __future__ import annotations

import itertools
import time

import pytest
from slurm_site import Site

from conftest import ROOT

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize(
    "options",
    [
        "--nodes=2 --cpus-per-task=2",
        "--nodes=2 --gpus-per-node=2",
        pytest.param("--nodes=2 --ntasks-per-node=2", marks=pytest.mark.long),
    ],
)
def test_two_nodes_with_two_processes_each(site: Site, options: str) -> None:
    site.case()
    job = site.sbatch(options)
    out = site.finish(job)
    assert out.rstrip().splitlines()[-1].startswith("weights ")
    state = site.check(f"case-{job}")
    assert (state["world_size"], state["restarts"]) == (4, 0)


@pytest.mark.long
@pytest.mark.parametrize("nodes", [1, 3, 4])
def test_other_numbers_of_nodes(site: Site, nodes: int) -> None:
    site.case()
    job = site.sbatch(f"--nodes={nodes} --cpus-per-task=2")
    site.finish(job)
    assert site.check(f"case-{job}")["world_size"] == 2 * nodes


@pytest.mark.parametrize("fault", ["kill", "cut"])
def test_a_lost_node_costs_seconds_and_no_bits(site: Site, fault: str) -> None:
    site.case(steps=120)
    job = site.sbatch("--nodelist=n1,n2,n3 --nodes=3 --cpus-per-task=1")
    run = f"case-{job}"
    site.wait_for_rows(job, 25)
    getattr(site.cluster, fault)("n3")
    began, before = time.monotonic(), site.rows(run)
    site.wait(job, lambda: "n3 does not answer any more" in site.out(job), 60)
    noticed_s = time.monotonic() - began
    site.wait(job, lambda: len(list((site.path / "runs" / run / "starts").glob("*.json"))) == 2, 180)
    site.wait_for_rows(job, before + 3)
    print(f"{fault}: noticed after {noticed_s:.1f} s, a new step {time.monotonic() - began:.1f} s after the fault")
    assert site.shown(job, "JobState") == "RUNNING"
    site.finish(job)
    state = site.check(run)
    assert (state["world_size"], state["restarts"], state["lost_nodes"]) == (2, 1, {"n3": 1})
    assert site.starts(run)[1]["resumed_from"] >= before - 8  # what was finished is saved by those that live
    assert noticed_s < 30  # SlurmdTimeout is 40 here; the rest is two starts of Python, as quick as the machine is


def test_a_task_that_crashes_at_once_fails_after_its_second_start(site: Site) -> None:
    site.case()
    site.write("bad.py", f"import sys\nsys.path.insert(0, {str(ROOT / 'tests/chaos')!r})\n" + BROKEN)
    text = (site.path / "case.yaml").read_text().replace(str(ROOT / "tests/chaos/chaos_tasks.py") + ":Slow", "bad.py:Bad")
    site.write("case.yaml", text)
    job = site.sbatch("--nodes=2 --cpus-per-task=1")
    out = site.finish(job, "FAILED")
    assert "ValueError: crashed at once" in out.rstrip().splitlines()[-1]
    assert len(site.starts(f"case-{job}")) == 2
    assert site.state(f"case-{job}")["status"] == "failed"


BROKEN = """
from chaos_tasks import Slow


class Bad(Slow):
    def loss(self, model, batch):
        raise ValueError("crashed at once")
"""


def test_a_crash_in_the_first_start_alone_is_gone_on_from(site: Site) -> None:
    site.case()
    text = (site.path / "case.yaml").read_text()
    fault = f"with: {{fault: raise, mark: {site.path}/mark, calls_before: 59, pause_s: "
    site.write("case.yaml", text.replace(":Slow", ":Faulty").replace("with: {pause_s: ", fault) + "audit: false\n")
    job = site.sbatch("--nodes=2 --cpus-per-task=2")
    out = site.finish(job)
    assert "ValueError: planted" in out
    assert site.check(f"case-{job}")["restarts"] == 1
    assert site.starts(f"case-{job}")[1]["resumed_from"] == 29


@pytest.mark.parametrize("how", ["scancel --signal=USR1", "scontrol requeue"])
def test_a_signal_and_a_requeue_go_on_where_it_was(site: Site, how: str) -> None:
    site.case(steps=90)
    job = site.sbatch("--nodes=2 --cpus-per-task=2")
    site.wait_for_rows(job, 20)
    before = site.rows(f"case-{job}")
    site.cluster.ask(*how.split(), job)
    site.finish(job)
    assert site.check(f"case-{job}")["restarts"] == 1
    assert site.starts(f"case-{job}")[1]["resumed_from"] >= before


def test_a_cancelled_job_is_saved_and_stays_down(site: Site) -> None:
    site.case(steps=200)
    job = site.sbatch("--nodes=2 --cpus-per-task=2")
    site.wait_for_rows(job, 20)
    before = site.rows(f"case-{job}")
    site.cluster.ask("scancel", job)
    site.finish(job, "CANCELLED")
    site.wait(job, lambda: not site.cluster.ask("squeue", "-h", "-j", job, "-t", "running,completing").strip(), 60)
    assert site.state(f"case-{job}")["status"] == "stopped"
    assert site.shown(job, "JobState") == "CANCELLED"  # the script has ended: nobody is left to requeue it
    assert site.state(f"case-{job}")["step"] >= before


@pytest.mark.long
def test_preemption_by_a_higher_partition(site: Site) -> None:
    site.case(steps=90)
    job = site.sbatch("--nodes=4 --cpus-per-task=2")
    site.wait_for_rows(job, 20)
    before = site.rows(f"case-{job}")
    other = site.command("sbatch", "--parsable", "--partition=urgent", "--nodes=4", "--wrap=sleep 5", "--output=/dev/null").out
    site.wait(other.strip(), lambda: site.shown(other.strip(), "JobState") == "COMPLETED", 90)
    site.finish(job)
    assert site.check(f"case-{job}")["restarts"] == 1
    assert site.starts(f"case-{job}")[1]["resumed_from"] >= before


@pytest.mark.long
def test_a_time_limit_of_a_minute_for_a_run_of_three(site: Site) -> None:
    site.case(steps=900, pause=0.09)
    job = site.sbatch("--nodes=2 --cpus-per-task=2", time_limit=1)
    site.finish(job, seconds=500)
    state = site.check(f"case-{job}")
    starts = site.starts(f"case-{job}")
    assert state["restarts"] >= 2
    assert "TIME LIMIT" not in site.out(job)
    assert all(later["resumed_from"] > earlier["resumed_from"] for earlier, later in itertools.pairwise(starts))


@pytest.mark.long
def test_the_death_of_the_batch_scripts_own_node_starts_the_job_again(site: Site) -> None:
    site.case(steps=90)
    job = site.sbatch("--nodes=2 --cpus-per-task=2")
    site.wait_for_rows(job, 50)
    site.cluster.kill(site.shown(job, "BatchHost"))
    site.finish(job, seconds=400)
    assert site.check(f"case-{job}")["restarts"] == 1


@pytest.mark.long
def test_an_array_of_four_with_one_crash_and_one_requeue(site: Site) -> None:
    site.case(steps=60, pause=0.05)
    marks = site.path / "marks"
    marks.mkdir()
    text = (site.path / "case.yaml").read_text()
    site.write("case.yaml", text.replace(":Slow", ":Doomed").replace("with: {", f"with: {{moments: [], marks: {marks}, "))
    site.write("points.txt", 'seed=0\nseed=1\nseed=2 with.moments=["train 90"]\nseed=3\n')
    job = site.sbatch("--array=0-3 --cpus-per-task=1 -- --sweep points.txt", script="sweep.sbatch")
    site.wait_for_rows(job, 10, run=f"case-{job}_1")
    site.cluster.ask("scancel", "--signal=USR1", f"{job}_1")
    for index, restarts in enumerate([0, 1, 1, 0]):
        site.finish(f"{job}_{index}")
        state = site.state(f"case-{job}_{index}")
        assert state["status"] == "done"
        assert state["restarts"] == restarts
    assert [mark.name for mark in marks.iterdir()] == ["0"]
    assert site.shown(f"{job}_1", "Restarts") == "1"
    assert {site.shown(f"{job}_{index}", "Restarts") for index in (0, 2, 3)} == {"0"}
    assert len({site.state(f"case-{job}_{index}")["weights"] for index in range(4)}) == 4


@pytest.mark.long
def test_a_node_that_came_back_is_used_again_after_a_requeue(site: Site) -> None:
    site.case(steps=400)
    job = site.sbatch("--nodelist=n1,n2,n3 --nodes=3 --cpus-per-task=1")
    run = f"case-{job}"
    site.wait_for_rows(job, 20)
    site.cluster.kill("n3")
    site.wait(job, lambda: len(site.starts(run)) == 2)
    site.wait_for_rows(job, site.rows(run) + 10)
    site.cluster.revive("n3")
    time.sleep(10)
    site.cluster.ask("scontrol", "requeue", job)
    site.finish(job)
    assert site.check(run)["lost_nodes"] == {"n3": 1}
    assert [start["world_size"] for start in site.starts(run)] == [3, 2, 3]


@pytest.mark.long
def test_two_jobs_on_one_node_and_a_name_with_spaces_and_quotes(site: Site) -> None:
    site.case()
    first = site.sbatch("--nodelist=n1 --cpus-per-task=1")
    done = site.command(
        "sbatch", "--parsable", "--output=out-%j.txt", "--time=5", "--nodelist=n1", "--cpus-per-task=1",
        str(ROOT / "slurm/train.sbatch"), "case.yaml", "--run", "it's a \"name\" $HOME",
    )  # fmt: skip
    second = done.out.strip()
    site.finish(first)
    site.finish(second)
    site.check(f"case-{first}")
    site.check('it\'s a "name" $HOME')


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "world_size"),
    [
        ("--nodes=2 --ntasks=3 --nodelist=n1,n2 --distribution=block", 3),
        ("--nodes=2 --ntasks-per-node=2 --gpus-per-task=1", 4),
        ("--nodes=2 --ntasks-per-node=1 --gpus-per-task=1 --gpu-bind=single:1", 2),
        ("--nodes=1 --gres=gpu:1 --exclusive", 1),
    ],
)
def test_other_ways_to_ask_for_devices(site: Site, options: str, world_size: int) -> None:
    site.case()
    job = site.sbatch(options)
    site.finish(job)
    assert site.check(f"case-{job}")["world_size"] == world_size


@pytest.mark.long
def test_a_checkout_with_spaces_in_its_path_and_a_module_system(site: Site) -> None:
    site.case()
    checkout = site.path / "home of a user" / "my samestep"
    checkout.parent.mkdir()
    checkout.symlink_to(ROOT)
    before = site.write("before this.sh", 'echo "modules loaded on $SLURMD_NODENAME"\n')
    site.env["SAMESTEP_BEFORE"] = str(site.path / before)
    words = [
        "sbatch",
        "--parsable",
        "--output=out-%j.txt",
        "--time=5",
        "--nodes=2",
        str(checkout / "slurm/train.sbatch"),
        "case.yaml",
    ]
    job = site.command(*words).out.strip()
    out = site.finish(job)
    site.check(f"case-{job}")
    for node in (
        site.shown(job, "BatchHost"),
        site.cluster.ask("scontrol", "show", "hostnames", site.shown(job, "NodeList")).split()[1],
    ):
        assert f"modules loaded on {node}" in out


@pytest.mark.long
def test_a_node_that_fails_twice_is_left_out(site: Site) -> None:
    site.case()
    site.write("sick.py", f"import sys\nsys.path.insert(0, {str(ROOT / 'tests/chaos')!r})\n" + SICK)
    site.write(
        "case.yaml", (site.path / "case.yaml").read_text().replace(f"{ROOT}/tests/chaos/chaos_tasks.py:Slow", "sick.py:Sick")
    )
    job = site.sbatch("--nodelist=n1,n2,n3 --nodes=3 --cpus-per-task=1")
    out = site.finish(job)
    assert "n1 failed 2 times in this run and is left out" in out
    state = site.check(f"case-{job}")
    assert state["blamed_nodes"] == {"n1": 2}
    assert state["left_out"] == ["n1"]  # also where the script itself runs


SICK = """
import socket
from chaos_tasks import Slow


class Sick(Slow):
    _calls: int = 0

    def loss(self, model, batch):
        self._calls += 1
        if socket.gethostname() == "n1" and self._calls == 25:
            raise RuntimeError("a device of this node fell off the bus")
        return super().loss(model, batch)
"""


@pytest.mark.parametrize(
    ("hidden", "said"),
    [
        (str(ROOT / ".venv"), "n2: found no "),
        ("runs", "n2: {site}/runs is not the folder that the first node has there; write runs=A_SHARED_FOLDER"),
    ],
)
def test_a_node_that_lacks_a_folder_is_said_and_not_requeued(site: Site, hidden: str, said: str) -> None:
    site.case()
    (site.path / "runs").mkdir()
    folder = str(site.path / hidden)
    site.cluster.mount_in("n2", "mount", "-t", "tmpfs", "none", folder)
    try:
        job = site.sbatch("--nodelist=n1,n2 --nodes=2 --cpus-per-task=1")
        out = site.finish(job, "FAILED")
    finally:
        site.cluster.mount_in("n2", "umount", "-l", folder)
    assert said.format(site=site.path) in out
    assert site.shown(job, "ExitCode") == "2:0"
    assert site.shown(job, "Restarts") == "0"
    assert not (site.path / "runs" / f"case-{job}" / "state.json").exists()
