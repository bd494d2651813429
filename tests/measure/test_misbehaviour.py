"""Children that do everything wrong, for real: each ends as an Outcome, in time, and the next probe goes on."""

import os
import time

import pytest

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


@pytest.fixture
def probe(make_job, make_knobs, script):
    """The outcome of one probe by a child that runs ``source``, and the seconds that it took."""

    def run(source: str, *, seconds: float = 20.0, job=None):
        prober = Prober(job or make_job(), stack=None, command=script(source), load_seconds=seconds, probe_seconds=seconds)
        started = time.monotonic()
        with prober:
            outcome = prober.probe(make_knobs(1))
        return outcome, time.monotonic() - started

    return run


def test_a_polite_child_is_believed(probe):
    outcome, _ = probe(POLITE + "    answer(outcome(knobs, samples_per_second=2.0))\n")
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
    outcome, _ = probe(POLITE + f"    {act}\n")
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
        "os.write(results.fileno(), b'x' * 3_000_000); time.sleep(60)",
    ],
)
def test_an_answer_that_makes_no_sense_is_a_crash(probe, act):
    outcome, seconds = probe(POLITE + f"    {act}\n    time.sleep(60)\n")
    assert outcome.status == "crash"
    assert outcome.detail.startswith("unreadable answer")
    assert seconds < 10


def test_half_an_answer_before_the_end_is_a_crash(probe):
    outcome, _ = probe(POLITE + "    results.write(json.dumps(outcome(knobs))[:60]); results.flush(); os._exit(3)\n")
    assert outcome.status == "crash"
    assert outcome.detail == "exit code 3"


def test_a_bad_answer_names_the_key_that_was_meant(probe):
    outcome, _ = probe(POLITE + "    answer(outcome(knobs, samples_per_secnd=2.0))\n")
    assert "samples_per_secnd: unknown key" in outcome.detail


def test_a_child_that_hangs_is_a_timeout_and_really_gone(probe, tmp_path, gone_within):
    hang = f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)\n"
    outcome, seconds = probe(POLITE + hang, seconds=1.5)
    assert (outcome.status, outcome.phase) == ("timeout", "backward")
    assert 1.5 <= seconds < 4.0
    assert gone_within(int((tmp_path / "pid").read_text()), 0.0)


def test_a_child_that_ignores_every_signal_it_can_is_gone_too(probe, tmp_path, gone_within):
    deaf = f"""    import signal
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
    open({str(tmp_path / "pid")!r}, 'w').write(str(os.getpid()))
    while True: pass
"""
    outcome, _ = probe(POLITE + deaf, seconds=1.5)
    assert outcome.status == "timeout"
    assert gone_within(int((tmp_path / "pid").read_text()), 0.0)


def test_a_timeout_ends_what_the_child_started_as_well(probe, tmp_path, gone_within):
    start = f"""    import subprocess
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open({str(tmp_path / "pid")!r}, 'w').write(str(helper.pid))
    time.sleep(600)
"""
    outcome, _ = probe(POLITE + start, seconds=1.5)
    assert outcome.status == "timeout"
    assert gone_within(int((tmp_path / "pid").read_text()), 1.0)


def test_endless_signs_of_life_do_not_put_off_the_timeout(probe):
    outcome, seconds = probe(POLITE + "    while True: answer({'phase': 'forward'})\n", seconds=1.5)
    assert (outcome.status, outcome.phase) == ("timeout", "forward")
    assert seconds < 4.0


def test_a_child_that_never_reads_its_job_is_a_timeout_even_when_the_job_is_larger_than_a_pipe(probe, make_job):
    shape = make_job().workload.worst[0]
    job = make_job(workload=Workload(worst=(shape,), typical=(shape,) * 5000))
    assert len(job.model_dump_json()) > 200_000
    outcome, seconds = probe("import time; time.sleep(600)", seconds=1.5, job=job)
    assert (outcome.status, outcome.phase) == ("timeout", "load")
    assert seconds < 4.0
    read_all = POLITE + "    answer(outcome(knobs, loss=float(len(first['job']['workload']['typical']))))\n"
    assert probe(read_all, job=job)[0].loss == 5000


def test_five_megabytes_on_stdout_and_stderr_do_not_stop_a_child(probe):
    flood = """    for _ in range(500):
        sys.stdout.write("o" * 5000 + "\\n"); sys.stderr.write("e" * 5000 + "\\n")
    sys.stdout.flush()
"""
    outcome, _ = probe(POLITE + flood + "    answer(outcome(knobs))\n")
    assert outcome.fits
    outcome, _ = probe(POLITE + flood + "    print('the last words', file=sys.stderr); os._exit(4)\n")
    assert outcome.detail.startswith("exit code 4")
    assert outcome.detail.endswith("the last words")
    assert len(outcome.detail) <= 2000


def test_a_child_that_closes_its_answers_and_goes_on_is_a_crash_and_gone(probe, tmp_path, gone_within):
    close = f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); results.close(); time.sleep(600)\n"
    outcome, seconds = probe(POLITE + close)
    assert outcome.status == "crash"
    assert "went on running" in outcome.detail
    assert seconds < 20
    assert gone_within(int((tmp_path / "pid").read_text()), 0.0)


def test_a_child_that_closes_its_input_but_answers_is_believed(probe):
    source = POLITE.replace("for line in sys.stdin:", "line = sys.stdin.readline(); sys.stdin.close()\nif line:")
    outcome, _ = probe(source + "    answer(outcome(knobs))\n")
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
    outcome, _ = probe(source)
    assert (outcome.status, outcome.phase) == ("crash", "load")
    assert outcome.detail == "exit code 1: no module named torch"


def test_an_outcome_while_loading_is_the_outcome_of_the_probe(probe):
    outcome, _ = probe(POLITE.replace('answer({"ready": True})', 'answer(outcome(first["knobs"], status="oom", phase="load"))'))
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
