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
