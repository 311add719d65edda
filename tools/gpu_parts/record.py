"""What the parts of the check measure: rows of one file, each written as soon as it is known."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

AS_EXPECTED, BETTER, WORSE, FAILED, MEASURED = "as expected", "better", "worse", "failed", "measured"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the report.

    Attributes:
        part: which part measured it.
        what: the quantity.
        measured: for a person, with its unit.
        expected: what the planner or the documentation promises; empty: nothing does.
        verdict: one of the words above.
        value: the number alone, for the parts that come after.
    """

    part: str
    what: str
    measured: str
    expected: str = ""
    verdict: str = MEASURED
    value: float | None = None


class Recorder:
    """Where one part puts its rows.

    Args:
        path: the file that all parts share, one JSON object a line.
        part: the part's name.
        miniature: on a CPU with small shapes: speed and memory are measured, but not judged.
    """

    def __init__(self, path: Path, *, part: str, miniature: bool) -> None:
        self.folder, self.miniature = path.parent, miniature
        self._path, self._part = path, part

    def row(
        self, what: str, measured: str, *, expected: str = "", verdict: str = MEASURED, value: float | None = None
    ) -> None:
        """Add a row, and say it."""
        row = Row(part=self._part, what=what, measured=measured, expected=expected, verdict=verdict, value=value)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        print(f"{what}: {measured}" + (f" (expected {expected})" if expected else "") + f": {verdict}", flush=True)

    def amount(
        self,
        what: str,
        value: float,
        unit: str,
        *,
        low: float | None = None,
        high: float | None = None,
        more_is_better: bool = True,
    ) -> None:
        """Add a number, judged by the range that was expected; a bound that is None is open."""
        bounds = {(True, True): f"{low} to {high}", (True, False): f"at least {low}", (False, True): f"at most {high}"}
        expected = bounds.get((low is not None, high is not None), "")
        verdict = MEASURED
        if expected and not self.miniature:
            verdict = AS_EXPECTED
            if low is not None and value < low:
                verdict = WORSE if more_is_better else BETTER
            elif high is not None and value > high:
                verdict = BETTER if more_is_better else WORSE
        expected = f"{expected} {unit}".strip() if expected else ""
        self.row(what, f"{value:.4g} {unit}".strip(), expected=expected, verdict=verdict, value=value)

    def difference(self, what: str, value: float, *, most: float) -> None:
        """Add how far two results are apart; judged in miniature too."""
        verdict = AS_EXPECTED if value <= most else WORSE  # NaN is worse
        self.row(what, f"{value:.3g}", expected=f"at most {most:.3g}", verdict=verdict, value=value)

    def failed(self, what: str, error: Exception) -> None:
        """Add a measurement that did not come about; the part goes on."""
        self.row(what, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", verdict=FAILED)

    def fact(self, what: str) -> float | None:
        """A number that this or an earlier part has measured."""
        rows = [row for row in read_rows(self._path) if row.what == what and row.value is not None]
        return rows[-1].value if rows else None


def read_rows(path: Path) -> list[Row]:
    """All rows so far; a line cut short by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(Row(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return rows
