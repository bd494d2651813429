"""The process that loads one model and runs another project's trainer on it: the measuring half of ``rivals.py``."""

import gc
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.evidence import versions
from harness.jobs import shape

from budgetft.contract import Contract
from budgetft.gpu import load_gpu
from budgetft.model import load_model
from budgetft.units import parse_bytes
from budgetft.workload import Shape

EFFECTIVE_BATCH = 32
ACCUMULATED = 2
TIMED_STEPS = 2
TIMED_SECONDS = 12.0
RETURNED_BYTES = 16 * 2**20
"""A process that holds so much more after an out-of-memory than before it is not measured in again."""

TOKENS_GIVEN = {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}
KINDS: dict[str, dict[str, Any]] = {
    "trainer": {},
    "trainer-empty-cache": {"torch_empty_cache_steps": 1},
    "trainer-offload": {"gradient_checkpointing_kwargs": {"use_reentrant": False, "offload": True}},
    "trainer-liger": {"use_liger_kernel": True},
    "trl": TOKENS_GIVEN,
    "trl-liger": TOKENS_GIVEN | {"use_liger_kernel": True},
    "trl-offload": TOKENS_GIVEN | {"activation_offloading": True},
}
"""What each adds to ``common_options``; the first word is the class."""


def common_options(micro_batch: int, device: str, folder: str) -> dict[str, Any]:
    """What the documentation recommends for memory, and nothing that saves, evaluates or reports."""
    return {
        "per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": ACCUMULATED,
        "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "fp16": device == "cuda", "bf16": False, "use_cpu": device == "cpu",
        "optim": "adamw_torch_fused", "max_steps": 1 + TIMED_STEPS, "logging_steps": 1, "logging_nan_inf_filter": False,
        "output_dir": folder, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "remove_unused_columns": False,
    }  # fmt: skip


def first_line(error: BaseException) -> str:
    """The error's class and first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


class Running:
    """One loaded model, and the attempts of one kind on it."""

    def __init__(self, kind: str, model: str, device: str, gpu: str, budget: str) -> None:
        self.kind, self.device = kind, device
        if kind.startswith("trl"):
            import trl

            self.trainer_class, self.config_class = trl.SFTTrainer, trl.SFTConfig
        else:
            import transformers

            self.trainer_class, self.config_class = transformers.Trainer, transformers.TrainingArguments
        import torch

        from budgetft.step.build import build_model

        self.model_facts = load_model(model)
        self.budget_bytes = parse_bytes(budget)
        self.meter, self.evidence = None, "measured"
        self.cap_bytes: int | None = None
        self.tower_graded: bool | None = None
        if self.device == "cuda":
            self._restrict(gpu)
        precision = "fp16" if self.device == "cuda" else "fp32"
        self.peft_model = build_model(
            self.model_facts, Contract(rank=16), base_precision=precision, device=torch.device(self.device)
        )
        self._watch_tower()

    def _restrict(self, gpu_name: str) -> None:
        import torch

        from budgetft.meter.cuda import CudaMeter, restrict_to

        self.meter, gpu = CudaMeter(), load_gpu(gpu_name)
        if not gpu.is_gpu(torch.cuda.get_device_name(0), self.meter.total_bytes):
            restrict_to(gpu)
            self.evidence = "emulated"
        self.meter.set_cap(self.budget_bytes)

    def _watch_tower(self) -> None:
        """Note whether the first block of the frozen vision tower is given something to back-propagate to."""

        def look(module: Any, given: tuple[Any, ...]) -> None:
            self.tower_graded = bool(given[0].requires_grad)

        self.peft_model.get_base_model().model.visual.blocks[0].register_forward_pre_hook(look)

    def warm_up(self) -> None:
        """Load the kernels with a small batch, so that the context is measured before the cap is set."""
        edge = self.model_facts.pixel_step * 2
        self.attempt((edge, edge), 1, text=16, labels=4)
        if self.meter is not None:
            self.cap_bytes = self.meter.set_cap(self.budget_bytes)

    def attempt(self, size: tuple[int, int], micro_batch: int, **text: int) -> dict[str, Any]:
        """A row without what all rows of the kind have in common; what the kind could not do is its outcome."""
        import torch

        self._forget()
        held_bytes = torch.cuda.memory_allocated() if self.meter is not None else 0
        row: dict[str, Any] = {"width": size[0], "height": size[1], "micro_batch": micro_batch, "cap_bytes": self.cap_bytes}
        self.tower_graded = None
        forwards = {module: module.__dict__.get("forward") for module in (self.peft_model, self.peft_model.get_base_model())}
        try:
            with tempfile.TemporaryDirectory() as folder:
                row |= self._run(shape(size, **text), micro_batch, folder)
        except torch.OutOfMemoryError as error:
            row |= {"status": "oom", "detail": ". ".join(str(error).split(". ")[:2])}
        except Exception as error:  # whatever a rival raises is its outcome
            row |= {"status": "failed", "detail": first_line(error)}
        for module, forward in forwards.items():  # wrapped anew by each trainer
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward
        forget_hooks(self.peft_model)
        self._forget()
        held_now = torch.cuda.memory_allocated() if self.meter is not None else 0
        return row | {"returned": held_now <= held_bytes + RETURNED_BYTES, "tower_backpropagated": self.tower_graded}

    def _forget(self) -> None:
        self.peft_model.zero_grad(set_to_none=True)
        gc.collect()
        if self.meter is not None:
            self.meter.reset()

    def _run(self, work: Shape, micro_batch: int, folder: str) -> dict[str, Any]:
        options = common_options(micro_batch, self.device, folder) | KINDS[self.kind]
        trainer = self._trainer(options, self._fixed_batch(work, micro_batch))
        clock = timed(trainer, self._synchronize)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        row = {
            "status": "ok",
            "loss_finite": all(math.isfinite(loss) for loss in losses),
            "losses": [loss if math.isfinite(loss) else None for loss in losses],
            "adam_states": any("exp_avg" in state for state in trainer.optimizer.state.values()),
            **clock.rate(micro_batch),
        }
        if self.meter is not None:
            reading = self.meter.read()
            row |= {
                "allocated_peak_bytes": reading.allocated_peak_bytes,
                "reserved_peak_bytes": reading.reserved_peak_bytes,
                "process_peak_bytes": reading.reserved_peak_bytes + reading.non_torch_bytes,
                "alloc_retries": reading.alloc_retries,
            }
            if row["process_peak_bytes"] > self.budget_bytes:
                row["status"] = "over_budget"
        return row

    def _fixed_batch(self, work: Shape, micro_batch: int) -> dict[str, Any]:
        import torch

        from budgetft.data.collate import synthetic_batch

        batch = synthetic_batch((work,) * micro_batch, self.model_facts, seed=0)
        names = ("input_ids", "labels", "mm_token_type_ids", "pixel_values", "image_grid_thw")
        return {name: getattr(batch, name) for name in names} | {"attention_mask": torch.ones_like(batch.input_ids)}

    def _trainer(self, options: dict[str, Any], batch: dict[str, Any]) -> Any:
        rows: Any = list(range(options["per_device_train_batch_size"] * ACCUMULATED * options["max_steps"]))
        extra: dict[str, Any] = {}
        if self.kind.startswith("trl"):
            from datasets import Dataset
            from datasets.table import InMemoryTable

            # Named, because finding a name pickles the table, which fails with pyarrow 26 on Python 3.12.
            rows = Dataset(InMemoryTable.from_pydict({"row": rows}), fingerprint="rows")
            extra["processing_class"] = unused_tokenizer()
        return self.trainer_class(
            model=self.peft_model,
            args=self.config_class(**options),
            train_dataset=rows,
            data_collator=lambda _: dict(batch),
            **extra,
        )

    def _synchronize(self) -> None:
        import torch

        if self.meter is not None:
            torch.cuda.synchronize()


def forget_hooks(model: Any) -> None:
    """Remove what each trainer hangs on the embeddings anew, so that the second trainer finds what the first did."""
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if hook.__name__ == "make_inputs_require_grads":
                del module._forward_hooks[key]


def unused_tokenizer() -> Any:
    """SFTTrainer wants one even for examples that are tokens already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = models.WordLevel({"<pad>": 0}, unk_token="<pad>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(vocabulary), pad_token="<pad>", eos_token="<pad>")


def timed(trainer: Any, synchronize: Any) -> Any:
    """A clock of the trainer's micro-batches and steps, ticking from now on."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.micro_seconds: list[float] = []
            self.step_seconds: list[float] = []
            self.created = time.monotonic()

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            synchronize()
            self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            synchronize()
            self.step_seconds.append(time.perf_counter() - self.began)
            if len(self.step_seconds) > 1 and time.monotonic() - self.created > TIMED_SECONDS:
                control.should_training_stop = True

        def rate(self, micro_batch: int) -> dict[str, Any]:
            """Seconds of a micro-batch and of an update, and samples a second at the effective batch; no warm-up in it."""
            micros, steps = self.micro_seconds[ACCUMULATED:], self.step_seconds[1:]
            micro = median(micros)
            updates = [step - sum(micros[i * ACCUMULATED : (i + 1) * ACCUMULATED]) for i, step in enumerate(steps)]
            update = median(updates)
            whole = EFFECTIVE_BATCH / micro_batch * micro + update
            return {
                "micro_seconds": micro,
                "update_seconds": update,
                "samples_per_second": EFFECTIVE_BATCH / whole,
                "timed_steps": len(steps),
            }

    clock, original = Clock(), trainer.training_step

    def training_step(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        loss = original(*args, **kwargs)
        synchronize()
        clock.micro_seconds.append(time.perf_counter() - started)
        return loss

    trainer.training_step = training_step
    trainer.add_callback(clock)
    return clock


def serve(asked: dict[str, str], lines: Iterable[str], answer: Callable[[dict[str, Any]], None]) -> None:
    """Answer ``width height micro_batch`` lines with rows, until they end or the process is good for no more."""
    started = time.monotonic()
    try:
        running = Running(**asked)
        running.warm_up()
    except Exception as error:  # a package that is missing, most likely
        answer({"unusable": first_line(error), "versions": versions()})
        return
    options = common_options(0, asked["device"], "") | KINDS[asked["kind"]]
    del options["per_device_train_batch_size"], options["output_dir"]
    common = {
        "evidence": running.evidence,
        "options": options,
        "allocator": os.environ.get("PYTORCH_ALLOC_CONF", "default"),
        "versions": versions(),
        "load_seconds": round(time.monotonic() - started, 1),
    }
    answer({"ready": True})
    for line in lines:
        width, height, micro_batch = map(int, line.split())
        row = running.attempt((width, height), micro_batch)
        answer({"row": row | common})
        if not row["returned"]:
            return


def main() -> None:
    """``rivals_child.py ASKED_JSON ANSWER_FD``; the lines come on stdin."""
    with os.fdopen(int(sys.argv[2]), "w", buffering=1) as answers:
        serve(json.loads(sys.argv[1]), sys.stdin, lambda message: print(json.dumps(message), file=answers))


if __name__ == "__main__":
    main()
