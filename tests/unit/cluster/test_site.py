"""What slurm/site.env may say of a cluster."""

from __future__ import annotations

import pytest

from adatad_ds.cluster.site import read_site, seconds_in
from adatad_ds.errors import ConfigError


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
