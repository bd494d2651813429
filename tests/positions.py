"""Positions for rotary embeddings, token by token as the papers of Qwen2-VL and Qwen2.5-VL tell them."""


def positions_of(kinds, media, *, family, tokens_per_second=2, merge=2):
    """(time, height, width) of each token of one example, padding left out.

    ``kinds`` has 0 for text, 1 for a token of an image, 2 for one of a video; ``media`` has, for each image and video in order,
    (slices, patch rows, patch columns, seconds from slice to slice).
    """
    found, following = [], 0
    media = list(media)
    slices_left = []
    place = 0
    while place < len(kinds):
        if kinds[place] == 0:
            found.append((following,) * 3)
            following += 1
            place += 1
            continue
        if not slices_left:
            slices, rows, columns, seconds = media.pop(0)
            here = [(slice_, rows // merge, columns // merge, seconds) for slice_ in range(slices)]
            slices_left = [[(0, *one[1:])] for one in here] if family == "qwen3_vl" else [here]
        start, highest = following, following
        for slice_, rows, columns, seconds in slices_left.pop(0):
            time = int(slice_ * seconds * tokens_per_second) if family == "qwen2_5_vl" and seconds else slice_
            for row in range(rows):
                for column in range(columns):
                    found.append((start + time, start + row, start + column))
                    highest = max(highest, *found[-1])
                    place += 1
        following = highest + 1
    assert not media
    assert not slices_left
    return found
