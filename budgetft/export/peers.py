"""Other trainers, as settings of our step: what each does by default, and what of it a trace here only comes near to.

Read from the sources of the releases in ``PEERS`` (``reports/answers/trainers.md`` says where): gradient checkpointing, the
loss, the vision tower, attention, precision. A trainer is then a setting of :class:`budgetft.knobs.Knobs`, traced as any other.
"""

from typing import Any, Literal, get_args

from budgetft.errors import UsageError, unknown_name
from budgetft.gpu import Gpu
from budgetft.knobs import Knobs, Vision
from budgetft.measure.job import Job
from budgetft.model import Model
from budgetft.value import Value

PeerName = Literal["trainer", "trl", "llamafactory", "swift", "unsloth"]
Attn = Literal["sdpa", "flash_attention_2", "eager"]
ALIASES = {
    "transformers": "trainer",
    "hf": "trainer",
    "sfttrainer": "trl",
    "sft": "trl",
    "llama-factory": "llamafactory",
    "ms-swift": "swift",
    "fa2": "flash_attention_2",
    "flash": "flash_attention_2",
}
"""What people call them too."""
FUSED_CHUNK = 64
"""Tokens whose logits exist at a time in our stand-in for a fused linear cross-entropy: 74 MiB of the Qwen vocabulary."""
TRL_TILE_BYTES = 4096 * 32768 * 2
"""The most that the logits of TRL's take: tokens x words x 16 bits (``trl/kernels/chunked_logprob.py``)."""
TRITON_FROM = (7, 0)
"""Compute capability from which Triton has kernels: Liger and Unsloth need them."""
UNSLOTH_FUSED_FROM = (7, 5)
"""Below it Unsloth makes all logits (``unsloth_zoo/compiler.py``)."""


class Peer(Value):
    """A trainer of one release."""

    title: str
    release: str
    runs: str
    """Of transformers and peft, what its package admits."""
    checkpointing: bool
    """Gradient checkpointing, unless told otherwise."""
    checkpointing_name: str
    """How it is turned on and off."""
    four_bit: bool = False
    """The base model in 4 bits, unless told otherwise."""
    tower: Vision
    """With gradient checkpointing; without it no trainer hooks the tower, which then builds no graph."""
    fused_loss: bool = False
    """The logits of a few tokens at a time, without Liger too."""
    liger_name: str | None
    """Its switch for Liger's kernels."""
    liger_families: tuple[str, ...] = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
    assumed: tuple[str, ...]
    """What the user must set for these figures to be his, where the default is another."""


PEERS: dict[str, Peer] = {
    "trainer": Peer(
        title="Hugging Face Trainer + peft",
        release="transformers 5.23.0",
        runs="transformers 5.23.0, peft 0.21.2",
        checkpointing=False,
        checkpointing_name="gradient_checkpointing",
        tower="stock",
        liger_name="use_liger_kernel",
        assumed=("bf16=True (fp16=True before Ampere); its default is neither", "model loaded in 16 bits"),
    ),
    "trl": Peer(
        title="TRL SFTTrainer + peft",
        release="trl 1.16.0",
        runs="transformers 5.x",
        checkpointing=True,
        checkpointing_name="gradient_checkpointing",
        tower="stock",
        fused_loss=True,
        liger_name="use_liger_kernel",
        assumed=("LoRA on the language model; target_modules='all-linear' adapts the vision tower too",),
    ),
    "llamafactory": Peer(
        title="LLaMA-Factory",
        release="llamafactory 0.9.5",
        runs="transformers up to 5.6.0, peft up to 0.18.1",
        checkpointing=True,
        checkpointing_name="disable_gradient_checkpointing",
        tower="uncheckpointed",
        liger_name="enable_liger_kernel",
        liger_families=("qwen2_vl", "qwen2_5_vl"),
        assumed=("bf16: true (fp16: true before Ampere)", "freeze_vision_tower: true (its default)"),
    ),
    "swift": Peer(
        title="ms-swift",
        release="ms-swift 4.6.0",
        runs="transformers before 5.20, peft before 0.21",
        checkpointing=True,
        checkpointing_name="gradient_checkpointing",
        tower="no_grad",
        liger_name="use_liger_kernel",
        assumed=("freeze_vit and freeze_aligner: true (its defaults)",),
    ),
    "unsloth": Peer(
        title="Unsloth FastVisionModel",
        release="unsloth 2026.10.9",
        runs="transformers up to 5.17.0, trl up to 1.15.0",
        checkpointing=True,
        checkpointing_name="use_gradient_checkpointing",
        four_bit=True,
        tower="stock",
        fused_loss=True,
        liger_name=None,
        assumed=("finetune_vision_layers=False; its default True adapts the vision tower too and takes more",),
    ),
}


class Setup(Value):
    """How a trainer is used, its defaults filled in."""

    trainer: PeerName
    liger: bool = False
    attn: Attn = "sdpa"
    gradient_checkpointing: bool
    load_in_4bit: bool

    @property
    def peer(self) -> Peer:
        """The trainer's facts."""
        return PEERS[self.trainer]

    def describe(self) -> str:
        """In the field's words."""
        parts = [
            "QLoRA (4-bit base)" if self.load_in_4bit else "LoRA (16-bit base)",
            f"gradient checkpointing {'on' if self.gradient_checkpointing else 'off'}",
            f"attention {self.attn}",
            "Liger kernels" if self.liger else "",
        ]
        return ", ".join(filter(None, parts))


def peer_name(text: str) -> str:
    """The trainer called ``text``. Raises ``UsageError`` for none, naming the nearest."""
    name = ALIASES.get(text.lower(), text.lower())
    if name not in PEERS:
        raise unknown_name("trainer", text, PEERS)
    return name


def setup_of(
    trainer: str,
    gpu: Gpu,
    model: Model,
    *,
    liger: bool = False,
    attn: str | None = None,
    gradient_checkpointing: bool | None = None,
    load_in_4bit: bool | None = None,
) -> Setup:
    """``trainer`` on ``gpu``, with its defaults for what is None.

    Raises ``UsageError`` for an unknown trainer or attention, and for what does not run there, with the reason.
    """
    name = peer_name(trainer)
    peer, chosen = PEERS[name], ALIASES.get((attn or "sdpa").lower(), (attn or "sdpa").lower())
    if chosen not in get_args(Attn):
        raise unknown_name("attention", attn or "", get_args(Attn))
    setup = Setup.make(
        trainer=name,
        liger=liger,
        attn=chosen,
        gradient_checkpointing=peer.checkpointing if gradient_checkpointing is None else gradient_checkpointing,
        load_in_4bit=peer.four_bit if load_in_4bit is None else load_in_4bit,
    )
    _refuse(setup, gpu, model)
    return setup


def _refuse(setup: Setup, gpu: Gpu, model: Model) -> None:
    peer = setup.peer
    if setup.attn == "flash_attention_2" and not gpu.flash_attention:
        raise UsageError(
            f"flash_attention_2 needs compute capability 8.0 (sm_80); {gpu.name} has {gpu.compute_capability}",
            hint="--attn sdpa: torch picks a kernel that this GPU has",
        )
    if setup.liger and peer.liger_name is None:
        raise UsageError(f"{peer.title} has kernels of its own in place of Liger's", hint="leave --liger out")
    if setup.liger and model.family not in peer.liger_families:
        raise UsageError(
            f"{peer.release} has no Liger patch for {model.family}: it warns, and trains without",
            hint="leave --liger out, or take a trainer that has one: trainer, trl, swift",
        )
    if (setup.liger or setup.trainer == "unsloth") and gpu.capability < TRITON_FROM:
        what = "Liger" if setup.liger else "Unsloth"
        raise UsageError(
            f"{what} needs Triton, which needs compute capability 7.0; {gpu.name} has {gpu.compute_capability}",
            hint="leave --liger out" if setup.liger else "take another trainer: trainer, trl, llamafactory, swift",
        )


def knobs_of(setup: Setup, job: Job, micro_batch: int) -> Knobs:
    """``setup`` at a micro-batch, in ``job``'s effective batch, as a setting of our step."""
    fused = setup.liger or (setup.peer.fused_loss and not _makes_all_logits(setup, job.gpu))
    changes: dict[str, Any] = {"loss_chunk": FUSED_CHUNK} if fused else {}
    if setup.trainer == "unsloth":
        offload = "activations" if setup.gradient_checkpointing else "none"
        changes |= {"offload": offload, "allocator": "expandable"}
        changes |= {"lora": "stock" if job.contract.needs_stock_lora else "lean"}
    return Knobs.make(
        **{
            "micro_batch": micro_batch,
            "grad_accum": job.contract.effective_batch // micro_batch,
            "checkpointed_layers": job.model.layers if setup.gradient_checkpointing else 0,
            "loss": "chunked" if fused else "full",
            "vision": _tower(setup),
            "attention": "eager" if setup.attn == "eager" else "stock",
            "lora": "stock",
            "pointwise": "fused" if setup.liger or setup.trainer == "unsloth" else "stock",
            "base_precision": "nf4" if setup.load_in_4bit else job.gpu.base_precision,
            **changes,
        }
    )


def _makes_all_logits(setup: Setup, gpu: Gpu) -> bool:
    return setup.trainer == "unsloth" and gpu.capability < UNSLOTH_FUSED_FROM


def _tower(setup: Setup) -> Vision:
    """Only gradient checkpointing hooks the tower's input; peft leaves that out for a base in 4 bits, LLaMA-Factory relies on
    peft."""
    quantised = setup.trainer == "llamafactory" and setup.load_in_4bit
    return setup.peer.tower if setup.gradient_checkpointing and not quantised else "no_grad"


class Note(Value):
    """Something to know of the figures. ``approximated``: traced with the nearest part that we have."""

    kind: Literal["as traced", "approximated", "assumed"]
    text: str


def notes_of(setup: Setup, job: Job, weights_bytes: int) -> tuple[Note, ...]:
    """What of ``setup`` is traced as it is, what is approximated and which way it errs, and what the user must have set.

    ``weights_bytes``: of the base as traced.
    """
    found = [Note(kind="as traced", text=text) for text in _traced(setup, job)]
    found += [Note(kind="approximated", text=text) for text in _approximated(setup, job)]
    found += [Note(kind="assumed", text=text) for text in setup.peer.assumed]
    if setup.trainer == "trl" and not setup.load_in_4bit:
        more = weights_bytes / 2**30
        kind = "bfloat16" if job.gpu.native_bf16 else "float16"
        text = f"model loaded in {kind}; given as a name alone, TRL loads float32: {more:.1f} GiB more"
        found.append(Note(kind="assumed", text=text))
    if setup.peer.checkpointing != setup.gradient_checkpointing:
        state = "on" if setup.gradient_checkpointing else "off"
        text = f"gradient checkpointing {state} ({setup.peer.checkpointing_name}); its default is the other"
        found.append(Note(kind="assumed", text=text))
    return tuple(found)


def _traced(setup: Setup, job: Job) -> list[str]:
    hooked = job.model.family != "qwen3_vl"  # transformers names an input layer of the other towers
    towers = {
        "no_grad": "frozen vision tower, forward only",
        "stock": "vision tower inside the graph, checkpointed: back-propagated although frozen",
        "uncheckpointed": "vision tower inside the graph and not checkpointed: it keeps all activations",
    }
    tower = towers[_tower(setup) if hooked else "no_grad"]
    loss = [] if setup.peer.fused_loss or setup.liger else ["logits of every position, in fp32"]
    lora = [] if setup.trainer == "unsloth" else ["peft's own LoRA forward"]
    return [*lora, *loss, tower]


def _approximated(setup: Setup, job: Job) -> list[str]:
    found = []
    if setup.trainer == "unsloth":
        found += [
            "Unsloth's kernels by our fused LoRA, RMSNorm and SwiGLU: neither a lower nor an upper bound",
            "its offloaded gradient checkpointing by ours (layer inputs wait in CPU memory)",
        ]
        if _makes_all_logits(setup, job.gpu):
            found.append("its fused cross-entropy is off below compute capability 7.5: logits of every position")
    if (setup.peer.fused_loss and not _makes_all_logits(setup, job.gpu)) or setup.liger:
        found.append(_of_the_loss(setup))
    if setup.liger:
        kept = "; on Qwen3-VL Liger leaves SwiGLU alone: a lower bound" if job.model.family == "qwen3_vl" else ""
        found.append(f"Liger's RMSNorm and SwiGLU by our fused ones, in the language model only{kept}")
    if setup.attn == "flash_attention_2":
        found.append("flash_attention_2 by SDPA's flash kernel: same memory; vision windows one by one, so at least as fast")
    if setup.attn == "sdpa" and not job.gpu.flash_attention:
        found.append("SDPA takes the math kernel for grouped heads without flash (torch before 2.14): else less memory")
    if setup.load_in_4bit and setup.trainer != "unsloth":
        found.append("bitsandbytes 4-bit by ours, of the language model; it quantises the tower too: an upper bound")
    elif setup.load_in_4bit:
        found.append("bitsandbytes 4-bit by ours, of the language model, as Unsloth does")
    return found


def _of_the_loss(setup: Setup) -> str:
    ours = f"by our chunked one ({FUSED_CHUNK} label tokens at a time)"
    if setup.trainer == "trl":
        most = TRL_TILE_BYTES / 2**30
        return f"TRL's fused cross-entropy {ours}: its tiles take up to {most:.2f} GiB, at 4,096 label tokens"
    whose = "Unsloth's" if setup.trainer == "unsloth" else "Liger's"
    return f"{whose} fused linear cross-entropy {ours}: it sizes its chunks by itself"
