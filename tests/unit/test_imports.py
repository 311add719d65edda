"""Who may import whom: the layers of the design, held by walking every import."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.launch import environment

PACKAGE = Path(__file__).resolve().parents[2] / "adatad_ds"
TESTS = PACKAGE.parent / "tests"
ENTRIES = ("train", "evaluate", "predict")
FLOORS = (
    ("errors", "__init__"),
    ("system",),
    ("config",),
    ("detection",),
    ("recipes", "models", "data"),
    ("weights", "evaluation"),
    ("distributed",),
    ("tasks", "planning"),
    ("runs",),
    ("training", "inference"),
    (*ENTRIES, "cluster", "serving", "sharing"),
    ("cli",),
    ("__main__",),
)
LIBRARIES = ("models", "detection", "data", "evaluation")
MOST_MODULES = 12  # of a folder; cli has one per command


@functools.cache
def imports(path: Path) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def room_of(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def imported_by() -> dict[Path, frozenset[str]]:
    return {path.relative_to(PACKAGE): imports(path) for path in PACKAGE.rglob("*.py")}


def offenders(module: str, allowed: set[str]) -> list[str]:
    return [
        str(path)
        for path, names in imported_by().items()
        if str(path) not in allowed and any(name == module or name.startswith(module + ".") for name in names)
    ]


def test_rooms_import_downwards_alone():
    """From the lowest floor up; a room imports itself and the floors below, not its neighbours."""
    floor_of = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    upwards = [
        f"{path}: {name}"
        for path, names in imported_by().items()
        for name in names
        if name.startswith("adatad_ds.")
        and (other := name.split(".")[1]) != (room := room_of(path))
        and other in floor_of
        and floor_of[other] >= floor_of[room]
    ]
    assert not upwards


def test_every_room_has_its_floor():
    assert {room_of(path) for path in imported_by()} == {room for rooms in FLOORS for room in rooms}


@pytest.mark.slow
def test_each_outside_world_has_one_door():
    assert offenders("deepspeed", {"distributed/engine.py"}) == []
    assert offenders("torch.distributed", {"distributed/world.py"}) == []
    assert offenders("torch.utils.tensorboard", {"training/monitor.py", "cluster/report.py"}) == []


def test_nothing_imports_tools_or_tests():
    assert offenders("tools", set()) == []
    assert offenders("tests", set()) == []


def test_tests_share_through_support_alone():
    """No test imports a test, and no tool either."""
    for path in (*TESTS.rglob("*.py"), *(PACKAGE.parent / "tools").rglob("*.py")):
        shared = {name for name in imports(path) if name.startswith("tests.")}
        own = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        assert not {name for name in shared if not name.startswith(("tests.support", own))}, path


def test_libraries_do_not_read_the_environment():
    for path in imported_by():
        if room_of(path) in LIBRARIES:
            assert not re.search(r"\benviron\b|\bgetenv\b", path_text(path)), path


def test_detection_needs_torch_and_numpy_alone():
    allowed = {"torch", "numpy", "adatad_ds"} | sys.stdlib_module_names
    for path, names in imported_by().items():
        if room_of(path) == "detection":
            assert {name.split(".")[0] for name in names} <= allowed, path


def test_no_folder_is_crowded():
    folders = Counter(path.parent for path in imported_by() if path.name != "__init__.py")
    assert not {
        str(folder): count for folder, count in folders.items() if count > MOST_MODULES and str(folder) != "cli"
    }


def path_text(path: Path) -> str:
    return (PACKAGE / path).read_text()


@pytest.mark.slow
def test_what_takes_seconds_to_import_waits_until_it_is_needed():
    """Every rank and every tool would pay for it."""
    late = ("timm", "torchvision", "transformers", "accelerate", "torch._dynamo")
    used = "adatad_ds.training.session, adatad_ds.inference.prediction"
    code = f"import sys, {used}; print([m for m in {late} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_deepspeed_compiles_nothing_to_ask_about_our_optimizer():
    code = """
import sys
from pathlib import Path
from torch import nn
from adatad_ds.config.schema import Config
from adatad_ds.distributed.average import AverageDecay
from adatad_ds.distributed.ds_config import read_ds_config, resolve_ds_config
from adatad_ds.distributed.engine import Engine
from adatad_ds.distributed.world import World
from adatad_ds.training.optim import parameter_groups

world, config = World.join(), Config()
ds_config = resolve_ds_config(read_ds_config(Path("ds_configs/zero1.json")), config=config, ranks=1, cuda=False)
model = nn.Linear(2, 2)
Engine(
    model=model,
    groups=parameter_groups(model, config.train),
    average=AverageDecay(config.train.ema_decay),
    train=config.train,
    ds_config=ds_config,
    world=world,
)
print("torch._inductor.lowering" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.stdout.split()[-1:] == ["False"], done.stderr


@pytest.mark.slow
def test_text_files_are_utf8_whatever_the_locale():
    """Names of videos and classes may be in any script."""
    unsaid = []
    for path in (*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "tools").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            words = ast.unparse(call)
            of_files = call.func.attr in ("read_text", "write_text") or (
                call.func.attr == "open"
                and not words.startswith(("av.", "os.", "Image.", "files.", "sources.", "archive."))
            )
            if of_files and "encoding=" not in words and not any(mode in words for mode in ("'rb'", "'wb'", "'ab'")):
                unsaid.append(f"{path.name}, line {call.lineno}: {words}")
    assert not unsaid


def test_every_program_runs_in_utf8():
    tools = (PACKAGE.parent / "tools").rglob("*.py")
    entries = [path for path in tools if "__main__" in path.read_text(encoding="utf-8")]
    entries += [PACKAGE / f"{name}.py" for name in (*ENTRIES, "__main__")]
    assert len(entries) > 10
    for path in entries:
        last = ast.parse(path.read_text(encoding="utf-8")).body[-1]
        assert isinstance(last, ast.If), path
        assert ast.unparse(last.test) == "__name__ == '__main__'"
        assert ast.unparse(last.body[0]) == "use_utf8()", path


def test_every_command_runs_in_utf8():
    """Installed, `adatad-ds` calls this function."""
    run = next(
        node
        for node in ast.parse(path_text(Path("__main__.py"))).body
        if isinstance(node, ast.FunctionDef) and node.name == "run"
    )
    assert ast.unparse(run.body[1]) == "use_utf8()"  # after the docstring


def test_modules_stay_small():
    long = {str(path): lines for path in imported_by() if (lines := path_text(path).count("\n")) > 350}
    assert not long, f"is there a second concern inside? {long}"
