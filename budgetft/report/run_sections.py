"""The sections that tell of a run: its curves, the run beside its plan, and what the model says."""

from collections.abc import Sequence
from html import escape

from budgetft.duration import duration_text
from budgetft.report.html import definitions, figure, note, table
from budgetft.report.run_charts import training_chart
from budgetft.report.story import Sampled, Story
from budgetft.report.verdict import HOW
from budgetft.units import GIB, counted


def training(story: Story) -> str:
    """The curves, and the run beside its plan."""
    if not story.records:
        return note(story.run_note)
    parts = [figure(lambda width: training_chart(story, width)), note(story.run_note)]
    return "".join(parts) + _beside_plan(story) + _facts(story)


def _beside_plan(story: Story) -> str:
    plan, done, seconds = story.plan, story.summary, story.train_seconds
    peak, time, steps = story.run_peak_bytes, plan.run_time(), len(story.records)
    ours = HOW[done.evidence] if done else "so far"
    rows = [
        ["peak GPU memory, GiB", f"{(peak or 0) / GIB:.2f}", f"{plan.estimate.process_peak_bytes / GIB:.2f}"],
        ["examples/s", f"{story.run_speed:.2f}", plan.estimate.speed_text("")],
    ]
    if time is not None:
        planned = duration_text(time.seconds / time.steps * steps)
        rows.append([f"time of {counted(steps, 'step')}", duration_text(seconds), planned])
    cells = [[escape(cell) for cell in row] for row in rows]
    return table(["", f"run ({ours})", f"plan ({plan.estimate.evidence})"], cells, numbers=(1, 2))


def _facts(story: Story) -> str:
    done, last = story.summary, story.records[-1]
    skipped, planned = sum(not record.finite for record in story.records), story.plan.contract.epochs
    facts = [
        ("Epochs", f"{last.epoch:.2f} in {counted(len(story.records), 'step')}, {planned} planned"),
        ("Learning rate", f"{story.plan.contract.learning_rate:g} at its highest, {last.learning_rate:.2g} at the end"),
        ("Skipped", f"{counted(skipped, 'step')} that were not finite" if skipped else ""),
    ]
    if done is not None:
        best = done.best_step is not None and done.best_heldout_loss is not None
        tight = (
            f"{counted(done.ooms, 'time')}; {done.alloc_retries} allocator retries" if done.ooms + done.alloc_retries else ""
        )
        facts += [
            ("Adapter", f"of step {done.best_step}, with the lowest eval loss ({done.best_heldout_loss:.4f})" if best else ""),
            ("Out of memory", tight),
            ("Smaller micro-batches", f"{counted(done.reduced_steps, 'step')}: other processes held the GPU's memory"
             if done.reduced_steps else ""),
        ]  # fmt: skip
    return definitions(facts)


def samples(story: Story) -> str:
    """What the model says to a few examples, beside their pictures and the truth."""
    if not story.samples:
        return ""
    return note(story.samples_note) + f'<div class="samples">{"".join(_cells(story.samples))}</div>'


def _cells(found: Sequence[Sampled]) -> list[str]:
    cells = []
    for one in found:
        pictures = "".join(f'<img alt="{escape(one.id)}" src="{uri}">' for uri in one.pictures)
        asked = f"<p><small>asked</small> {escape(one.prompt)}</p>" if one.prompt else ""
        truth = f"<p><small>truth</small> {escape(one.reference)}</p>" if one.reference else ""
        said = f"<p><small>model</small> {escape(one.text) or '(nothing)'}</p>"
        cells.append(f"<div>{pictures}<p><small>{escape(one.id)}</small></p>{asked}{said}{truth}</div>")
    return cells
