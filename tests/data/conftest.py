from pathlib import Path

import pytest
from clips import bikes_dataset
from synthetic_sets import LEARNED, TESTED, make_synthetic

from budgetft.data.examples import Example, Examples, read_dataset
from budgetft.data.processor import load_processor
from budgetft.data.synthetic.sample import write_sample
from budgetft.model import Model, load_model


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """The tokenizer is built once per test run, away from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUDGETFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def model() -> Model:
    return load_model("tiny-qwen2.5-vl")


@pytest.fixture(scope="session")
def processor(model):
    return load_processor(model)


@pytest.fixture(scope="session")
def sample(tmp_path_factory) -> Examples:
    return write_sample(tmp_path_factory.mktemp("sample") / "data", count=48)


@pytest.fixture(scope="session")
def bikes(tmp_path_factory) -> Examples:
    pytest.importorskip("av")
    return read_dataset(bikes_dataset(tmp_path_factory.mktemp("bikes") / "data"))


@pytest.fixture
def picture(tmp_path) -> Path:
    """An image file of 100 x 60 pixels in its own folder."""
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    path = folder / "red.jpg"
    Image.new("RGB", (100, 60), (200, 30, 30)).save(path)
    return path


@pytest.fixture
def example(picture) -> Example:
    return Example(id="one", images=(picture.name,), prompt="What colour?", answer="It is red.")


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory) -> Path:
    pytest.importorskip("av")
    return make_synthetic(tmp_path_factory.mktemp("synthetic") / "wts", LEARNED)


@pytest.fixture(scope="session")
def test_package(tmp_path_factory) -> Path:
    pytest.importorskip("av")
    return make_synthetic(tmp_path_factory.mktemp("package") / "wts", TESTED)
