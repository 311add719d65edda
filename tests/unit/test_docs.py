"""The documentation: links lead somewhere, names in it exist, lines wrap, the page of settings is the schema."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from adatad_ds.config.schema import Config, RecognitionConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
WIDTH = 120


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Lines outside fenced code, numbered from 1."""
    fenced = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, line
    assert not fenced, f"{page}: code without an end"


def anchors(page: Path) -> set[str]:
    """What GitHub calls the page's headings in addresses."""
    titles = [line.lstrip("#").strip().lower() for _, line in prose(page) if re.match(r"#{1,6} ", line)]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def links(page: Path) -> list[tuple[int, str]]:
    """Targets within the repository, of links and images."""
    found = [(number, target) for number, line in prose(page) for target in re.findall(r"\]\(([^)\s]+)\)", line)]
    return [(number, target) for number, target in found if "://" not in target]


def named(page: Path) -> list[str]:
    """What stands in code quotes in the prose; it may go on in the next line."""
    return [" ".join(name.split()) for name in re.findall(r"`([^`]+)`", "\n".join(line for _, line in prose(page)))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for number, target in links(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.is_relative_to(ROOT), (number, target)
        assert there.exists(), (number, target)
        assert not anchor or anchor in anchors(there), (number, target)


def test_every_page_is_in_the_index():
    index = ROOT / "docs/index.md"
    listed = {(index.parent / target.partition("#")[0]).resolve() for _, target in links(index)}
    assert {page for page in PAGES if page.is_relative_to(ROOT / "docs")} - listed <= {index}


def test_every_picture_is_shown():
    shown = {(page.parent / target).resolve() for page in PAGES for _, target in links(page)}
    assert set((ROOT / "docs/images").iterdir()) <= shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_wrap(page):
    """Tables and addresses cannot."""
    long = [number for number, line in prose(page) if len(line) > WIDTH and not line.startswith("|")]
    assert not long


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_and_tests_that_are_named_exist(page):
    rooms = "|".join(sorted(path.name for path in (ROOT / "adatad_ds").iterdir() if path.is_dir()))
    tests: dict[str, list[Path]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        tests.setdefault(path.name, []).append(path)
    for name in named(page):
        if re.fullmatch(rf"(adatad_ds/)?({rooms})/[\w/]+\.py", name):
            assert (ROOT / "adatad_ds" / name.removeprefix("adatad_ds/")).is_file(), name
        elif re.fullmatch(r"test_\w+\.py(::\w+)?", name):
            file, _, function = name.partition("::")
            assert file in tests, name
            texts = [path.read_text(encoding="utf-8") for path in tests[file]]
            assert not function or any(f"def {function}(" in text for text in texts), name


def test_pages_that_the_code_names_exist():
    files = [
        *ROOT.glob("*.txt"),
        *(path for room in ("adatad_ds", "tools", "tests", "slurm") for path in (ROOT / room).rglob("*.*")),
    ]
    missing = [
        (str(path.relative_to(ROOT)), page)
        for path in files
        if path.suffix in (".py", ".sh", ".env", ".txt")
        for page in re.findall(r"(?<![\w/])docs/[\w/]+\.md", path.read_text(encoding="utf-8"))
        if not (ROOT / page).is_file()
    ]
    assert not missing


def test_commands_that_are_named_exist():
    commands = pytest.importorskip("adatad_ds.cli.commands").COMMANDS
    for page in PAGES:
        asked = set(re.findall(r"adatad-ds ([a-z][\w-]*)", page.read_text(encoding="utf-8")))
        assert asked <= set(commands), page


def test_the_page_of_settings_is_the_schema():
    sections = (ROOT / "docs/reference/settings.md").read_text(encoding="utf-8").split("\n## ")[1:]
    listed = {
        section.split("\n")[0]: re.findall(r"^\| `(\w+)` \| (?:`(.*?)`|required) \|", section, re.MULTILINE)
        for section in sections
    }
    parts = {field.name: getattr(Config(), field.name) for field in dataclasses.fields(Config)}
    parts["recognition"] = RecognitionConfig
    assert listed == {
        name: [
            (field.name, "" if field.default is dataclasses.MISSING else json.dumps(field.default))
            for field in dataclasses.fields(part)
        ]
        for name, part in parts.items()
    }
