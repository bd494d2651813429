"""What fits where: every model by LoRA and by QLoRA, on one GPU or on many, at a few picture sizes and the largest of all.

Most of an estimate depends on which attention kernels a GPU has and not on the GPU, so that is computed once for all of them:
memory models, replays of the allocator, what a step does. A GPU then costs little more than choosing.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from budgetft.contract import Contract
from budgetft.data.shapes import shape_of
from budgetft.data.tokens import pixel_bounds, resized_size
from budgetft.duration import run_time
from budgetft.errors import UsageError
from budgetft.gpu import Gpu
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.model import Model, load_model, trainable_names
from budgetft.plan import Candidate
from budgetft.predict.calibrate import Calibration, load_calibration
from budgetft.predict.clock import Speeds
from budgetft.predict.estimator import Estimator, Recordings
from budgetft.predict.machine import speeds_here
from budgetft.predict.store import has_recording, recording_key
from budgetft.search.predicted import fastest_of
from budgetft.search.space import offloads, part_sizes, settings
from budgetft.what_fits import METHODS, FitAsked, FitCell, FitRow, FitTable, Method
from budgetft.workload import Shape, Workload

Size = tuple[int, int]
PATIENCE = 8
"""Guesses by a line before the interval is halved: bytes are all but linear in pixels, so it takes about three."""


class Place(NamedTuple):
    """A GPU with what is known of it."""

    gpu: Gpu
    budget_bytes: int
    calibration: Calibration
    speeds: Speeds

    @property
    def kernels(self) -> tuple:
        return self.gpu.flash_attention, self.gpu.efficient_attention, self.gpu.base_precision

    @property
    def memory(self) -> tuple:
        """All that decides what fits: kernels, and bytes."""
        known = self.calibration
        return self.kernels, self.budget_bytes, known.context_bytes, known.workspace_bytes, known.uncertainty_share


def what_fits(
    gpus: Sequence[Gpu],
    models: Sequence[Model],
    asked: FitAsked,
    *,
    methods: Sequence[Method] = METHODS,
    budget_bytes: Callable[[Gpu], int] = lambda gpu: gpu.budget_bytes,
    on_trace: Callable[[str], None] = lambda text: None,
) -> FitTable:
    """All of ``models`` by all of ``methods`` on all of ``gpus``, in that order, models by size and GPUs as given.

    Predicted: nothing is run, and of bundled models nothing is traced. Raises ``UsageError`` for pictures or text that a model
    cannot take.
    """
    if asked.label_tokens >= asked.text_tokens:
        raise UsageError(
            f"{asked.label_tokens} label tokens must be fewer than the {asked.text_tokens} text tokens",
            hint="the text is prompt and answer, the label tokens are those of the answer",
        )
    places = [_place(gpu, budget_bytes(gpu)) for gpu in gpus]
    rows: list[FitRow] = []
    for model in sorted(models, key=lambda model: (model.parameters or math.inf, model.name)):
        found = [_Fitting(model, method, asked, on_trace).rows(places) for method in methods]
        rows += [row for of_gpu in zip(*found, strict=True) for row in of_gpu]
    return FitTable(asked=asked, rows=tuple(rows))


def recorded_models(gpus: Sequence[Gpu]) -> tuple[list[Model], list[str]]:
    """The bundled models of which recordings ship for all of ``gpus``, smallest first, and the names of the others.

    The others would have to be traced first, minutes each; they are, where one is asked for by its name.
    """
    kernels = {(gpu.flash_attention, gpu.efficient_attention, gpu.base_precision): gpu for gpu in gpus}
    models = sorted(map(load_model, trainable_names()), key=lambda model: model.parameters or 0)
    found = [model for model in models if all(_is_recorded(model, gpu) for gpu in kernels.values())]
    return found, [model.name for model in models if model not in found]


def _is_recorded(model: Model, gpu: Gpu) -> bool:
    contract = Contract(allow_nf4=True)
    side = 16 * model.pixel_step
    shape = Shape(images=((side, side),), text_tokens=256, supervised_tokens=128)
    job = Job(
        gpu=gpu, budget_bytes=gpu.budget_bytes, model=model, contract=contract, workload=Workload.uniform(shape),
        evidence="predicted",
    )  # fmt: skip
    return all(has_recording(key) for key in {recording_key(model, contract, knobs, gpu) for knobs in settings(job)})


def _place(gpu: Gpu, budget: int) -> Place:
    from importlib.metadata import version

    calibration = load_calibration(gpu.name).on_torch(version("torch"))
    return Place(gpu, budget, calibration, speeds_here(calibration.speeds_of(gpu), gpu, kernels_of=gpu))


class _Fitting:
    """One model by one method, on any GPU."""

    def __init__(self, model: Model, method: Method, asked: FitAsked, on_trace: Callable[[str], None]) -> None:
        self.model, self.asked, self.on_trace = model, asked, on_trace
        self.method: Method = method
        self.images = [self._seen(*size) for size in asked.images]
        self._recordings: Recordings = {}
        self._groups: dict[tuple, tuple] = {}
        self._firsts: dict[tuple, tuple[Estimator, list[Knobs]]] = {}
        self._own: dict[tuple, tuple[Estimator, list[Knobs]]] = {}
        self.known: dict[tuple, dict[int, int]] = {}
        """Of the search for the largest picture, by kernels: bytes of what takes least by side, all GPUs' own aside."""
        self._grids: dict[tuple, list[Knobs]] = {}
        self._sides: dict[tuple, int | None] = {}

    def rows(self, places: Sequence[Place]) -> list[FitRow]:
        """For every GPU."""
        return [self._row(place) for place in places]

    def _row(self, place: Place) -> FitRow:
        found = {size: self.candidate(place, size) for size in dict.fromkeys(self.images)}
        side, largest, most = None, None, None
        if self.model.packed:  # elsewhere memory does not rise with pixels alone
            search = _Largest(self, place, found)
            if place.memory not in self._sides:  # memory decides that, not speed
                self._sides[place.memory] = search.side()
            side, most = self._sides[place.memory], search.last
            largest = None if side is None else search.size(side)
        return FitRow(
            model=self.model.name,
            parameters=self.model.parameters,
            gpu=place.gpu.name,
            memory_bytes=place.gpu.memory_bytes,
            budget_bytes=place.budget_bytes,
            method=self.method,
            cells=tuple(self._cell(size, found[size]) for size in self.images),
            largest=None if largest is None else self._cell(largest, found.get(largest) or self.candidate(place, largest)),
            largest_of_model=side is not None and side == most,
            calibrated=place.calibration.name.split(" ")[0] != "assumed",
        )

    def _cell(self, size: Size, candidate: Candidate) -> FitCell:
        estimate, asked = candidate.estimate, self.asked
        known = {}
        if estimate.fits:
            time = run_time(estimate, examples=asked.examples, epochs=asked.epochs, effective_batch=asked.effective_batch)
            known = {
                "examples_per_second": estimate.samples_per_second,
                "speed_low": estimate.speed_low,
                "speed_high": estimate.speed_high,
                "time": time,
            }
        return FitCell(image=size, fits=estimate.fits, peak_bytes=estimate.process_peak_bytes, knobs=candidate.knobs, **known)

    def _seen(self, width: int, height: int) -> Size:
        """The picture as the model's processor resizes it; no smaller than the model takes it."""
        return resized_size(width, height, self.model, Contract(max_pixels=max(784, width * height)))

    def _contract(self, size: Size) -> Contract:
        pixels, asked = size[0] * size[1], self.asked
        tokens = shape_of([size], asked.text_tokens, asked.label_tokens, self.model).total_tokens(self.model.pixel_step)
        if tokens > self.model.max_positions:
            raise UsageError(
                f"a picture of {size[0]}x{size[1]} and {asked.text_tokens} text tokens are {tokens} tokens;"
                f" {self.model.name} takes {self.model.max_positions}",
                hint="ask for a smaller picture or a shorter text",
            )
        return Contract(
            max_pixels=max(784, pixels),
            max_length=max(tokens, 16),
            rank=asked.rank,
            alpha=min(2 * asked.rank, 2**20),
            effective_batch=asked.effective_batch,
            epochs=asked.epochs,
            allow_nf4=self.method == "QLoRA",
        )

    def estimator(self, place: Place, size: Size, *, whole: bool = True) -> tuple[Estimator, list[Knobs]]:
        """Of this GPU and picture, with the settings worth trying; ``whole``: not only with all layers checkpointed."""
        of = place.gpu.name, place.budget_bytes, size, whole
        if of not in self._own:
            first, wanted = self._first(place, size, whole)
            own = first.on(place.gpu, place.budget_bytes, calibration=place.calibration, speeds=place.speeds)
            self._own[of] = own, wanted
        return self._own[of]

    def _first(self, place: Place, size: Size, whole: bool) -> tuple[Estimator, list[Knobs]]:
        """Of a GPU with the same kernels, for which the same settings are worth trying."""
        of = place.kernels, place.budget_bytes, size
        if of not in self._groups:
            job = self._job(place, size)
            self._groups[of] = place.kernels, size, part_sizes(job), tuple(offloads(job, self.model.layers))
        key = self._groups[of], whole
        if key not in self._firsts:
            job = self._job(place, size)
            first = Estimator(
                job,
                calibration=place.calibration,
                speeds=place.speeds,
                on_trace=self.on_trace,
                at_once=True,
                recordings=self._recordings,
                only=None if whole else ("checkpointed",),
                record_missing=True,
            )
            self._firsts[key] = first, self._settings(job)
        return self._firsts[key]

    def _settings(self, job: Job) -> list[Knobs]:
        """Those of the method. Of equal examples they are the same for every picture."""
        key = job.gpu.base_precision, job.gpu.flash_attention, part_sizes(job), tuple(offloads(job, self.model.layers))
        if key not in self._grids:
            four = self.method == "QLoRA"
            self._grids[key] = [knobs for knobs in settings(job) if (knobs.base_precision == "nf4") == four]
        return self._grids[key]

    def _job(self, place: Place, size: Size) -> Job:
        shape = shape_of([size], self.asked.text_tokens, self.asked.label_tokens, self.model)
        return Job(
            gpu=place.gpu,
            budget_bytes=place.budget_bytes,
            model=self.model,
            contract=self._contract(size),
            workload=Workload.uniform(shape),
            evidence="predicted",
        )

    def candidate(self, place: Place, size: Size) -> Candidate:
        """The fastest setting that fits, else the smallest one."""
        return fastest_of(*self.estimator(place, size))

    def least_bytes(self, place: Place, size: Size, *, whole: bool = False) -> tuple[int, bool]:
        """(process peak, whether it fits) of what takes least: one example at a time and every layer checkpointed."""
        estimator, wanted = self.estimator(place, size, whole=whole)
        smallest = [knobs for knobs in wanted if (knobs.micro_batch, knobs.checkpointed_layers) == (1, self.model.layers)]
        best = min(smallest, key=estimator.least_bytes)
        return estimator.process_bytes(best), estimator.fits(best)

    def minimum(self, place: Place, size: Size, *, whole: bool) -> int:
        """That without what the allocator adds: next to no work where ``size`` was estimated."""
        estimator, wanted = self.estimator(place, size, whole=whole)
        layers = self.model.layers
        return min(
            estimator.least_bytes(each) for each in wanted if (each.micro_batch, each.checkpointed_layers) == (1, layers)
        )


class _Largest:
    """The search for the largest square picture that fits: by what takes least, whose bytes are all but linear in pixels."""

    def __init__(self, fitting: _Fitting, place: Place, found: dict[Size, Candidate]) -> None:
        self.fitting, self.place, self.found = fitting, place, found
        model = fitting.model
        self.step = model.pixel_step
        least, most = pixel_bounds(model, Contract(max_pixels=model.max_pixels))
        positions = model.max_positions - fitting.asked.text_tokens
        self.first = max(1, math.ceil(math.sqrt(least) / self.step))
        self.last = math.isqrt(min(most // self.step**2, positions))
        """Of the sides, in steps."""
        self.known = fitting.known.setdefault(place.kernels, {})
        self.own = place.calibration.context_bytes + place.calibration.workspace_bytes
        self.tried = 0
        self.minima: dict[int, int] = {}

    def side(self) -> int | None:
        """Of the largest square that fits, in steps; None where not even the smallest does."""
        low, high = self.first - 1, self.last + 1  # fits up to low, does not from high on
        for (width, height), candidate in self.found.items():
            side = width // self.step
            if width == height and self.first <= side <= self.last:
                low, high = (max(low, side), high) if candidate.estimate.fits else (low, min(high, side))
        while high - low > 1:
            side = self._guess(low, high)
            low, high = (side, high) if self._fits(side) else (low, side)
        return low if low >= self.first else None

    def size(self, side: int) -> Size:
        """Of the square, in pixels."""
        return side * self.step, side * self.step

    def _fits(self, side: int) -> bool:
        least, fits = self.fitting.least_bytes(self.place, self.size(side))
        self.known[side] = least - self.own
        self.tried += 1
        return fits

    def _guess(self, low: int, high: int) -> int:
        """A side between ``low`` and ``high``: where a line in pixels through what is known nearest meets the budget."""
        target = self.place.budget_bytes / (1 + self.place.calibration.uncertainty_share) - self.own
        known = self.known or self._floors()
        one, *others = sorted(known, key=lambda side: abs(known[side] - target))
        of_two = known if others else self._floors()
        first, two = (one, others[0]) if others else (min(of_two), max(of_two))
        slope = (of_two[two] - of_two[first]) / (two**2 - first**2)
        if slope <= 0 or self.tried > PATIENCE:
            return (low + high) // 2
        pixels = one**2 + (target - known[one]) / slope
        return min(max(math.isqrt(max(0, int(pixels))), low + 1), high - 1)

    def _floors(self) -> dict[int, int]:
        """By side, at two sides: the least memory but for what the allocator adds."""
        if not self.minima:
            asked = sorted({width // self.step for width, height in self.found if width == height})
            sides = asked[-2:] if len(asked) > 1 else [self.first, self.last]
            whole = len(asked) > 1
            self.minima = {side: self.fitting.minimum(self.place, self.size(side), whole=whole) - self.own for side in sides}
        return self.minima
