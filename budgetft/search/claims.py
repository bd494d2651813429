"""Who probes what: a probe is claimed by a trial that is running, so that workers who share a study share the work.

A trial is made in one piece, with its parameters, and the storage numbers trials one after the other. So whoever looks
after making one sees every earlier one, and of two equal ones the earlier counts.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Event, Thread
from uuid import uuid4

from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from budgetft.knobs import Knobs
from budgetft.outcome import Estimate, Outcome
from budgetft.search.sampler import CONFIRM, parameters
from budgetft.search.study import recalled, tell

BEAT_SECONDS = 5.0
"""Between two signs of life of a worker that is probing."""
DEAD_SECONDS = 60.0
"""Without a sign of life, by the clock of who looks, after which a worker counts as dead and its probe as free."""
POLL_SECONDS = 0.5


class Claims:
    """The claims of one worker in ``study``. Alone (not ``shared``) it gets all it asks for, and meets no others."""

    def __init__(
        self,
        study: Study,
        space: Mapping[str, BaseDistribution],
        *,
        shared: bool,
        beat_seconds: float = BEAT_SECONDS,
        dead_seconds: float = DEAD_SECONDS,
    ) -> None:
        self.study = study
        self.shared = shared
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:4]}"
        """Not the process number alone: a container's is the same after every start."""
        self.space = dict(space)
        self._beat_seconds = beat_seconds
        self._dead_seconds = dead_seconds
        self._seen: dict[int, tuple[int, float]] = {}
        """Of each trial of another worker: its last sign of life, and when it was new."""
        self._met: set[int] = set()
        """Trials of other workers that were running at a look since the last wait."""

    def take(self, knobs: Knobs, *, purpose: str = "search") -> Trial | None:
        """A running trial of ``knobs``; None when another worker probes it, or has done so."""
        claim = uuid4().hex
        marks = {"worker": self.worker, "claim": claim, "purpose": purpose}
        self.study.add_trial(
            create_trial(state=TrialState.RUNNING, params=parameters(knobs), distributions=self.space, user_attrs=marks)
        )
        trials = self.study.get_trials(deepcopy=False)
        mine = next(trial for trial in reversed(trials) if trial.user_attrs.get("claim") == claim)
        before = [trial for trial in trials if _is_before(trial, mine)] if self.shared else []
        if before:
            self._met |= {trial.number for trial in before if trial.state == TrialState.RUNNING}
            self.study.tell(mine.number, state=TrialState.FAIL)
            return None
        return Trial(self.study, mine._trial_id)

    @contextmanager
    def working(self, trial: Trial) -> Iterator[None]:
        """Give signs of life during the block; a block that raises gives the claim up."""
        stop, thread = Event(), None
        if self.shared:
            thread = Thread(target=self._beat, args=(trial, stop), daemon=True)
            thread.start()
        try:
            yield
        except BaseException:
            with suppress(Exception):
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            raise
        finally:
            stop.set()
            if thread is not None:
                thread.join()

    def _beat(self, trial: Trial, stop: Event) -> None:
        number = 0
        with suppress(Exception):  # a storage that fails is met again, and told, when the outcome is
            while not stop.wait(self._beat_seconds):
                number += 1
                trial.storage.set_trial_user_attr(trial._trial_id, "beat", number)

    def tell(self, trial: Trial, outcome: Outcome, estimate: Estimate) -> None:
        """Report ``outcome``, under a new trial when the others have taken this worker for dead in the meantime."""
        try:
            tell(self.study, trial, outcome, estimate)
        except UpdateFinishedTrialError:
            again = self.take(outcome.knobs, purpose=trial.user_attrs["purpose"])
            if again is not None:
                tell(self.study, again, outcome, estimate)

    def others(self) -> list[FrozenTrial]:
        """What other workers are probing; trials of workers that are dead are closed."""
        if not self.shared:
            return []
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        found = [trial for trial in running if trial.user_attrs.get("worker") != self.worker and self._lives(trial)]
        self._met |= {trial.number for trial in found}
        return found

    def _lives(self, trial: FrozenTrial) -> bool:
        now, beat = time.monotonic(), trial.user_attrs.get("beat", 0)
        seen, since = self._seen.get(trial.number, (-1, now))
        if beat != seen:
            self._seen[trial.number] = (beat, now)
            return True
        if now - since < self._dead_seconds:
            return True
        with suppress(UpdateFinishedTrialError):  # it ended, or another worker was quicker
            Trial(self.study, trial._trial_id).set_user_attr("status", "lost")  # counts as a failure of the setting
            self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        return False

    def wait(self, say: Callable[[str], None]) -> bool:
        """Wait until a probe of another worker that was met since the last wait has ended; False, at once, when none was met.

        One that has ended by now counts: it may have kept this worker from a probe, and have been lost or given up.
        """
        running = {trial.number for trial in self.others()}
        met, self._met = self._met, set()
        if met and met <= running:
            say(f"waiting for {len(met)} probe{'s' if len(met) > 1 else ''} of other workers")
            while met <= {trial.number for trial in self.others()}:
                time.sleep(POLL_SECONDS)
            self._met.clear()
        return bool(met)

    def confirmation(self, knobs: Knobs) -> Outcome | None:
        """What a worker found when it confirmed ``knobs``; None when none has."""
        wanted = parameters(knobs)
        trials = (trial for trial in self.study.get_trials(deepcopy=False) if trial.user_attrs.get("purpose") == CONFIRM)
        return next((recalled(trial) for trial in trials if trial.params == wanted and "outcome" in trial.user_attrs), None)

    def origins(self) -> dict[Outcome, tuple[int, str]]:
        """Of every outcome in the study: its trial's number, and the worker."""
        trials = [trial for trial in self.study.get_trials(deepcopy=False) if "outcome" in trial.user_attrs]
        return {recalled(trial): (trial.number, trial.user_attrs.get("worker", "unknown")) for trial in trials}


def _is_before(trial: FrozenTrial, mine: FrozenTrial) -> bool:
    """Whether ``trial`` is an earlier one of the same probe that is running or final."""
    if trial.number >= mine.number or trial.params != mine.params:
        return False
    if trial.user_attrs.get("purpose", "search") != mine.user_attrs["purpose"]:
        return False
    return trial.state in (TrialState.RUNNING, TrialState.COMPLETE) or trial.user_attrs.get("status") == "nonfinite"
