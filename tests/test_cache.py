"""Where budgetft keeps its files: the variable of its own, then the one of all programs, then the home."""

from budgetft.cache import cache_folder, folder_bytes, left_behind
from budgetft.cli import main


def test_the_own_variable_comes_before_that_of_all_programs_and_that_before_the_home(tmp_path):
    home, caches = str(tmp_path / "home"), str(tmp_path / "caches")
    assert cache_folder({"HOME": home}) == tmp_path / "home" / ".cache" / "budgetft"
    assert cache_folder({"HOME": home, "XDG_CACHE_HOME": caches}) == tmp_path / "caches" / "budgetft"
    chosen = {"HOME": home, "XDG_CACHE_HOME": caches, "BUDGETFT_CACHE": str(tmp_path / "own")}
    assert cache_folder(chosen) == tmp_path / "own"


def test_a_relative_or_empty_cache_home_counts_as_none(tmp_path):
    for odd in ("", "caches"):
        assert cache_folder({"HOME": str(tmp_path), "XDG_CACHE_HOME": odd}) == tmp_path / ".cache" / "budgetft"


def test_measurements_in_the_home_stay_in_use_until_they_are_moved(tmp_path):
    old, new = tmp_path / ".cache" / "budgetft", tmp_path / "caches" / "budgetft"
    environment = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "caches")}
    old.mkdir(parents=True)
    (old / "sample").mkdir()
    assert (cache_folder(environment), left_behind(environment)) == (new, None), "what is cheap to make again is left"
    (old / "ledger.sqlite3").write_bytes(b"12345")
    assert (cache_folder(environment), left_behind(environment)) == (old, (old, new))
    new.mkdir(parents=True)
    (old / "ledger.sqlite3").rename(new / "ledger.sqlite3")
    assert (cache_folder(environment), left_behind(environment)) == (new, None)
    assert (folder_bytes(new), folder_bytes(tmp_path / "nothing")) == (5, 0)


def test_the_help_names_the_variables(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert "BUDGETFT_CACHE" in said
    assert "XDG_CACHE_HOME" in said
