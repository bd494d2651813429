"""Whatever the functions of the Python API are given, what comes out is a BudgetftError in one sentence."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from budgetft import api
from budgetft.api import BudgetftError, Contract, Knobs, Shape, UsageError
from budgetft.outcome import Estimate
from budgetft.plan import Candidate
from budgetft.search import predicted

GPU, MODEL = "v100-16g", "tiny-qwen2.5-vl"
PLAN = Path(api.__file__).parents[1] / "reports" / "spine" / "plan-448.json"
ESTIMATE = Estimate(
    tensor_peak_bytes=1,
    reserved_peak_bytes=1,
    process_peak_bytes=1,
    step_seconds=1.0,
    samples_per_second=1.0,
    fits=True,
    terms=(),
)
SETTINGS = [*Contract.model_fields, *Knobs.model_fields, "lora_alpha", "no_such_setting"]
QUESTION = ["gpu", "model", "work", "data", "image", "images", "text_tokens", "label_tokens", "budget", "contract", "qlora"]
ODD = [
    0,
    -1,
    2.5,
    float("nan"),
    float("inf"),
    10**400,
    -(10**400),
    1j,
    b"x",
    object(),
    len,
    int,
    Path("/no/such/place"),
    Path("."),
]
TEXTS = ["", "two", "14GiB", "lots", "8..16", "0x0", "9999999x9999999", "\0", "\ud800", "a" * 5000, "9" * 5000]
HELD = [[], (), {}, set(), [1], ["a"], (1, 2, 3), {"rank": 8}, {"rank": "8"}, {1: 2}, {"foo": 1}, Contract(), True]

anything = st.one_of(
    st.sampled_from([*ODD, *TEXTS, *HELD]),
    st.text(max_size=12),
    st.integers(),
    st.floats(),
    st.lists(st.integers() | st.text(max_size=5), max_size=3),
    st.dictionaries(st.text(max_size=8) | st.integers(), st.integers() | st.text(max_size=4), max_size=2),
)
many = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def only_checked(monkeypatch):
    """Requests are made and checked as they always are, and nothing is computed for them."""

    def first(estimator, settled):
        return Candidate(knobs=predicted.settings_with(estimator.job, settled)[0], estimate=ESTIMATE)

    monkeypatch.setattr(predicted, "fastest", first)


def refused_or_done(function, *arguments, **named):
    """Any other exception than a BudgetftError ends the test."""
    said = "nothing was wrong"
    try:
        function(*arguments, **named)
    except BudgetftError as error:
        said = error.message
    assert 0 < len(said) < 2000, f"{len(said)} characters"


@many
@given(name=st.sampled_from([*QUESTION, "knobs", "progress", *SETTINGS]), value=anything)
def test_estimate(only_checked, name, value):
    usual = {} if name in QUESTION[2:8] else {"work": Shape(images=((56, 56),), text_tokens=40, supervised_tokens=8)}
    asked = {"gpu": GPU, "model": MODEL, **usual, name: value}
    refused_or_done(api.estimate, asked.pop("gpu"), asked.pop("model"), **asked)


@many
@given(name=st.sampled_from([*QUESTION, "examples", "epochs", "as_rows", "knobs", *SETTINGS]), value=anything)
def test_sweep(only_checked, name, value):
    asked = {"gpu": GPU, "model": MODEL, "text_tokens": 40, "label_tokens": 8, "as_rows": True, name: value}
    refused_or_done(api.sweep, asked.pop("gpu"), asked.pop("model"), **asked)


PLANNED = [
    "gpus",
    "ranges",
    "deterministic",
    "probe",
    "max_probes",
    "ledger",
    "storage",
    "on_event",
    "progress",
    "hours",
    "prefer",
    "sure",
    "examples",
]


@many
@given(name=st.sampled_from([*QUESTION, *PLANNED, *SETTINGS]), value=anything)
def test_plan(monkeypatch, name, value):
    run = pytest.importorskip("budgetft.search.run", reason="optuna is not installed: a search is a study of it")
    goal = pytest.importorskip("budgetft.search.goal")
    monkeypatch.setattr(run, "make_plan", lambda request: request.workload_under(request.contract))
    monkeypatch.setattr(goal, "plan_goal", goal._check)
    usual = {} if name in QUESTION[2:8] else {"work": Shape(images=((56, 56),), text_tokens=40, supervised_tokens=8)}
    usual |= {"hours": 5, "rank": [8, 16]} if name in ("prefer", "sure", "examples") else {}
    asked = {"gpu": GPU, "model": MODEL, **usual, name: value}
    refused_or_done(api.plan, asked.pop("gpu"), asked.pop("model"), **asked)


FITTED = [
    "gpu",
    "model",
    "budget",
    "images",
    "text_tokens",
    "label_tokens",
    "rank",
    "effective_batch",
    "examples",
    "epochs",
    "foo",
]


@many
@given(name=st.sampled_from(FITTED), value=anything)
def test_fit(monkeypatch, name, value):
    computing = pytest.importorskip("budgetft.search.what_fits")
    monkeypatch.setattr(
        computing, "what_fits", lambda gpus, models, wanted, budget_bytes: [budget_bytes(each) for each in gpus]
    )
    asked = {"gpu": GPU, "model": MODEL, name: value}
    refused_or_done(api.fit, asked.pop("gpu"), asked.pop("model"), **asked)


ALONE = ["load_gpu", "load_model", "read_plan", "report", "figure", "write_plan", "merge", "export", "port"]


@many
@given(which=st.sampled_from(ALONE), value=anything)
def test_functions_of_one_thing(which, value):
    more = {"write_plan": ["x"], "merge": ["x"], "export": ["trl"], "port": ["t4"]}.get(which, [])
    refused_or_done(getattr(api, which), value, *more)


TRAINED = ["steps", "resume", "save_every", "heldout_every", "keep_best", "early_stopping", "sample_captions", "deterministic",
           "device", "trackers", "on_progress", "progress", "weights", "data", "heldout"]  # fmt: skip


@many
@given(name=st.sampled_from(TRAINED), value=anything)
def test_train(monkeypatch, tmp_path, name, value):
    run = pytest.importorskip("budgetft.train.run", reason="torch is not installed")
    monkeypatch.setattr(run, "run_training", lambda plan, **options: options)
    refused_or_done(api.train, PLAN, tmp_path / "run", **{name: value})


@many
@given(examples=anything, epochs=anything)
def test_hours(examples, epochs):
    refused_or_done(api.read_plan(PLAN).hours, examples, epochs)


@pytest.mark.parametrize(
    ("call", "said", "hint"),
    [
        (lambda: Contract(lora_alpha=32), "lora_alpha: unknown key", "did you mean 'alpha'"),
        (lambda: Contract(8), "takes its fields by name", "help(Contract)"),
        (lambda: api.estimate(GPU, micro_batc=2), "unknown setting 'micro_batc'", "did you mean 'micro_batch'?"),
        (lambda: api.estimate(GPU, micro_batch="two"), "micro_batch: input should be a valid integer (got 'two')", None),
        (
            lambda: api.estimate(GPU, micro_batch=64),
            "micro_batch 64 is above the effective batch 32",
            "smaller micro-batch",
        ),
        (lambda: api.estimate(GPU, budget=-1), "budget must be a whole number", None),
        (lambda: api.estimate(None), "gpu must be text, not None", None),
        (lambda: api.estimate(GPU, 5), "model must be text, not 5", None),
        (lambda: api.estimate(GPU, work=3), "work must be", None),
        (lambda: api.estimate(GPU, image="448x448", data="x"), "data and image: give work, or data, or the size", "leave"),
        (
            lambda: api.estimate(GPU, attention="flash"),
            "attention 'flash' needs compute capability 8.0; v100-16g has 7.0",
            None,
        ),
        (lambda: api.estimate(GPU, checkpointed_layers=99), "checkpointed_layers is 0 to 36 for qwen2.5-vl-3b, not 99", None),
        (lambda: api.plan(GPU, micro_batch=2), "a plan chooses micro_batch itself", "estimate(..., micro_batch=2)"),
        (lambda: api.figure(PLAN, "memroy"), "unknown kind of figure 'memroy'", "did you mean 'memory'?"),
    ],
)
def test_what_is_wrong_is_named_with_the_way_on(call, said, hint):
    with pytest.raises(UsageError) as caught:
        call()
    assert said in caught.value.message
    assert hint is None or hint in caught.value.hint
    assert len(caught.value.message.splitlines()) <= 2


def test_a_wrong_field_is_a_value_error_too_so_that_others_validation_collects_it():
    with pytest.raises(ValueError, match="rank"):
        Contract(rank=0)


def test_a_field_that_is_set_is_refused_with_the_way_on():
    with pytest.raises(UsageError, match=r"contract\.rank is frozen") as caught:
        Contract().rank = 8
    assert caught.value.hint == "make a changed copy: contract.replace(rank=...)"
