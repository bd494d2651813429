"""``budgetft bench``: the baseline against the plan, on this GPU, in one run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from budgetft.asked import IMAGES, LABEL_TOKENS, MODEL, TEXT_TOKENS, Typed, workload_of
from budgetft.cli import options
from budgetft.errors import UsageError
from budgetft.plan import check_folder, write_text_atomically
from budgetft.units import format_gib, parse_size

if TYPE_CHECKING:
    from budgetft.search.bench import Bench

SIZES = ("448x448", "1288x728")


def bench(
    gpu: options.Gpu_ = None,
    model: options.Model_ = MODEL,
    revision: options.Revision = None,
    budget: options.Budget = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WxH",
            show_default=" and ".join(SIZES),
            help="All images have this size; repeatable.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    images: options.Images = IMAGES,
    text_tokens: options.TextTokens = TEXT_TOKENS,
    supervised_tokens: options.SupervisedTokens = LABEL_TOKENS,
    rank: Annotated[int | None, options.setting("rank", "LoRA rank.")] = None,
    effective_batch: options.EffectiveBatch = None,
    cached: Annotated[
        bool, typer.Option("--cached", help="Also with pre-computed vision features.", rich_help_panel=options.SEARCH)
    ] = False,
    rounds: Annotated[
        int, typer.Option(min=1, help="Further trials of each, in turn, after planning.", rich_help_panel=options.SEARCH)
    ] = 2,
    max_probes: Annotated[
        int,
        typer.Option("--max-trials", "--max-probes", min=5, help="Most trials of each plan.", rich_help_panel=options.SEARCH),
    ] = 20,
    probe: Annotated[
        options.Probe,
        typer.Option(
            "--trials", "--probe", help="auto: on a CUDA GPU; always: on the CPU too.", rich_help_panel=options.SEARCH
        ),
    ] = "auto",
    ledger: options.Ledger = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the JSON and the table.", rich_help_panel=options.OUTPUT)
    ] = Path("reports/bench"),
    quiet: options.Quiet = False,
    json_output: options.Json = False,
) -> None:
    """Measure the plan against the baseline (Hugging Face Trainer defaults) on this GPU.

    The baseline runs at its best micro-batch, and both in turn. Writes OUT/<gpu>-<profile>.json and .md.
    """
    from budgetft.cache import cache_folder
    from budgetft.cli.progress import planning
    from budgetft.search.bench import Size, run_bench
    from budgetft.search.run import PlanRequest

    check_folder(out)
    profile, architecture = options.gpu_of(gpu), options.model_at(model, revision)
    sizes = []
    for text in image or SIZES:
        contract, ranges = options.contract_from(
            max_pixels=options.pixels_of(text), rank=None if rank is None else str(rank), effective_batch=effective_batch
        )
        if ranges:
            raise UsageError("a bench measures one contract: give single values, not LOW..HIGH")
        typed = Typed(image=text, images=images, text_tokens=text_tokens, label_tokens=supervised_tokens)
        width, height = parse_size(text)
        workload = workload_of(typed, architecture, contract)
        sizes.append(Size(width=width, height=height, contract=contract, workload=workload))
    with planning(quiet=quiet) as (on_event, _):
        request = PlanRequest(
            gpu=profile,
            budget_bytes=options.budget_bytes(budget, profile),
            model=architecture,
            contract=sizes[0].contract,
            workload_under=lambda contract: sizes[0].workload,
            probe=probe,
            max_probes=max_probes,
            ledger=ledger or cache_folder() / "ledger.sqlite3",
            on_event=on_event,
        )
        made = run_bench(request, sizes, cached=cached, rounds=rounds, on_rows=lambda so_far: _write(so_far, out))
    typer.echo(made.model_dump_json(indent=2) if json_output else table(made))


def table(bench: "Bench") -> str:
    """A Markdown table with what it was measured on."""
    lines = [
        f"{bench.model}, {bench.gpu}, {format_gib(bench.budget_bytes)}: {bench.statement}.",
        "",
        "| image | path | micro-batch | checkpointed | allocator | examples/s | over stock | process peak | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in bench.rows:
        ratio = "-" if row.ratio_to_stock is None else f"{row.ratio_to_stock:.2f}x"
        lines.append(
            f"| {row.width}x{row.height} | {row.path} | {row.knobs.micro_batch} | {row.knobs.checkpointed_layers}"
            f" | {row.knobs.allocator} | {row.samples_per_second:.2f} | {ratio} | {format_gib(row.process_peak_bytes)}"
            f" | {row.evidence} |"
        )
    if bench.expected:
        lines += ["", "The speeds are those of the GPU that stood in. On", "", *(f"- {text}" for text in bench.expected)]
    return "\n".join(lines)


def _write(bench: "Bench", folder: Path) -> None:
    name = f"{'-'.join(bench.stack.gpu.split())}-{bench.gpu}".lower().replace("/", "-")
    write_text_atomically(folder / f"{name}.json", bench.model_dump_json(indent=1) + "\n")
    write_text_atomically(folder / f"{name}.md", table(bench) + "\n")
