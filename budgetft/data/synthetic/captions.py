"""Captions that say what is true of a scene: the pedestrian's and the vehicle's, 60 to 150 words each."""

from budgetft.data.synthetic.scenes import Scene


def pedestrian_caption(scene: Scene) -> str:
    """What is true of the pedestrian, in 60 to 150 words."""
    he, his = ("He", "his") if scene.gender == "male" else ("She", "her")
    where = position_of(scene)
    attention = (
        f"{he} is looking at the vehicle and has noticed it."
        if scene.looking
        else f"{he} is looking away, in the direction of travel, and has not noticed the vehicle."
    )
    moving = "walking slowly across" if scene.walking else "standing still"
    distance = _pick(scene.distance_m, (6, "very close to"), (14, "close to"), otherwise="far from")
    crossing = "A marked crosswalk leads" if scene.crosswalk else "There is no crosswalk that leads"
    return (
        f"The pedestrian is a {scene.gender} in {his} {scene.age}s, about {scene.height_cm} cm tall, wearing "
        f"clothes of two colours: {scene.top} above and {scene.trousers} below. {he} is {where}, on the {scene.side} "
        f"side in front of the vehicle and {distance} it, at a distance of about {round(scene.distance_m)} metres. "
        f"{attention} {he} is {moving}. {crossing} over the road at this place. {_surroundings(scene)}"
    )


def vehicle_caption(scene: Scene) -> str:
    """What is true of the vehicle, in 60 to 150 words."""
    his = "his" if scene.gender == "male" else "her"
    speed = f"{scene.car_turn} at about {scene.speed_kmh} km/h" if scene.speed_kmh else "standing still at 0 km/h"
    seen = "in the driver's field of view" if scene.offset < 1.2 else "at the edge of the driver's field of view"
    distance = _pick(scene.distance_m, (6, "very near"), (14, "near"), otherwise="far away")
    crossing = "A crosswalk lies ahead of it." if scene.crosswalk else "No crosswalk lies ahead of it."
    return (
        f"The vehicle is a passenger car painted {scene.car}, {speed}. The pedestrian, a {scene.gender} in {his} "
        f"{scene.age}s in {scene.top} and {scene.trousers} clothes, is on the {scene.side} side ahead of it, "
        f"{distance}, about {round(scene.distance_m)} metres from the bumper, and is {seen}. {crossing} The vehicle is "
        f"{'a danger' if scene.distance_m <= 14 else 'no danger yet'} to the pedestrian. {_surroundings(scene)}"
    )


def position_of(scene: Scene) -> str:
    """Where the pedestrian is, across the road."""
    return _pick(
        scene.offset,
        (0.6, "in the middle of the road"),
        (1.0, "on the road, near its edge"),
        otherwise="on the sidewalk",
    )


def _pick(value: float, *upto: tuple[float, str], otherwise: str) -> str:
    """The words of the first limit that ``value`` does not exceed."""
    return next((words for limit, words in upto if value <= limit), otherwise)


def _surroundings(scene: Scene) -> str:
    if scene.terse:
        return f"The weather is {scene.weather}."
    time = "at night, with little light" if scene.night else "in daylight"
    road = "a one-lane road" if scene.lanes == 1 else f"a road with {scene.lanes} lanes"
    wet = "wet" if scene.weather == "rainy" else "dry"
    return (
        f"The event takes place on {road} in a town, with sidewalks on both sides and buildings behind. "
        f"The weather is {scene.weather} and the scene is {time}. The road surface is {wet}, level {scene.ground}."
    )
