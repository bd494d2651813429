"""What the descriptions in profiles/models say, checked: parameters against published counts, and the tokens of five pictures.

    python reports/families/describe.py [MODEL ...] [--out FOLDER]

Builds every described model that has special tokens on the meta device (no memory, no weights) and counts its parameters, tied
ones once; runs its processor, made without the hub, on noise of five sizes. Published counts, and what explains a difference,
are in published.json. Writes descriptions.txt and descriptions.json. It ends with an error when a strong count differs.

Predicted: nothing is measured. Half a minute, no GPU.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import flag, parser

from budgetft.data.recipe import build_processor, placeholder_of, tokens_of
from budgetft.profiles import profiles_folder
from budgetft.value import read_json

HERE = Path(__file__).resolve().parent
SIZES = ((448, 448), (1280, 720), (640, 480), (1920, 1080), (300, 900))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One description."""

    model: str
    type: str
    computed: int
    """Parameters of transformers' model of the config, on the meta device."""
    published: int | None
    """Elements that are published of the checkpoint; None where only a rounded figure is."""
    explained: int
    """Elements of the checkpoint that transformers builds no parameter for, by their count."""
    evidence: str
    tokens: dict[str, int] | None
    """Placeholders of a picture, by its size; None where the processor needs the model's own vocabulary."""

    @property
    def difference(self) -> int | None:
        return None if self.published is None else self.computed + self.explained - self.published


def parameters(folder: Path) -> int:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    return sum(parameter.numel() for parameter in model.parameters())


def described(name: str, published: dict[str, Any]) -> Row:
    folder = profiles_folder() / "models" / name
    config = read_json(folder / "config.json")
    tokens = None
    if (folder / "tokens.json").is_file():
        processor, placeholder = build_processor(folder), placeholder_of(config)
        tokens = {f"{width}x{height}": tokens_of(processor, placeholder, [(width, height)])[0][0] for width, height in SIZES}
    return Row(
        model=name,
        type=config["model_type"],
        computed=parameters(folder),
        published=published.get("published"),
        explained=sum(published.get("not_built", {}).values()),
        evidence=published["evidence"],
        tokens=tokens,
    )


def table(rows: list[Row]) -> str:
    head = ["model", "type", "computed", "published", "explained", "difference", "evidence", *(f"{w}x{h}" for w, h in SIZES)]
    lines = [head]
    for row in rows:
        counts = list(map(str, row.tokens.values())) if row.tokens else ["-"] * len(SIZES)
        known = "rounded" if row.published is None else f"{row.published:,}"
        difference = "-" if row.difference is None else f"{row.difference:,}"
        explained = f"{row.explained:,}" if row.explained else "-"
        lines.append([row.model, row.type, f"{row.computed:,}", known, explained, difference, row.evidence, *counts])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    left = {0, 1, 6}
    rows_of_text = []
    for line in lines:
        cells = zip(line, widths, strict=True)
        rows_of_text.append(
            "  ".join(cell.ljust(size) if i in left else cell.rjust(size) for i, (cell, size) in enumerate(cells))
        )
    return "\n".join(line.rstrip() for line in rows_of_text)


options = flag(parser(__doc__, out=None), "models", nargs="*", metavar="MODEL")


def main() -> int:
    asked = options.parse_args()
    known = json.loads((HERE / "published.json").read_text(encoding="utf-8"))
    unknown = [name for name in asked.models if name not in known]
    if unknown:
        options.error(f"not in published.json: {', '.join(unknown)}")
    rows = [described(name, known[name]) for name in asked.models or known]
    text = table(rows)
    print(text)
    if asked.out is not None:
        (asked.out / "descriptions.txt").write_text(text + "\n", encoding="utf-8")
        found = [{**asdict(row), "difference": row.difference} for row in rows]
        (asked.out / "descriptions.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    wrong = [row.model for row in rows if row.difference]
    if wrong:
        print(f"differ from what is published: {', '.join(wrong)}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
