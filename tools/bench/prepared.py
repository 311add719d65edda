"""CPU seconds to read a window of an original and of its prepared files, and to prepare them, interleaved in one run.

python tools/bench/prepared.py VIDEO --out FOLDER [--frames 768] [--stride 4] [--short-side 182] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from adatad_ds.data.decoding.frames import read_frames
from adatad_ds.data.decoding.prepared import MANIFEST, Codec, Header, header_line
from adatad_ds.data.decoding.video import decoded_frames, opened, packets_of, probe
from adatad_ds.data.preparation.encoding import QUALITY, SUFFIXES, prepare_file
from adatad_ds.system.utf8 import use_utf8


def main() -> None:
    """Print a table: the least of all rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=768)
    parser.add_argument("--stride", type=int, default=4)
    parser.add_argument("--short-side", type=int, default=182)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    source: Path = arguments.video
    last = probe(source).num_frames - 1
    wanted = np.minimum(np.arange(arguments.frames) * arguments.stride, last)
    held = np.union1d(np.arange(0, last + 1, arguments.stride), [last])

    def prepared(codec: Codec) -> Path:
        folder = arguments.out / codec
        folder.mkdir(parents=True, exist_ok=True)
        header = Header(codec=codec, quality=QUALITY[codec], scaling="antialias")
        target = folder / f"{source.stem}{SUFFIXES[codec]}"
        entry = prepare_file(source, target, frames=held, short_side=arguments.short_side, header=header)
        (folder / MANIFEST).write_text(header_line(header) + json.dumps(asdict(entry)) + "\n", encoding="utf-8")
        return target

    def read(path: Path) -> np.ndarray:
        return read_frames(path, wanted, short_side=arguments.short_side, scaling="antialias", backend="pyav")

    times: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        began = time.process_time()
        work()
        times.setdefault(name, []).append(time.process_time() - began)

    for _ in range(arguments.rounds):
        timed("decode the whole original, no more", lambda: decode(source))
        timed("read a window of the original", lambda: read(source))
        for codec in QUALITY:
            timed(f"prepare, {codec}", lambda codec=codec: prepared(codec))
            path = arguments.out / codec / f"{source.stem}{SUFFIXES[codec]}"
            timed(f"read a window, {codec}", lambda path=path: read(path))
    original = read(source).astype(np.float32)
    for name, found in times.items():
        print(f"{name:<36} {min(found):6.2f} s")
    print(f"{source}: {source.stat().st_size / 1e6:.2f} MB")
    for codec in QUALITY:
        path = arguments.out / codec / f"{source.stem}{SUFFIXES[codec]}"
        error = float(np.mean((read(path) - original) ** 2))
        print(f"{codec}: {path.stat().st_size / 1e6:.2f} MB, {10 * np.log10(255**2 / max(error, 1e-9)):.1f} dB")


def decode(path: Path) -> None:
    """Decode all frames of a file."""
    with opened(path, num_threads=1) as (container, stream):
        for packet in packets_of(container, stream):
            decoded_frames(stream, packet)


if __name__ == "__main__":
    use_utf8()
    main()
