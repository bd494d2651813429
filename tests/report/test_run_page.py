"""The page of a run speaks of the run: its losses, its peak so far, its time, and what the model says."""

import json
import re
import shutil
from pathlib import Path

import pytest

from budgetft.data.examples import Example, write_dataset
from budgetft.errors import UsageError
from budgetft.report.gather import gather
from budgetft.report.page import html_page
from budgetft.report.samples import MOST, sampled
from budgetft.report.verdict import headline, tiles
from budgetft.train.folder import Identity
from budgetft.train.record import Record, Sample, Summary

SPINE = Path(__file__).parents[2] / "reports" / "spine"
NONE = Path("none.sqlite3")


@pytest.fixture
def run(tmp_path, plan) -> Path:
    """A finished one with an eval loss after every fiftieth step."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "plan.json").write_text(plan.model_dump_json())
    records = [Record.read_text(line, source="log") for line in (SPINE / "log-real.jsonl").read_text().splitlines()]
    held = {50: 2.0, 100: 1.0, 150: 0.5, 200: 0.75}
    lines = [record.replace(heldout_loss=held.get(record.step)).model_dump_json() for record in records]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    shutil.copy(SPINE / "summary-real.json", folder / "summary.json")
    return folder


def keep(run: Path, **changes) -> None:
    """Change the summary of ``run``."""
    done = Summary.read(json.loads((run / "summary.json").read_text()), source="summary")
    (run / "summary.json").write_text(done.replace(**changes).model_dump_json())


@pytest.fixture
def data(tmp_path) -> Path:
    from PIL import Image

    examples = []
    for number in range(MOST + 2):
        Image.effect_noise((600, 400), 60).convert("RGB").save(tmp_path / f"{number}.png")
        examples.append(Example(id=f"e{number}", images=(f"{number}.png",), prompt="What is it?", answer=f"truth {number}"))
    write_dataset(examples, tmp_path / "data", images_root=tmp_path)
    return tmp_path / "data"


def test_the_tiles_are_the_runs(run):
    found = {name: (value, what) for name, value, what in tiles(gather(run, ledger=NONE))}
    assert found["Peak GPU memory"][0] == "12.53 GiB"
    assert found["Time"][0] == "1 min 40 s"
    assert found["Speed"] == ("15.73", "examples/s, median step")
    assert found["Eval loss"] == ("0.5000", "after step 150; 0.7500 at the end")


def test_the_loss_is_drawn_between_its_own_ends_with_the_eval_loss_and_the_learning_rate(run):
    page = html_page(gather(run, ledger=NONE))
    training = page.partition('<section id="training">')[2].partition("</section>")[0]
    assert training.count("eval loss after step") == 2 * 4
    for name in ("loss", "learning rate", "examples/s", "peak so far, GiB"):
        assert f">{name}</text>" in training
    assert "should" not in re.sub(r"<[^>]+>", " ", page)


def test_a_run_over_its_budget_and_one_inside_look_different(run):
    inside = html_page(gather(run, ledger=NONE))
    keep(run, process_peak_bytes=16 * 2**30, over_budget=True)
    story = gather(run, ledger=NONE)
    assert headline(story).text.startswith("Over the budget: peak 16.00 of 14.00 GiB")
    assert 'class="verdict good"' in inside
    assert 'class="verdict bad"' in html_page(story)


def test_what_went_wrong_and_was_made_good_is_in_the_headline(run):
    keep(run, ooms=2, skipped_steps=1)
    said = headline(gather(run, ledger=NONE)).text
    assert "Memory ran out 2 times; those steps were done again in smaller micro-batches." in said
    assert "1 step skipped: not finite." in said


def test_captions_of_the_last_step_stand_beside_picture_and_truth(run, data):
    identity = Identity(plan_fingerprint="p", data_fingerprint="d", weights="Qwen/x", steps=200, heldout=str(data))
    (run / "run.json").write_text(identity.model_dump_json())
    rows = [
        Sample(step=step, id=f"e{n}", text=f"said {step} <b>", reference=f"truth {n}") for step in (50, 100) for n in (3, 1)
    ]
    (run / "samples.jsonl").write_text("\n".join(row.model_dump_json() for row in rows) + "\ntorn\n")
    story = gather(run, ledger=NONE)
    assert [(s.id, s.text, s.reference, len(s.pictures)) for s in story.samples] == [
        ("e3", "said 100 <b>", "truth 3", 1),
        ("e1", "said 100 <b>", "truth 1", 1),
    ]
    page = html_page(story)
    assert page.count('src="data:image/') == 2
    assert "said 100 &lt;b&gt;" in page
    assert "After step 100" in page
    assert "1 line of samples.jsonl cannot be read" in page
    (run / "run.json").write_text(identity.replace(weights="random").model_dump_json())
    assert "said 100" not in html_page(gather(run, ledger=NONE)), "random weights say whatever is in the vocabulary"


def test_a_file_of_predictions_is_shown_with_the_data_that_are_named(data, tmp_path):
    file = tmp_path / "captions.jsonl"
    file.write_text("".join(json.dumps({"id": f"e{n}", "text": f"says {n}"}) + "\n" for n in range(MOST + 2)))
    rows, note = sampled(None, file, data)
    assert [row.text for row in rows] == [f"says {n}" for n in range(MOST)]
    assert rows[0].reference == "truth 0"
    assert note == ""
    rows, note = sampled(None, file, tmp_path / "gone")
    assert not rows[0].pictures
    assert note.startswith("Without pictures: ")


@pytest.mark.parametrize("content", ["", "[]\n", '{"id": 1}\n', "{"])
def test_a_file_without_predictions_is_refused(content, tmp_path):
    (tmp_path / "empty.jsonl").write_text(content)
    with pytest.raises(UsageError, match="holds no predictions"):
        sampled(None, tmp_path / "empty.jsonl", None)
    with pytest.raises(UsageError, match="cannot read"):
        sampled(None, tmp_path / "none.jsonl", None)
