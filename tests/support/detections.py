"""Shared by tests: detections."""

from __future__ import annotations

from hypothesis import strategies as st


def record(start: float, end: float, score: float, label: str = "a") -> dict:
    return {"segment": [start, end], "label": label, "score": score}


TIMES = st.integers(0, 12).map(lambda tick: tick / 2)  # coarse: equal overlaps and duplicates are common


LABELS = ("a", "b", "never annotated")


@st.composite
def segments(draw: st.DrawFn) -> tuple[float, float]:
    start = draw(TIMES)
    return start, start + draw(st.sampled_from((0.0, 0.5, 1.0, 1.0, 2.0, 3.0, 6.0)))


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict, dict]:
    """Results and ground truth: of few scores, with videos and classes missing on either side."""
    truth = {
        video: [(*draw(segments()), draw(st.sampled_from("ab"))) for _ in range(draw(st.integers(0, 5)))]
        for video in ("v", "w", "x")
    }
    truth["x"].append((3.0, 6.0, "b"))
    scores = st.sampled_from((0.1, 0.5, 0.5, 0.9))
    results = {
        video: [
            record(*draw(segments()), draw(scores), draw(st.sampled_from(LABELS)))
            for _ in range(draw(st.integers(0, 9)))
        ]
        for video in ("x", "v", "unknown video")
    }
    if draw(st.booleans()):
        results["v"] += results["v"]
    return results, truth
