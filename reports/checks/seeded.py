"""Faults that a developer could introduce and that no error would show.

Each is one exact text of budgetft and what stands there instead.

Four each in ``step``, ``predict``, ``search``, ``train`` and ``data``.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Fault:
    """``old`` stands exactly once in ``file``."""

    name: str
    """In a sentence."""
    file: str
    old: str
    new: str
    first: tuple[str, ...]
    """The test files that are most likely to see it, which run before the others."""


STEP = (
    Fault(
        name="The chunked loss no longer moves small probabilities up into what fp16 can hold",
        file="budgetft/step/loss.py",
        old="GRADIENT_SCALE = 1024.0",
        new="GRADIENT_SCALE = 1.0",
        first=("tests/step/test_step.py", "tests/train/test_numerics.py"),
    ),
    Fault(
        name="The fused norm leaves its epsilon out",
        file="budgetft/step/pointwise.py",
        old="scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)",
        new="scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True))",
        first=("tests/step/test_step.py",),
    ),
    Fault(
        name="In backward the lean LoRA rounds to bf16 in the first layer, for which no gradient of its input is asked",
        file="budgetft/step/lora.py",
        old="        grad_low_TR = grad_TO @ (b_OR.to(x.dtype) * ctx.scale)\n",
        new="        grad_low_TR = grad_TO @ (b_OR.to(x.dtype) * ctx.scale)\n"
        "        if not ctx.needs_input_grad[0]:\n"
        "            grad_low_TR = grad_low_TR.bfloat16().to(x.dtype)\n",
        first=("tests/step/test_step.py",),
    ),
    Fault(
        name="One layer fewer is checkpointed than the plan says",
        file="budgetft/step/step.py",
        old="layer.gradient_checkpointing = number < knobs.checkpointed_layers",
        new="layer.gradient_checkpointing = number + 1 < knobs.checkpointed_layers",
        first=("tests/step/test_step.py", "tests/predict/test_trace.py", "tests/predict/test_law.py"),
    ),
)

PREDICT = (
    Fault(
        name="The replayed allocator does not round sizes up to 512 bytes",
        file="budgetft/predict/allocator.py",
        old="wanted = max(MINIMUM, -(-size // MINIMUM) * MINIMUM)",
        new="wanted = max(MINIMUM, size)",
        first=("tests/predict/test_allocator.py",),
    ),
    Fault(
        name="A trace leaves out the buffer of softmax's backward on a GPU",
        file="budgetft/predict/trace.py",
        old="            self._temporary(granules(_nbytes(out)))",
        new="            pass",
        first=("tests/predict/test_trace.py",),
    ),
    Fault(
        name="What the allocator adds is interpolated by the share of the other axis",
        file="budgetft/predict/law.py",
        old="    column, across = _place([log2(size) for size in micro_batches], log2(micro_batch))\n    row, along = _place(",
        new="    column, along = _place([log2(size) for size in micro_batches], log2(micro_batch))\n    row, across = _place(",
        first=("tests/predict/test_law.py", "tests/predict/test_ground_truth.py"),
    ),
    Fault(
        name="A setting is predicted to fit with no margin for what the prediction may be off",
        file="budgetft/predict/estimator.py",
        old="return process_bytes * (1 + self.uncertainty_of(knobs)) <= self.job.budget_bytes",
        new="return process_bytes <= self.job.budget_bytes",
        first=("tests/predict/test_estimator.py", "tests/search/test_planner.py"),
    ),
)

SEARCH = (
    Fault(
        name="What a probe teaches of a peak is learned with the wrong sign",
        file="budgetft/search/sampler.py",
        old="peaks[index] = math.log(peak) - self._log_peak[index]",
        new="peaks[index] = self._log_peak[index] - math.log(peak)",
        first=("tests/search/test_sampler.py",),
    ),
    Fault(
        name="A probe that ran out of memory below the budget is told as one inside it",
        file="budgetft/search/study.py",
        old="    elif peak <= outcome.budget_bytes:",
        new="    elif not peak:",
        first=("tests/search/test_study.py", "tests/search/test_planner.py"),
    ),
    Fault(
        name="How much peaks scatter between neighbours is left out of the chance to fit",
        file="budgetft/search/sampler.py",
        old="return mean, np.hypot(spread, self._peak_prior.noise)",
        new="return mean, spread",
        first=("tests/search/test_sampler.py",),
    ),
    Fault(
        name="How fast one GPU was carries over to the plan for another GPU",
        file="budgetft/search/transfer.py",
        old="level = 0.0 if len(self._here) == len(self._lessons) else mean(values)",
        new="level = 0.0",
        first=("tests/search/test_transfer.py", "tests/search/test_port.py"),
    ),
)

TRAIN = (
    Fault(
        name="A process that had memory keeps its gradients when another's ran out and the step is done again",
        file="budgetft/train/recover.py",
        old="            return refused\n        finally:\n            self.step.optimizer.zero_grad(set_to_none=True)\n",
        new="            return refused\n",
        first=("tests/train/test_recover.py", "tests/train/test_shared_base.py"),
    ),
    Fault(
        name="A step that is done again draws on where its first try ended",
        file="budgetft/train/recover.py",
        old="        while True:\n            rng.seed_step(self.step.contract.seed, number, self.ranks.rank)\n",
        new="        rng.seed_step(self.step.contract.seed, number, self.ranks.rank)\n        while True:\n",
        first=("tests/train/test_recover.py",),
    ),
    Fault(
        name="A resumed run has its adapter back and begins with an empty optimizer",
        file="budgetft/train/checkpoint.py",
        old="    _load_optimizer(step, load_file(folder / OPTIMIZER))",
        new="    load_file(folder / OPTIMIZER)",
        first=("tests/train/test_resume.py",),
    ),
    Fault(
        name="The held-out loss is divided by the tokens and not by their weights",
        file="budgetft/train/heldout.py",
        old="tokens + micro.inputs.supervised_tokens",
        new="tokens + len(micro.inputs.targets_N)",
        first=("tests/train/test_heldout.py",),
    ),
)

DATA = (
    Fault(
        name="The heaviest examples are those with the most pixels, not the longest",
        file="budgetft/data/stats.py",
        old="key=lambda shape: (shape.total_tokens(pixel_step), shape.visual_tokens(pixel_step))",
        new="key=lambda shape: (shape.visual_tokens(pixel_step), shape.total_tokens(pixel_step))",
        first=("tests/data/test_stats.py",),
    ),
    Fault(
        name="The fingerprint of a dataset does not see the weights of its examples",
        file="budgetft/data/examples.py",
        old="known = [row[name] for name in COLUMNS]",
        new='known = [row[name] for name in COLUMNS if name != "weight"]',
        first=("tests/data/test_examples.py",),
    ),
    Fault(
        name="The numbers of annotated frames are taken to begin at 1",
        file="budgetft/data/media/video.py",
        old="return image_id // 2 if self.doubled else image_id",
        new="return image_id // 2 if self.doubled else max(0, image_id - 1)",
        first=("tests/data/test_wts.py",),
    ),
    Fault(
        name="Examples that do not fill a last micro-batch are dropped",
        file="budgetft/data/bucket.py",
        old="for start in range(0, len(indices), micro_batch)]",
        new="for start in range(0, len(indices) - micro_batch + 1, micro_batch)]",
        first=("tests/data/test_bucket.py",),
    ),
)

FAULTS = (*STEP, *PREDICT, *SEARCH, *TRAIN, *DATA)
