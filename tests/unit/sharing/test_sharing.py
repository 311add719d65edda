"""Models to the hub and back, by its own library, against a stand-in of the hub on this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from adatad_ds.cli.commands import main
from adatad_ds.errors import CheckpointError
from adatad_ds.inference.trained_model import Trained, find_trained, load_model
from adatad_ds.predict import load_detector
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.sharing.model_card import model_card
from adatad_ds.weights.files import open_tensors
from adatad_ds.weights.loading import tensor_hash
from tests.support.exports import CLASSES, make_export
from tests.support.hub import OWNER, TOKEN, Hub, running_hub
from tests.support.launch import REPOSITORY

BACKBONE = REPOSITORY / "adatad_ds" / "weights" / "tiny.safetensors"
NAME = f"{OWNER}/actions"
METRICS = {"average_mAP": 0.625, "mAP@0.5": 0.75, "recall@0.5@1": 0.875}


def point_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does when the library is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The library's hub is one on this machine, and its cache and token are the test's."""
    with running_hub() as running:
        point_to(running.address, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # another protocol for large files, of the real hub
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.chdir(tmp_path)
        yield running


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """An export as a run's is: trained on frozen weights that it knows again, evaluated, on a machine with a name."""
    path = make_export(tmp_path / "exports" / "mine.safetensors", data__annotations="/home/ada/thumos14.json")
    beside = path.with_suffix(".json")
    beside.write_text(
        json.dumps(
            json.loads(beside.read_text())
            | {
                "frozen_fingerprint": {name: tensor_hash(tensor) for name, tensor in load_file(BACKBONE).items()},
                "metrics": METRICS,
                "versions": {
                    "python": "3.11",
                    "host": "node17",
                    "command": ["x"],
                    "environment": {"SLURM_USER": "ada"},
                },
            }
        )
    )
    return path


def said(words: Sequence[object], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of error that a command ends with."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    *progress, line = re.split(r"[\r\n]+", capsys.readouterr().err.strip())
    assert line.startswith("error: ")
    assert not any("Traceback" in other for other in progress)
    return line.removeprefix("error: ")


def done(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


@pytest.mark.slow
def test_to_the_hub_and_back(hub: Hub, export: Path, tmp_path: Path):
    done("push", export, f"hub:{NAME}")
    files = hub.repositories[NAME]
    assert set(files) == {"model.safetensors", "model.json", "README.md"}
    assert list(hub.stored.values()) == [export.read_bytes()]  # sent as a large file
    card = files["README.md"].decode()
    done("pull", f"hub:{NAME}", "--out", "actions")
    assert {path.name: path.read_bytes() for path in (tmp_path / "actions").iterdir()} == files
    assert hub.address not in card
    # How to load it in three lines, as the card says.
    assert f"```bash\nadatad-ds pull hub:{NAME} --out actions\n```" in card
    code = card.partition("```python\n")[2].partition("```")[0]
    assert len(code.splitlines()) == 2
    loaded: dict[str, object] = {}
    exec(code.replace("detections = ", "detector = ").replace('.detect("video.mp4")', ""), loaded)
    detector = loaded["detector"]
    assert isinstance(detector, type(load_detector(export)))
    assert detector.classes == CLASSES


def test_a_backbone_of_the_hub_is_fetched_without_what_is_not_read(hub: Hub, tmp_path: Path):
    """Safetensors where there are any, else PyTorch's file."""
    save_file({"embed": torch.ones(2)}, tmp_path / "model.safetensors")
    torch.save({"embed": torch.zeros(2), "bias": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    names = ("model.safetensors", "pytorch_model.bin")
    both = {name: (tmp_path / name).read_bytes() for name in names}
    more = {"config.json": b"{}", "training_args.bin": b"", "flax_model.msgpack": b""}
    hub.repositories |= {"lab/new": both | more, "lab/old": {names[1]: both[names[1]]} | more}
    assert set(open_tensors("lab/new")) == {"embed"}
    assert set(open_tensors("lab/old")) == {"embed", "bias"}
    fetched = [
        request.rpartition("/")[2] for request in hub.requests if request.startswith("GET") and "/resolve/" in request
    ]
    assert sorted(fetched) == ["config.json", "config.json", "model.safetensors", "pytorch_model.bin"]


def test_the_card_says_what_the_run_was(hub: Hub, export: Path):
    done("push", export, f"hub:{NAME}")
    card = hub.repositories[NAME]["README.md"].decode()
    assert card.startswith("---\nlibrary_name: adatad_ds\npipeline_tag: video-classification\n")
    assert "| average mAP | 62.50 |\n| mAP@0.5 | 75.00 |\n" in card
    assert "recall" not in card
    assert "On `thumos14.json`, subset `validation`" in card
    assert "`tiny`, weights `adatad_ds/weights/tiny.safetensors`. They come with adatad_ds." in card
    assert "Others are refused when the model is loaded" in card
    for name in CLASSES:
        assert f"\n    {name}\n" in card


def test_terms_of_a_backbone_of_the_hub(export: Path, tmp_path: Path):
    beside = export.with_suffix(".json")
    description = json.loads(beside.read_text())
    for weights, loads in (
        ("MCG-NJU/videomae-base-finetuned-kinetics", 'load_detector("shared/model.safetensors").'),
        ("/home/ada/videomae_b.pth", 'load_detector("shared/model.safetensors", overrides=["backbone.weights=FILE"]).'),
    ):
        description["config"]["backbone"] |= {"name": "videomae_b", "weights": weights}
        beside.write_text(json.dumps(description))
        done("push", export, tmp_path / "shared", "--replace")
        card = (tmp_path / "shared" / "README.md").read_text()
        assert "MODEL_ZOO.md (CC BY-NC 4.0: not for commercial use)" in card
        assert loads in card
        assert ("base_model: MCG-NJU/videomae-base-finetuned-kinetics\n" in card) == weights.startswith("MCG")
        assert "/home" not in card


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("kinetics400_clip_b16_8", ["Recognises", "--set data.videos=FOLDER --set recognition.test_list=FILE", "MIT"]),
        ("quickstart_features", ["Finds,", "--set data.annotations=FILE --set data.features=FOLDER\n", "Features of"]),
        ("thumos14_vjepa2_l", ["Finds,", "from adatad_ds.predict", "Meta; terms on its page"]),
    ],
)
def test_cards_of_other_tasks_and_inputs(recipe: str, says: list[str], tmp_path: Path):
    trained = Trained(
        name=recipe,
        source=tmp_path,
        folder=tmp_path,
        config=find_recipe(recipe).config,
        classes=CLASSES,
        trainable=None,
        frozen_fingerprint=None,
        averaged=True,
    )
    card = model_card(trained, place=str(tmp_path / "mine"), file="model.safetensors")
    for each in (*says, "No evaluation came with this model."):
        assert each in card
    assert "None" not in card


def test_weights_of_the_backbone_are_not_sent_unsaid(export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """As a merged export has them."""
    tensors = {name: tensor.clone() for name, tensor in load_file(export).items()}
    done("push", export, tmp_path / "without")
    assert "warning" not in capsys.readouterr().out
    save_file(tensors | {"backbone.vit.blocks.0.attn.proj.bias": tensors["head.cls_head.bias"].clone()}, export)
    done("push", export, tmp_path / "with")
    assert "warning: weights of the backbone itself are part of this export" in capsys.readouterr().out
    for folder, said in (("without", "not the frozen backbone"), ("with", "some weights of its backbone")):
        assert said in (tmp_path / folder / "README.md").read_text()


def test_nothing_of_the_machine_is_sent(hub: Hub, export: Path):
    """Neither from lists nor from a home folder's short form."""
    beside = export.with_suffix(".json")
    described = json.loads(beside.read_text())
    described["config"]["data"] |= {"exclude": ["/home/ada/v1", "v2"], "exclude_file": "~ada/lists/no.txt"}
    beside.write_text(json.dumps(described))
    done("push", export, f"hub:{NAME}")
    for key in ("private", "visibility"):  # who may see it, the hub or the organisation decides
        assert hub.created[NAME].get(key) is None
    text = hub.repositories[NAME]["model.json"].decode() + hub.repositories[NAME]["README.md"].decode()
    assert not re.findall(r"/home|ada/|node17|SLURM", text)
    shared = json.loads(hub.repositories[NAME]["model.json"])
    own = json.loads(export.with_suffix(".json").read_text())
    assert shared["config"]["data"].pop("annotations") == "thumos14.json"
    for key, left in (("exclude", ["v1", "v2"]), ("exclude_file", "no.txt")):
        assert shared["config"]["data"].pop(key) == left
        assert own["config"]["data"].pop(key) != left
    assert own["config"]["data"].pop("annotations") == "/home/ada/thumos14.json"
    assert shared.pop("versions") == {"python": "3.11"}
    own.pop("versions")
    assert shared == own
    done("pull", f"hub:{NAME}")
    assert (export.parent / NAME.partition("/")[2] / "model.safetensors").read_bytes() == export.read_bytes()


def test_to_a_folder_and_back_with_a_wrong_backbone(export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shared, mine = tmp_path / "shared", tmp_path / "mine"
    (tmp_path / "metrics.json").write_text('{"average_mAP": 0.5}')
    done("push", export, shared, "--metrics", tmp_path / "metrics.json")
    assert "| average mAP | 50.00 |" in (shared / "README.md").read_text()
    done("pull", shared, "--out", mine)
    right = find_trained(mine / "model.safetensors")
    assert right.metrics == {"average_mAP": 0.5}
    load_model(right, num_classes=len(CLASSES))
    weights = load_file(BACKBONE)
    weights["blocks.3.mlp.fc1.weight"] += 0.01
    save_file(weights, tmp_path / "other.safetensors")
    other = find_trained(mine / "model.safetensors", overrides=[f"backbone.weights={tmp_path}/other.safetensors"])
    with pytest.raises(CheckpointError, match=r"other frozen weights .*: 1 of 74 tensors differ \(blocks\.3\.mlp\.fc1"):
        load_model(other, num_classes=len(CLASSES))
    # A place that is taken.
    assert said(["push", export, shared], capsys).startswith(f"{shared} exists already; choose another, or replace")
    assert said(["pull", shared, "--out", mine], capsys) == f"{mine} exists already; choose another with --out"
    file = tmp_path / "metrics.json"
    for content in ("{", "[1]", '{"average_mAP": null}'):
        file.write_text(content)
        refused = said(["push", export, tmp_path / "new", "--metrics", file], capsys)
        assert refused.startswith(f"--metrics {file} cannot be read as metrics: ")
    assert said(["pull", shared, "--out", file], capsys) == f"{file} exists already; choose another with --out"
    done("push", export, shared, "--replace")
    (shared / "README.md").unlink()  # which a model needs not
    done("pull", shared, "--out", tmp_path / "bare")
    # No export, and a damaged one.
    assert f"{tmp_path} is not an export" in said(["pull", tmp_path, "--out", tmp_path / "new"], capsys)
    assert "RUN --out FILE" in said(["push", tmp_path, tmp_path / "new"], capsys)
    description = json.loads((shared / "model.json").read_text())
    without = {key: value for key, value in description.items() if key != "classes"}
    for damaged, error in (
        (without, "KeyError('classes')"),
        (description | {"classes": None}, "TypeError("),
        (description | {"config": None}, "AttributeError("),
    ):
        (shared / "model.json").write_text(json.dumps(damaged))
        assert f"is damaged: {error}" in said(["pull", shared, "--out", tmp_path / "new"], capsys)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_what_the_hub_refuses_is_one_line(
    hub: Hub, export: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    push = ["push", export, f"hub:{NAME}"]
    hub.refuses_commits = True
    assert said(push, capsys).endswith("The repository was created, but without its files: push again with --replace")
    hub.refuses_commits = False
    assert said(push, capsys) == (
        f"hub:{NAME}: this repository exists already; choose another name, or add a commit to it with --replace"
    )
    done(*push, "--replace")
    assert "right to write to other's models" in said(["push", export, "hub:other/actions"], capsys)
    assert "hub:nobody is not a name on the Hugging Face hub" in said(["push", export, "hub:nobody"], capsys)
    done("push", export, f"hub:{NAME}_private", "--private")
    done("push", export, f"hub:{NAME}_private", "--private", "--replace")
    commits = [request for request in hub.requests if "/commit/" in request]
    public = said(["push", export, f"hub:{NAME}", "--private", "--replace"], capsys)
    assert f"hub:{NAME} is public, so nothing was sent" in public
    assert [request for request in hub.requests if "/commit/" in request] == commits
    assert "is a folder; leave it out" in said(["push", export, "shared", "--private"], capsys)
    assert not Path("shared").exists()
    done("pull", f"hub:{NAME}_private", "--out", "private")
    done("push", export, f"hub:{NAME}_hidden", "--private")  # not in the cache
    before = len(hub.requests)
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no token" in said(["push", export, f"hub:{NAME}2"], capsys)
    assert len(hub.requests) == before
    for name in ("nothing", "actions_hidden"):
        assert "no such repository; if it is private, log in" in said(["pull", f"hub:{OWNER}/{name}"], capsys)
    done("pull", f"hub:{NAME}", "--out", "public")
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    assert "requires another token" in said(["push", export, f"hub:{NAME}2"], capsys)


def test_without_a_network(hub: Hub, export: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    point_to("http://127.0.0.1:9", monkeypatch)  # where nothing answers
    for words in (["push", export, f"hub:{NAME}"], ["pull", f"hub:{NAME}"]):
        line = said(words, capsys)
        assert line.startswith(f"hub:{NAME}: the Hugging Face hub cannot be reached, or refuses: ")
        assert len(line) < 300
    assert not hub.requests
