"""Other people's data as a dataset folder: rows in any layout, from any file, their images checked, their films as frames."""

import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath

from budgetft.data.boxes import has_boxes, has_unnamed_lists
from budgetft.data.examples import Example, Examples, check_target, write_dataset
from budgetft.data.media.limits import Limits
from budgetft.data.media.pictures import PictureStore
from budgetft.data.media.shots import Harvest, take_shots
from budgetft.data.media.video import VideoFacts, probe
from budgetft.data.problems import MAX_LISTED, Problems, problem_report, problems_of, write_left_out
from budgetft.data.read.columns import guess_columns
from budgetft.data.read.drafts import Draft, Media
from budgetft.data.read.film_clips import Clip, clip_of
from budgetft.data.read.layout_keys import LAYOUTS
from budgetft.data.read.layouts import Reader
from budgetft.data.read.media_in_rows import MediaStore, lone_surrogates, nearest
from budgetft.data.read.options import Options, Report
from budgetft.data.read.roles import Columns, describe
from budgetft.data.read.rows import Row, Source
from budgetft.data.read.sources import open_source
from budgetft.errors import UsageError


@dataclass
class _Read:
    """A row that was understood."""

    where: str
    root: Path
    draft: Draft


class Conversion:
    """One conversion: reads the rows, makes the pictures, and gives the examples."""

    def __init__(self, what: Sequence[str | Path], work: Path, options: Options) -> None:
        self.options, self.work = options, work.absolute()
        given = Columns(
            image=options.image_column or None,
            video=options.video_column,
            text=options.text_column,
            prompt=options.prompt_column,
        )
        self.media = MediaStore(self.work)
        self.source: Source = open_source(
            list(what), work=self.work, split=options.split, config=options.config, columns=given if given.used() else None
        )
        self.reader = Reader(prompt=options.prompt, unlabelled=options.unlabelled, also_ignored=frozenset(options.ignore))
        self.report = Report()
        self.on_read: Callable[[float], None] = lambda share: None
        """Told the share of the data's own files that has been read, row by row."""
        # Rows of JSON say themselves what they hold; a table's columns must be told apart.
        table = self.source.columns is not None or bool(given.used())
        self.columns = guess_columns(self.source, answered=not options.unlabelled) if table else None
        self.store = PictureStore(self.work)
        self._boxed = self._unnamed = 0

    def describe(self) -> list[str]:
        """What the columns of a table are taken for."""
        return [] if self.columns is None else describe(self.columns)

    def files(self) -> list[Path]:
        """The images and videos that the rows name. Raises ``UsageError`` when the rows cannot be read."""
        rows = self._rows([])
        return sorted({row.root / path for row in rows for one in row.draft.media for path in one.files})

    def drafts(self) -> list[Draft]:
        """All rows as drafts; no image or video is looked at. Raises one ``UsageError`` for all that cannot be read."""
        problems: list[tuple[str, str]] = []
        rows = list(self._rows(problems))
        self._settle(problems, len(rows))
        return [row.draft for row in rows]

    def examples(
        self,
        *,
        on_start: Callable[[int], None] = lambda steps: None,
        on_step: Callable[[], None] = lambda: None,
    ) -> list[Example]:
        """All examples, with their pictures kept below ``work``.

        Raises one ``UsageError`` for everything that is wrong, unless bad rows are to be left out.
        """
        problems: list[tuple[str, str]] = []
        rows = list(self._rows(problems))
        found = self._with_pictures(rows, problems, on_start, on_step)
        seen: dict[str, str] = {}
        examples = []
        for row, example in found:
            wrong = problems_of(example, answered=not self.options.unlabelled)
            if seen.setdefault(example.id, row.where) != row.where:
                wrong.append(f"id: {example.id!r} is already used by {seen[example.id]}")
            way_on = {"answer: empty": " (for rows to be predicted: --unlabelled)"}
            problems += [(row.where, one + way_on.get(one, "")) for one in wrong]
            if not wrong:
                examples.append(example)
                if self.options.boxes is None:
                    self._boxed += has_boxes(example)
                else:
                    self._unnamed += has_unnamed_lists(example)
        self._settle(problems, len(examples))
        self._tell()
        return examples

    def _rows(self, problems: list[tuple[str, str]]) -> Iterator[_Read]:
        for number, row in enumerate(self.source, start=1):
            self.on_read(self.source.progress)
            if self.options.limit is not None and number > self.options.limit:
                return
            self.report.rows += 1
            try:
                # Numbers of several files repeat, where the place does not say "row 3" alone.
                yield _Read(row.where, row.root, self._read(row, row.number if row.where.startswith("row ") else number))
            except UsageError as error:
                problems.append((row.where, error.message.splitlines()[-1].strip() + _hinted(error)))

    def _read(self, row: Row, number: int) -> Draft:
        if row.problem is not None:
            raise UsageError(row.problem)
        halves = lone_surrogates(row.values)
        if halves:
            place, escape = halves[0]
            raise UsageError(f"{place}: holds half of a character ({escape})")
        values = row.values if self.columns is None else self.columns.apply(row)
        self.reader.path_of = lambda value: self.media.path(value, root=row.root)
        draft = self.reader.read(values, number)
        for one in draft.media:
            Limits.of(one.options)  # refuses sizes that contradict each other
        if self.options.boxes is not None:
            draft.fields.setdefault("box_scale", self.options.boxes)
        return draft

    def _with_pictures(
        self,
        rows: list[_Read],
        problems: list[tuple[str, str]],
        on_start: Callable[[int], None],
        on_step: Callable[[], None],
    ) -> Iterator[tuple[_Read, Example]]:
        films, rows = self._films(rows, problems)
        images = {
            (row.root, path, Limits.of(one.options).name): Limits.of(one.options)
            for row in rows
            for one in row.draft.media
            if one.kind == "image" or not isinstance(one.path, str)
            for path in one.files
        }
        shots = {film: [shot for clip in clips for shot in clip.shots] for film, clips in films.items()}
        on_start(len(images) + len(shots) + len(rows))  # each example is written in the end
        made: dict[tuple[Path, str, str], str | UsageError] = {}

        def add(one: tuple[tuple[Path, str, str], Limits]) -> tuple[tuple[Path, str, str], str | UsageError]:
            (root, path, name), limits = one
            try:
                return (root, path, name), self.store.add(path, root, limits)
            except UsageError as error:
                return (root, path, name), error
            finally:
                on_step()

        try:
            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                made.update(pool.map(add, images.items()))
        finally:  # also when it is interrupted: a rerun goes on
            self.store.close()
        harvest = take_shots(shots, self.work, on_video=on_step) if shots else None
        for row in rows:
            bad: list[str] = []

            def shown(one: Media, row: _Read = row, bad: list[str] = bad) -> tuple[Sequence[str], Sequence[float] | None]:
                try:
                    return self._shown(one, row, made, harvest, films)
                except UsageError as error:
                    bad.append(error.message + self._near(error, row) + _hinted(error))
                    return (), None if one.kind == "image" else ()

            try:
                example = row.draft.example(shown, learn=self.options.learn)
            except UsageError as error:
                if not bad:
                    bad.append(error.message.splitlines()[-1].strip())
                example = None
            problems += [(row.where, one) for one in bad]
            if example is not None and not bad:
                yield row, example

    def _shown(
        self,
        one: Media,
        row: _Read,
        made: dict[tuple[Path, str, str], str | UsageError],
        harvest: Harvest | None,
        films: dict[Path, list[Clip]],
    ) -> tuple[Sequence[str], Sequence[float] | None]:
        """The kept files of ``one``, and their seconds where it stays a video."""
        limits = Limits.of(one.options)
        if one.kind == "image" or not isinstance(one.path, str):
            files = []
            for path in one.files:
                found = made[row.root, path, limits.name]
                if isinstance(found, UsageError):
                    raise found
                files.append(found)
            if one.kind == "image":
                return files, None
            rate = one.options.get("sample_fps", one.options.get("fps"))
            if not rate:
                raise UsageError("a video given as its frames needs sample_fps, the frames a second")
            return files, [place / rate for place in range(len(files))]
        film = row.root / one.path
        if harvest is None or film in harvest.bad:
            raise UsageError(harvest.bad[film] if harvest is not None else f"{film} was not read")
        clip = next(clip for clip in films[film] if clip.media == one)
        taken = [harvest.taken[film, shot.key] for shot in clip.shots]
        paths = [str(self.store.limited((self.work / "frames" / each.file).resolve(), clip.limits)) for each in taken]
        return paths, [each.times[0] for each in taken] if clip.as_video else None

    def _films(self, rows: list[_Read], problems: list[tuple[str, str]]) -> tuple[dict[Path, list[Clip]], list[_Read]]:
        """The clips to take of every film, and the rows that have all of theirs; what cannot be taken becomes a problem."""
        films: dict[Path, list[Clip]] = {}
        facts: dict[Path, VideoFacts | UsageError] = {}
        usable = []
        for row in rows:
            before = len(problems)
            for one in row.draft.media:
                if one.kind != "video" or not isinstance(one.path, str):
                    continue
                film = row.root / one.path
                try:
                    if ".." in PurePath(one.path).parts:
                        raise UsageError(f"{one.path!r} leaves the folder {row.root}")
                    if film not in facts:
                        try:
                            facts[film] = probe(film)
                        except UsageError as error:
                            facts[film] = error
                    known = facts[film]
                    if isinstance(known, UsageError):
                        raise known
                    if not any(clip.media == one for clip in films.get(film, [])):
                        films.setdefault(film, []).append(clip_of(one, film, known, self.options))
                except UsageError as error:
                    near = self._near(error, row)
                    problems.append((row.where, error.message + near + _hinted(error)))
            if len(problems) == before:
                usable.append(row)
        return films, usable

    def _near(self, error: UsageError, row: _Read) -> str:
        """What a file that does not exist may have been meant to be."""
        found = re.search(r"(?:image|video) (.+) does not exist", error.message)
        other = nearest(found[1], row.root) if found else None
        return f"; did you mean {other}?" if other else ""

    def _settle(self, problems: list[tuple[str, str]], kept: int) -> None:
        """Raise for ``problems``, or note what is left out for them."""
        lines = [f"{where}: {why}" for where, why in problems]
        if problems and not self.options.skip_bad:
            raise problem_report(self.source.name, lines, hint="to go on without the rows that cannot be used: --skip-bad")
        self.report.left_out = lines
        if not kept:
            none = (
                f"{self.source.name}: none of {self.report.rows} rows can be used"
                if lines
                else f"{self.source.name} holds no rows"
            )
            raise UsageError(none, hint=lines[0] if lines else LAYOUTS)

    def _tell(self) -> None:
        notes = self.report.notes
        notes += self.source.notes
        ignored = Counter(self.reader.ignored)
        if ignored:
            named = ", ".join(f"{key} ({count})" for key, count in sorted(ignored.items()))
            notes.append(f"passed over, since they mean nothing for training: {named}")
        if self._unnamed:
            notes.append(
                f"{self._unnamed} examples have lists of four numbers that nothing names as boxes: they stay as they are"
                ' written. Write boxes as "bbox_2d": [x1, y1, x2, y2] to have them told in the model\'s own scale'
            )
        if self._boxed:
            notes.append(
                f"{self._boxed} examples have boxes or points in their texts, which are told as they are written. Qwen2-VL and"
                " Qwen3-VL count from 0 to 1000, Qwen2.5-VL in pixels of the image after it is shrunk. If yours are pixels of"
                " the image as it is: --boxes pixels has them told to each model in its own scale"
            )


def convert(
    what: Sequence[str | Path],
    out: Path,
    options: Options,
    *,
    overwrite: bool = False,
    on_columns: Callable[[list[str]], None] = lambda lines: None,
    on_read: Callable[[float], None] = lambda share: None,
    on_start: Callable[[int], None] = lambda steps: None,
    on_step: Callable[[], None] = lambda: None,
) -> tuple[Examples, Report]:
    """Write the dataset ``out`` from files, folders, archives, globs or a hub id; what came of it.

    ``on_columns`` is told what the columns of a table are taken for, before anything is written. Pictures are kept beside
    ``out`` until it is whole, so a rerun goes on after an interrupt. Raises one ``UsageError`` for everything that is wrong;
    beyond the first twenty problems, all are in a file that the error names.
    """
    check_target(out, overwrite)
    work = out.parent / f".{out.name}.frames"
    conversion = Conversion(what, work, options)
    conversion.on_read = on_read
    on_columns(conversion.describe())
    try:
        examples = conversion.examples(on_start=on_start, on_step=on_step)
        written = write_dataset(
            examples,
            out,
            images_root=work,
            overwrite=overwrite,
            answered=not options.unlabelled,
            own_images=True,
            on_example=on_step,
        )
    except UsageError as error:
        raise _with_report(error, out) from None
    report = conversion.report
    write_left_out(out, report.left_out)
    shutil.rmtree(work, ignore_errors=True)
    return written, report


def files_named(file: Path) -> list[Path]:
    """The images and videos that the rows of ``file`` name. Raises ``UsageError`` when it cannot be read."""
    with tempfile.TemporaryDirectory(prefix="budgetft-") as work:
        return Conversion([file], Path(work), Options(unlabelled=True)).files()


def _with_report(error: UsageError, out: Path) -> UsageError:
    """``error``, its problems beyond those that are shown kept in a file beside ``out``."""
    if not isinstance(error, Problems) or len(error.all) <= MAX_LISTED:
        return error
    report = out.parent / f"{out.name}-problems.txt"
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text("\n".join(error.all) + "\n", encoding="utf-8")
    except OSError:
        return error
    return Problems(f"{error.message}\n  all of them are in {report}", error.all, hint=error.hint)


def _hinted(error: UsageError) -> str:
    """The way on, beside a problem that is one of many."""
    return f" ({error.hint})" if error.hint else ""
