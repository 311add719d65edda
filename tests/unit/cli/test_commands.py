"""The command line itself: what it lists, what each command's help needs, what it says of a wrong one."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from adatad_ds import __version__
from adatad_ds.cli.commands import BY_PURPOSE, COMMANDS, main
from adatad_ds.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[3]
NAMED = [  # by the project's plan
    *("train", "evaluate", "predict", "plan", "check-data", "prepare-data", "diagnose", "convert", "export"),
    *("submission", "compare", "generate", "slurm"),
]
PARTS = {"generate": ("videos", "clips"), "submission": ("epic", "ego4d"), "slurm": ("run", "grid", "again", "report")}


def python(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_one_help_lists_all_commands_by_purpose(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert set(NAMED) < set(COMMANDS)
    for purpose, commands in BY_PURPOSE.items():
        section = text.partition(f"\n{purpose}:\n")[2].partition("\n\n")[0]
        assert [line.split()[0] for line in section.splitlines()] == list(commands)
    assert max(map(len, text.splitlines())) <= 100
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]):
    parser = COMMANDS[name].load().make_parser(f"adatad-ds {name}")
    for part in ("", *PARTS.get(name, ())):
        with pytest.raises(SystemExit) as left:
            parser.parse_args([part, "--help"] if part else ["--help"])
        assert left.value.code == 0
        said = capsys.readouterr().out
        assert said.startswith(f"usage: adatad-ds {name} {part}".rstrip())
        assert "tools/" not in said


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("generate videos --out x --workers 0", "argument --workers: must be at least 1, not 0"),
        ("generate clips --out x --seed -1", "argument --seed: must be at least 0, not -1"),
        ("generate videos --out x --train many", "argument --train: invalid whole number value: 'many'"),
        ("plan --recipe quickstart --gpus 0", "argument --gpus: must be at least 1, not 0"),
        ("serve x --score nan", "argument --score: must be from 0 to 1, not nan"),
        ("serve x --max-device-gb -1", "argument --max-device-gb: must be at least 0, not -1"),
        ("plan --recipe x --core-frames-per-sec inf", "argument --core-frames-per-sec: must be at least 1, not inf"),
        ("diagnose x y --min-precision 2", "argument --min-precision: must be from 0 to 1, not 2"),
        ("check-data --recipe quickstart --workers -1", "argument --workers: must be at least 1, not -1"),
        ("extract-features --out x --frame-stride 0", "argument --frame-stride: must be at least 1, not 0"),
    ],
)
def test_numbers_that_cannot_be(command: str, said: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        main(command.split())
    assert left.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: {said}")


def test_no_help_needs_pytorch():
    """Neither the list of commands nor that of a command's options, but for the three that launchers start."""
    code = """
import sys
from adatad_ds.cli.commands import COMMANDS, main
main(["--help"])
for name, command in COMMANDS.items():
    if not command.is_rank:
        command.load().make_parser(name)
        assert "torch" not in sys.modules, name
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "there is no command 'trian'; did you mean train? adatad-ds --help lists all commands"),
        (["--sing"], "there is no command '--sing'. adatad-ds --help lists all commands"),
        ([], "no command given. adatad-ds --help lists all commands"),
    ],
)
def test_a_command_that_is_none(words: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.err == f"error: {said}\n"
    assert printed.out == ""


def test_an_unknown_option_of_a_command(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        main(["slurm", "report", "runs/grid", "--wacht"])
    assert left.value.code == 2
    assert "adatad-ds slurm: error: unknown: --wacht" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ConfigError("no such key"), DataError("no video"), FileNotFoundError("no file")])
def test_what_the_user_got_wrong_is_one_paragraph(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(runs: object) -> str:
        raise error

    monkeypatch.setattr("adatad_ds.cli.compare.compare_runs", fail)
    assert main(["compare", "run"]) == 2
    assert capsys.readouterr().err == f"error: {error}\n"


def test_an_interrupted_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def interrupt(runs: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("adatad_ds.cli.compare.compare_runs", interrupt)
    assert main(["compare", "run"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_from_a_clone_and_elsewhere(tmp_path: Path):
    done = python("-m", "adatad_ds", "compare", "nowhere", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: not evaluated yet: nowhere; run adatad_ds/evaluate.py first\n"
    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["adatad-ds"]
    module, function = script.split(":")
    code = f"import sys; from {module} import {function}; sys.argv = ['adatad-ds', '--version']; {function}()"
    assert python("-c", code, folder=tmp_path).stdout == f"adatad-ds {__version__}\n"


def test_the_entries_are_commands():
    done = python("-m", "adatad_ds", "train", "--list-recipes")
    assert done.returncode == 0, done.stderr
    assert "thumos14_videomaev2_g_1536" in done.stdout
    done = python("-m", "adatad_ds", "train", "--recipe", "quickstart")
    assert done.returncode == 2
    assert "usage: adatad-ds train [-h] " in done.stderr
    assert "adatad-ds train: error: --deepspeed_config FILE is missing" in done.stderr


def test_completion_knows_commands_and_options():
    done = python("-m", "adatad_ds", "completion", "bash")
    assert done.returncode == 0, done.stderr
    for word in (*COMMANDS, "epic", "--print-config", "--max-device-gb", "--watch", "thumos14"):
        assert word in done.stdout
    checked = subprocess.run(["bash", "-n"], input=done.stdout, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (FileNotFoundError(2, "No such file or directory", "x.csv"), 2, "[Errno 2] No such file or directory: 'x.csv'"),
        (DataError("nothing is there"), 2, "nothing is there"),
    ],
)
def test_what_ends_a_command_is_a_line_and_a_code(monkeypatch, capsys, raised, code, said):
    def main_of_it(argv, *, prog):
        raise raised

    monkeypatch.setattr(COMMANDS["compare"].load(), "main", main_of_it)
    assert main(["compare"]) == code
    assert capsys.readouterr().err == f"error: {said}\n"
