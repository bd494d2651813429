"""A process that is killed while it replaces a dataset loses neither the old nor the new one."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

from budgetft.data.examples import check_target, read_dataset, write_dataset
from budgetft.data.replace import move_into_place
from budgetft.errors import UsageError
from budgetft.lock import exclusive

KILLED = """
    import os, signal, sys
    from pathlib import Path
    from budgetft.data.examples import Example, write_dataset

    out, pictures, event, count = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])

    def watch(name, arguments):
        global count
        if name == event and str(arguments[0]).startswith(f"{out.parent}/"):
            count -= str(arguments[0]) == str(out) or f".{out.name}.partial-" in str(arguments[0])
            if count == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    example = Example(id="new", images=("a.jpg",), prompt="What is there?", answer="Something new.")
    write_dataset([example], out, images_root=pictures, overwrite=True)
"""
BETWEEN_THE_RENAMES = ("os.rename", "2")
MOMENTS = {
    "before the old one is set aside": (("os.rename", "1"), "one"),
    "between the renames": (BETWEEN_THE_RENAMES, "new"),
    "before the old one is deleted": (("shutil.rmtree", "1"), "new"),
    "while the old one is deleted": (("os.rmdir", "1"), "new"),
}


@pytest.fixture
def out(tmp_path, example, picture):
    """A dataset of one example, ``one``; beside it pictures, of which one is called ``a.jpg``."""
    shutil.copy(picture, picture.with_name("a.jpg"))
    write_dataset([example], tmp_path / "out", images_root=picture.parent)
    return tmp_path / "out"


@pytest.fixture
def killed(picture):
    """Replaces a dataset by one whose example is ``new``, in a process that is killed -9 at the moment."""

    def run(out, moment):
        script = textwrap.dedent(KILLED)
        done = subprocess.run([sys.executable, "-c", script, str(out), str(picture.parent), *moment], env={**os.environ})
        assert done.returncode == -signal.SIGKILL

    return run


def ids(folder):
    return [one.id for one in read_dataset(folder)]


def hidden(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("moment", MOMENTS)
def test_after_a_kill_the_dataset_is_there_whole(out, killed, moment):
    at, expected = MOMENTS[moment]
    killed(out, at)
    assert ids(out) == [expected]


def test_a_kill_between_the_renames_leaves_nothing_hidden_once_the_dataset_was_used(out, killed):
    killed(out, BETWEEN_THE_RENAMES)
    assert not out.exists()
    assert ids(out) == ["new"]
    assert hidden(out.parent) == []


def test_of_a_new_one_that_is_not_whole_the_old_one_is_put_back(out, killed):
    killed(out, BETWEEN_THE_RENAMES)
    (new,) = [path for path in out.parent.iterdir() if path.name.startswith(".out.partial-") and path.name[-4:] != "-old"]
    (new / "state.json").write_text("{")
    assert ids(out) == ["one"]
    assert hidden(out.parent) == []


def test_whoever_writes_next_finds_the_dataset_again_and_does_not_write_over_it(out, killed, example, picture):
    killed(out, BETWEEN_THE_RENAMES)
    with pytest.raises(UsageError, match="already exists"):
        check_target(out, overwrite=False)
    killed(out, BETWEEN_THE_RENAMES)
    write_dataset([example], out, images_root=picture.parent, overwrite=True)
    assert ids(out) == ["one"]
    assert hidden(out.parent) == []


def test_what_a_killed_process_had_still_to_delete_is_deleted_with_the_next_replacement(out, killed, example, picture):
    killed(out, MOMENTS["while the old one is deleted"][0])
    assert hidden(out.parent)
    write_dataset([example], out, images_root=picture.parent, overwrite=True)
    assert [name for name in hidden(out.parent) if name.endswith("-old")] == []


def test_an_old_one_that_was_deleted_in_part_does_not_come_back(out, killed):
    killed(out, MOMENTS["while the old one is deleted"][0])
    shutil.rmtree(out)
    with pytest.raises(UsageError, match="does not exist"):
        read_dataset(out)


def test_a_replacement_that_is_under_way_is_not_taken_for_a_dead_one(out, killed):
    killed(out, BETWEEN_THE_RENAMES)
    at_it = exclusive(out.parent / ".out.lock", taken=lambda holder: UsageError(holder))
    with at_it, pytest.raises(UsageError, match=f"is being replaced by another process \\({os.getpid()}\\)"):
        read_dataset(out)
    assert ids(out) == ["new"]


def test_a_refused_rename_puts_the_old_one_back(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(FileNotFoundError):
        move_into_place(tmp_path / ".out.partial-0123456789ab", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["old"]
    assert hidden(tmp_path) == []
