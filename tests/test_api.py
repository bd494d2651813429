"""The Python API: what it imports, what it names, and the example."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS

import budgetft
from budgetft import api

HERE = Path(__file__).parent
ROOT = HERE.parent


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=HANG_SECONDS, env=environment)


def test_importing_the_package_loads_nothing_and_the_api_no_heavy_library():
    code = "import sys; before = set(sys.modules); import budgetft; print(sorted(set(sys.modules) - before))"
    assert python("-c", code).stdout.strip() == "['budgetft']"
    heavy = "{'torch', 'transformers', 'peft', 'datasets', 'optuna', 'numpy', 'PIL'}"
    assert python("-c", f"import sys, budgetft.api; print({heavy} & set(sys.modules))").stdout.strip() == "set()"


def test_every_name_is_documented_and_every_function_is_typed():
    assert (Path(budgetft.__file__).parent / "py.typed").is_file()
    for name in api.__all__:
        thing = getattr(api, name)
        assert inspect.getdoc(thing), name
        if inspect.isfunction(thing):
            signature = inspect.signature(thing)
            assert signature.return_annotation is not inspect.Signature.empty, name
            assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values()), name


def test_the_example_runs_to_its_end(tmp_path, new_cache, warm_children):
    done = python(str(HERE / "example_api.py"), str(tmp_path), BUDGETFT_CACHE=str(new_cache()), PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["micro_batch 2", "plan", "ported", "nothing fits"]


def test_a_budget_that_the_gpu_has_not_is_refused():
    shape = api.Shape(images=((56, 56),), text_tokens=40, supervised_tokens=8)
    with pytest.raises(api.UsageError, match=r"t4 has 15\.00 GiB"):
        api.estimate("t4", "tiny-qwen2.5-vl", work=shape, budget="20GiB")
