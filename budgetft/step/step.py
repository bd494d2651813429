"""One optimizer step of LoRA fine-tuning, as the knobs say; the same code is traced, probed and trained.

Shapes: B examples, S tokens, N supervised tokens, D hidden, V vocabulary.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from budgetft.contract import Contract
from budgetft.data.collate import Batch
from budgetft.errors import UsageError
from budgetft.knobs import STOCK_TOWERS, Knobs, Vision
from budgetft.outcome import Phase
from budgetft.step import lora, pointwise
from budgetft.step.attention import implementation
from budgetft.step.build import DTYPES, trainable
from budgetft.step.family import family_of
from budgetft.step.fp32_blocks import set_fp32_blocks
from budgetft.step.inputs import Inputs, prepare
from budgetft.step.loss import chunked_loss, summed_loss, supervised_loss, weighted_full_loss
from budgetft.step.offload import checkpoint_on_host
from budgetft.step.optimizer import make_optimizer, make_states
from budgetft.step.shared import SharedLayers


@dataclass(frozen=True, kw_only=True)
class Update:
    """What one optimizer step did. ``finite`` False means that it was skipped."""

    grad_norm: float
    finite: bool
    scale: float
    culprit: str | None = None
    """The parameter nearest to the loss whose gradient is not finite."""


class Step:
    """Forward and backward of micro-batches, then an update. ``phase`` says where it is, for whoever reports a failure."""

    def __init__(
        self,
        peft_model: Any,
        contract: Contract,
        knobs: Knobs,
        *,
        device: torch.device,
        shared: SharedLayers | None = None,
    ) -> None:
        self.peft_model = peft_model
        self.shared = shared
        self.contract = contract
        self.device = device
        self.phase: Phase = "load"
        self.on_phase: Callable[[Phase], None] = lambda phase: None
        self.parameters = trainable(peft_model)
        self.optimizer = make_optimizer(self.parameters, contract, knobs.optimizer)
        scaled = DTYPES[knobs.base_precision] == torch.float16 and device.type == "cuda"
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self.family = family_of(self.base.config.model_type)
        self.configure(knobs)

    @property
    def base(self) -> Any:
        """The transformers model inside the PEFT model."""
        return self.peft_model.get_base_model()

    def configure(self, knobs: Knobs) -> None:
        """Switch to ``knobs`` without rebuilding the model; not base precision, optimizer or cached vision."""
        self.knobs = knobs
        base = self.base
        if (knobs.vision == "cached") != self.family.is_towerless(base):
            raise ValueError(f"vision {knobs.vision!r}: build the model for it, with or without a tower")
        self._choose_attention(knobs)
        self.family.unfreeze(base)
        if knobs.vision == "frozen":
            self.family.freeze(base, self._enter)
        fp32_blocks = knobs.fp32_blocks, DTYPES[knobs.base_precision]
        set_fp32_blocks(base, *fp32_blocks)
        lora.make_stock(self.peft_model)
        if knobs.lora == "lean":
            lora.make_lean(self.peft_model)
        pointwise.make_stock(base)
        if knobs.pointwise == "fused":
            pointwise.make_fused(self.family.decoder(base))
            if knobs.vision == "frozen" and (tower := self.family.tower(base)) is not None:
                pointwise.make_fused(tower)
        set_fp32_blocks(base, *fp32_blocks)  # their forward stands in front of what was put there since
        self._checkpoint(knobs)

    def _choose_attention(self, knobs: Knobs) -> None:
        """Ours in the language model as ``knobs`` say, and in the frozen tower of a family that has groups of images."""
        base, family = self.base, self.family
        own = family.own_attention(base)
        text = {"stock": own[0], "eager": "eager"}.get(knobs.attention) or implementation(knobs.attention)
        of_tower = family.tower_attention(knobs, own[1])
        for config in (base.config, family.core(base).config, family.decoder(base).config):
            config._attn_implementation = text
        if (tower := family.tower(base)) is not None:
            tower.config._attn_implementation = of_tower

    def _checkpoint(self, knobs: Knobs) -> None:
        base = self.base
        if hasattr(base, "_require_grads_hooks"):
            base.disable_input_require_grads()
        recompute = partial(checkpoint, use_reentrant=False)
        of_layers = checkpoint_on_host if knobs.offload == "activations" else recompute
        checkpointing = knobs.checkpointed_layers > 0
        base._set_gradient_checkpointing(
            enable=checkpointing and knobs.vision == "stock", gradient_checkpointing_func=recompute
        )
        if checkpointing and knobs.vision in ("stock", "uncheckpointed"):
            # What a Trainer, and peft, do with a PEFT model; in transformers 5 it hooks the vision tower's input too.
            base.enable_input_require_grads()
        for number, layer in enumerate(self.family.layers(base)):
            layer._gradient_checkpointing_func = of_layers
            layer.gradient_checkpointing = number < knobs.checkpointed_layers

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self.on_phase(phase)

    def prepare(self, batch: Batch) -> Inputs:
        """``batch`` with the host's part done, on the step's device."""
        return self.take(self.prepare_on_host(batch))

    def take(self, inputs: Inputs) -> Inputs:
        """``inputs`` on the step's device."""
        self._enter("load")
        return inputs.to(self.device)

    def prepare_on_host(self, batch: Batch) -> Inputs:
        """``batch`` with the host's part done."""
        return prepare(batch, self.base, vision=self.knobs.vision, vision_group=self.knobs.vision_group)

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of every forward of this step, training or not."""
        dtype = DTYPES[self.knobs.base_precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32)

    def one_pass(self, *, backward: bool) -> AbstractContextManager[None]:
        """The block of one forward, and ``backward`` its backward; see :meth:`SharedLayers.one_pass`."""
        return nullcontext() if self.shared is None else self.shared.one_pass(backward=backward)

    def even(self, passes: int, *, backward: bool) -> AbstractContextManager[None]:
        """The block in which every process makes as many ``passes``; see :meth:`SharedLayers.even`."""
        return nullcontext() if self.shared is None else self.shared.even(passes, backward=backward)

    def micro(self, inputs: Inputs, *, total_supervised: float) -> torch.Tensor:
        """Forward and backward of one micro-batch: one pass, where layers are shared.

        Gradients accumulate those of the loss summed over tokens, each with the weight of its example, and divided by
        ``total_supervised``, the supervised tokens of the whole effective batch counted with those weights, so that they do
        not depend on how it was split. Returns this share of the loss (fp32, detached, on the device).
        """
        with self.one_pass(backward=True):
            self._enter("forward")
            with self.autocast():
                if self.knobs.loss == "full":
                    loss = self._stock_loss(inputs, total_supervised)
                else:
                    hidden_ND = self._hidden(inputs)
                    self._enter("loss")
                    head_VD, cap = self.family.head(self.base)
                    answers = inputs.targets_N, inputs.sample_weights_N
                    if self.knobs.loss == "chunked":
                        chunk = self.knobs.loss_chunk
                        loss = chunked_loss(hidden_ND, head_VD, *answers, chunk=chunk, divisor=total_supervised, cap=cap)
                    else:
                        loss = supervised_loss(hidden_ND, head_VD, *answers, cap=cap) / total_supervised
                    del hidden_ND
            self._enter("backward")
            self.scaler.scale(loss).backward()
            return loss.detach()

    @torch.no_grad()
    def evaluate(self, inputs: Inputs) -> torch.Tensor:
        """Cross-entropy summed over the supervised tokens of ``inputs``, weighted as in training (fp32), in evaluation mode.

        No graph, and never more than a chunk of logits, whatever the knobs say of the training loss; but all of them where it
        is ``full`` and the type has a head that cannot be taken in chunks.
        """
        self._enter("forward")
        self.peft_model.eval()
        try:
            with self.one_pass(backward=False), self.autocast():
                try:
                    (head_VD, cap), chunk = self.family.head(self.base), self.knobs.loss_chunk
                except UsageError:
                    if self.knobs.loss != "full":
                        raise
                    return self._stock_loss(inputs, 1.0)
                hidden_ND = self._hidden(inputs)
                self._enter("loss")
                answers = inputs.targets_N, inputs.sample_weights_N
                return summed_loss(hidden_ND, head_VD, *answers, chunk=chunk, cap=cap)
        finally:
            self.peft_model.train()

    @torch.no_grad()
    def loss_as_transformers(self, inputs: Inputs) -> torch.Tensor:
        """As :meth:`evaluate`, by transformers' own forward, kernels and head, with peft's own LoRA: all logits are held."""
        planned = self.knobs
        vision: Vision = "cached" if planned.vision == "cached" else "stock"
        own = {"loss": "full", "attention": "stock", "lora": "stock", "pointwise": "stock", "vision": vision}
        try:
            self.configure(planned.replace(**own, checkpointed_layers=0, offload="none", fp32_blocks=()))
            self.peft_model.eval()
            with self.one_pass(backward=False), self.autocast():
                return self._stock_loss(inputs, 1.0)
        finally:
            self.configure(planned)
            self.peft_model.train()

    def _model_inputs(self, inputs: Inputs) -> dict[str, Any]:
        # Padding is on the right and attention causal: no real token sees it. Stock builds the mask all the same.
        masked = self.knobs.attention in ("stock", "eager") or self.family.facts.padding_seen
        return {
            "input_ids": inputs.input_ids_BS,
            "attention_mask": inputs.attention_mask_BS if masked else None,
            "use_cache": False,
            **{name: self._as_read(value) for name, value in inputs.others.items()},
        }

    def _as_read(self, value: Any) -> Any:
        """Arrays are read on the host, but by transformers' own forward of the tower: it takes them from the device."""
        if isinstance(value, np.ndarray) and self.knobs.vision in STOCK_TOWERS:
            return torch.from_numpy(value).to(self.device)
        return value

    def _stock_loss(self, inputs: Inputs, total_supervised: float) -> torch.Tensor:
        head = self.base.get_output_embeddings().register_forward_pre_hook(lambda module, args: self._enter("loss"))
        weights_N = inputs.sample_weights_N
        try:
            if weights_N is not None:
                logits_BSV = self.base(**self._model_inputs(inputs)).logits
                return weighted_full_loss(logits_BSV, inputs.labels_BS, inputs.target_index_N, weights_N) / total_supervised
            output = self.base(**self._model_inputs(inputs), labels=inputs.labels_BS, num_items_in_batch=total_supervised)
        finally:
            head.remove()
        return output.loss

    def _hidden(self, inputs: Inputs) -> torch.Tensor:
        """Hidden states (N, D) that predict a supervised token."""
        hidden_BSD = self.family.core(self.base)(**self._model_inputs(inputs)).last_hidden_state
        return hidden_BSD.flatten(0, 1).index_select(0, inputs.target_index_N)

    def make_room(self) -> None:
        """Make every gradient and state that is not there yet: of several processes, none may lack memory for them once others
        have updated. AdamW's in eight bits are left to it. Raises ``torch.OutOfMemoryError``, with no state left half made.
        """
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.knobs.optimizer == "adamw" and not self.optimizer.state:
            make_states(self.optimizer, self.parameters)

    def update(self, *, learning_rate: float | None = None) -> Update:
        """Clip, step the optimizer and clear the gradients; a non-finite step is skipped and said.

        When memory runs out, adapter, optimizer and scaler are as before.
        """
        self._enter("optimizer")
        if learning_rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
        fresh = not self.optimizer.state
        # The 8-bit optimizer makes its states parameter by parameter, between their updates.
        torn = fresh and self.knobs.optimizer == "adamw8bit"
        before = [parameter.detach().to("cpu", copy=True) for parameter in self.parameters] if torn else []
        try:
            return self._update()
        except torch.OutOfMemoryError:
            for parameter, value in zip(self.parameters, before, strict=False):
                parameter.data.copy_(value)
            if fresh:
                self.optimizer.state.clear()
            if self.scaler.is_enabled():
                self.scaler.update(new_scale=self.scaler.get_scale())  # it forgets that it has unscaled
            raise
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    def _update(self) -> Update:
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.contract.max_grad_norm)
        finite = bool(torch.isfinite(norm))
        culprit = None if finite else self._first_nonfinite_gradient()
        if finite or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return Update(grad_norm=float(norm), finite=finite, scale=self.scaler.get_scale(), culprit=culprit)

    def _first_nonfinite_gradient(self) -> str | None:
        """Backward goes from the last parameter to the first."""
        named = [(name, p.grad) for name, p in self.peft_model.named_parameters() if p.grad is not None]
        return next((name for name, grad in reversed(named) if not torch.isfinite(grad).all()), None)
