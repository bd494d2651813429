"""How long the official size takes: 84 scenarios x 5 phases x 2 captions of 60 to 100 words, and 4,501 questions.

python reports/evaluate/benchmark.py      # printed: benchmark.txt; ten seconds of one core, no GPU; measured
"""

import random
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import parser

from budgetft.evaluate.judge import Texts, evaluate, reduce_predictions
from budgetft.evaluate.metrics import NoWordNet, Scorer, installed_wordnet
from budgetft.evaluate.official import ACTORS, Slot
from budgetft.evaluate.predictions import Prediction

SCENARIOS, PHASES, QUESTIONS, FRAMES = 84, 5, 4501, 5
PHRASES = (
    "the pedestrian is a man in his 30s", "he is standing on the left side of the road", "wearing a grey jacket",
    "and black trousers", "the vehicle goes straight ahead at 20 km/h", "it's close to the pedestrian, who hasn't noticed",
    "the weather is clear and bright", "the road surface is dry and level", "made of asphalt", "with two-way traffic",
    "walking slowly in the same direction", "his line of sight is on the vehicle", "the driver brakes and stops",
    "there are no sidewalks on both sides", "the traffic volume is usual", "at a height of 170 cm",
)  # fmt: skip


def caption(draw: random.Random) -> str:
    """60 to 100 words of traffic phrases."""
    length, words = draw.randint(60, 100), []
    while len(words) < length:
        words += draw.choice(PHRASES).split()
        words[-1] += draw.choice((".", ",", ""))
    return " ".join(words[:length])


options = parser(__doc__)


def main() -> None:
    options.parse_args()
    draw = random.Random(0)
    slots = [Slot(f"S{s}", str(p), actor) for s in range(SCENARIOS) for p in range(PHASES) for actor in ACTORS]
    truth = Texts(
        captions={slot: caption(draw) for slot in slots},
        answers={f"q{number}": draw.choice("abcd") for number in range(QUESTIONS)},
    )
    answers = [Prediction(id=f"q{number}", text=f"({draw.choice('abcd')}) so") for number in range(QUESTIONS)]
    for frames, how in ((1, "mid"), (FRAMES, "consensus")):
        rows = [
            Prediction(
                id=f"{slot}|{f}", text=caption(draw), scenario=slot.scenario, phase=slot.phase, actor=slot.actor, frame_rank=f
            )
            for slot in slots
            for f in range(frames)
        ]
        began = time.perf_counter()
        scorer = Scorer(installed_wordnet() or NoWordNet())
        result = evaluate(reduce_predictions([*rows, *answers], None, how=how, scorer=scorer), truth, scorer)  # type: ignore[arg-type]
        seconds = time.perf_counter() - began
        print(
            f"{len(rows)} captions ({frames} a slot, {how}) for {len(slots)} slots and {QUESTIONS} questions:"
            f" {seconds:.2f} s with {scorer.meteor_name};"
            f" S1 {result.captions.s1:.4f}, accuracy {result.answers.accuracy:.2f} %, S2 {result.s2:.4f}"
        )
    print(f"peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
