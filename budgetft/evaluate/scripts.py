"""Texts in any script: which of their letters the challenge's metrics cannot see, and how they divide into words.

ROUGE-L drops every character that is not a-z or 0-9, and the Treebank tokenizer takes a Chinese sentence for one word. So for
other scripts than English the challenge's figures compare what little is left.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from budgetft.value import Value

MOST = 0.5
"""A text of which more letters than this are dropped is as good as one without a word."""
TEXTS_LIMIT, LETTERS_LIMIT = 0.05, 0.25
"""Above either share, of such references or of letters dropped in all, the challenge's figures mean nothing."""
_SEEN = re.compile("[a-z0-9]")
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "YI ", "IDEOGRAPHIC")
"""First words of the names of characters that are written without spaces between words."""

_FILLERS = "\u115f\u1160\u3164\uffa0\u2800"
"""Letters and a symbol that show nothing."""


def is_blank(text: str) -> bool:
    """Whether ``text`` says nothing: no letter, digit or symbol of any script, only spaces, punctuation and control marks."""
    return not any(unicodedata.category(one)[0] in "LNS" and one not in _FILLERS for one in text)


def letters_of(text: str) -> str:
    """The letters, digits and vowel signs of ``text``; of a text without any its symbols, such as emoji."""
    kinds = [(one, unicodedata.category(one)[0]) for one in text]
    return "".join(one for one, kind in kinds if kind in "LNM") or "".join(one for one, kind in kinds if kind == "S")


def dropped(text: str) -> tuple[int, int]:
    """(letters that ROUGE-L drops, all letters) of ``text``."""
    if text.isascii() and any(map(str.isalnum, text)):
        return 0, sum(map(str.isalnum, text))
    letters = letters_of(text)
    return sum(_SEEN.search(one.lower()) is None for one in letters), len(letters)


class Hidden(Value):
    """How much of the references ROUGE-L cannot see."""

    references: tuple[str, ...]
    """Those of which it drops most letters."""
    predictions: int
    """Predictions of which it drops most letters."""
    partly: int
    """References of which it drops any letter, those of most included."""
    share: float
    """Of all letters of all references."""

    @classmethod
    def of(cls, named: Sequence[tuple[str, str | None, str]]) -> "Hidden":
        """Of (name, prediction, reference)."""
        counts = [dropped(reference) for _, _, reference in named]
        total = sum(count for _, count in counts)
        mostly = [_mostly(lost, count) for lost, count in counts]
        return cls(
            references=tuple(name for (name, _, _), most in zip(named, mostly, strict=True) if most),
            predictions=sum(_mostly(*dropped(prediction or "")) for _, prediction, _ in named),
            partly=sum(lost > 0 for lost, _ in counts),
            share=sum(lost for lost, _ in counts) / total if total else 0.0,
        )

    def too_much(self, captions: int) -> bool:
        """Whether the challenge's figures of so many captions mean nothing."""
        return len(self.references) > TEXTS_LIMIT * captions or self.share > LETTERS_LIMIT


def _mostly(lost: int, count: int) -> bool:
    return lost > MOST * count


def any_words(text: str) -> list[str]:
    """Words of any script: runs of letters and digits, case ignored; a character each where words have no space between them.

    Punctuation is left out, a symbol (an emoji) is a word.
    """
    words: list[str] = []
    joined = False
    for one in unicodedata.normalize("NFKC", text).casefold():
        kind = "Z" if one in _FILLERS else unicodedata.category(one)[0]
        if kind == "M" and words:
            words[-1] += one
        elif kind in "LN":
            alone = _is_unspaced(one)
            if joined and not alone:
                words[-1] += one
            else:
                words.append(one)
            joined = not alone
        else:
            joined = False
            words += [one] if kind == "S" else []
    return words


@lru_cache(100_000)
def _is_unspaced(one: str) -> bool:
    return unicodedata.name(one, "").startswith(_UNSPACED)
