"""Options that would change nothing, or say the same as another one, are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from adatad_ds import evaluate
from adatad_ds.cli.commands import main
from adatad_ds.distributed.world import World
from adatad_ds.errors import ConfigError, UserError
from adatad_ds.predict import load_detector
from adatad_ds.train import main as train
from tests.support.exports import CLASSES, make_export


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_export(tmp_path_factory.mktemp("options") / "mine.safetensors")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("plan --recipe quickstart --grid --gpus 8", "--gpus would change nothing: --grid is of many"),
        ("plan --recipe quickstart --grid --gpu H100-80", "--gpu would change nothing"),
        ("extract-features --recipe quickstart_frozen --out x --no-ema", "--no-ema goes with --checkpoint"),
    ],
)
def test_of_commands(command: str, said: str, capsys: pytest.CaptureFixture[str]):
    assert main(command.split()) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--idle-sec 3", "--idle-sec would change nothing: it is for --live"),
        ("--input-format mpegts", "--input-format would change nothing: it is for --live"),
        ("--embed-mb 3", "--embed-mb would change nothing: it is for the pages of --html"),
        ("--live --html --embed-mb 3", "--embed-mb would change nothing"),
        ("--live -o there", "--output would change nothing: --live writes no file without --html"),
        ("--recipe quickstart", "--recipe quickstart: mine.safetensors has its own settings"),
    ],
)
def test_of_prediction(options: str, said: str, export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from adatad_ds.predict import main as predict

    (tmp_path / "one.mp4").touch()
    assert predict([str(tmp_path / "one.mp4"), "--checkpoint", str(export), *options.split()]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "options", "said"),
    [
        ("found.json", "--no-ema", "--no-ema is for models; found.json holds finished detections"),
        ("found.json", "--save-candidates", "--save-candidates is for models"),
        ("raw.npz", "--no-ema", "--no-ema is for models; raw.npz holds candidates"),
        ("raw.npz", "--save-candidates", "--save-candidates is for models"),
        ("raw.npz", "--recipe quickstart", "--recipe is for models"),
        ("runs/a", "--subset test --set data.test_subset=validation", "--subset and --set data.test_subset are two"),
        ("runs/a", "--annotations a --set data.annotations=b", "--annotations and --set data.annotations are two"),
        ("runs/a", "--classes a --set data.classes=[b]", "--classes and --set data.classes are two"),
        ("mine.safetensors", "--recipe quickstart", "--recipe quickstart: mine.safetensors has its own settings"),
        ("mine.safetensors", "--set data.classes=[a,b]", "has classes of its own, 5 in the order of its logits"),
    ],
)
def test_of_evaluation(path: str, options: str, said: str, export: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(export.parent)
    world = World(rank=0, size=1, device=torch.device("cpu"))
    with pytest.raises(ConfigError) as refused:
        evaluate.run(evaluate.make_parser().parse_args([path, *options.split()]), world=world)
    assert said in str(refused.value)


def test_a_models_own_classes_may_be_named(export: Path):
    own = f"data.classes={json.dumps(CLASSES)}"
    assert load_detector(export, overrides=[own]).classes == CLASSES
    with pytest.raises(UserError, match="has classes of its own"):
        load_detector(export, overrides=["data.classes=[up,right,left,grow,blink]"])


def test_of_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "classes.txt").write_text("a\nb\n")
    given = ["--recipe", "quickstart", "--classes", str(tmp_path / "classes.txt")]
    assert train([*given, "--print-config"]) == 0
    assert train([*given, "--set", "data.classes=[]", "--print-config"]) == 0  # as in a config that is repeated whole
    assert train([*given, "--set", "data.classes=[c]", "--print-config"]) == 2
    assert "--classes and --set data.classes are two ways to say the same" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train([*given, "--print-config", "--dry-run"])
    assert "not allowed with argument" in capsys.readouterr().err
