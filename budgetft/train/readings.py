"""What a run reads of its device: the bytes that it holds, and who else holds some."""

from dataclasses import dataclass

from budgetft.value import Value


@dataclass(frozen=True, kw_only=True)
class Held:
    """Bytes; peaks are of the time since the last ``forget_peaks``. Reserved ones are None where nothing reserves."""

    allocated_bytes: int
    allocated_peak_bytes: int
    reserved_bytes: int | None
    reserved_peak_bytes: int | None
    process_bytes: int
    process_peak_bytes: int
    alloc_retries: int
    ooms: int


class OtherProcess(Value):
    """Another process on the GPU."""

    pid: int
    name: str
    memory_bytes: int | None
    """None when the driver does not say."""
