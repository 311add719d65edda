"""What a command imports before it works: seconds that everyone waits for, each time. A list, no timing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from adatad_ds.cli.commands import COMMANDS
from tests.support.launch import REPOSITORY, environment

COMPILER = {"torch._dynamo", "torch._inductor", "sympy", "pandas", "triton"}  # nothing here is compiled
DRAWING = {"matplotlib", "PIL"}
TENSORBOARD = {"tensorboard", "torch.utils.tensorboard", "tensorflow"}
DECODERS = {"av", "decord", "torchcodec"}
MODELS = {"timm", "transformers", "torchvision", "accelerate"}
HEAVY = {"torch", "deepspeed", "scipy"} | COMPILER | DRAWING | TENSORBOARD | DECODERS | MODELS


def imported(code: str) -> set[str]:
    """Heavy libraries in a process after it has run the code."""
    heavy = f"*({HEAVY!r} & sys.modules.keys())"
    report = f"import atexit, sys; atexit.register(lambda: print('\\n@', {heavy}, file=sys.stderr))"
    done = subprocess.run(
        [sys.executable, "-c", f"{report}\n{code}"],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].removeprefix("@").split())


def entry(name: str, *arguments: str) -> str:
    """Code that runs one of the three entry files as a launcher does."""
    return (
        f"import runpy; sys.argv = {[name, *arguments]!r}; runpy.run_path('adatad_ds/{name}.py', run_name='__main__')"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--list-recipes",),
        ("--recipe", "quickstart", "--print-config"),
        ("--recipe", "quickstart", "--diff", "quickstart_frozen"),
    ],
    ids=" ".join,
)
def test_train_says_what_it_knows_without_pytorch(arguments):
    assert imported(entry("train", *arguments)) == set()


@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_entries_help_without_pytorch(name):
    assert imported(entry(name, "--help")) == set()


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=" ".join)
def test_every_command_helps_without_pytorch(command):
    code = f"sys.argv = {['adatad-ds', *command, '--help']!r}; from adatad_ds.__main__ import run; run()"
    assert imported(code) == set()


@pytest.mark.slow
def test_a_dry_run_needs_pytorch_alone():
    assert imported(entry("train", "--recipe", "quickstart", "--dry-run")) == {"torch"}


@pytest.mark.slow
def test_a_rank_starts_with_pytorch_deepspeed_and_a_decoder():
    """Backward passes through kept and recomputed graphs need no more; what detects in files draws, too."""
    code = f"""
import adatad_ds.training.session
import torch
from adatad_ds.models.execution.graphs import OnceAccumulated, build_graph

layer, tokens = torch.nn.Linear(2, 2), torch.ones(1, 2, 3, 2)
for last in (False, True):
    graph, out = build_graph(lambda tokens, context, start: layer(tokens), (0, 2), tokens, (0, 0))
    OnceAccumulated(layer.parameters()).differentiate(graph.root, torch.ones_like(out), graph.tokens, last=last)
found = {HEAVY!r} & sys.modules.keys()
assert found == {{"torch", "deepspeed", "av"}}, found
import adatad_ds.inference.prediction
"""
    assert not imported(code) & (MODELS | COMPILER)


@pytest.mark.slow
def test_a_worker_starts_with_pytorch_and_a_decoder():
    """Its server preloads these; the rank's main module, which each worker imports too, adds nothing."""
    code = "import importlib; from adatad_ds.data.loader import PRELOADED; [*map(importlib.import_module, PRELOADED)]"
    assert imported(f"{code}\nimport adatad_ds.train") == {"torch", "av"}


@pytest.mark.slow
def test_the_library_is_there_when_asked_for():
    code = "from adatad_ds.predict import load_detector, Detection, VideoDetector; assert callable(load_detector)"
    assert "deepspeed" not in imported(code)


@pytest.mark.slow
def test_no_rank_imports_what_would_compile():
    """From the engine's start to a step, each stage of ZeRO, in fp32 and in bf16; DeepSpeed itself looks for Triton."""
    code = f"""
from pathlib import Path
import torch
from torch import nn
from adatad_ds.config.schema import Config, TrainConfig
from adatad_ds.distributed.average import AverageDecay
from adatad_ds.distributed.ds_config import read_ds_config, resolve_ds_config
from adatad_ds.distributed.engine import Engine
from adatad_ds.distributed.world import World
from adatad_ds.training.optim import parameter_groups

world = World.join()
for stage, precision in ((1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16")):
    config = Config(train=TrainConfig(precision=precision))
    source = read_ds_config(Path(f"ds_configs/zero{{stage}}.json"))
    model = nn.Linear(2, 2)
    engine = Engine(
        model=model,
        groups=parameter_groups(model, config.train),
        average=AverageDecay(config.train.ema_decay),
        train=config.train,
        ds_config=resolve_ds_config(source, config=config, ranks=1, cuda=False),
        world=world,
    )
    for _ in range(engine.accumulation):
        engine.backward(engine(torch.ones(1, 2, dtype=config.train.dtype)).sum())
        engine.step()
    assert engine.step_taken
    engine.close()
    compiling = {(COMPILER - {"triton"})!r} & sys.modules.keys()
    assert not compiling, f"stage {{stage}} in {{precision}} imports {{compiling}}"
"""
    assert imported(code) & COMPILER <= {"triton"}
