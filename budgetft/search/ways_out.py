"""When nothing fits: what else would, from the least harm to the most, each with its cost.

Two are named at most: the first that gives something up, and the first that does not. Given up are, in this order: precision of
the base weights (4 bits), pixels, frames, the size of the model; where no one of them is enough, each is tried in 4 bits.
Nothing but disk or money is given up by pre-computed vision features and by more GPUs. CPU offload needs no leave: every
search tries it already.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from budgetft.contract import Contract
from budgetft.data.shapes import ignores_pixels, with_frames, with_sizes
from budgetft.data.tokens import resized_size
from budgetft.duration import duration_text, time_under
from budgetft.errors import BudgetftError, UsageError
from budgetft.knobs import Knobs, Vision
from budgetft.measure.job import Job
from budgetft.model import Model, load_model, model_names
from budgetft.plan import Candidate
from budgetft.predict.estimator import Estimator
from budgetft.search.predicted import fastest
from budgetft.search.ranking import speed
from budgetft.search.space import settings
from budgetft.units import format_gib
from budgetft.weights import split_revision
from budgetft.wording import pixels_words
from budgetft.workload import Shape, Workload

MOST_GPUS = 8
"""That one machine has."""
LEAST_PIXELS = 224 * 224
"""Below which no image is halved again: little is left to be seen."""
TINY = "tiny-"


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A change that may be enough."""

    change: str
    """In words, with the option that asks for it."""
    job: Job
    vision: Vision = "frozen"


@dataclass(frozen=True, kw_only=True)
class WayOut:
    """An offer with which something fits, and the fastest setting there."""

    offer: Offer
    best: Candidate

    def text(self) -> str:
        """``--allow-nf4 (QLoRA): fits in 10.77 GiB, 0.55 to 0.92 examples/s (predicted)``."""
        estimate, job = self.best.estimate, self.offer.job
        time = time_under(job.contract, estimate, job.workload.examples)
        took = "" if time is None else f", about {duration_text(time.seconds)}"
        said = f"fits in {format_gib(estimate.process_peak_bytes)}, {estimate.speed_text()}{took}"
        return f"{self.offer.change}: {said} (predicted)"


@dataclass(frozen=True, kw_only=True)
class Alternatives:
    """What else may be asked for than ``job``; ``grid`` says what would be tried of another job, with which vision."""

    job: Job
    grid: Callable[[Job, Vision], list[Knobs]]
    make_estimator: Callable[[Job], Estimator]

    def find(self) -> list[WayOut]:
        """At most two: one that gives something up, and one that does not."""
        exact, lossy = self._first(exact_offers(self.job)), self._first(lossy_offers(self.job))
        if lossy is None and exact is None:
            lossy = self._first(offers_in_four_bits(self.job))
        return [way for way in (lossy, exact) if way is not None]

    def _first(self, offers: Iterator[Offer]) -> WayOut | None:
        ways = (WayOut(offer=offer, best=best) for offer in offers if (best := self._best(offer)) is not None)
        return next(ways, None)

    def _best(self, offer: Offer) -> Candidate | None:
        """The fastest setting that is predicted to fit; None where none does, or it cannot be predicted."""
        try:
            estimator = self.make_estimator(offer.job)
            estimates = {knobs: estimator.estimate(knobs) for knobs in self.grid(offer.job, offer.vision)}
        except BudgetftError:
            return None
        fitting = [knobs for knobs, estimate in estimates.items() if estimate.fits]
        best = max(fitting, key=lambda knobs: speed(estimates[knobs]), default=None)
        return None if best is None else Candidate(knobs=best, estimate=estimates[best])


def ways_out(job: Job, given: dict[str, Any], *, on_trace: Callable[[str], None] = lambda text: None) -> list[str]:
    """What would fit where ``job`` does not with the ``given`` knobs: other settings if there are such, else other jobs."""
    make = partial(Estimator, at_once=True, on_trace=on_trace)
    if given:
        other = fastest(make(job), {})
        if other.estimate.fits:
            return [WayOut(offer=Offer(change="without --setting", job=job), best=other).text()]
    found = Alternatives(job=job, grid=settings, make_estimator=make).find()
    return [way.text() for way in found]


def exact_offers(job: Job) -> Iterator[Offer]:
    """Nothing that is learned changes."""
    if job.workload.worst[0].images:
        yield Offer(change="--cache auto, pre-computed vision features", job=job, vision="cached")
    gpus = 2 * job.gpus
    while gpus <= min(MOST_GPUS, job.contract.effective_batch):
        change = f"share the frozen layers out between {gpus} such GPUs, --gpus {gpus}"
        yield Offer(change=change, job=job.replace(gpus=gpus, shared=True, device="cuda"))
        gpus *= 2


def lossy_offers(job: Job) -> Iterator[Offer]:
    """The least harm first."""
    if (four_bits := in_four_bits(job)) is not None:
        yield Offer(change="--allow-nf4, 4-bit base weights (QLoRA)", job=four_bits)
    yield from smaller_offers(job)


def offers_in_four_bits(job: Job) -> Iterator[Offer]:
    """Two changes at once."""
    if (four_bits := in_four_bits(job)) is not None:
        for offer in smaller_offers(four_bits):
            yield Offer(change=f"--allow-nf4 (QLoRA) and {offer.change}", job=offer.job)


def smaller_offers(job: Job) -> Iterator[Offer]:
    """Fewer pixels, then fewer frames, then a smaller model."""
    yield from fewer_pixels(job)
    yield from fewer_frames(job)
    for name, sibling in smaller_siblings(job.model):
        yield Offer(change=f"--model {name}", job=job.replace(model=sibling))


def in_four_bits(job: Job) -> Job | None:
    """``job`` with leave for a 4-bit base; None where it has that already, or cannot."""
    contract = job.contract
    return None if contract.allow_nf4 or contract.use_dora else job.replace(contract=contract.replace(allow_nf4=True))


def fewer_pixels(job: Job) -> Iterator[Offer]:
    """Halves of the largest image's pixels, the largest first."""
    if ignores_pixels(job.model):
        return
    sizes = [size for shape in job.workload.worst for size in shape.images]
    pixels = max((width * height for width, height in sizes), default=0) // 2
    while pixels >= LEAST_PIXELS:
        contract = job.contract.replace(max_pixels=pixels)
        try:
            workload = with_pixels(job.workload, job.model, pixels)
        except UsageError:
            return
        change = f"--max-pixels {pixels} ({pixels_words(pixels)})"
        yield Offer(change=change, job=job.replace(contract=contract, workload=workload))
        pixels //= 2


def with_pixels(workload: Workload, model: Model, pixels: int) -> Workload:
    """``workload`` with its images resized to at most ``pixels``, as the model's processor would from their present sizes."""
    contract = Contract(max_pixels=pixels)

    def resized(shape: Shape) -> Shape:
        return with_sizes(shape, [resized_size(*size, model, contract) for size in shape.images], model)

    return workload.replace(
        worst=tuple(map(resized, workload.worst)), typical=tuple(map(resized, workload.typical)), fingerprint=None
    )


def fewer_frames(job: Job) -> Iterator[Offer]:
    """Halves of the most images an example has, or frames of its video."""
    workload = job.workload
    most, video = workload.most_frames, workload.is_video
    kind = "frames of a video" if video else "images"
    count = most // 2
    while count >= 1:
        changed = with_frames(workload, count, job.model, video=video)
        yield Offer(change=f"make examples of {count} instead of {most} {kind}", job=job.replace(workload=changed))
        count //= 2


def smaller_siblings(model: Model) -> list[tuple[str, Model]]:
    """Bundled models of the same family with fewer parameters, the largest first."""
    if model.parameters is None:
        return []
    own = model.hub_id and split_revision(model.hub_id)[0]
    found = []
    for name in model_names():
        other = load_model(name)
        smaller = other.parameters is not None and other.parameters < model.parameters
        if other.family == model.family and smaller and name.startswith(TINY) == model.name.startswith(TINY):
            found.append((name, other))
    return sorted((each for each in found if each[1].hub_id != own), key=lambda each: -(each[1].parameters or 0))
