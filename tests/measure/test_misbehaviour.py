"""Children that do everything wrong, for real: each ends as an Outcome, in time, and the next probe goes on.

Time-outs are told by a clock that stands still until a child has given a sign, so that no busy machine is slower than one.
"""

import os
from collections.abc import Callable

import pytest
from patience import HANG_SECONDS

from budgetft.errors import UsageError
from budgetft.measure import probe as probe_module
from budgetft.measure.probe import Prober
from budgetft.workload import Workload

# A child that answers properly until it is told to do something else.
POLITE = """
import json, os, sys, time
results = os.fdopen(int(sys.argv[1]), "w", buffering=1)
def answer(message): results.write(json.dumps(message) + "\\n")
def outcome(knobs, **changes):
    return {"outcome": {"status": "ok", "knobs": knobs, "evidence": "predicted", "budget_bytes": 1, **changes}}
first = json.loads(sys.stdin.readline())
answer({"phase": "load"})
answer({"ready": True})
for line in sys.stdin:
    knobs = json.loads(line)["knobs"]
    answer({"phase": "backward"})
"""


TIMEOUT = 2 * HANG_SECONDS
"""By the clock of the test: so long that a third of it is not over before a child answers, by any clock."""
SHORT_SECONDS = 0.2
"""By the clock on the wall, for a child that says nothing at all: there is no sign by which to move another clock."""


@pytest.fixture(autouse=True)
def _time_to_end(monkeypatch):
    """A child that ends may take long on a busy machine; how long a stubborn one is given its test says."""
    monkeypatch.setattr(probe_module, "END_SECONDS", HANG_SECONDS)


@pytest.fixture
def probe(make_job, make_knobs, script):
    """The outcome of one probe by a child that runs ``source``; options are the prober's."""

    def run(source: str, *, job=None, **options):
        seconds = {"load_seconds": HANG_SECONDS, "probe_seconds": HANG_SECONDS}
        with Prober(job or make_job(), stack=None, command=script(source), **{**seconds, **options}) as prober:
            return prober.probe(make_knobs(1))

    return run


def at_phase(phase: str, seconds: float, then: Callable[[], object] = lambda: None) -> dict:
    """Options of a prober whose clock stands still until the child tells ``phase``: at that moment ``seconds`` pass."""
    now = [0.0]

    def on_phase(told):
        if told == phase:
            now[0] += seconds
            then()

    return {"probe_seconds": TIMEOUT, "clock": lambda: now[0], "on_phase": on_phase}


def test_a_polite_child_is_believed(probe):
    outcome = probe(POLITE + "    answer(outcome(knobs, samples_per_second=2.0))\n")
    assert outcome.fits
    assert outcome.samples_per_second == 2.0


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        ("os.kill(os.getpid(), 9)", "ended by SIGKILL"),
        ("os.abort()", "ended by SIGABRT"),
        ("os.kill(os.getpid(), 11)", "ended by SIGSEGV"),
        (r"print('first\nthe reason', file=sys.stderr); sys.exit(7)", "exit code 7: first | the reason"),
        ("raise ValueError('no such kernel')", "ValueError: no such kernel"),
        ("print('on stdout'); sys.exit(0)", "exit code 0: on stdout"),
    ],
)
def test_a_child_that_dies_is_a_crash_that_says_how_and_where(probe, act, expected):
    outcome = probe(POLITE + f"    {act}\n")
    assert (outcome.status, outcome.phase) == ("crash", "backward")
    assert expected in outcome.detail


@pytest.mark.parametrize(
    "act",
    [
        "results.write('garbage \\x00\\x01\\n')",
        "os.write(results.fileno(), b'\\xff\\xfe\\x80\\n')",
        "results.write(json.dumps(outcome(knobs))[:50] + '\\n')",
        "results.write('[1, 2]\\n')",
        "results.write('3\\n')",
        "results.write('[' * 100000 + '\\n')",
        "results.write('9' * 5000 + '\\n')",
        "answer({'outcome': 3})",
        "answer({'outcome': None})",
        "answer({'outcome': {'status': 'ok'}})",
        "answer(outcome(knobs, samples_per_secnd=2.0))",
        "answer(outcome(knobs, samples_per_second=float('nan')))",
        "answer(outcome(knobs, loss=float('inf')))",
        "answer(outcome(knobs, process_peak_bytes='many'))",
        "answer(outcome(knobs, status='fine'))",
        "answer(outcome({**knobs, 'micro_batch': 2, 'grad_accum': 2}))",
        "os.write(results.fileno(), b'x' * 3_000_000)",
    ],
)
def test_an_answer_that_makes_no_sense_is_a_crash_and_the_child_is_not_waited_for(probe, act, tmp_path):
    end = f"    time.sleep({HANG_SECONDS}); open({str(tmp_path / 'end')!r}, 'w').close()\n"
    outcome = probe(POLITE + f"    {act}\n" + end)
    assert outcome.status == "crash"
    assert outcome.detail.startswith("unreadable answer")
    assert not (tmp_path / "end").exists(), "the child lived until its own end"


def test_half_an_answer_before_the_end_is_a_crash(probe):
    outcome = probe(POLITE + "    results.write(json.dumps(outcome(knobs))[:60]); results.flush(); os._exit(3)\n")
    assert outcome.status == "crash"
    assert outcome.detail == "exit code 3"


def test_a_bad_answer_names_the_key_that_was_meant(probe):
    outcome = probe(POLITE + "    answer(outcome(knobs, samples_per_secnd=2.0))\n")
    assert "samples_per_secnd: unknown key" in outcome.detail


def test_a_child_that_says_nothing_is_a_timeout_and_really_gone(probe, tmp_path, gone_within):
    mute = POLITE.replace('answer({"phase": "backward"})', "time.sleep(600)")
    tell = f"import os; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
    outcome = probe(tell + mute, probe_seconds=SHORT_SECONDS)
    assert (outcome.status, outcome.phase) == ("timeout", "load")
    assert gone_within(int((tmp_path / "pid").read_text()), 0.0)


def test_a_child_that_hangs_is_a_timeout_in_the_phase_that_it_told_last(probe):
    outcome = probe(POLITE + "    answer({'phase': 'loss'}); time.sleep(600)\n", **at_phase("loss", TIMEOUT))
    assert (outcome.status, outcome.phase) == ("timeout", "loss")
    assert outcome.detail == f"no answer within {TIMEOUT:.0f} s"
    assert outcome.wall_seconds == TIMEOUT


@pytest.mark.parametrize(("share", "status"), [(0.7, "ok"), (1.0, "timeout")])
def test_a_child_is_believed_that_answers_before_the_timeout_and_none_that_answers_after_it(probe, tmp_path, share, status):
    """It answers when its parent has seen how late it is."""
    late = tmp_path / "late"
    wait = f"    while not os.path.exists({str(late)!r}): time.sleep(0.01)\n"
    source = POLITE + "    answer({'phase': 'loss'})\n" + wait + "    answer(outcome(knobs))\n"
    outcome = probe(source, **at_phase("loss", share * TIMEOUT, then=late.touch))
    assert (outcome.status, outcome.wall_seconds) == (status, share * TIMEOUT)


def test_a_child_that_ignores_every_signal_it_can_is_gone_too(probe, tmp_path, gone_within):
    deaf = f"""    import signal
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
    open({str(tmp_path / "pid")!r}, 'w').write(str(os.getpid()))
    answer({{"phase": "loss"}})
    while True: pass
"""
    outcome = probe(POLITE + deaf, **at_phase("loss", TIMEOUT))
    assert outcome.status == "timeout"
    assert gone_within(int((tmp_path / "pid").read_text()), 0.0)


def test_a_timeout_ends_what_the_child_started_as_well(probe, tmp_path, gone_within):
    start = f"""    import subprocess
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open({str(tmp_path / "pid")!r}, 'w').write(str(helper.pid))
    answer({{"phase": "loss"}})
    time.sleep(600)
"""
    outcome = probe(POLITE + start, **at_phase("loss", TIMEOUT))
    assert outcome.status == "timeout"
    assert gone_within(int((tmp_path / "pid").read_text()), 60.0)


def test_endless_signs_of_life_do_not_put_off_the_timeout(probe):
    """A thousand of them take as long as is allowed; as many again as a read takes in at once may be waiting behind them."""
    told = []

    def on_phase(phase):
        told.append(phase)
        assert len(told) < 20_000, "each sign puts the time-out off"

    clock = {"clock": lambda: len(told) * TIMEOUT / 1000, "probe_seconds": TIMEOUT}
    outcome = probe(POLITE + "    while True: answer({'phase': 'forward'})\n", on_phase=on_phase, **clock)
    assert (outcome.status, outcome.phase) == ("timeout", "forward")
    assert len(told) >= 1000


def test_a_child_that_never_reads_its_job_is_a_timeout_even_when_the_job_is_larger_than_a_pipe(probe, make_job, tmp_path):
    shape = make_job().workload.worst[0]
    job = make_job(workload=Workload(worst=(shape,), typical=(shape,) * 5000))
    assert len(job.model_dump_json()) > 200_000
    deaf = f"import time; time.sleep({HANG_SECONDS}); open({str(tmp_path / 'end')!r}, 'w').close()"
    outcome = probe(deaf, load_seconds=SHORT_SECONDS, job=job)
    assert (outcome.status, outcome.phase) == ("timeout", "load")
    assert not (tmp_path / "end").exists(), "its parent waited for it to read"
    read_all = POLITE + "    answer(outcome(knobs, loss=float(len(first['job']['workload']['typical']))))\n"
    assert probe(read_all, job=job).loss == 5000


def test_five_megabytes_on_stdout_and_stderr_do_not_stop_a_child(probe):
    flood = """    for _ in range(500):
        sys.stdout.write("o" * 5000 + "\\n"); sys.stderr.write("e" * 5000 + "\\n")
    sys.stdout.flush()
"""
    outcome = probe(POLITE + flood + "    answer(outcome(knobs))\n")
    assert outcome.fits
    outcome = probe(POLITE + flood + "    print('the last words', file=sys.stderr); os._exit(4)\n")
    assert outcome.detail.startswith("exit code 4")
    assert outcome.detail.endswith("the last words")
    assert len(outcome.detail) <= 2000


def test_a_child_that_closes_its_answers_and_goes_on_is_a_crash_and_gone(probe, tmp_path, gone_within, monkeypatch):
    monkeypatch.setattr(probe_module, "END_SECONDS", SHORT_SECONDS)
    close = f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); results.close()\n"
    outcome = probe(POLITE + close + f"    time.sleep({HANG_SECONDS}); os._exit(0)\n")
    assert outcome.status == "crash"
    assert "went on running" in outcome.detail
    assert gone_within(int((tmp_path / "pid").read_text()), 0.0)


def test_a_child_that_closes_its_input_but_answers_is_believed(probe):
    source = POLITE.replace("for line in sys.stdin:", "line = sys.stdin.readline(); sys.stdin.close()\nif line:")
    outcome = probe(source + "    answer(outcome(knobs))\n")
    assert outcome.fits


@pytest.mark.parametrize(
    "source",
    [
        "import sys; sys.exit('no module named torch')",
        "import os, sys; os.close(int(sys.argv[1])); sys.exit('no module named torch')",
        "import sys; sys.stdin.readline(); sys.exit('no module named torch')",
    ],
)
def test_a_child_that_dies_before_it_is_ready_failed_to_load(probe, source):
    outcome = probe(source)
    assert (outcome.status, outcome.phase) == ("crash", "load")
    assert outcome.detail == "exit code 1: no module named torch"


def test_an_outcome_while_loading_is_the_outcome_of_the_probe(probe):
    outcome = probe(POLITE.replace('answer({"ready": True})', 'answer(outcome(first["knobs"], status="oom", phase="load"))'))
    assert (outcome.status, outcome.phase) == ("oom", "load")


def test_after_a_crash_the_next_probe_gets_a_new_child_and_no_file_is_left_open(make_job, make_knobs, script, tmp_path):
    once = f"""    marker = {str(tmp_path / "crashed")!r}
    if not os.path.exists(marker):
        open(marker, "w").close()
        os.abort()
    answer(outcome(knobs))
"""
    before = len(os.listdir("/proc/self/fd"))
    with Prober(make_job(), stack=None, command=script(POLITE + once)) as prober:
        assert prober.probe(make_knobs(1)).status == "crash"
        assert prober.probe(make_knobs(1)).status == "ok"
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_answer_too_many_is_not_taken_for_the_next_setting(make_job, make_knobs, script):
    twice = POLITE + "    answer(outcome(knobs)); answer(outcome(knobs))\n"
    with Prober(make_job(), stack=None, command=script(twice)) as prober:
        assert prober.probe(make_knobs(1)).fits
        stale = prober.probe(make_knobs(2))
    assert stale.knobs == make_knobs(2)
    assert stale.status == "crash"
    assert "another setting" in stale.detail


def test_the_allocator_knob_reaches_the_child_before_torch_is_loaded(make_job, make_knobs, script):
    source = POLITE + "    answer(outcome(knobs, detail=os.environ.get('PYTORCH_CUDA_ALLOC_CONF', 'unset')))\n"
    with Prober(make_job(), stack=None, command=script(source)) as prober:
        assert prober.probe(make_knobs(1, allocator="expandable")).detail == "expandable_segments:True"
        assert prober.probe(make_knobs(1)).detail == os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "unset")


def test_a_child_has_the_user_s_own_settings_of_the_allocator_beside_the_plan_s(make_job, make_knobs, script, monkeypatch):
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True,max_split_size_mb:128")
    source = POLITE + "    answer(outcome(knobs, detail=os.environ['PYTORCH_ALLOC_CONF']))\n"
    with Prober(make_job(), stack=None, command=script(source)) as prober:
        assert prober.probe(make_knobs(1)).detail == "max_split_size_mb:128,expandable_segments:False"
        assert prober.probe(make_knobs(1, allocator="expandable")).detail == "max_split_size_mb:128,expandable_segments:True"
        monkeypatch.setenv("PYTORCH_ALLOC_CONF", "backend:cudaMallocAsync")
        with pytest.raises(UsageError, match="takes no cap"):
            prober.probe(make_knobs(1), fresh=True)
