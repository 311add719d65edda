"""What slurm/site.env may say of a cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adatad_ds.cluster.grid import Cell, Grid
from adatad_ds.cluster.site import read_site, seconds_in
from adatad_ds.cluster.submission import sbatch, site_again
from adatad_ds.errors import ConfigError
from tests.support.site import executable


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("90", 5400), ("6:30", 390), ("1:30:00", 5400), ("2-12", 216000), ("1-0:01", 86460), ("1-00:00:05", 86405)],
)
def test_time_limits(limit, seconds):
    assert seconds_in(limit) == seconds


@pytest.mark.parametrize("limit", ["UNLIMITED", "0", "", "1:2:3:4", "tomorrow"])
def test_no_time_limits(limit):
    assert seconds_in(limit) is None


@pytest.fixture
def settings(monkeypatch):
    """Sets those of a site with CPUs, which need no sinfo."""

    def put(**values: str) -> None:
        for name, value in ({"GPUS_PER_NODE": "0", "CPUS_PER_RANK": "1"} | values).items():
            monkeypatch.setenv(name, value)

    return put


def test_a_time_limit_leaves_time_before_the_warning(settings):
    settings(TIME_LIMIT="00:06:00")
    assert read_site([]).options == ("--time=00:06:00", "--signal=B:USR1@180")
    settings(TIME_LIMIT="5")
    with pytest.raises(ConfigError, match=r"TIME_LIMIT=5 leaves a job no time to train, .*take at least 6 minutes"):
        read_site([])
    settings(TIME_LIMIT="5", WARNING_SEC="120")
    assert read_site([]).options == ("--time=5", "--signal=B:USR1@120")


@pytest.mark.parametrize(
    ("value", "said"), [("2 4", "RANKS_PER_NODE=2 4 must be one number"), ("two", "must be whole numbers")]
)
def test_what_is_no_number(value, said, settings):
    settings(RANKS_PER_NODE=value)
    with pytest.raises(ConfigError, match=said):
        read_site([])


def test_several_partitions(settings, tmp_path, monkeypatch):
    """sbatch takes the one that starts first; the job asks for the GPUs of the fullest nodes."""
    executable(tmp_path, "sinfo", "all*|8|(null)\ngpu|64|gpu:h100:8\nold|64|gpu:v100:4")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    settings(GPUS_PER_NODE="", PARTITION="old,gpu")
    site = read_site(["thumos14_videomae_s"])
    assert (site.gpus_per_node, site.gpu) == (8, "h100")
    assert "--partition=old,gpu" in site.options
    settings(GPUS_PER_NODE="", PARTITION="old,cpu,all")
    with pytest.raises(ConfigError, match="there is no partition cpu; set PARTITION"):
        read_site([])
    settings(GPUS_PER_NODE="", PARTITION="")
    with pytest.raises(ConfigError, match="the default partition have no GPUs"):
        read_site([])


@pytest.fixture
def submitted(settings, tmp_path, monkeypatch):
    """A grid that was submitted with a container and a time limit of its own; what is set now: TIME_LIMIT's default."""
    settings(CONTAINER="apptainer exec image.sif", TIME_LIMIT="48:00:00", MEM_PER_NODE="400G")
    cells = (Cell(name="a", recipe="quickstart", assignments=(), nodes=1),)
    grid = Grid(tmp_path / "grid", read_site([]), cells)
    grid.write()
    settings(CONTAINER="", TIME_LIMIT="24:00:00", MEM_PER_NODE="", SETTINGS_GIVEN="PATH HOME")
    return Grid.read(grid.folder)


def test_again_as_it_was_submitted(submitted):
    said = []
    assert site_again(submitted, report=said.append) == submitted.site
    assert said == []
    command = sbatch(submitted, 1, [0])
    assert {"--time=48:00:00", "--mem=400G"} < set(command)
    assert command[-3:] == [str(submitted.folder), "apptainer exec image.sif", ""]


def test_again_with_what_is_set_now(submitted, settings):
    said = []
    settings(SETTINGS_GIVEN="MEM_PER_NODE CONTAINER GPUS_PER_NODE", MEM_PER_NODE="800G", PARTITION="gpu")
    file = submitted.folder / "code/slurm/site.env"  # the clone's is another since
    file.write_text(file.read_text().replace("${PARTITION:=}", "${PARTITION:=old}"))
    site = site_again(submitted, report=said.append)
    assert site == replace(submitted.site, mem_per_node="800G", container="", partition="")
    assert said == [
        "changed: MEM_PER_NODE=800G, before 400G",
        "changed: CONTAINER='', before 'apptainer exec image.sif'",
    ]


def test_again_on_what_the_cells_were_not_planned_for(submitted, settings):
    settings(SETTINGS_GIVEN="RANKS_PER_NODE", RANKS_PER_NODE="4")
    with pytest.raises(ConfigError, match=r"were planned for RANKS_PER_NODE=2, now it is RANKS_PER_NODE=4; unset that"):
        site_again(submitted, report=print)
