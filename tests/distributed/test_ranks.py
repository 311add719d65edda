"""Ranks fail together, are heard, and do not wait for ever. Two real processes, without a launcher."""

from __future__ import annotations

import pytest

from tests.support.launch import run_ranks

ERRORS = """
import json
from adatad_ds.errors import ConfigError
from adatad_ds.distributed.world import World
from adatad_ds.errors import RankError
from adatad_ds.distributed.process import report_error

world = World.join()


def told(action):
    try:
        action()
    except (RankError, ConfigError) as error:
        return f"{error} <- {type(error.__cause__).__name__}"


# An error that no string can make again; one of all alike; one among the items of an iterator.
print(told(lambda: world.attempt(lambda: json.loads("{") if world.rank == 1 else 1)))
print(told(lambda: world.attempt(lambda: open("/nowhere"))))


def items():
    yield 1
    if world.rank == 1:
        raise ConfigError("item 2 is bad")
    yield 2


print(told(lambda: print(list(world.together([3, 4]))) or list(world.together(items()))))
print(told(lambda: world.same(world.rank, what="clocks")))
world.same([1, 2], what="clocks")

# Said once where all have it, by one rank alone where it is its own.
error = ConfigError("of all")
if world.rank == 0:
    import time; time.sleep(1)
report_error(error, world)
if world.rank == 1:
    print("code", report_error(ValueError("a mistake of ours"), world))
world.leave()
"""


@pytest.mark.slow
def test_errors_cross_ranks_and_are_said_once(tmp_path):
    (code_0, first), (code_1, second) = run_ranks(ERRORS, tmp_path)
    assert (code_0, code_1) == (0, 0), first + second
    of_json = "rank 1: JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    alike = "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere'"
    settings = (
        "rank 1 sees different clocks from rank 0: are the files the same on all nodes, and is none being written?"
    )
    assert first.splitlines()[:5] == [
        f"{of_json} <- NoneType",
        f"{alike} <- FileNotFoundError",
        "[3, 4]",
        "rank 1: item 2 is bad <- NoneType",
        f"{settings} <- NoneType",
    ]
    assert f"{of_json} <- JSONDecodeError" in second
    assert "rank 1: item 2 is bad <- ConfigError" in second
    assert (first + second).count("of all") == (first + second).count("error: of all") == 1
    assert "ValueError: a mistake of ours" in second
    assert "Traceback" not in first
    assert "code 1" in second


LATE = """
import sys, time
from adatad_ds.distributed.process import end_process, report_error
from adatad_ds.distributed.world import World
from adatad_ds.errors import ConfigError, RankError

world = World.join()
error = ConfigError("of all")
try:
    world.raise_anywhere(RankError("agreed") if KIND == "agreed" else None)
except RankError as agreed:
    error = agreed
time.sleep(3 * world.rank)
end_process(report_error(error, world))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["agreed", "of its own"])
def test_said_once_however_late_a_rank_comes(kind, tmp_path):
    """Also where rank 0, in which the store lives, has said it long before."""
    (code_0, first), (code_1, second) = run_ranks(f"KIND = {kind!r}\n{LATE}", tmp_path)
    assert (code_0, code_1) == (2, 2), first + second
    assert (first + second).count("error: ") == 1, first + second


HANG = """
import threading, time
from adatad_ds.distributed.world import World

world = World.join()
world.allow(hang_timeout_sec=3)


def step():
    for _ in range(8):  # slow, and no hang: it moves
        time.sleep(0.7 * world.rank)
        world.sum(1.0)
    print("moved", flush=True)
    if world.rank == 1:
        time.sleep(600)
    world.sum(1.0)


threading.Thread(target=time.sleep, args=(600,), name="another thread", daemon=True).start()
step()
"""


@pytest.mark.slow
def test_a_rank_that_waits_too_long_says_where_and_ends(tmp_path):
    (code_0, first), (code_1, second) = run_ranks(HANG, tmp_path)
    assert code_0 == 1, first
    assert code_1 is None
    assert second.strip().endswith("moved")
    assert "error: rank 0 has waited" in first
    assert "(train.hang_timeout_sec) for the other ranks in all_reduce (distributed_c10d.py:" in first
    assert "called by sum (world.py:" in first
    assert first.count("most recent call first") >= 2  # the stacks of all threads
