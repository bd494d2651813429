"""The verdict never calls a number by a better name than it has earned."""

import re

from budgetft.model import load_model
from budgetft.plan import CostRow
from budgetft.report.setting_charts import cost_chart
from budgetft.report.verdict import MORE, headline, plan_headline, verdict
from budgetft.units import GIB


def answers(story) -> dict[str, str]:
    return {answer.question: answer.answer for answer in verdict(story)}


def test_an_emulated_plan_says_that_another_gpu_was_used_and_whose_speed_it_is(plan, tell):
    said = answers(tell(plan))
    assert plan_headline(plan).kind == "good"
    assert plan_headline(plan).text == (
        "It fits, emulated (measured on H100 80GB HBM3 limited to 14.00 GiB): 13.65 of 14.00 GiB (0.35 GiB to spare)."
    )
    assert said["Does it fit?"] == plan_headline(plan).text
    assert "23.39 examples/s on the H100 80GB HBM3 (emulated), not on a Tesla V100 16 GB" in said["How fast?"]
    assert "the plan is 9.92 times as fast" in said["How fast?"]
    assert "7 trials of the real step in 2 min 20 s on NVIDIA H100 80GB HBM3" in said["What was measured?"]
    assert "all ended well" in said["What was measured?"]
    assert "speed does not" in said["How sure is it?"]


def test_a_predicted_plan_says_so_once_and_that_nothing_was_run(unprobed, tell):
    said = answers(tell(unprobed))
    assert plan_headline(unprobed).text.startswith(
        "Fits, predicted: 13.65 of 14.00 GiB (0.35 GiB to spare). Not yet run on a Tesla"
    )
    assert "in 8 of 10 cases" in answers(tell(_with_range(unprobed)))["How fast?"]
    assert said["What was measured?"].startswith("Nothing yet.")
    assert said["How sure is it?"].startswith("The prediction could be 2.6% too low and it would still fit")
    assert "emulated" not in " ".join(said.values())
    assert "GPU was used" not in " ".join(said.values())


def _with_range(plan):
    return plan.replace(estimate=plan.estimate.replace(speed_low=10.0, speed_high=20.0))


def test_a_measured_plan_says_measured_and_nothing_less(on_the_gpu, tell):
    said = answers(tell(on_the_gpu))
    assert plan_headline(on_the_gpu).text.startswith("It fits, measured: 13.65 of 14.00 GiB")
    assert "emulated" not in " ".join(said.values())


def test_a_plan_inside_the_budget_but_not_by_its_margin_is_no_clean_yes(unprobed):
    close = unprobed.replace(
        estimate=unprobed.estimate.replace(fits=False), evidence=unprobed.evidence.replace(uncertainty_share=0.04)
    )
    assert plan_headline(close).kind == "close"
    assert plan_headline(close).text.startswith("Too close: 13.65 of 14.00 GiB (+- 0.55 GiB, predicted)")


def test_trials_on_a_cpu_are_told_as_run_but_never_as_the_gpu(plan, tell):
    outcomes = tuple(outcome.replace(evidence="predicted") for outcome in plan.evidence.outcomes)
    proof = plan.evidence.replace(
        kind="predicted", outcomes=outcomes, confirmed=outcomes[-1], statement="real steps on the CPU"
    )
    story = tell(plan.replace(evidence=proof, estimate=plan.estimate.replace(evidence="predicted"), baseline=None))
    said = answers(story)
    assert headline(story).text.startswith("Fits, predicted")
    assert "timed on a CPU: it says nothing of the speed of a Tesla V100" in said["How fast?"]
    assert {probe.source for probe in story.probes} == {"on the CPU"}
    assert "examples/s (on the CPU)" in said["How sure is it?"]


def test_trials_that_ran_out_of_memory_are_counted(plan, tell):
    first, *others = plan.evidence.outcomes
    proof = plan.evidence.replace(outcomes=(first.replace(status="oom", phase="backward"), *others))
    assert "1 of 7 ran out of memory" in answers(tell(plan.replace(evidence=proof)))["What was measured?"]


def test_the_spread_of_repeated_timings_is_told(plan, tell):
    said = answers(tell(plan))["How sure is it?"]
    assert "Timed 2 times, the plan's setting ran at 23.28 to 23.39 examples/s (emulated)" in said
    assert "the peak predicted again after them was off by" in said
    assert "The peak could be 2.6% higher and still fit" in said


def test_steps_up_say_what_each_costs_and_what_does_not_fit(unprobed, tell):
    def row(value: str, speed: float | None, peak: int | None) -> CostRow:
        knobs = None if speed is None else unprobed.knobs
        return CostRow(
            axis="rank", value=value, knobs=knobs, samples_per_second=speed, process_peak_bytes=peak, evidence="predicted"
        )

    rows = (row("16", 20.0, 13 * GIB), row("32", 18.0, 13 * GIB + GIB // 2), row("64", None, None))
    said = answers(tell(unprobed.replace(price_list=rows)))[MORE]
    assert said == "--rank 32: 18.00 examples/s, 13.50 GiB; --rank 64: does not fit."


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
    said = answers(tell(plan))[MORE]
    assert "1 frames an example: 20.00 examples/s, 1.00 GiB; 4 frames" in said
    assert "2 frames" not in said
    drawn = cost_chart(plan.price_list, plan, 600.0).svg()
    bars = re.findall(r'<polygon points="[^"]*" fill="([^"]+)"', drawn)
    assert len(bars) == 3
    assert bars[0] == bars[2] != bars[1]


def test_without_ranges_it_says_how_to_ask_for_them(plan, tell):
    assert "--rank 16..64" in answers(tell(plan))[MORE]
