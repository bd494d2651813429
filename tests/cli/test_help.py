"""Help is complete and readable: every option explained, its default shown, nothing broken at 80 columns."""

import os
import subprocess
import sys
from difflib import SequenceMatcher

import pytest
import typer

from budgetft.cli import HEADINGS, ORDER, build_app, main, names
from budgetft.cli.help import LIKE, Command, Group, commands_below, default_text, help_lines, metavar, nearest_command
from budgetft.contract import Contract
from budgetft.gpu import gpu_names
from budgetft.model import model_names

ROOT = typer.main.get_command(build_app())
COMMANDS = {" ".join(path): command for path, command in commands_below(ROOT)}
NOT_KEPT = {"frames_per_example"}
"""Settings whose default is not the contract's: the data decides."""


def params():
    for name, command in COMMANDS.items():
        context = command.context_class(command, info_name=name)
        for param in command.params:
            yield pytest.param(param, context, id=f"{name} {param.opts[0]}".strip())


@pytest.mark.parametrize(("param", "context"), params())
def test_every_option_is_explained_and_shows_its_default(param, context):
    assert param.help
    assert param.help.strip()[-1] in ".!", "a sentence"
    flag = getattr(param, "is_bool_flag", False)
    assert flag or param.required or default_text(param, context), "neither a flag nor required: what is its default?"
    assert flag or metavar(param, context).strip("<>") == metavar(param, context), "the type is told in the field's way"


@pytest.fixture
def page(capsys, monkeypatch):
    def show(*words, columns=80):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main([*words]) == 0
        return capsys.readouterr().out

    return show


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("columns", [80, 60])
def test_no_line_of_help_is_wider_than_the_terminal_and_no_word_is_broken(name, columns, page):
    words = name.split()
    narrow, wide = page(*words, "-h", columns=columns), page(*words, "-h", columns=100)
    assert narrow.split() == wide.split(), "the same words, however they are laid out"
    for line in narrow.splitlines():
        assert len(line) <= columns or len(line.split()) <= 2, line


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_is_shown_by_the_one_renderer(command):
    assert isinstance(command, Command | Group)


def test_help_is_asked_for_in_three_ways(page):
    assert page("plan", "-h") == page("plan", "--help") == page("help", "plan")
    assert page("data", "wts", "-h") == page("help", "data", "wts")
    assert page("help") == page("-h") == page("--help")


def test_commands_are_in_the_order_of_use_under_their_headings(page):
    lines = page("-h").splitlines()
    places = [lines.index(heading) for heading in HEADINGS if heading in lines]
    assert places == sorted(places)
    assert len(places) == len(HEADINGS)
    shown = [line.split()[0] for line in lines if line.startswith("  ") and line.split()[0] in ORDER and line[2] != " "]
    assert shown == [name for name in ORDER if name in ROOT.commands]
    assert {name for name, command in ROOT.commands.items() if not command.hidden} <= set(ORDER)


def test_settings_that_are_kept_show_what_the_contract_has(page):
    said = " ".join(page("plan", "-h", columns=100).split())
    assert "[default: 200704 = 448x448]" in said
    assert "[default: 1e-4]" in said
    assert "[default: 2 x --rank]" in said
    assert "[default: q_proj, k_proj" in said
    plan = COMMANDS["plan"]
    context = plan.context_class(plan, info_name="plan")
    shown = {param.name: default_text(param, context) for param in plan.params}
    for name, field in Contract.model_fields.items():
        if name in shown and name not in NOT_KEPT and isinstance(field.default, int) and not isinstance(field.default, bool):
            assert shown[name].split()[0] == str(field.default), name


def test_the_steps_between_evaluations_are_those_of_training(page):
    from budgetft.cli.of_run import EVALUATE_EVERY
    from budgetft.train.folder import HELDOUT_EVERY

    assert str(HELDOUT_EVERY) == EVALUATE_EVERY


def test_an_estimate_is_not_said_to_take_a_range(page):
    assert "LOW..HIGH" in page("plan", "-h")
    assert "LOW..HIGH" not in page("estimate", "-h")


def test_qlora_is_another_name_of_its_option():
    (param,) = (param for param in COMMANDS["plan"].params if param.name == "allow_nf4")
    assert param.opts == ["--allow-nf4", "--qlora"]


def test_a_row_whose_option_is_long_has_its_text_below():
    rows = {"Options": [("--an-option-with-a-very-long-name NAME", "What it does."), ("-x", "Short.")]}
    lines = list(help_lines("budgetft x", "About.", rows, width=60))
    place = next(index for index, line in enumerate(lines) if "very-long-name" in line)
    assert lines[place + 1].strip() == "What it does."
    assert lines[place + 1].index("What") == lines[place + 2].replace("[cyan]", "").replace("[/]", "").index("Short")


@pytest.mark.parametrize("words", [("data", "convert", "-h"), ("plan", "-h")])
def test_text_of_help_is_no_markup(words, page):
    assert "[/" not in page(*words)
    assert "\\\\[" not in page(*words)


def test_only_a_near_command_is_suggested():
    known = [name for name in ORDER if name in ROOT.commands]
    assert nearest_command("price", known) is None
    assert SequenceMatcher(a="price", b="predict").ratio() < LIKE
    assert nearest_command("zzz", known) is None
    for typed, meant in {"pln": "plan", "trian": "train", "eval": "evaluate", "estimat": "estimate", "PLAN": "plan"}.items():
        assert nearest_command(typed, known) == meant


def complete(*words):
    """What bash is offered after ``words``, the last of which is being typed."""
    environment = {
        **os.environ,
        "_BUDGETFT_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["budgetft", *words]),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run([sys.executable, "-m", "budgetft"], env=environment, capture_output=True, text=True, timeout=60)
    return done.stdout.split()


def test_tab_completes_the_names_of_gpus():
    assert complete("plan", "--gpu", "v100") == [name for name in gpu_names() if name.startswith("v100")]


def test_models_and_settings_are_completed_too():
    assert names.models("tiny") == [name for name in model_names() if name.startswith("tiny")]
    assert "micro_batch=" in names.knobs("micro")
    assert names.knobs("loss=ch") == ["loss=chunked"]
    assert names.knobs("no_such=") == []
    for command, option in [("plan", "--gpu"), ("plan", "--model"), ("predict", "--gpu"), ("estimate", "--knob")]:
        (param,) = (param for param in COMMANDS[command].params if option in param.opts)
        assert param._custom_shell_complete is not None, f"{command} {option}"
