"""Small synthetic datasets for tests, and ways to spoil them."""

import json
import shutil
from pathlib import Path
from typing import Any

from budgetft.data.synthetic.dataset import write_synthetic
from budgetft.data.synthetic.spec import SyntheticSpec

LEARNED = SyntheticSpec(scenarios=4, seed=3, seconds=1.6, fractions=(0.75, 0.25, 0.0))
"""Three scenarios of train, the second of 60 fps and the third of normal traffic, and one of val."""
TESTED = SyntheticSpec(scenarios=3, seed=5, seconds=1.6, fractions=(0.0, 0.0, 1.0))
"""A public test package; the third scenario is of normal traffic."""


def make_synthetic(out: Path, spec: SyntheticSpec) -> Path:
    write_synthetic(out, spec, workers=1)
    return out


def spoilt(synthetic: Path, tmp_path: Path) -> Path:
    """A copy of ``synthetic`` that may be changed."""
    return Path(shutil.copytree(synthetic, tmp_path / "spoilt"))


def scenario_names(root: Path, split: str = "train") -> list[str]:
    """Sorted as the converter reads them: plain ones, then normal ones."""
    base = root / "annotations/caption" / split
    plain = sorted(path.name for path in base.iterdir() if path.name != "normal_trimmed")
    return plain + sorted(path.name for path in (base / "normal_trimmed").glob("*"))


def caption_file(root: Path, place: int = 0, view: str = "overhead_view") -> Path:
    name = scenario_names(root)[place]
    return next(iter((root / "annotations/caption/train").rglob(f"{view}/{name}_caption.json")))


def question_file(root: Path, kind: str, place: int = 0) -> Path:
    name = scenario_names(root)[place]
    return next(iter((root / "annotations/vqa/train").rglob(f"{name}/{kind}/{name}.json")))


def change(path: Path, edit: Any) -> None:
    """Apply ``edit`` to the JSON in ``path``; it may return a new value."""
    data = json.loads(path.read_text())
    path.write_text(json.dumps(edit(data) or data))
