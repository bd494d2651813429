"""Cached vision is taken when the whole run is predicted to be shorter with it, and its cost is known before it is spent."""

import pytest
from rounding import arithmetic

pytest.importorskip("optuna", reason="optuna is not installed: a search is a study of it")

from budgetft.contract import Contract
from budgetft.data.stats import workload_of
from budgetft.data.synthetic.sample import write_sample
from budgetft.errors import BudgetftError, UsageError
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.model import load_model
from budgetft.predict.calibrate import load_calibration
from budgetft.predict.memory_model import Work
from budgetft.search.features import chosen_features, survey, weigh
from budgetft.search.space import settings
from budgetft.workload import Shape, Workload

SHAPE = Shape(images=((448, 448),), text_tokens=256, supervised_tokens=160)


class MemoryModel:
    """The tower takes 0.1 s for the eight images of eight examples; the rest of a step does not matter here."""

    def work(self, micro_batch, checkpointed_layers):
        gpu, known = load_gpu("v100-16g"), load_calibration("no such GPU")
        flops = 0.1 * gpu.fp16_tflops * 1e12 * known.speeds_of(gpu).product_share.value * micro_batch / 8
        return [
            Work(phase="vision", flops=flops, moved_bytes=0, kernels=0),
            Work(phase="forward", flops=flops * 50, moved_bytes=0, kernels=0),
        ]


class Rated:
    """An estimator with given seconds of a step; settings above ``most`` examples at a time do not fit."""

    def __init__(self, truth, seconds: dict[str, float], most: int = 8) -> None:
        self.calibration = load_calibration("no such GPU")
        self._formula, self._seconds, self._most = truth.formula, seconds, most

    def memory_model(self, knobs: Knobs) -> MemoryModel:
        assert knobs.vision == "frozen"
        return MemoryModel()

    def estimate(self, knobs: Knobs):
        made = self._formula.estimate(knobs)
        return made.replace(step_seconds=self._seconds[knobs.vision], fits=knobs.micro_batch <= self._most)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return write_sample(tmp_path_factory.mktemp("sample") / "data", count=12)


@pytest.fixture
def make_case(make_truth, sample):
    """A job on the sample, and its estimator; ``epochs`` and the seconds of a step decide."""

    def make(epochs: int = 1, *, frozen: float = 2.0, cached: float = 1.0, most: int = 8, **changes) -> tuple[Job, Rated]:
        workload = workload_of([SHAPE] * 12, sample.fingerprint, pixel_step=28)
        truth = make_truth(contract=Contract(epochs=epochs, effective_batch=4), workload=workload, **changes)
        return truth.formula.job, Rated(truth, {"frozen": frozen, "cached": cached}, most)

    return make


def test_the_cost_is_that_of_the_distinct_images(make_case, sample, tmp_path):
    job, _ = make_case()
    features, tokens = survey(str(tmp_path / "cache"), job, str(sample.folder))
    distinct = {path for example in sample for path in example.images}
    assert features.images == features.missing == len(distinct)
    assert features.disk_bytes == tokens * 2048 * 2
    assert not (tmp_path / "cache").exists()
    assert f"{len(distinct)} of {len(distinct)} images to compute" in features.describe()


def test_a_plan_with_four_bit_weights_on_a_bf16_gpu_has_features_of_fp16(make_case, sample, tmp_path):
    job, estimator = make_case()
    modern = job.replace(gpu=load_gpu("rtx3090"))
    weighed = weigh("auto", modern, estimator, str(sample.folder))
    own = chosen_features("auto", modern, str(sample.folder), weighed, "bf16")
    four_bit = chosen_features("auto", modern, str(sample.folder), weighed, "nf4")
    assert own == weighed.features
    assert four_bit.folder != own.folder
    assert chosen_features("auto", job, str(sample.folder), weighed, "nf4") == weighed.features


def test_a_long_run_takes_what_a_short_one_does_not(make_case, sample, tmp_path):
    once = weigh(str(tmp_path), *make_case(), str(sample.folder)).features.seconds
    assert once > 0
    saved = once / 3 / 2  # a step, of the three of an epoch: it takes two epochs to pay
    short = weigh(str(tmp_path), *make_case(1, cached=2.0 - saved), str(sample.folder))
    long = weigh(str(tmp_path), *make_case(3, cached=2.0 - saved), str(sample.folder))
    assert (short.vision, long.vision) == ("frozen", "cached")
    assert "not worth it" in short.text
    assert "(predicted): taken" in long.text


def test_the_seconds_of_the_tower_follow_its_visual_tokens(make_case, sample, tmp_path):
    job, estimator = make_case()
    weighed = weigh(str(tmp_path), job, estimator, str(sample.folder))
    tokens = weighed.features.disk_bytes / 4096
    assert weighed.features.seconds == arithmetic(0.1 / (8 * 256) * tokens, operations=100)


def test_without_data_cached_vision_is_taken_as_asked(make_case, tmp_path):
    job, estimator = make_case()
    job = job.replace(workload=Workload.uniform(SHAPE))
    weighed = weigh(str(tmp_path / "cache"), job, estimator, None)
    assert weighed.vision == "cached"
    assert (weighed.features.images, weighed.features.disk_bytes) == (None, None)


def test_where_only_cached_vision_fits_it_is_taken(make_case, sample, tmp_path):
    job, estimator = make_case(most=0)
    assert weigh(str(tmp_path), job, estimator, str(sample.folder)).vision == "cached"


def test_what_a_cache_already_has_costs_nothing(sample, make_job, tmp_path):
    import torch

    from budgetft.data.features import find_pictures
    from budgetft.step.features import cache_features

    model, contract = load_model("tiny-qwen2.5-vl"), Contract()
    pictures = find_pictures(sample, model, contract)
    facts = {"model": model, "contract": contract, "precision": "fp16", "weights": None, "device": torch.device("cpu")}
    cache_features(pictures[:1], tmp_path / "cache", **facts)
    job = make_job(model=model)
    features, _ = survey(str(tmp_path / "cache"), job, str(sample.folder))
    assert features.missing == len(pictures) - 1
    with pytest.raises(UsageError, match="max_pixels is 200704, not 100352"):
        survey(str(tmp_path / "cache"), job.replace(contract=Contract(max_pixels=100_352)), str(sample.folder))


def test_a_disk_without_room_is_refused_before_anything_is_probed(make_case, sample, tmp_path, monkeypatch):
    monkeypatch.setattr("budgetft.data.features.shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(BudgetftError, match=r"0\.00 GiB free"):
        weigh(str(tmp_path), *make_case(), str(sample.folder))


def test_each_model_and_each_resolution_has_its_own_automatic_folder(make_job, make_case):
    jobs = [
        make_job(),
        make_job(contract=Contract(max_pixels=100_352)),
        make_job(model=load_model("qwen2.5-vl-7b")),
        make_job(model=load_model("qwen2.5-vl-3b").replace(weights="/some/folder")),
    ]
    folders = [survey("auto", job, None)[0].folder for job in jobs]
    assert len(set(folders)) == 4
    assert survey("auto", make_job(contract=Contract(rank=8)), None)[0].folder == folders[0]


def test_the_grid_of_cached_vision_is_that_of_the_frozen_tower(make_job):
    job = make_job()
    assert [knobs.replace(vision="frozen") for knobs in settings(job, "cached")] == settings(job)
