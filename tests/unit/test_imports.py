"""Who may import whom: the layers of the design, held by walking every import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from tests.distributed.launch import environment

PACKAGE = Path(__file__).resolve().parents[2] / "adatad_ds"
LAYERS = ("models", "detection", "data", "evaluation")  # libraries: nothing from the outside world
ENTRIES = ("train", "evaluate", "predict")


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_by() -> dict[Path, set[str]]:
    return {path.relative_to(PACKAGE): imports(path) for path in PACKAGE.rglob("*.py")}


def offenders(module: str, allowed: set[str]) -> list[str]:
    return [
        str(path)
        for path, names in imported_by().items()
        if str(path) not in allowed and any(name == module or name.startswith(module + ".") for name in names)
    ]


def test_deepspeed_only_in_engine():
    assert offenders("deepspeed", {"distributed/engine.py"}) == []


def test_torch_distributed_only_in_world():
    assert offenders("torch.distributed", {"distributed/world.py"}) == []


def test_nothing_imports_the_entries():
    for entry in ENTRIES:
        assert offenders(f"adatad_ds.{entry}", set()) == []


def test_libraries_do_not_look_outside():
    outside = {
        "adatad_ds.distributed.world",
        "adatad_ds.distributed.engine",
        "adatad_ds.training.monitor",
        "adatad_ds.runs.checkpoint",
        "os.environ",
    }
    for path, names in imported_by().items():
        if path.parts[0] in LAYERS:
            assert not {name for name in names if name in outside or name.startswith("adatad_ds.distributed.engine")}, (
                path
            )
            assert "environ" not in path_text(path), path


def path_text(path: Path) -> str:
    return (PACKAGE / path).read_text()


def test_detection_and_models_know_nothing_of_data_and_evaluation():
    for path, names in imported_by().items():
        if path.parts[0] in ("models", "detection"):
            assert not {n for n in names if n.startswith(("adatad_ds.data", "adatad_ds.evaluation"))}, path
        if path.parts[0] == "data":
            assert not {n for n in names if n.startswith(("adatad_ds.models", "adatad_ds.evaluation"))}, path
        if path.parts[0] == "detection":
            assert not {n for n in names if n.startswith("adatad_ds.models")}, path


def test_what_takes_seconds_to_import_waits_until_it_is_needed():
    """Every rank and every tool would pay for it."""
    late = ("timm", "torchvision", "transformers", "accelerate", "torch._dynamo")
    code = f"import sys, adatad_ds.train, adatad_ds.predict; print([m for m in {late} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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


def test_text_files_are_utf8_whatever_the_locale():
    """Names of videos and classes may be in any script."""
    unsaid = []
    for path in (*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "tools").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            words = ast.unparse(call)
            of_files = call.func.attr in ("read_text", "write_text") or (
                call.func.attr == "open" and not words.startswith(("av.", "os.", "Image."))
            )
            if of_files and "encoding=" not in words and not any(mode in words for mode in ("'rb'", "'wb'")):
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
