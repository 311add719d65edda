"""ELAN's annotation files (.eaf): tiers of annotations in milliseconds.

Format: EAF 2.7 to 3.0 (https://www.mpi.nl/tools/elan/EAF_Annotation_Format_3.0_and_ELAN.pdf).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from xml.etree.ElementTree import Element

from adatad_ds.data.sources.parsing import find, shown
from adatad_ds.data.sources.tools.marks import Export, Mark, Unused, file_name, parse_xml
from adatad_ds.data.video_names import EXTENSIONS
from adatad_ds.errors import DataError

KNOWN = {
    *("LICENSE", "HEADER", "TIME_ORDER", "TIER", "LINGUISTIC_TYPE", "LOCALE", "LANGUAGE", "CONSTRAINT"),
    *("CONTROLLED_VOCABULARY", "LEXICON_REF", "REF_LINK_SET", "EXTERNAL_REF"),
}
Span = tuple[float, float]  # milliseconds


def read_elan(sources: Sequence[Path]) -> Export:
    """Read `.eaf` files: every annotation with a value is a mark of its tier, by the tier's annotator.

    The video is the first one that the file links, or the one of the file's own name.

    Raises:
        DataError: no such file, or one that contradicts the format.
    """
    paths = find(sources, "*.eaf")
    if not paths:
        raise DataError(f"--source: {shown(sources)} hold no *.eaf, as ELAN saves")
    marks, videos, unused = [], {}, Unused()
    for path in paths:
        root = parse_xml(path, "ANNOTATION_DOCUMENT", "ELAN")
        for element in root:
            if element.tag not in KNOWN:
                unused.add("unknown elements", f"<{element.tag}> in {path.name}")
        video, origin_ms = _video(root, path, unused)
        videos[str(path), video] = None
        spans = _spans(root, path)
        vocabulary = _vocabulary(root)
        for tier, annotation in _annotations(root):
            name, place = annotation.get("ANNOTATION_ID", ""), f"{path}, annotation {annotation.get('ANNOTATION_ID')}"
            label = (annotation.findtext("ANNOTATION_VALUE") or "").strip()
            label = label or vocabulary.get(annotation.get("CVE_REF", ""), "")
            if not label:
                unused.add("annotations without a value", place)
                continue
            start, end = ((time + origin_ms) / 1000 for time in spans[name])
            if end <= start:
                unused.add("annotations that end where they start", place)
                continue
            marks.append(
                Mark(
                    video=video,
                    start=start,
                    end=end,
                    label=label,
                    place=place,
                    tier=tier.get("TIER_ID", ""),
                    annotator=tier.get("ANNOTATOR", ""),
                )
            )
    return Export(tuple(marks), tuple(videos), {}, unused.notes())


def _video(root: Element, path: Path, unused: Unused) -> tuple[str, float]:
    """The video's address, and the milliseconds of it that ELAN skips before its own 0."""
    header = root.find("HEADER")
    units = "milliseconds" if header is None else header.get("TIME_UNITS", "milliseconds")
    if units != "milliseconds":
        raise DataError(f"{path}: HEADER has TIME_UNITS={units!r}; open and save it with ELAN, which uses milliseconds")
    media = [] if header is None else header.findall("MEDIA_DESCRIPTOR")
    linked = [
        element
        for element in media
        if element.get("MIME_TYPE", "").startswith("video/")
        or file_name(_address(element)).lower().endswith(EXTENSIONS)
    ]
    for element in linked[1:]:
        unused.add("further videos that a file links", file_name(_address(element)))
    if not linked:
        return path.stem, 0.0
    origin = linked[0].get("TIME_ORIGIN", "0")
    try:
        return _address(linked[0]), float(origin)
    except ValueError as error:
        raise DataError(f"{path}: MEDIA_DESCRIPTOR has TIME_ORIGIN={origin!r}, expected milliseconds") from error


def _address(media: Element) -> str:
    return media.get("MEDIA_URL") or media.get("RELATIVE_MEDIA_URL", "")


def _annotations(root: Element) -> Iterator[tuple[Element, Element]]:
    """All annotations with their tiers."""
    for tier in root.iter("TIER"):
        for holder in tier.iter("ANNOTATION"):
            for annotation in holder:
                yield tier, annotation


def _spans(root: Element, path: Path) -> dict[str, Span]:
    """Start and end of each annotation; those that refer to another one share its time, equally within a tier."""
    slots = _slots(root, path)
    spans: dict[str, Span] = {}
    shares: dict[tuple[str, str], list[Element]] = {}  # by what they refer to, and their tier
    for tier, annotation in _annotations(root):
        if annotation.tag == "REF_ANNOTATION":
            parent = annotation.get("ANNOTATION_REF", "")
            shares.setdefault((parent, tier.get("TIER_ID", "")), []).append(annotation)
            continue
        ends = [annotation.get(f"TIME_SLOT_REF{side}", "") for side in (1, 2)]
        if missing := [slot for slot in ends if slot not in slots]:
            place = f"{path}, annotation {annotation.get('ANNOTATION_ID')}"
            raise DataError(f"{place}: TIME_ORDER has no time slot {missing[0]!r}")
        spans[annotation.get("ANNOTATION_ID", "")] = slots[ends[0]], slots[ends[1]]
    while shares:
        ready = [key for key in shares if key[0] in spans]
        if not ready:
            first = next(iter(shares.values()))[0]
            place = f"{path}, annotation {first.get('ANNOTATION_ID')}"
            raise DataError(
                f"{place}: ANNOTATION_REF={first.get('ANNOTATION_REF')!r} leads to no annotation with a time"
            )
        for key in ready:
            start, end = spans[key[0]]
            names = _in_order(shares.pop(key))
            for index, name in enumerate(names):
                step = (end - start) / len(names)
                spans[name] = start + index * step, start + (index + 1) * step
    return spans


def _in_order(annotations: Sequence[Element]) -> list[str]:
    """Names of annotations that subdivide the same one, each after its PREVIOUS_ANNOTATION."""
    names = [annotation.get("ANNOTATION_ID", "") for annotation in annotations]
    following = {
        annotation.get("PREVIOUS_ANNOTATION", ""): name for annotation, name in zip(annotations, names, strict=True)
    }
    ordered = []
    at = following.get("")
    while at is not None and at not in ordered:
        ordered.append(at)
        at = following.get(at)
    return ordered if len(ordered) == len(names) else names


def _slots(root: Element, path: Path) -> dict[str, float]:
    """Milliseconds of each time slot; those without a time lie evenly between their neighbours, as ELAN shows them."""
    listed = [(slot.get("TIME_SLOT_ID", ""), slot.get("TIME_VALUE")) for slot in root.iterfind("TIME_ORDER/TIME_SLOT")]
    try:
        known = {name: float(value) for name, value in listed if value is not None}
    except ValueError as error:
        raise DataError(f"{path}, TIME_ORDER: {error}; TIME_VALUE must be milliseconds") from error
    times = _chained(root, known)
    before = 0.0
    order = [(name, times.get(name)) for name, _ in listed]
    for unknown, group in groupby(range(len(order)), key=lambda index: order[index][1] is None):
        indices = list(group)
        if not unknown:
            before = float(order[indices[-1]][1] or 0.0)
            continue
        following = order[indices[-1] + 1][1] if indices[-1] + 1 < len(order) else None
        after = before if following is None else following
        for step, index in enumerate(indices, 1):
            times[order[index][0]] = before + (after - before) * step / (len(indices) + 1)
    return times


def _chained(root: Element, known: Mapping[str, float]) -> dict[str, float]:
    """With the slots between two annotations of a tier that touch: even shares of what the chain of them spans."""
    times = dict(known)
    for tier in root.iter("TIER"):
        chain: list[str] = []
        for annotation in tier.iter("ALIGNABLE_ANNOTATION"):
            first, second = annotation.get("TIME_SLOT_REF1", ""), annotation.get("TIME_SLOT_REF2", "")
            chain = [*chain, second] if chain and chain[-1] == first else [first, second]
            if second in known:
                if chain[0] in known:
                    span = known[second] - known[chain[0]]
                    for step, name in enumerate(chain):
                        times.setdefault(name, known[chain[0]] + span * step / (len(chain) - 1))
                chain = []
    return times


def _vocabulary(root: Element) -> dict[str, str]:
    """Values of the entries of all controlled vocabularies in the file, by id; of several languages, the first."""
    return {
        entry.get("CVE_ID", ""): (entry.findtext("CVE_VALUE") or "").strip()
        for entry in root.iterfind("CONTROLLED_VOCABULARY/CV_ENTRY_ML")
    }
