"""Makes a calibration from ledgers.

    python reports/prediction/calibrate.py GPU OUT.json LEDGER.sqlite3[#JOB] [...]      # seconds, no GPU; emulated or measured

JOB is the beginning of a job's fingerprint: only its outcomes count.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from harness.arguments import flag, parser
from harness.jobs import uncalibrated

from budgetft.gpu import gpu_of_device, load_gpu
from budgetft.measure.ledger import Ledger
from budgetft.predict.calibrate import fit_calibration, write_calibration
from budgetft.predict.clock import Clock
from budgetft.predict.estimator import Estimator
from budgetft.search.calibrate_gpu import observation

options = flag(flag(parser(__doc__), "gpu"), "out", type=Path)
flag(options, "ledgers", nargs="+", metavar="LEDGER[#JOB]")


def main() -> None:
    """Print what the calibration is worth on the probes that it was made from, and write it."""
    asked = options.parse_args()
    name, ledgers = asked.gpu, asked.ledgers
    estimators: dict[str, Estimator] = {}
    observations, torch, evidence = [], "", "emulated"
    for path in ledgers:
        name, _, wanted = path.partition("#")
        for job, outcome in Ledger(Path(name)).rows():
            if not job.fingerprint().startswith(wanted) or None in (outcome.allocated_peak_bytes, outcome.reserved_peak_bytes):
                continue
            assert outcome.stack is not None
            host = gpu_of_device(outcome.stack.gpu)
            here = job if host is None or host.name == job.gpu.name else job.replace(host=host)
            estimator = estimators.setdefault(job.fingerprint(), Estimator(here, calibration=uncalibrated()))
            alone = len(outcome.timed_seconds) > 1  # others' seconds are of a GPU that several probed at a time
            seconds, error = outcome.step_seconds if alone else None, outcome.speed_error or 0.05
            observations.append(replace(observation(estimator, outcome), step_seconds=seconds, error=error))
            torch, evidence = outcome.stack.torch, outcome.evidence
    gpu = load_gpu(name)
    names = ", ".join(Path(path).name for path in ledgers)
    source = f"{len(observations)} probes in {names}, by reports/prediction/calibrate.py"
    made = fit_calibration(observations, gpu, name=name, evidence=evidence, torch=torch, source=source)
    timed = [o for o in observations if o.step_seconds]
    assert made.speeds is not None
    clock = Clock(works=[o.work for o in timed], tflops=made.speeds.tflops, gb_per_s=made.speeds.gb_per_s)
    said = np.exp(clock.log_seconds(made.speeds.middle_Q[None])[0])
    ratios = said / np.array([o.step_seconds for o in timed])
    print(made.model_dump_json(indent=2))
    print(f"seconds predicted over measured: median {np.median(ratios):.2f}, from {ratios.min():.2f} to {ratios.max():.2f}")
    write_calibration(made, asked.out)


if __name__ == "__main__":
    main()
