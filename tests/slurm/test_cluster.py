"""A real Slurm cluster of two nodes on this machine (cluster.sh): submit, finish, be preempted, crash, fail, go on.

Needs root and Slurm's packages: apt-get install munge slurmctld slurmd slurm-client iproute2.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.launch import REPOSITORY, SMALL, losses

CLUSTER = REPOSITORY / "tests/slurm/cluster.sh"
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare", "nsenter", "ip")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
LACKING = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.skipif(bool(LACKING) or os.geteuid() != 0, reason=f"needs root and Slurm; lacking: {LACKING}"),
]

SITE = {
    "GPUS_PER_NODE": "0",
    "RANKS_PER_NODE": "1",
    "NODES": "2",
    "CPUS_PER_RANK": "1",
    "TIME_LIMIT": "00:20:00",
    "DS_CONFIG": "ds_configs/zero3.json",
    "RECIPE": "quickstart",
    "RESOLUTIONS": "32",
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The cluster, up; and a clone that submits, so that its runs/ is the test's own."""
    folder = tmp_path_factory.mktemp("slurm")
    clone = folder / "clone"
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True)
    for part in ("adatad_ds", "ds_configs", "slurm", "tools"):  # as it is here, committed or not
        shutil.copytree(REPOSITORY / part, clone / part, dirs_exist_ok=True)
    (clone / ".venv").symlink_to(Path(sys.prefix))
    place = Path(tempfile.mkdtemp(prefix="slurm-lab-"))  # munged wants a path that all may enter, pytest's are private
    place.chmod(0o755)
    lab = Cluster(place, clone)
    started = lab.call("start")
    assert started.returncode == 0, started.stdout + started.stderr
    yield lab
    lab.call("stop")
    shutil.rmtree(place)


class Cluster:
    """cluster.sh, called."""

    def __init__(self, lab: Path, clone: Path) -> None:
        self.clone = clone
        self._environment = {
            name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        } | {"SLURM_LAB": str(lab), "NODES": "2", "GPUS": "0", "CPUS": "8", "MEM_MB": "20000", "PATH": PATH}

    def call(
        self, *arguments: str, timeout: float = 600, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of cluster.sh in the clone."""
        return subprocess.run(
            ["bash", str(CLUSTER), *arguments],
            cwd=self.clone,
            env=self._environment | dict(environment or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def sbatch(self, script: str, *arguments: str, **environment: str) -> tuple[int, str]:
        """Submit a script that submits, wait for it; its exit code and its output."""
        done = self.call("submit", "-t", "120", script, *arguments, environment=SITE | environment)
        outputs = sorted(self.clone.glob("slurm-*.out"), key=lambda path: path.stat().st_mtime)
        return done.returncode, f"{outputs[-1].read_text() if outputs else ''}{done.stderr}"

    def wait(self, job: str, seconds: int = 400) -> subprocess.CompletedProcess[str]:
        """Until all tasks of a job have ended."""
        return self.call("wait", job, str(seconds), timeout=seconds + 30)

    def run(self, grid: str, cell: str) -> Path:
        """A cell's folder."""
        return self.clone / "runs" / grid / cell


def small(data: Path, **changes: object) -> str:
    """SET for a training of seconds."""
    settings = SMALL | {"data.annotations": data / "annotations.json", "data.videos": data / "videos"}
    settings = {name: value for name, value in settings.items() if name not in ("data.window_size", "data.resolution")}
    settings |= {"data.short_side_before_crop": 36, "train.eval_from_epoch": 100}
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    return " ".join(f"{name}={value}" for name, value in settings.items())


def job_of(output: str) -> str:
    """The submitted job's number."""
    found = re.search(r"submitted as job (\d+)", output)
    assert found, output
    return found.group(1)


def until(condition, seconds: float = 200) -> None:
    """Wait for something to be so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)


def scalars(run: Path, tag: str) -> list:
    """A curve as TensorBoard shows it."""
    board = EventAccumulator(str(run))
    board.Reload()
    return board.Scalars(tag)


def logged(run: Path, step: int) -> bool:
    log = run / "log.jsonl"
    return log.exists() and any(f'"step": {step},' in line for line in log.read_text().splitlines())


def test_a_grid_finishes_and_is_reported(cluster, small_videos):
    code, output = cluster.sbatch("slurm/scale_frames.sh", SET=small(small_videos), FRAMES="32 64 128", GRID="grid")
    assert code == 0, output
    (cluster.clone / "adatad_ds/train.py").write_text(
        "raise SystemExit('the clone was edited')\n"
    )  # queued jobs do not care
    done = cluster.wait(job_of(output))
    shutil.copy(REPOSITORY / "adatad_ds/train.py", cluster.clone / "adatad_ds/train.py")
    assert done.returncode == 0, f"{done.stdout}{(cluster.clone / 'runs/grid/cells/0.out').read_text()[-3000:]}"
    report = subprocess.run(
        [sys.executable, "-m", "adatad_ds", "slurm", "report", "runs/grid"],
        cwd=cluster.clone,
        capture_output=True,
        text=True,
    )
    assert report.stdout.count("| finished |") == 3, report.stdout + report.stderr
    rows = (cluster.clone / "runs/grid/report.csv").read_text().splitlines()
    for row in rows[1:]:
        name, *_, map_ = row.split(",")
        evaluations = sorted(cluster.run("grid", name).glob("evaluations/*/metrics.json"))
        assert float(map_) == max(json.loads(path.read_text())["average_mAP"] for path in evaluations)
    assert (cluster.clone / "runs/grid/report.png").stat().st_size > 5000
    versions = json.loads((cluster.run("grid", "quickstart_32f_32px") / "versions.json").read_text())
    assert versions["environment"]["SLURM_JOB_NUM_NODES"] == "2"
    assert versions["git"]
    hosts = (cluster.clone / "runs/grid/cells/0.out").read_text()
    assert "node[1-2]" in hosts


LONG = {"train__stop_epoch": 10, "train__schedule_epochs": 10}  # 20 steps, time enough to be disturbed
LONG_CELL = "quickstart_32f_32px"


@pytest.fixture(scope="module")
def undisturbed(cluster, small_videos):
    """Losses of a run that nothing happened to."""
    code, output = cluster.sbatch("slurm/scale_frames.sh", SET=small(small_videos, **LONG), FRAMES="32", GRID="whole")
    assert code == 0, output
    assert cluster.wait(job_of(output)).returncode == 0
    return losses(cluster.run("whole", LONG_CELL))


def test_preempted_goes_on_bit_by_bit(undisturbed, cluster, small_videos):
    code, output = cluster.sbatch(
        "slurm/scale_frames.sh", SET=small(small_videos, **LONG), FRAMES="32", GRID="preempted"
    )
    assert code == 0, output
    run = cluster.run("preempted", LONG_CELL)
    until(lambda: logged(run, 1))
    urgent = cluster.call("submit", "-p", "urgent", "--nodes=2", "--exclusive", "--wrap", "sleep 1")
    assert urgent.returncode == 0, urgent.stderr
    done = cluster.wait(job_of(output))
    assert done.returncode == 0, done.stdout
    assert "Restarts=1" in done.stdout
    assert (run / "slurm_jobs.txt").read_text().count("NodeList=node[1-2]") == 2
    assert losses(run) == undisturbed
    steps = [event.step for event in scalars(run, "loss/total")]
    assert steps == list(range(len(undisturbed)))


def test_after_a_crash_goes_on_from_the_last_checkpoint(undisturbed, cluster, small_videos):
    settings = small(small_videos, train__checkpoint_every_steps=1, **LONG)
    code, output = cluster.sbatch("slurm/scale_frames.sh", SET=settings, FRAMES="32", GRID="crash")
    assert code == 0, output
    run, job = cluster.run("crash", LONG_CELL), job_of(output)
    until(lambda: logged(run, 3))
    cluster.call("crash", "node2")
    until(lambda: "Restarts=0" not in cluster.call("exec", "scontrol", "show", "job", job).stdout)
    cluster.call("revive", "node2")
    done = cluster.wait(job)
    # Slurm repeats the end of the old step after a minute: it may meet the new one, which then is queued once more.
    assert done.returncode == 0, f"{done.stdout}{(cluster.clone / 'runs/crash/cells/0.out').read_text()[-3000:]}"
    assert losses(run) == undisturbed
    steps = [event.step for event in scalars(run, "loss/total")]
    assert steps == list(range(len(undisturbed)))


def test_asked_and_terminated_is_queued_again(undisturbed, cluster, small_videos):
    """A stuck rank cannot save before the time is up; then the job starts again."""
    settings = small(small_videos, train__checkpoint_every_steps=1, **LONG)
    code, output = cluster.sbatch(
        "slurm/scale_frames.sh", SET=settings, FRAMES="32", GRID="late", TIME_LIMIT="00:02:00", WARNING_SEC="60"
    )
    assert code == 0, output
    run, job = cluster.run("late", LONG_CELL), job_of(output)
    until(lambda: logged(run, 1))
    commands = {process: " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])}
    ranks = [process for process, command in commands.items() if "train.py" in command and str(run) in command]
    ranks[-1].suspend()
    until(lambda: "Restarts=1" in cluster.call("exec", "scontrol", "show", "job", job).stdout, seconds=300)
    assert cluster.wait(job).returncode == 0
    assert losses(run) == undisturbed


def test_a_cancelled_job_stays_cancelled(cluster, small_videos):
    code, output = cluster.sbatch("slurm/scale_frames.sh", SET=small(small_videos, **LONG), FRAMES="32", GRID="gone")
    assert code == 0, output
    run, job = cluster.run("gone", LONG_CELL), job_of(output)
    until(lambda: logged(run, 1))
    cluster.call("exec", "scancel", "--batch", "--signal=USR1", job)
    cluster.call("exec", "scancel", job)
    cluster.wait(job)
    shown = cluster.call("exec", "scontrol", "show", "job", job).stdout
    assert "JobState=CANCELLED" in shown
    assert "Restarts=0" in shown


def test_a_failed_cell_alone_is_submitted_again(cluster, small_videos, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(small_videos, data)
    victim = sorted((data / "videos").glob("training*"))[0]
    annotations = json.loads((data / "annotations.json").read_text())
    entry = annotations["database"][victim.stem]
    entry.setdefault("frame", round(entry["duration"] * entry.get("fps", 25)))  # not asked of the file
    (data / "annotations.json").write_text(json.dumps(annotations))
    kept = victim.read_bytes()
    victim.write_bytes(b"broken")
    settings = small(data, data__max_failed_videos=0)
    code, output = cluster.sbatch("slurm/scale_frames.sh", SET=settings, FRAMES="32", GRID="again")
    assert code == 0, output
    assert cluster.wait(job_of(output)).returncode != 0
    run = cluster.run("again", "quickstart_32f_32px")
    assert (run / "failed").exists()
    victim.write_bytes(kept)
    code, output = cluster.sbatch("slurm/again.sh", "runs/again", MEM_PER_NODE="1500M")  # all that failed
    assert code == 0, output
    assert "changed: MEM_PER_NODE=1500M, before ''" in output
    assert "MinMemoryNode=1500M" in cluster.call("exec", "scontrol", "show", "job", job_of(output)).stdout
    assert cluster.wait(job_of(output)).returncode == 0
    assert not (run / "failed").exists()
    code, output = cluster.sbatch("slurm/again.sh", "runs/again")
    assert code != 0
    assert "error: no cell of runs/again has failed" in output


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"MEM_PER_NODE": "9000G"}, r"Slurm refuses: .*(node configuration|emory)"),
        ({"SET": "data.annotations=/nowhere.json"}, r"error: .*/nowhere\.json"),
        ({"RECIPE": "quickstrat"}, r"error: there is no recipe 'quickstrat'; did you mean quickstart"),
        ({"GPUS_PER_NODE": "8"}, r"error: the nodes of the default partition have no GPUs.*GPUS_PER_NODE=0"),
        ({"FRAMES": "100"}, r"error: FRAMES: .*cannot be seen in 100 frames"),
    ],
)
def test_what_cannot_run_fails_at_once_with_one_message(environment, said, cluster, small_videos):
    settings = {"SET": small(small_videos), "FRAMES": "64", "GRID": "never"} | environment
    code, output = cluster.sbatch("slurm/scale_frames.sh", **settings)
    assert code != 0
    assert re.search(said, output, re.DOTALL), output
    assert "Traceback" not in output
    assert not (cluster.clone / "runs/never").exists()


def test_dry_run_submits_nothing(cluster, small_videos):
    code, output = cluster.sbatch(
        "slurm/scale_models.sh", "--dry-run", SET=small(small_videos), FRAMES="64", GRID="dry"
    )
    assert code == 0, output
    assert "--array=0" in output
    assert "quickstart_64f_32px" in output
    assert not (cluster.clone / "runs/dry").exists()


def test_one_run_of_a_recipe(cluster, small_videos):
    """From a login node of a site that has jobs begin with an environment of their own."""
    settings = {"SET": small(small_videos, data__resolution=32, train__stop_epoch=1), "SBATCH_EXPORT": "NONE"}
    settings |= {"CONTAINER": "env OMP_SET_BY=container"}
    command = ("slurm/train.sh", "--name", "one", "--recipe", "quickstart", "--set", "data.window_size=32")
    done = cluster.call("exec", "bash", *command, environment=SITE | settings)
    assert done.returncode == 0, done.stderr
    assert cluster.wait(job_of(done.stdout)).returncode == 0
    run = cluster.run("one", "run")
    assert losses(run)
    assert json.loads((run / "versions.json").read_text())["environment"]["OMP_SET_BY"] == "container"
