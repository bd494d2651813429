"""``budgetft report`` as a user types it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from budgetft.cli import main

SPINE = Path(__file__).parents[2] / "reports" / "spine"


def test_the_command_writes_the_page_and_says_the_verdict(tmp_path, capsys):
    assert main(["report", str(SPINE / "plan-448.json"), "-o", str(tmp_path / "r.html")]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("It fits, emulated (measured on H100 80GB HBM3 limited to 14.00 GiB): 13.65 of 14.00 GiB")
    assert str(tmp_path / "r.html") in said.out
    assert (tmp_path / "r-bytes.png").is_file()


def test_json_holds_the_verdict_and_the_files(tmp_path, capsys):
    plan = tmp_path / "plan.json"
    shutil.copy(SPINE / "plan-448.json", plan)
    assert main(["report", str(plan), "--out", str(tmp_path / "r.html"), "--json", "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said) == {"headline", "verdict", "files"}
    assert all(Path(path).is_file() for path in said["files"])


def test_a_missing_plan_and_a_page_that_cannot_be_written_are_a_usage_error(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none.json")]) == 2
    (tmp_path / "file").write_text("")
    assert main(["report", str(SPINE / "plan-448.json"), "-o", str(tmp_path / "file" / "r.html")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_a_report_from_a_stored_memory_model_loads_no_torch(tmp_path):
    code = (
        "import sys; from budgetft.cli import main;"
        f"main(['report', {str(SPINE / 'plan-448.json')!r}, '-o', {str(tmp_path / 'r.html')!r}]);"
        "sys.exit(bool({'torch', 'transformers', 'optuna'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
