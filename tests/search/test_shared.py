"""Several workers in one study: no probe is made twice, each knows what the others found, and all end with one plan."""

import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest

pytest.importorskip("optuna", reason="optuna is not installed: a search is a study of it")
pytest.importorskip("sqlalchemy", reason="sqlalchemy is not installed: it keeps the studies of several workers")

from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial
from patience import HANG_SECONDS, until
from sqlalchemy.exc import IntegrityError
from turns import Clock, in_turns

from budgetft.errors import BudgetftError, UsageError
from budgetft.knobs import Knobs, is_stock
from budgetft.measure.ledger import Ledger
from budgetft.outcome import Outcome, Stack
from budgetft.search import claims as claiming
from budgetft.search import storage as storages
from budgetft.search.claims import Claims
from budgetft.search.planner import Planner
from budgetft.search.sampler import TRIES, ResidualSampler, distributions
from budgetft.search.space import settings, stock_settings
from budgetft.search.study import open_study, told

STACK = Stack(gpu="a GPU", driver="570.1", torch="2.10", transformers="5.17", peft="0.19", python="3.12")
quick = partial(Claims, beat_seconds=0.1, dead_seconds=HANG_SECONDS)
"""On a busy machine a worker that lives may be silent for long."""


class Slow:
    """A prober that takes its time, and writes down what it was asked before it answers."""

    def __init__(self, truth, told_to, take_time: Callable[[], object] = lambda: None) -> None:
        self.stack = STACK
        self._truth, self._told_to, self._take_time = truth, told_to, take_time

    def probe(self, knobs, *, fresh: bool = False):
        with self._told_to.open("a") as file:
            print(json.dumps([knobs.model_dump(mode="json"), fresh]), file=file)
        self._take_time()
        return self._truth.outcome(knobs).replace(stack=STACK)


def asked(path) -> list[tuple[Knobs, bool]]:
    rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return [(Knobs.model_validate(knobs), fresh) for knobs, fresh in rows]


@pytest.fixture
def journal(tmp_path) -> str:
    return f"journal://{tmp_path / 'study.log'}"


@pytest.fixture
def work(make_truth, tmp_path, journal):
    """Plan in this process as the worker ``name``; its probes go to ``name.asked``, its choice to ``name.json``."""

    def run(name: str, clock=time, *, seconds: float = 0.0, ledger: bool = False) -> None:
        truth, options = make_truth(0), {"ledger": Ledger(tmp_path / "ledger.sqlite3")} if ledger else {}
        prober = Slow(truth, tmp_path / f"{name}.asked", lambda: clock.sleep(seconds))
        facts = {"job": truth.formula.job, "estimator": truth.formula, "storage": journal, "make_claims": quick}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(claiming, "time", clock)
            choice = Planner(prober=prober, **facts, **options).plan()
        found = {
            "winner": choice.winner.model_dump(mode="json"),
            "outcomes": [outcome.model_dump(mode="json") for outcome in choice.outcomes],
            "workers": choice.workers,
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(found))

    return run


@pytest.fixture
def start(work):
    """Start a worker in a process of its own."""
    started = []

    def begin(name: str, **options):
        process = multiprocessing.get_context("fork").Process(target=work, args=(name,), kwargs=options)
        process.start()
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.join()


@pytest.fixture
def found_by(tmp_path):
    """What a worker that has ended chose, and what it was asked."""

    def read(name: str):
        return json.loads((tmp_path / f"{name}.json").read_text()), asked(tmp_path / f"{name}.asked")

    return read


@pytest.fixture
def end(found_by):
    """Wait for a worker's process; what it found."""

    def wait(name: str, process):
        process.join(HANG_SECONDS)
        assert process.exitcode == 0, f"{name} failed, or hangs (None)"
        return found_by(name)

    return wait


@pytest.fixture
def alone(make_truth, tmp_path):
    """What one worker without others chooses, and what it probes."""
    truth = make_truth(0)
    prober = Slow(truth, tmp_path / "alone.asked")
    choice = Planner(job=truth.formula.job, estimator=truth.formula, prober=prober).plan()
    return choice, asked(tmp_path / "alone.asked")


@pytest.mark.parametrize(("number", "ledger"), [(2, False), (3, False), (2, True)])
def test_workers_share_the_probes_and_end_with_one_plan(work, found_by, alone, make_truth, number, ledger):
    names = [f"worker-{index}" for index in range(number)]
    seconds = in_turns([partial(work, name, seconds=1.0, ledger=ledger) for name in names])
    found = [found_by(name) for name in names]
    probes = Counter(probe for _, made in found for probe in made)
    assert set(probes.values()) == {1}, "no setting twice"
    assert sum(fresh for _, fresh in probes) == 1, "one confirmation for all"
    single, lonely = alone
    assert all(0 < len(made) < len(lonely) for _, made in found), "fewer probes each"
    assert seconds < len(lonely), "sooner than alone: each probe takes a second"
    assert sum(probes.values()) <= len(lonely) + 2 * (number - 1), "together little more than one alone"
    first = found[0][0]
    assert all(choice == first for choice, _ in found)
    assert Counter(first["workers"]).most_common()[-1][1] >= 1
    assert len(set(first["workers"])) == number
    assert len(first["workers"]) == len(first["outcomes"]) == len(probes)
    truth = make_truth(0)
    assert truth.speed(Knobs.model_validate(first["winner"]["knobs"])) >= 0.99 * truth.speed(single.winner.knobs)


@pytest.mark.parametrize("ledger", [False, True])
def test_a_worker_who_comes_late_pays_for_nothing_and_has_the_same_plan(start, end, ledger):
    first, _ = end("first", start("first", ledger=ledger))
    second, made = end("second", start("second", ledger=ledger))
    assert made == []
    assert second == first


def test_a_worker_killed_in_the_middle_of_a_probe_holds_up_nobody_and_its_probe_is_made_by_another(start, end, tmp_path):
    victim = start("victim", seconds=HANG_SECONDS)
    until(lambda: asked(tmp_path / "victim.asked") or not victim.is_alive(), "a probe of the victim")
    victim.kill()
    choice, made = end("other", start("other", clock=Clock()))
    ((left, _),) = asked(tmp_path / "victim.asked")
    assert (left, False) in made
    assert len(set(choice["workers"])) == 1


@pytest.mark.parametrize("how", ["its worker is dead", "its worker gives it up"])
def test_a_baseline_that_another_worker_claims_and_never_probes_is_probed_even_when_nobody_waited_for_it(
    make_truth, journal, tmp_path, alone, how, monkeypatch
):
    monkeypatch.setattr(claiming, "time", clock := Clock())
    truth, (_, lonely) = make_truth(0), alone
    left = lonely[0][0]
    assert is_stock(left)
    grid = [*settings(truth.formula.job), *stock_settings(truth.formula.job)]
    planner = Planner(job=truth.formula.job, estimator=truth.formula, storage=journal, make_claims=quick)
    planner.prober = Slow(truth, tmp_path / "asked", lambda: time_passes())
    other = quick(open_study(planner._study_name(), journal, RandomSampler()), distributions(grid), shared=True)
    trial = other.take(left)
    assert trial is not None

    def time_passes() -> None:
        clock.now += HANG_SECONDS / 2 if how == "its worker is dead" else 0.0
        if how == "its worker gives it up":
            other.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    choice = planner.plan()
    assert asked(tmp_path / "asked").index((left, False)) > 0, "others first, while it was claimed"
    assert choice.baseline is not None
    assert choice.baseline.knobs == left


def test_a_baseline_that_fails_is_tried_twice_by_each_worker_and_not_whenever_it_fails_for_the_other(
    make_truth, journal, tmp_path
):
    def work(name: str, clock: Clock) -> None:
        truth = make_truth(0)

        class Failing(Slow):
            def probe(self, knobs, *, fresh: bool = False):
                found = super().probe(knobs, fresh=fresh)
                crashed = {"status": "crash", "phase": "forward", "detail": "it always does", "stack": STACK}
                known = {"knobs": knobs, "evidence": "measured", "budget_bytes": found.budget_bytes}
                return Outcome(**known, **crashed) if is_stock(knobs) else found

        prober = Failing(truth, tmp_path / f"{name}.asked", lambda: clock.sleep(1.0))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(claiming, "time", clock)
            Planner(job=truth.formula.job, estimator=truth.formula, storage=journal, make_claims=quick, prober=prober).plan()

    names = ("first", "second")
    in_turns([partial(work, name) for name in names])
    for name in names:
        tries = Counter(knobs for knobs, _ in asked(tmp_path / f"{name}.asked") if is_stock(knobs))
        assert tries
        assert max(tries.values()) <= TRIES


def test_a_journal_cut_off_in_the_middle_of_its_last_line_is_read_and_written_on(start, end, tmp_path):
    process = start("victim", seconds=0.1)
    until(lambda: len(asked(tmp_path / "victim.asked")) >= 3 or not process.is_alive(), "three probes of the victim")
    process.kill()
    process.join()
    path = tmp_path / "study.log"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    lines = whole.splitlines(keepends=True)
    choice, _ = end("other", start("other", clock=Clock()))
    written = path.read_bytes()
    assert written.startswith(b"".join(lines[:-1]))
    assert all(json.loads(line) for line in written.splitlines())
    assert choice["winner"]["outcome"]["status"] == "ok"


def test_a_worker_meets_a_line_that_another_left_unfinished_while_it_plans(make_truth, journal, tmp_path):
    truth, cut = make_truth(0), []

    class Damaging(Slow):
        def probe(self, knobs, *, fresh: bool = False):
            if len(cut) < 2:
                with (tmp_path / "study.log").open("ab") as file:
                    cut.append(file.write(b'{"op_code":5,"worker_id":"anoth'))
            return super().probe(knobs, fresh=fresh)

    prober = Damaging(truth, tmp_path / "asked")
    choice = Planner(job=truth.formula.job, estimator=truth.formula, prober=prober, storage=journal).plan()
    assert len(cut) == 2
    assert choice.winner.estimate.fits
    assert all(json.loads(line) for line in (tmp_path / "study.log").read_bytes().splitlines())


def test_a_journal_that_is_damaged_while_planning_is_told_as_such(make_truth, journal, tmp_path):
    truth = make_truth(0)

    class Damaging(Slow):
        def probe(self, knobs, *, fresh: bool = False):
            with (tmp_path / "study.log").open("ab") as file:
                file.write(b"nonsense\n" * 2)
            return super().probe(knobs, fresh=fresh)

    prober = Damaging(truth, tmp_path / "asked")
    with pytest.raises(BudgetftError, match=r"the study's storage journal://.* failed"):
        Planner(job=truth.formula.job, estimator=truth.formula, prober=prober, storage=journal).plan()


# Claims


@pytest.fixture
def claims(make_truth, journal):
    """Make the claims of another worker; each has its own view of the journal."""
    truth = make_truth(0)
    grid = [*settings(truth.formula.job), *stock_settings(truth.formula.job)]

    def make(**options) -> Claims:
        study = open_study("a study", journal, RandomSampler())
        return quick(study, distributions(grid), shared=True, **options)

    return make, grid, truth


def test_of_two_claims_of_one_probe_the_earlier_counts_until_it_is_given_up(claims):
    make, grid, _ = claims
    first, second = make(), make()
    trial = first.take(grid[0])
    assert second.take(grid[0]) is None
    assert second.take(grid[0], purpose="confirm") is not None
    assert second.take(grid[1]) is not None
    with pytest.raises(KeyboardInterrupt), first.working(trial):
        raise KeyboardInterrupt
    assert second.take(grid[0]) is not None


def test_processes_that_claim_the_same_settings_at_once_get_each_setting_once(claims, tmp_path):
    make, grid, _ = claims

    def grab(number: int) -> None:
        mine = make()
        got = [index for index in range(12) if mine.take(grid[index]) is not None]
        (tmp_path / f"got-{number}").write_text(json.dumps(got))

    processes = [multiprocessing.get_context("fork").Process(target=grab, args=(number,)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(HANG_SECONDS)
    got = [index for number in range(4) for index in json.loads((tmp_path / f"got-{number}").read_text())]
    assert sorted(got) == list(range(12))


def test_a_worker_that_gives_signs_of_life_is_waited_for_and_one_that_does_not_is_not(claims, monkeypatch):
    make, grid, _ = claims
    monkeypatch.setattr(claiming, "time", clock := Clock())
    first, second = make(beat_seconds=0.01), make(dead_seconds=60.0)
    trial = first.take(grid[0])
    assert trial is not None

    def signs() -> int:
        (running,) = second.study.get_trials(deepcopy=False)
        return running.user_attrs.get("beat", 0)

    with first.working(trial):
        for _ in range(5):
            before = signs()
            until(lambda before=before: signs() > before, "a sign of life")
            assert [other.number for other in second.others()] == [trial.number]
            clock.now += 59.0
    assert [other.number for other in second.others()] == [trial.number]
    said: list[str] = []
    began = clock.now
    assert second.wait(said.append)
    assert said == ["waiting for 1 probe of other workers"]
    assert clock.now - began in (1.0, 60.0), "a minute after the last sign"
    assert second.others() == []
    (closed,) = second.study.get_trials()
    assert (closed.state, closed.user_attrs["status"]) == (TrialState.FAIL, "lost")
    assert not second.wait(said.append)


def test_what_a_worker_taken_for_dead_found_is_told_all_the_same(claims):
    make, grid, truth = claims
    first, second = make(), make(dead_seconds=0.0)
    trial = first.take(grid[0])
    assert trial is not None
    second.others()
    assert second.others() == []
    outcome = truth.outcome(grid[0])
    first.tell(trial, outcome, truth.formula.estimate(grid[0]))
    assert told(second.study) == [outcome]


def test_what_others_probe_is_not_proposed_and_what_is_like_it_is_worth_less(claims):
    make, grid, truth = claims
    estimates = [truth.formula.estimate(knobs) for knobs in grid]
    sampler = ResidualSampler(grid, estimates, budget_bytes=truth.budget_bytes)
    worker = make()
    for _ in range(1):
        choice = sampler.choose(worker.study.get_trials())
        assert choice is not None
        knobs = grid[choice]
        trial = worker.take(knobs)
        assert trial is not None
        worker.tell(trial, truth.outcome(knobs), truth.formula.estimate(knobs))
    before = worker.study.get_trials()
    best = sampler.choose(before)
    assert best is not None
    assert worker.take(grid[best]) is not None
    running = worker.study.get_trials()
    second = sampler.choose(running)
    assert second not in (None, best)
    gain = sampler.expected_gain
    excluded = create_trial(value=0.0, params=running[-1].params, distributions=running[-1].distributions)
    sampler.choose([*before, excluded])
    assert 0 < gain < sampler.expected_gain


# Storages


@pytest.mark.parametrize(
    ("url", "module", "package"),
    [
        ("postgresql+psycopg", "psycopg", "'psycopg[binary]'"),
        ("postgresql+psycopg2", "psycopg2", "psycopg2-binary"),
        ("mysql+pymysql", "pymysql", "pymysql"),
    ],
)
def test_a_database_whose_driver_is_missing_is_told_with_what_to_install_and_without_the_password(
    monkeypatch, url, module, package
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match="cannot use") as caught:
        open_study("a study", f"{url}://me:secret@server/studies", RandomSampler())
    assert (caught.value.hint or "").endswith(f"pip install {package}")
    assert f"{url}://me:***@server/studies" in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("failures", [1, 9])
def test_tables_that_another_worker_makes_at_the_same_time_are_found_at_the_next_try(monkeypatch, tmp_path, failures):
    made = []

    def make(url: str) -> RDBStorage:
        made.append(url)
        if len(made) <= failures:
            raise IntegrityError("CREATE TYPE studydirection", None, Exception("it exists"))
        return RDBStorage(f"sqlite:///{tmp_path / 'in-its-place.sqlite3'}")

    monkeypatch.setattr(storages, "RDBStorage", make)
    monkeypatch.setattr(storages.time, "sleep", lambda seconds: None)
    if failures == 1:
        assert open_study("a study", "postgresql://server/studies", RandomSampler()).trials == []
        assert len(made) == 2
    else:
        with pytest.raises(UsageError, match="it exists"):
            open_study("a study", "postgresql://server/studies", RandomSampler())
        assert len(made) == 4


def test_a_journal_in_no_folder_is_told_with_how_its_path_is_read(tmp_path):
    with pytest.raises(UsageError, match="cannot use") as caught:
        open_study("a study", f"journal://{tmp_path}/none/study.log", RandomSampler())
    assert "make its folder first" in (caught.value.hint or "")


def test_a_journal_s_relative_path_is_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    open_study("a study", "journal://study.log", RandomSampler())
    assert os.listdir(tmp_path) == ["study.log"]


def test_a_sampler_that_does_not_know_of_other_workers_is_refused(make_truth, journal, tmp_path):
    truth = make_truth(0)
    prober = Slow(truth, tmp_path / "asked")
    planner = Planner(job=truth.formula.job, estimator=truth.formula, prober=prober, storage=journal, sampler="tpe")
    with pytest.raises(UsageError, match="cannot be shared by several workers"):
        planner.plan()
    assert asked(tmp_path / "asked") == []
