"""Who may import whom: the layers of the design, held by walking every import."""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

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
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path: Path) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(parsed(path)):
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
    of_tests = re.compile(r"^\s*(?:from|import) (tests\b[\w.]*)", re.MULTILINE)
    for path in (*TESTS.rglob("*.py"), *(PACKAGE.parent / "tools").rglob("*.py")):
        shared = of_tests.findall(path.read_text(encoding="utf-8"))
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
def test_text_files_are_utf8_whatever_the_locale():
    """Names of videos and classes may be in any script."""
    unsaid = []
    for path in (*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "tools").rglob("*.py")):
        for call in ast.walk(parsed(path)):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            if call.func.attr not in ("read_text", "write_text", "open"):
                continue
            words = ast.unparse(call)
            of_files = call.func.attr != "open" or not words.startswith(
                ("av.", "os.", "Image.", "files.", "sources.", "archive.")
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
        last = parsed(path).body[-1]
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
