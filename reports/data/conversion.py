"""How fast a WTS tree of real size is converted, beside the decoder alone.

    python reports/data/conversion.py      # printed: conversion.txt; ten minutes on two cores, no GPU; measured

Makes a synthetic dataset in a temporary folder, decodes every video with as many threads as the conversion uses and does
nothing with the frames, converts the synthetic data in a process of its own, decodes every video once more (a machine's load
changes), and prints both frame rates and the peak memory.
"""

import json
import platform
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import flag, parser
from harness.children import budgetft, clocked

from budgetft.data.media.video import count_frames, load_av
from budgetft.data.synthetic.dataset import write_synthetic
from budgetft.data.synthetic.spec import SyntheticSpec
from budgetft.units import parse_size

options = flag(parser(__doc__), "--scenarios", type=int, default=155)
flag(options, "--videos", type=int, default=810)
flag(options, "--seconds", type=float, default=8.0, help="of a video")
flag(options, "--fps", type=int, default=30)
flag(options, "--size", default="640x360")
flag(options, "--workers", type=int, default=2)


def decode_all(root: Path, workers: int) -> tuple[int, float]:
    """Frames and seconds of decoding every video below ``root``."""
    videos, frames = sorted(root.rglob("*.mp4")), list[int]()
    with ThreadPoolExecutor(workers) as pool:
        seconds = clocked(lambda: frames.extend(pool.map(count_frames, videos)))
    return sum(frames), seconds


def main() -> None:
    asked = options.parse_args()
    spec = SyntheticSpec(
        scenarios=asked.scenarios, videos=asked.videos, seconds=asked.seconds, fps=asked.fps, size=parse_size(asked.size),
        fractions=(1.0, 0.0, 0.0), external=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="budgetft-conversion-") as folder:
        root, videos = Path(folder) / "wts", list[int]()
        made = clocked(lambda: videos.append(write_synthetic(root, spec, workers=asked.workers)))
        frames, before = decode_all(root, asked.workers)
        words = ("--split", "train", "--out", f"{folder}/data", "--cameras", "all", "--workers", asked.workers, "--json")
        done = budgetft("data", "wts", root, *words, env=None).checked()
        after = decode_all(root, asked.workers)[1]
    report = json.loads(done.out)
    alone, whole = 2 * frames / (before + after), report["frames_decoded"] / done.seconds
    taking = report["frames_decoded"] / report["decode_seconds"]
    print(f"python {platform.python_version()}, av {load_av().__version__}, {asked.workers} threads")
    print(f"synthetic   {asked.scenarios} scenarios, {videos[0]} videos of {asked.seconds:g} s, {asked.size}, {asked.fps} fps")
    print(f"              made in {made:.0f} s")
    print(f"decoder alone {frames} frames in {before:.1f} s before and {after:.1f} s after: {alone:.0f} frames/s")
    print(f"conversion    {report['frames_decoded']} frames, {sum(report['examples'].values())} examples")
    print(f"  frames      {report['decode_seconds']:.1f} s: {taking:.0f} frames/s, {taking / alone:.0%} of the decoder alone")
    print(f"  whole       {done.seconds:.1f} s, start and dataset included: {whole:.0f} frames/s, {whole / alone:.0%}")
    print(f"peak memory   {done.peak_bytes / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
