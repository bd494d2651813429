"""How fast a WTS tree of real size is converted, beside the decoder alone: python reports/data/conversion.py

Makes a synthetic dataset in a temporary folder, decodes every video with as many threads as the conversion uses and does
nothing with the frames, converts the synthetic data in a process of its own, decodes every video once more (a machine's load
changes), and prints both frame rates and the peak memory.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from budgetft.data.media.video import count_frames, load_av
from budgetft.data.synthetic.dataset import write_synthetic
from budgetft.data.synthetic.spec import SyntheticSpec


def decode_all(root: Path, workers: int) -> tuple[int, float]:
    """Frames and seconds of decoding every video below ``root``."""
    videos = sorted(root.rglob("*.mp4"))
    started = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        frames = sum(pool.map(count_frames, videos))
    return frames, time.perf_counter() - started


def convert(root: Path, out: Path, workers: int) -> tuple[dict, float, int]:
    """The report of the conversion, its seconds from start to end of the process, and its peak memory in bytes."""
    command = [sys.executable, "-m", "budgetft", "data", "wts", str(root), "--split", "train", "--out", str(out)]
    options = ["--cameras", "all", "--workers", str(workers), "--json"]
    started = time.perf_counter()
    done = subprocess.run([*command, *options], stdout=subprocess.PIPE, check=True)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # it starts no process of its own
    return json.loads(done.stdout), seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenarios", type=int, default=155)
    parser.add_argument("--videos", type=int, default=810)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--fps", type=int, default=30)
    parser.add_argument("--size", default="640x360")
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    width, height = (int(side) for side in chosen.size.split("x"))
    spec = SyntheticSpec(
        scenarios=chosen.scenarios, videos=chosen.videos, seconds=chosen.seconds, fps=chosen.fps,
        size=(width, height), fractions=(1.0, 0.0, 0.0), external=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="budgetft-conversion-") as folder:
        root, out = Path(folder) / "wts", Path(folder) / "data"
        started = time.perf_counter()
        videos = write_synthetic(root, spec, workers=chosen.workers)
        made = time.perf_counter() - started
        peak_before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        frames, decode_seconds = decode_all(root, chosen.workers)
        report, seconds, peak = convert(root, out, chosen.workers)
        again_seconds = decode_all(root, chosen.workers)[1]
    alone, whole = 2 * frames / (decode_seconds + again_seconds), report["frames_decoded"] / seconds
    taking = report["frames_decoded"] / report["decode_seconds"]
    print(f"python {platform.python_version()}, av {load_av().__version__}, {chosen.workers} threads")
    films = f"{videos} videos of {chosen.seconds:g} s, {chosen.size}, {chosen.fps} fps"
    print(f"synthetic     {chosen.scenarios} scenarios, {films}")
    print(f"              made in {made:.0f} s")
    print(
        f"decoder alone {frames} frames in {decode_seconds:.1f} s before and {again_seconds:.1f} s after: {alone:.0f} frames/s"
    )
    print(f"conversion    {report['frames_decoded']} frames, {sum(report['examples'].values())} examples")
    print(f"  frames      {report['decode_seconds']:.1f} s: {taking:.0f} frames/s, {taking / alone:.0%} of the decoder alone")
    print(f"  whole       {seconds:.1f} s, start and dataset included: {whole:.0f} frames/s, {whole / alone:.0%}")
    what = "" if peak > peak_before else " or less (the drawing processes before had as much)"
    print(f"peak memory   {peak / 1e9:.2f} GB{what}")


if __name__ == "__main__":
    main()
