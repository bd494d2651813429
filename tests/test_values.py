"""Units, and values that are refused where they are built."""

import pytest

from budgetft.contract import Contract
from budgetft.errors import BudgetftError, UsageError, nearest, unknown_name
from budgetft.knobs import Knobs, differences, is_stock, parse_knob, stock_knobs
from budgetft.model import load_model
from budgetft.units import GIB, format_gib, parse_bytes, parse_size
from budgetft.workload import Shape, Workload

QWEN = load_model("tiny-qwen2.5-vl")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("14GiB", 14 * 2**30),
        ("14GB", 14 * 10**9),
        ("14.5GiB", 29 * 2**29),
        (" 14 GiB ", 14 * 2**30),
        ("512MiB", 2**29),
        ("1.5MB", 1_500_000),
        ("3KiB", 3072),
        ("3KB", 3000),
        ("0GiB", 0),
        ("7B", 7),
    ],
)
def test_an_amount_of_memory_is_taken_at_its_word(text, expected):
    assert parse_bytes(text) == expected
    assert isinstance(parse_bytes(text), int)


@pytest.mark.parametrize(
    "text", ["14", "GiB", "14gb", "14G", "14gib", "14 Gi B", "-14GiB", "1e3GiB", "", "14,5GiB", "14GiBs", ".5GiB", "nanGiB"]
)
def test_an_amount_without_a_clear_unit_is_refused_with_both_readings(text):
    with pytest.raises(UsageError) as caught:
        parse_bytes(text)
    assert repr(text) in caught.value.message
    assert "GiB" in caught.value.message
    assert "14 * 2^30" in caught.value.hint
    assert "14 * 10^9" in caught.value.hint


def test_bytes_are_shown_as_gib():
    assert format_gib(14 * GIB) == "14.00 GiB"
    assert format_gib(14 * 10**9) == "13.04 GiB"
    assert format_gib(0) == "0.00 GiB"
    assert format_gib(None) == "-"


@pytest.mark.parametrize(("text", "expected"), [("1288x728", (1288, 728)), (" 4 X 5 ", (4, 5)), ("1x1", (1, 1))])
def test_a_size_is_width_by_height(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "448", "448x", "x448", "0x448", "448x0", "-4x4", "4.5x4", "4x4x4", "4*4", "axb"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="image size") as caught:
        parse_size(text)
    assert repr(text) in caught.value.message


@pytest.mark.parametrize(
    ("kind", "fields", "wrong", "right"),
    [
        (Knobs, {"micro_batch": 1, "grad_accum": 1, "checkpointed_layer": 0}, "checkpointed_layer", "checkpointed_layers"),
        (Knobs, {"micro_batch": 1, "gradaccum": 1, "checkpointed_layers": 0}, "gradaccum", "grad_accum"),
        (Contract, {"effectivebatch": 8}, "effectivebatch", "effective_batch"),
        (Contract, {"Rank": 8}, "Rank", "rank"),
        (Contract, {"maxpixels": 800}, "maxpixels", "max_pixels"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(kind, fields, wrong, right):
    for build in (lambda: kind.make(**fields), lambda: kind.read(fields, source="a file")):
        with pytest.raises(UsageError) as caught:
            build()
        assert f"{wrong}: unknown key" in caught.value.message
        assert f"did you mean {right!r} instead of {wrong!r}?" in caught.value.hint


def test_all_bad_fields_are_named_with_their_source_and_what_was_given():
    with pytest.raises(UsageError) as caught:
        Contract.read({"rank": 0, "epochs": "three", "targets": ["q_proj", "nonsense"]}, source="my.toml")
    message = caught.value.message
    assert message.startswith("my.toml: 3 problems")
    assert "rank" in message
    assert "got '0'" in message
    assert "got 'three'" in message
    assert "not nonsense" in message


@pytest.mark.parametrize(
    "fields",
    [
        {"rank": "8"},
        {"rank": 8.0},
        {"rank": True},
        {"rank": None},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"learning_rate": 0.0},
        {"lora_dropout": 1.0},
        {"seed": -1},
        {"seed": 2**32},
        {"alpha": 0},
        {"alpha": 2**400},
        {"warmup_ratio": 1.01},
        {"weight_decay": -0.1},
        {"weight_decay": float("inf")},
        {"max_grad_norm": 0.0},
        {"max_grad_norm": float("inf")},
        {"lr_schedule": "cos"},
        {"use_dora": 1},
        {"init_lora": True},
        {"init_lora": "orthogonal", "rank": 5},
        {"effective_batch": 0},
        {"targets": ()},
        {"targets": "q_proj"},
    ],
)
def test_a_contract_takes_no_value_that_is_merely_convertible_or_out_of_range(fields):
    with pytest.raises(UsageError, match=next(iter(fields))):
        Contract.make(**fields)


@pytest.mark.parametrize(
    ("init", "reason"),
    [
        ("pissa", "a part out of the base weights"),
        ("pissa_niter_16", "a part out of the base weights"),
        ("olora", "a part out of the base weights"),
        ("loftq", "a part out of the base weights"),
        ("corda", "needs passes over the data"),
        ("lora_ga", "needs passes over the data"),
        ("eva", "needs passes over the data"),
        ("mica", "it freezes B"),
    ],
)
def test_a_start_of_the_adapter_that_peft_has_and_that_is_not_offered_is_refused_with_the_reason(init, reason):
    with pytest.raises(UsageError, match=f"init '{init}' is refused: .*{reason}.*take one of default, gaussian, orthogonal"):
        Contract.make(init_lora=init)


def test_a_contract_writes_its_newer_fields_only_where_they_are_not_at_their_defaults():
    """So that plans, ledgers and studies of before stay what they are."""
    newer = {"use_rslora": True, "use_dora": True, "init_lora": "gaussian", "lr_schedule": "linear"}
    assert not set(newer) & set(Contract().model_dump())
    assert Contract().model_dump_json() == Contract(use_dora=False, lr_schedule="cosine").model_dump_json()
    changed = Contract.make(**newer)
    assert newer.items() <= changed.model_dump().items()
    assert Contract.read(changed.model_dump(mode="json"), source="a plan") == changed


def test_a_wrong_choice_is_refused_with_the_nearest():
    with pytest.raises(UsageError) as caught:
        Knobs.make(micro_batch=1, grad_accum=1, checkpointed_layers=0, attention="eficient")
    assert "did you mean 'efficient'?" in caught.value.hint


def test_values_are_frozen_and_a_changed_copy_is_checked():
    contract = Contract()
    with pytest.raises(ValueError, match="frozen"):
        contract.rank = 8  # pyright: ignore[reportAttributeAccessIssue]
    assert contract.replace(rank=8).rank == 8
    assert contract.rank == 16
    with pytest.raises(ValueError, match="rank"):
        contract.replace(rank=0)
    with pytest.raises(ValueError, match="ranks"):
        contract.replace(ranks=8)


# Knobs on the command line


def test_a_knob_is_read_as_what_it_is():
    assert parse_knob("micro_batch=8") == ("micro_batch", 8)
    assert parse_knob("checkpointed_layers=0") == ("checkpointed_layers", 0)
    assert parse_knob("loss=full") == ("loss", "full")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("micro_batch", "cannot read setting 'micro_batch'", "--setting micro_batch=8"),
        ("micro_bach=8", "unknown setting 'micro_bach'", "did you mean 'micro_batch'?"),
        (
            "loss=chunky",
            "unknown value for setting loss: 'chunky'; known: chunked, full, supervised",
            "did you mean 'chunked'?",
        ),
        ("attention=Flash", "unknown value for setting attention: 'Flash'", "did you mean 'flash'?"),
        ("micro_batch=four", "setting micro_batch must be a whole number, not 'four'", None),
        ("micro_batch=-4", "setting micro_batch must be a whole number, not '-4'", None),
        ("micro_batch=4.5", "setting micro_batch must be a whole number, not '4.5'", None),
        ("micro_batch=", "setting micro_batch must be a whole number, not ''", None),
        ("=4", "unknown setting ''", None),
    ],
)
def test_a_knob_that_cannot_be_read_is_refused_by_name(text, message, hint):
    with pytest.raises(UsageError) as caught:
        parse_knob(text)
    assert caught.value.message.startswith(message)
    if hint is not None:
        assert hint in caught.value.hint


def test_the_stock_recipe_is_known_for_what_it_is_and_by_what_differs():
    stock = stock_knobs(micro_batch=2, effective_batch=32, layers=36, base_precision="bf16")
    assert (stock.micro_batch * stock.grad_accum, stock.checkpointed_layers) == (32, 36)
    assert is_stock(stock)
    for name, value in {
        "loss": "chunked",
        "vision": "frozen",
        "attention": "flash",
        "lora": "lean",
        "allocator": "expandable",
    }.items():
        changed = stock.replace(**{name: value})
        assert not is_stock(changed)
        assert differences(changed, stock) == {name: value}
    assert differences(stock, stock) == {}


# Names, errors, shapes


def test_the_nearest_name_is_found_whatever_its_case_and_none_when_none_is_near():
    assert nearest("V100-16GB", ["v100-16g", "t4", "l4"]) == "v100-16g"
    assert nearest("zzzz", ["v100-16g", "t4"]) is None
    assert nearest("anything", []) is None
    error = unknown_name("GPU", "v100", ["v100-16g", "t4"])
    assert isinstance(error, BudgetftError)
    assert error.message == "unknown GPU 'v100'; known: t4, v100-16g"
    assert error.hint == "did you mean 'v100-16g'?"


def test_a_shape_counts_one_token_per_square_of_the_pixel_step():
    shape = Shape(images=((448, 448), (56, 28)), text_tokens=100, supervised_tokens=20)
    assert shape.visual_tokens(28) == 256 + 2
    assert shape.total_tokens(28) == 358


def test_a_workload_has_at_least_one_shape_of_each_kind():
    shape = Shape(images=(), text_tokens=10, supervised_tokens=1)
    assert Workload.uniform(shape).worst == Workload.uniform(shape).typical == (shape,)
    with pytest.raises(UsageError, match="worst"):
        Workload.make(worst=(), typical=(shape,))


def test_shapes_with_another_number_of_images_repeat_their_own_and_count_what_stands_around_each():
    shape = Shape(images=((56, 28), (28, 28)), text_tokens=100, supervised_tokens=20)
    more = shape.with_frames(3, QWEN, video=False)
    assert more.images == ((56, 28), (28, 28), (56, 28))
    assert (more.text_tokens, more.total_tokens(28)) == (102, 102 + 5)
    assert shape.with_frames(1, QWEN, video=False).text_tokens == 98
    assert shape.with_frames(2, QWEN, video=False) == shape
    plain = Shape(images=(), text_tokens=10, supervised_tokens=1)
    assert plain.with_frames(4, QWEN, video=False) == plain


def test_a_workload_with_another_number_of_images_has_its_worst_first_again_and_is_of_no_data():
    long = Shape(images=((28, 28),), text_tokens=60, supervised_tokens=20)
    large = Shape(images=((280, 140),), text_tokens=9, supervised_tokens=1)
    workload = Workload(worst=(long, large), typical=(large,), examples=2, fingerprint="x")
    more = workload.with_frames(4, QWEN, video=False)
    assert more.worst == (large.with_frames(4, QWEN, video=False), long.with_frames(4, QWEN, video=False))
    assert (more.most_frames, workload.most_frames) == (4, 1)
    assert more.fingerprint is None


def test_a_video_of_n_frames_has_half_as_many_slices_and_the_text_that_its_family_puts_around_them():
    shape = Shape(images=((56, 28), (28, 28)), text_tokens=100, supervised_tokens=20)
    video = shape.with_frames(5, QWEN, video=True)
    assert (video.images, video.frames) == (((56, 28),) * 3, 5)
    assert video.text_tokens == 100 - 4 + 2
    assert video.with_frames(5, QWEN, video=True) == video
    assert video.with_frames(4, QWEN, video=True).with_frames(5, QWEN, video=True) == video
    assert video.with_frames(3, QWEN, video=False).text_tokens == 98 - 2 + 6
    apart = shape.with_frames(5, load_model("tiny-qwen3-vl"), video=True)
    assert apart.text_tokens == 100 - 4 + 2 + 3 * 9
    workload = Workload.uniform(video)
    assert workload.is_video
    assert workload.most_frames == 5
    assert not workload.with_frames(5, QWEN, video=False).is_video


def test_a_shape_of_images_is_written_as_before_there_were_videos():
    shape = Shape(images=((56, 28),), text_tokens=100, supervised_tokens=20)
    assert set(shape.model_dump()) == {"images", "text_tokens", "supervised_tokens"}
    video = shape.replace(frames=2)
    assert Shape.read(video.model_dump(mode="json"), source="it") == video


@pytest.mark.parametrize(
    ("word", "meant"), [("3060", "rtx3060-12g"), ("RTX 3060", "rtx3060-12g"), ("A100", "a100-40g"), ("rtx309", "rtx3090")]
)
def test_a_name_that_holds_the_word_is_nearer_than_one_that_looks_like_it(word, meant):
    assert nearest(word, ["a10", "a100-40g", "rtx2080ti", "rtx3060-12g", "rtx3090"]) == meant
