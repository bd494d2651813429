"""Generation on the CPU with the tiny models: the same words as plain transformers, resumable, inside the budget."""

import functools
import json

import pytest
import torch
import typer
from PIL import Image, ImageDraw
from rounding import arithmetic
from typer.testing import CliRunner

from budgetft.contract import Contract
from budgetft.data.examples import Example, write_dataset
from budgetft.data.processor import load_processor
from budgetft.errors import BudgetftError, UsageError
from budgetft.evaluate.generate import generate
from budgetft.evaluate.predictions import read_predictions
from budgetft.evaluate.source import source_of_model, source_of_plan, source_of_run
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs
from budgetft.model import load_model
from budgetft.outcome import Estimate
from budgetft.plan import Plan, Proof, Target, refer
from budgetft.step.decoding import Decoding, encode_prompt, pad_left
from budgetft.units import GIB
from budgetft.workload import Shape, Workload

CPU = torch.device("cpu")
SHORT = Decoding(max_new_tokens=4)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Five examples whose prompts differ in length, one with two images."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number in range(5):
        names = []
        for part in range(2 if number == 3 else 1):
            image = Image.new("RGB", (84 + 28 * (number % 3), 84), "black")
            ImageDraw.Draw(image).rectangle((10 + number, 10, 50, 50 + part), fill="red")
            names.append(f"{number}-{part}.png")
            image.save(folder / names[-1])
        rows.append(Example(id=f"e{number}", images=tuple(names), prompt="What is it?" + " Look." * number, answer="A box."))
    return write_dataset(rows, folder / "set", images_root=folder)


def make_source(name="tiny-qwen2.5-vl", budget_bytes=GIB, **options):
    contract = Contract(rank=4, alpha=8, effective_batch=4, learning_rate=1e-2, max_length=512)
    return source_of_model(
        name,
        gpu=load_gpu("v100-16g"),
        budget_bytes=budget_bytes,
        contract=contract,
        weights="random",
        precision="fp32",
        **options,
    )


def make_plan(examples, **knobs):
    model = load_model("tiny-qwen2.5-vl")
    source = make_source()
    chosen = {"micro_batch": 2, "grad_accum": 2, "checkpointed_layers": 1, "base_precision": "fp32", **knobs}
    estimate = Estimate(
        tensor_peak_bytes=1, reserved_peak_bytes=1, process_peak_bytes=1, step_seconds=None,
        samples_per_second=None, fits=True, terms=(),
    )  # fmt: skip
    workload = Workload.uniform(Shape(images=((84, 84),), text_tokens=40, supervised_tokens=8))
    return Plan(
        gpu=Target(name="v100-16g", budget_bytes=GIB, profile=load_gpu("v100-16g")),
        model=refer(model),
        contract=source.contract,
        knobs=Knobs(**chosen),
        estimate=estimate,
        evidence=Proof(kind="predicted", outcomes=(), confirmed=None, statement="made by hand"),
        baseline=None,
        workload=workload.replace(examples=len(examples), fingerprint=examples.fingerprint),
        data=str(examples.folder),
        environment={},
    )


@pytest.fixture(scope="module")
def run(examples, tmp_path_factory):
    """A run of three steps that changes what the model says."""
    from budgetft.train.run import run_training

    out = tmp_path_factory.mktemp("runs") / "run"
    run_training(make_plan(examples), out=out, weights="random", steps=3, device="cpu")
    return out


def texts(path):
    return {row.id: row.text for row in read_predictions(path)}


@pytest.fixture(scope="module")
def plain_texts(examples):
    """:func:`say_plainly`, each answer computed once."""
    return functools.cache(functools.partial(say_plainly, examples))


def say_plainly(examples, name, adapter=None):
    """What transformers itself generates, one example at a time, without padding and with its own attention."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    from budgetft.step.build import model_config

    model = load_model(name)
    contract = make_source(name).contract
    torch.manual_seed(contract.seed)
    base = AutoModelForImageTextToText.from_config(model_config(model), dtype=torch.float32).eval()
    plain = base if adapter is None else PeftModel.from_pretrained(base, str(adapter)).eval()
    processor = load_processor(model)
    found = {}
    for example in examples:
        prompt = pad_left([encode_prompt(example, processor, model, contract)], 0)
        tokens = plain.generate(
            input_ids=prompt.input_ids_BS,
            attention_mask=prompt.attention_mask_BS,
            mm_token_type_ids=prompt.mm_token_type_ids_BS,
            pixel_values=prompt.pixel_values_PC,
            image_grid_thw=prompt.image_grid_I3,
            max_new_tokens=SHORT.max_new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=processor.tokenizer.pad_token_id,
        )[0, prompt.input_ids_BS.shape[1] :]
        found[example.id] = processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    return found


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A video of three frames between two examples with images."""
    folder = tmp_path_factory.mktemp("videos")
    noise = torch.Generator().manual_seed(0)
    for number in range(3):
        pixels = torch.randint(0, 255, (224, 448, 3), generator=noise, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    rows = [
        Example(id="one", images=("0.png",), prompt="What is it?", answer="Noise."),
        Example(id="film", images=("0.png", "1.png", "2.png"), prompt="And now?", answer="Noise.", video_fps=1.5),
        Example(id="two", images=("1.png",), prompt="What is that there?", answer="Noise."),
    ]
    return write_dataset(rows, folder / "set", images_root=folder)


@pytest.mark.parametrize("name", ["tiny-qwen2-vl", "tiny-qwen2.5-vl", "tiny-qwen3-vl"])
def test_of_a_video_it_says_what_plain_transformers_says_of_the_processors_inputs(name, videos, tmp_path):
    from transformers import AutoModelForImageTextToText

    from budgetft.data.visuals import prompt_text
    from budgetft.step.build import model_config

    model = load_model(name)
    for batch in (3, 1):  # with images in the batch, and alone
        generate(make_source(name), videos, tmp_path / f"{batch}.jsonl", decoding=SHORT, batch=batch, device="cpu")
    torch.manual_seed(make_source(name).contract.seed)
    plain = AutoModelForImageTextToText.from_config(model_config(model), dtype=torch.float32).eval()
    processor = load_processor(model)
    film = videos[1]
    inputs = processor(
        text=[prompt_text(film, processor)],
        videos=[[Image.open(path) for path in film.images]],
        videos_kwargs={
            "do_resize": False,
            "do_sample_frames": False,
            "video_metadata": [{"total_num_frames": 3, "fps": 1.5, "frames_indices": [0, 1, 2]}],
        },
        return_tensors="pt",
    )
    kept = {key: value for key, value in inputs.items() if key != "video_metadata"}
    tokens = plain.generate(**kept, max_new_tokens=SHORT.max_new_tokens, do_sample=False, pad_token_id=151_643)
    text = processor.tokenizer.decode(tokens[0, kept["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert texts(tmp_path / "3.jsonl")["film"] == texts(tmp_path / "1.jsonl")["film"] == text


@pytest.mark.parametrize("name", ["tiny-qwen2-vl", "tiny-qwen2.5-vl", "tiny-qwen3-vl"])
def test_a_padded_batch_says_what_plain_transformers_says_alone(name, examples, plain_texts, tmp_path):
    generate(make_source(name), examples, tmp_path / "p.jsonl", decoding=SHORT, batch=3, device="cpu")
    assert texts(tmp_path / "p.jsonl") == plain_texts(name)


def test_the_adapter_of_a_run_says_what_plain_peft_says_and_not_what_the_base_says(run, examples, plain_texts, tmp_path):
    generate(source_of_run(run), examples, tmp_path / "tuned.jsonl", decoding=SHORT, batch=2, device="cpu")
    base = source_of_run(run, use_adapter=False)
    generate(base, examples, tmp_path / "base.jsonl", decoding=SHORT, batch=1, device="cpu")  # nothing is padded
    assert texts(tmp_path / "tuned.jsonl") == plain_texts("tiny-qwen2.5-vl", run / "adapter")
    assert texts(tmp_path / "base.jsonl") == plain_texts("tiny-qwen2.5-vl")
    assert texts(tmp_path / "tuned.jsonl") != texts(tmp_path / "base.jsonl")


@pytest.mark.parametrize(
    "knobs",
    [{"attention": "stock", "vision": "stock", "lora": "stock", "loss": "full"}, {"attention": "math", "lora": "stock"}],
    ids=["stock", "math"],
)
def test_the_knobs_of_the_plan_do_not_change_what_is_said(knobs, examples, plain_texts, tmp_path):
    plan = make_plan(examples, **knobs)
    generate(source_of_plan(plan, weights="random"), examples, tmp_path / "p.jsonl", decoding=SHORT, batch=5, device="cpu")
    assert texts(tmp_path / "p.jsonl") == plain_texts("tiny-qwen2.5-vl")


def test_a_rerun_goes_on_after_the_last_whole_row(examples, tmp_path):
    out = tmp_path / "p.jsonl"
    first = generate(make_source(), examples, out, decoding=SHORT, batch=2, device="cpu")
    assert (first.generated, first.skipped, first.truncated) == (5, 0, 5)
    whole = texts(out)
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:2]) + lines[2][:20])
    done = []
    second = generate(
        make_source(), examples, out, decoding=SHORT, batch=2, device="cpu", on_progress=lambda p: done.append(p.done)
    )
    assert (second.generated, second.skipped) == (3, 2)
    assert done == [4, 5]
    assert texts(out) == whole
    assert out.read_text().splitlines()[:2] == [line.rstrip() for line in lines[:2]]
    third = generate(make_source(), examples, out, decoding=SHORT, device="cpu")
    assert (third.generated, third.skipped) == (0, 5)


def test_rows_of_other_settings_are_not_added_to(examples, tmp_path):
    out = tmp_path / "p.jsonl"
    generate(make_source(), examples, out, decoding=SHORT, device="cpu")
    before = out.read_bytes()
    with pytest.raises(UsageError, match=r"made with other settings: .*'max_new_tokens': 4.*'max_new_tokens': 7"):
        generate(make_source(), examples, out, decoding=Decoding(max_new_tokens=7), device="cpu")
    assert out.read_bytes() == before


def peaks(examples, tmp_path, batch):
    return generate(
        make_source(), examples, tmp_path / f"peak{batch}.jsonl", decoding=SHORT, batch=batch, device="cpu"
    ).process_peak_bytes


def test_out_of_memory_halves_the_batch_goes_on_and_is_recorded(examples, tmp_path):
    one, four = peaks(examples, tmp_path, 1), peaks(examples, tmp_path, 4)
    assert four > one
    budget_bytes = one + (four - one) // 10
    notes = []
    out = tmp_path / "p.jsonl"
    done = generate(
        make_source(budget_bytes=budget_bytes), examples, out, decoding=SHORT, batch=4, device="cpu", on_note=notes.append
    )
    assert done.generated == 5
    assert done.batch == 1
    assert [(one.batch, one.reduced_to, one.first_example) for one in done.reductions] == [(4, 2, "e0"), (2, 1, "e0")]
    assert any("out of memory with 4 examples at e0; going on with 2 at a time" in note for note in notes)
    assert len(json.loads((tmp_path / "p.run.json").read_text())["reductions"]) == 2
    assert texts(out) == texts(tmp_path / "peak1.jsonl")


def test_a_budget_that_is_too_small_for_one_example_says_so(examples, tmp_path):
    low = make_source(budget_bytes=peaks(examples, tmp_path, 1) - 100_000)
    with pytest.raises(BudgetftError, match=r"out of memory in phase 'forward' of generating for one example \(examples e"):
        generate(low, examples, tmp_path / "p.jsonl", decoding=SHORT, batch=2, device="cpu")
    with pytest.raises(BudgetftError, match="out of memory in phase 'load'"):
        generate(make_source(budget_bytes=2**20), examples, tmp_path / "q.jsonl", decoding=SHORT, device="cpu")


def test_sampling_follows_its_seed(examples, tmp_path):
    def say(name, seed):
        decoding = Decoding(max_new_tokens=4, temperature=1.5, top_p=0.9, seed=seed)
        generate(make_source(), examples, tmp_path / name, decoding=decoding, batch=2, device="cpu")
        return texts(tmp_path / name)

    first = say("a.jsonl", 1)
    assert say("b.jsonl", 1) == first
    assert say("c.jsonl", 2) != first


def test_an_example_without_an_answer_is_predicted_for(examples):
    model = load_model("tiny-qwen2.5-vl")
    processor, contract = load_processor(model), make_source().contract
    asked = encode_prompt(examples[0].replace(answer=""), processor, model, contract)
    assert asked.input_ids.equal(encode_prompt(examples[0], processor, model, contract).input_ids)
    assert processor.tokenizer.decode(asked.input_ids).endswith("<|im_start|>assistant\n")


def test_a_run_that_has_not_come_to_its_end_is_refused(run, tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        source_of_run(tmp_path)
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    for name in ("plan.json", "run.json"):
        (unfinished / name).write_bytes((run / name).read_bytes())
    with pytest.raises(UsageError, match="has no adapter: it has not come to its end") as caught:
        source_of_run(unfinished)
    assert "--resume" in (caught.value.hint or "")


@pytest.fixture(scope="module")
def call():
    """The three commands as a user calls them."""
    from budgetft.cli.evaluate import evaluate
    from budgetft.cli.predict import predict
    from budgetft.cli.submit import submit

    app = typer.Typer()
    for command in (predict, evaluate, submit):
        app.command()(command)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_predict_then_evaluate_from_the_command_line(call, run, examples, tmp_path):
    out = tmp_path / "p.jsonl"
    made = call("predict", "--run", run, "--data", examples.folder, "--out", out, "--max-new-tokens", "3", "--device", "cpu")
    assert made.exit_code == 0, made.output
    assert "5 new, 0 already there, of 5 examples" in made.stdout
    assert "5/5" in made.stderr
    assert "5/5" not in made.stdout
    scored = call("evaluate", out, "--data", examples.folder)
    assert scored.exit_code == 0, scored.output
    assert "5 captions, 0 missing" in scored.stdout
    data = json.loads(call("evaluate", out, "--data", examples.folder, "--json").stdout)
    assert data["s1"] == arithmetic(data["captions"]["s1"])
    again = call("predict", "--run", run, "--data", examples.folder, "--out", out, "--max-new-tokens", "3", "--device", "cpu",
                 "--json", "--quiet")  # fmt: skip
    assert json.loads(again.stdout)["skipped"] == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--run", "r", "--model", "m"), "one of --run, --plan and --model"),
        ((), "one of --run, --plan and --model"),
        (("--run", "r", "--max-pixels", "1000"), "--max-pixels would not be read"),
        (("--model", "m", "--no-adapter"), "--no-adapter would not be read"),
        (("--model", "m", "--temperature", "0.5"), "--temperature would not be read"),
    ],
)
def test_options_that_would_not_be_read_are_refused(call, words, message):
    result = call("predict", "--data", "d", "--out", "o", *words)
    assert isinstance(result.exception, UsageError)
    assert message in result.exception.message


def test_loading_the_commands_loads_no_torch():
    import subprocess
    import sys

    check = (
        "import sys; import budgetft.cli.predict, budgetft.cli.evaluate, budgetft.cli.submit;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'nltk')))"
    )
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_scoring_and_submitting_load_no_torch():
    import subprocess
    import sys

    check = (
        "import sys; import budgetft.evaluate.files, budgetft.evaluate.submission;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'nltk')))"
    )
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
