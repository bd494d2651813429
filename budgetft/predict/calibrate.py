"""What a trace cannot see, per card and software stack: context, fragmentation, real speed; measured, or assumed."""

import json
from pathlib import Path

from pydantic import Field

from budgetft.outcome import Evidence
from budgetft.profiles import profiles_folder
from budgetft.value import Value, read_json


class Calibration(Value):
    """Residuals between a trace and a process. ``assumed.json`` serves cards that have none of their own."""

    name: str
    evidence: Evidence
    card: str | None
    """The profile that this calibration is for; None for any."""
    torch: str | None
    context_bytes: int = Field(ge=0)
    """What the process holds outside torch's allocator."""
    workspace_bytes: int = Field(ge=0)
    """What torch allocates for cuBLAS, once per thread that uses it."""
    uncertainty_share: float = Field(ge=0)
    """Half-width of the interval around a predicted process peak, as a share of it."""
    matmul_efficiency: float = Field(gt=0, le=1)
    """Of the card's fp16 rate."""
    bandwidth_efficiency: float = Field(gt=0, le=1)
    launch_seconds: float = Field(ge=0)
    """Host time per kernel: a segment never takes less than its kernels times this."""
    source: str


def load_calibration(name: str) -> Calibration:
    """The calibration made for the card profile ``name`` (``cpu`` for the byte meter), else the assumed one."""
    folder = profiles_folder() / "calibrations"
    for path in sorted(folder.glob("*.json")):
        data = read_json(path)
        if data.get("card") == name:
            return Calibration.read(data, source=str(path))
    return Calibration.read(read_json(folder / "assumed.json"), source="assumed.json")


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write for later use."""
    path.write_text(json.dumps(calibration.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
