"""The verdict never calls a number by a better name than it has earned."""

import re

from budgetft.model import load_model
from budgetft.plan import CostRow
from budgetft.report.charts import cost_chart
from budgetft.report.verdict import headline, verdict
from budgetft.units import GIB


def answers(story) -> dict[str, str]:
    return {answer.question: answer.answer for answer in verdict(story)}


def test_an_emulated_plan_says_that_another_gpu_stood_in_and_whose_speed_it_is(plan, tell):
    said = answers(tell(plan))
    assert headline(plan) == "It fits on a stand-in GPU: 13.65 GiB of 14.00 GiB at 23.39 examples/s (emulated)."
    assert "on a GPU that stood in for the v100-16g" in said["Will it fit?"]
    assert "(emulated, confirmed in a fresh process)" in said["Will it fit?"]
    assert "23.39 examples/s (emulated); that is the speed of NVIDIA H100 80GB HBM3, not of a v100-16g" in said["How fast?"]
    assert "the plan is 9.92 times as fast" in said["How fast?"]
    assert "7 probes of the real step (all ended well), 138 seconds, on NVIDIA H100 80GB HBM3" in " ".join(said.values())
    assert "measured" not in headline(plan) + said["Will it fit?"] + said["How fast?"]


def test_a_predicted_plan_says_that_nothing_was_run(unprobed, tell):
    said = answers(tell(unprobed))
    assert headline(unprobed).startswith("It should fit")
    assert said["Will it fit?"].startswith("By prediction, yes")
    assert "No v100-16g took part" in said["Will it fit?"]
    assert "the range holds the true speed with 80 %" in said["How fast?"]
    assert said["What was really measured, and on what?"].startswith("Nothing was run for this plan")
    assert "emulated" not in " ".join(said.values())


def test_a_measured_plan_says_measured_and_nothing_less(on_the_gpu, tell):
    said = answers(tell(on_the_gpu))
    assert headline(on_the_gpu).startswith("It fits: 13.65 GiB")
    assert said["Will it fit?"].startswith("Yes, on a v100-16g:")
    assert "(measured, confirmed in a fresh process)" in said["Will it fit?"]
    assert "emulated" not in " ".join(said.values())
    assert "stood in" not in " ".join(said.values())


def test_probes_on_a_cpu_are_told_as_run_but_never_as_the_gpu(plan, tell):
    outcomes = tuple(outcome.replace(evidence="predicted") for outcome in plan.evidence.outcomes)
    proof = plan.evidence.replace(
        kind="predicted", outcomes=outcomes, confirmed=outcomes[-1], statement="real steps on the CPU"
    )
    story = tell(plan.replace(evidence=proof, estimate=plan.estimate.replace(evidence="predicted"), baseline=None))
    said = answers(story)
    assert said["Will it fit?"].startswith("By prediction, yes")
    assert "timed on a CPU and says nothing of the speed of a v100-16g" in said["How fast?"]
    assert {probe.source for probe in story.probes} == {"on the CPU"}
    assert "examples/s (on the CPU)" in said["How sure is it?"]


def test_the_spread_of_repeated_timings_is_told(plan, tell):
    said = answers(tell(plan))["How sure is it?"]
    assert "Timed 2 times, the plan's setting ran at 23.28 to 23.39 examples/s (emulated)" in said
    assert "predicted again now, after them, were off by" in said
    assert "The peak may grow by 2.6% before the budget is reached" in said


def test_a_price_list_says_what_each_step_costs_and_what_does_not_fit(unprobed, tell):
    def row(value: str, speed: float | None, peak: int | None) -> CostRow:
        knobs = None if speed is None else unprobed.knobs
        return CostRow(
            axis="rank", value=value, knobs=knobs, samples_per_second=speed, process_peak_bytes=peak, evidence="predicted"
        )

    rows = (row("16", 20.0, 13 * GIB), row("32", 18.0, 13 * GIB + GIB // 2), row("64", None, None))
    said = answers(tell(unprobed.replace(price_list=rows)))["What would have to be given up for more?"]
    assert "rank 32: 18.00 examples/s, 13.50 GiB (predicted), -10% against the plan." in said
    assert "rank 64 does not fit (predicted)." in said
    assert "rank 16:" not in said, "the plan itself is no price"


def test_frames_are_priced_beside_those_that_the_data_has_wherever_they_stand(unprobed, tell):
    def row(value: str, speed: float) -> CostRow:
        return CostRow(
            axis="frames_per_example",
            value=value,
            knobs=unprobed.knobs,
            samples_per_second=speed,
            process_peak_bytes=GIB,
            evidence="predicted",
        )

    two = unprobed.workload.with_frames(2, load_model("qwen2.5-vl-3b"), video=False)
    plan = unprobed.replace(workload=two, price_list=(row("1", 20.0), row("2", 10.0), row("4", 5.0)))
    assert [plan.is_own(price) for price in plan.price_list] == [False, True, False]
    said = answers(tell(plan))["What would have to be given up for more?"]
    assert "frames_per_example 1: 20.00 examples/s, 1.00 GiB (predicted), +100% against the plan." in said
    assert "frames_per_example 2:" not in said
    drawn = cost_chart(plan.price_list, plan, 600.0).svg()
    bars = re.findall(r'<polygon points="[^"]*" fill="([^"]+)"', drawn)
    assert len(bars) == 3
    assert bars[0] == bars[2] != bars[1]


def test_without_ranges_it_says_how_to_ask_for_prices(plan, tell):
    assert "--rank 16..64" in answers(tell(plan))["What would have to be given up for more?"]
