"""Result lines: whole in a file, wrapped between words on a terminal, and commands never in pieces."""

import io
import sys

import pytest

from budgetft.cli.lines import put, wrapped

ROW = "  run           micro-batch 4, gradient checkpointing on 6 of 36 layers, chunked cross-entropy, 8 micro-batches per step"


def test_a_long_value_goes_on_under_itself_between_words():
    pieces = wrapped(ROW, 60)
    assert len(pieces) == 3
    assert all(len(piece) <= 60 for piece in pieces)
    assert [piece[:16] for piece in pieces[1:]] == [" " * 16] * 2
    assert " ".join(" ".join(pieces).split()) == " ".join(ROW.split())


@pytest.mark.parametrize("width", [len(ROW), 20])
def test_a_line_that_fits_and_any_line_in_a_narrow_window_stay_whole(width):
    assert wrapped(ROW, width) == [ROW]


def test_a_line_without_a_name_hangs_by_two():
    pieces = wrapped("note: " + "word " * 30, 50)
    assert all(piece.startswith("  word") for piece in pieces[1:])


def test_a_command_to_copy_is_one_line_of_its_own_however_long():
    command = "next: accelerate launch --num_processes 4 --num_machines 1 -m budgetft train --plan plan.json --out runs/first"
    pieces = wrapped(f"written to plan.json; {command}", 60)
    assert pieces == ["written to plan.json", f"  {command}"]
    assert wrapped(command, 60) == [command]
    assert wrapped("written to p.json; next: sbatch job.sh", 60) == ["written to p.json; next: sbatch job.sh"]


def test_a_word_longer_than_the_line_stays_whole():
    path = "/scratch/" + "a" * 90
    assert path in wrapped(f"adapter        {path} of step 9", 60)[-2] + wrapped(f"adapter        {path} of step 9", 60)[-1]


def test_a_row_of_a_table_is_not_taken_apart():
    row = "scenario_of_the_night_in_winter   0.1234   0.5678   0.9012   1.3456   22.1234       12"
    assert wrapped(row, 60) == [row]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "lines"), [(Terminal, 3), (io.StringIO, 1)])
def test_only_a_terminal_is_wrapped_for(stream, lines, monkeypatch):
    out = stream()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", "60")
    put(ROW)
    assert out.getvalue().count("\n") == lines
