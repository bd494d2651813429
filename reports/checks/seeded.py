"""Faults that a developer could make and that no error would show: an exact text of budgetft, and what stands there instead.

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


def _fault(name: str, file: str, old: str, new: str, first: str) -> Fault:
    """``file`` below budgetft/, ``first`` below tests/, separated by spaces."""
    return Fault(name=name, file=f"budgetft/{file}", old=old, new=new, first=tuple(f"tests/{path}" for path in first.split()))


STEP = (
    _fault(
        "The chunked loss no longer moves small probabilities up into what fp16 can hold", "step/loss.py",
        "GRADIENT_SCALE = 1024.0",
        "GRADIENT_SCALE = 1.0",
        "step/test_step.py train/test_numerics.py",
    ),
    _fault(
        "The fused norm leaves its epsilon out", "step/pointwise.py",
        "scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)",
        "scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True))",
        "step/test_step.py",
    ),
    _fault(
        "In backward the lean LoRA rounds to bf16 in the first layer, for which no gradient of its input is asked",
        "step/lora.py",
        "        grad_low_TR = grad_TO @ (b_OR.to(x.dtype) * ctx.scale)\n",
        "        grad_low_TR = grad_TO @ (b_OR.to(x.dtype) * ctx.scale)\n"
        "        if not ctx.needs_input_grad[0]:\n"
        "            grad_low_TR = grad_low_TR.bfloat16().to(x.dtype)\n",
        "step/test_step.py",
    ),
    _fault(
        "One layer fewer is checkpointed than the plan says", "step/step.py",
        "layer.gradient_checkpointing = number < knobs.checkpointed_layers",
        "layer.gradient_checkpointing = number + 1 < knobs.checkpointed_layers",
        "step/test_step.py predict/test_trace.py predict/test_memory_model.py",
    ),
)  # fmt: skip

PREDICT = (
    _fault(
        "The replayed allocator does not round sizes up to 512 bytes", "predict/allocator.py",
        "wanted = max(MINIMUM, -(-size // MINIMUM) * MINIMUM)",
        "wanted = max(MINIMUM, size)",
        "predict/test_allocator.py",
    ),
    _fault(
        "A trace leaves out the buffer of softmax's backward on a GPU", "predict/trace.py",
        "            self._temporary(granules(_nbytes(out)))",
        "            pass",
        "predict/test_trace.py",
    ),
    _fault(
        "What the allocator adds is interpolated by the share of the other axis", "predict/memory_model.py",
        "    column, across = _place([log2(size) for size in micro_batches], log2(micro_batch))\n    row, along = _place(",
        "    column, along = _place([log2(size) for size in micro_batches], log2(micro_batch))\n    row, across = _place(",
        "predict/test_memory_model.py predict/test_ground_truth.py",
    ),
    _fault(
        "A setting is predicted to fit with no margin for what the prediction may be off", "predict/estimator.py",
        "return process_bytes * (1 + self.uncertainty_of(knobs)) <= self.job.budget_bytes",
        "return process_bytes <= self.job.budget_bytes",
        "predict/test_estimator.py search/test_planner.py",
    ),
)  # fmt: skip

SEARCH = (
    _fault(
        "What a probe teaches of a peak is learned with the wrong sign", "search/sampler.py",
        "peaks[index] = math.log(peak) - self._log_peak[index]",
        "peaks[index] = self._log_peak[index] - math.log(peak)",
        "search/test_sampler.py",
    ),
    _fault(
        "A probe that ran out of memory below the budget is told as one inside it", "search/study.py",
        "    elif peak <= outcome.budget_bytes:",
        "    elif not peak:",
        "search/test_study.py search/test_planner.py",
    ),
    _fault(
        "How much peaks scatter between neighbours is left out of the chance to fit", "search/sampler.py",
        "return mean, np.hypot(spread, self._peak_prior.noise)",
        "return mean, spread",
        "search/test_sampler.py",
    ),
    _fault(
        "How fast one GPU was carries over to the plan for another GPU", "search/transfer.py",
        "level = 0.0 if len(self._here) == len(self._lessons) else mean(values)",
        "level = 0.0",
        "search/test_transfer.py search/test_port.py",
    ),
)  # fmt: skip

TRAIN = (
    _fault(
        "A process that had memory keeps its gradients when another's ran out and the step is done again",
        "train/recover.py",
        "            return refused\n        finally:\n            self.step.optimizer.zero_grad(set_to_none=True)\n",
        "            return refused\n",
        "train/test_recover.py train/test_shared_base.py",
    ),
    _fault(
        "A step that is done again draws on where its first try ended", "train/recover.py",
        "        while True:\n            rng.seed_step(self.step.contract.seed, number, self.ranks.rank)\n",
        "        rng.seed_step(self.step.contract.seed, number, self.ranks.rank)\n        while True:\n",
        "train/test_recover.py",
    ),
    _fault(
        "A resumed run has its adapter back and begins with an empty optimizer", "train/checkpoint.py",
        "    _load_optimizer(step, load_file(folder / OPTIMIZER))",
        "    load_file(folder / OPTIMIZER)",
        "train/test_resume.py",
    ),
    _fault(
        "The held-out loss is divided by the tokens and not by their weights", "train/heldout.py",
        "tokens + micro.inputs.supervised_tokens",
        "tokens + len(micro.inputs.targets_N)",
        "train/test_heldout.py",
    ),
)  # fmt: skip

DATA = (
    _fault(
        "The heaviest examples are those with the most pixels, not the longest", "data/stats.py",
        "key=lambda shape: (shape.total_tokens(pixel_step), shape.visual_tokens(pixel_step))",
        "key=lambda shape: (shape.visual_tokens(pixel_step), shape.total_tokens(pixel_step))",
        "data/test_stats.py",
    ),
    _fault(
        "The fingerprint of a dataset does not see the weights of its examples", "data/examples.py",
        "known = [row[name] for name in COLUMNS]",
        "known = [row[name] for name in COLUMNS if name != \"weight\"]",
        "data/test_examples.py",
    ),
    _fault(
        "The numbers of annotated frames are taken to begin at 1", "data/media/video.py",
        "return image_id // 2 if self.doubled else image_id",
        "return image_id // 2 if self.doubled else max(0, image_id - 1)",
        "data/test_wts.py",
    ),
    _fault(
        "Examples that do not fill a last micro-batch are dropped", "data/bucket.py",
        "for start in range(0, len(indices), micro_batch)]",
        "for start in range(0, len(indices) - micro_batch + 1, micro_batch)]",
        "data/test_bucket.py",
    ),
)  # fmt: skip

FAULTS = (*STEP, *PREDICT, *SEARCH, *TRAIN, *DATA)
