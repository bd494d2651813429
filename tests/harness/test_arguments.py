"""The command line of a script."""

import pytest
from reported import harness

arguments = harness("arguments")


def test_the_docstring_is_the_help_and_shared_options_have_the_defaults_given(capsys):
    parser = arguments.parser("Shows it.\n\n    python reports/x/y.py", steps=20, out=None)
    asked = parser.parse_args([])
    assert (asked.steps, asked.out) == (20, None)
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "\n    python reports/x/y.py" in capsys.readouterr().out


def test_an_option_without_a_default_must_be_given(capsys):
    with pytest.raises(SystemExit) as ended:
        arguments.parser("Shows it.", out=...).parse_args([])
    assert ended.value.code == 2
    assert "--out" in capsys.readouterr().err


def test_a_shortened_option_is_refused(capsys):
    """`--out` of a script that later gains `--outer` would change its meaning."""
    with pytest.raises(SystemExit):
        arguments.parser("Shows it.", steps=1).parse_args(["--step", "3"])
    assert "--step" in capsys.readouterr().err


def test_only_shared_options_are_made_by_name():
    with pytest.raises(KeyError, match="stepz"):
        arguments.parser("Shows it.", stepz=1)


def test_help_is_as_wide_as_the_terminal_and_commands_stand_as_they_are_typed(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    command = "    python reports/x/y.py --one-option VALUE --another VALUE      # on a GPU"
    text = arguments.parser(f"A sentence {'of words ' * 30}.\n\n{command}\n\nThe rest.").format_help()
    assert command in text.splitlines()
    assert all(len(line) <= 60 for line in text.splitlines() if line != command)


def test_commands_have_arguments_of_their_own(capsys, tmp_path):
    parser = arguments.parser("Shows it.")
    arguments.commands(parser, {"choose": {"count": int, "model?": str}, "table": {"files+": arguments.there}})
    asked = parser.parse_args(["choose", "3"])
    assert (asked.what, asked.count, asked.model) == ("choose", 3, None)
    assert parser.parse_args(["table", str(tmp_path), str(tmp_path)]).files == [tmp_path, tmp_path]
    for words in (["choose"], ["choose", "three"], ["table"], []):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(words)
        assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_file_that_is_not_there_is_named(capsys, tmp_path):
    parser = arguments.flag(arguments.parser("Shows it."), "ledger", type=arguments.there)
    with pytest.raises(SystemExit):
        parser.parse_args([str(tmp_path / "none.sqlite3")])
    assert "there is no" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
