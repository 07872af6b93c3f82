"""Progress and time left of long work: a live bar on a terminal, a line every few seconds elsewhere."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

__all__ = ["RunProgress", "duration"]

_LINE_EVERY_S = 15.0
_DRAW_EVERY_S = 0.2


class RunProgress:
    """Reports how far a run is; time left is estimated from the stages' costs and the speed so far.

    Args:
        console: Where to write; standard error, to keep standard output for figures.
        costs: Expected relative duration of every stage that has work to do, in order.
        clock: Seconds, for tests.
    """

    def __init__(self, console: Console, costs: list[float], clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._costs = costs
        self._clock = clock
        self._started = self._now()
        self._shown = -math.inf
        self._index, self._number = -1, 0
        self._done: set[int] = set()
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            auto_refresh=False,  # its thread would run beside what is being timed
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=1.0, note="")

    @contextmanager
    def stage(self, name: str, place: int | None = None) -> Iterator["RunProgress"]:
        """Report one stage from its start to its end.

        Args:
            name: Of the stage.
            place: Its place among the costs; None = the one after the last.
        """
        self._index = self._index + 1 if place is None else place
        self._number = max(self._number, len(self._done)) + 1  # others may have done stages that come after this one
        self._name = name
        began = self._now()
        self._shown = -math.inf if self._console.is_terminal else began
        if not self._console.is_terminal:
            self._console.print(f"{self._position()} {name} ...", highlight=False)
        with self._bar:
            self(0, 1)
            yield self
        took = duration(self._now() - began)
        left = self.left_s(1.0)
        self._done.add(self._index)
        self._console.print(f"{self._position()} {name} done in {took}, {_left(left)}", highlight=False)

    def __call__(self, done: int, total: int, in_words: Callable[[], str] | None = None) -> None:
        """Report that `done` of `total` parts of the current stage are done; `in_words` says more where it is shown."""
        is_live = self._console.is_terminal
        if self._now() - self._shown < (_DRAW_EVERY_S if is_live else _LINE_EVERY_S):
            return
        self._shown = self._now()
        share = done / max(total, 1)
        more = ", ".join([*([in_words()] if in_words else []), _left(self.left_s(share))])
        if is_live:
            text = f"{share:4.0%} of step {self._position()}, {more}"
            self._bar.update(self._task, completed=share, description=self._name, note=text, refresh=True)
        else:
            line = f"{self._position()} {self._name} {share:.0%}, {more}"
            self._console.print(line, highlight=False, soft_wrap=True)

    def finished(self, places: Iterable[int]) -> None:
        """Count the stages at these places as done, perhaps by another process."""
        self._done |= {*places}

    def left_s(self, share: float) -> float | None:
        """Return the seconds left once `share` of the current stage is done; None before it can be estimated."""
        done = sum(self._costs[place] for place in self._done) + share * self._costs[self._index]
        elapsed = self._now() - self._started
        if done <= 0 or elapsed < 2:
            return None
        return elapsed / done * (sum(self._costs) - done)

    def _position(self) -> str:
        return f"[{self._number}/{len(self._costs)}]".replace("[", "\\[")

    def _now(self) -> float:
        return self._clock()


def _left(seconds: float | None) -> str:
    return "time left not known yet" if seconds is None else f"about {duration(seconds)} left"


def duration(seconds: float) -> str:
    """Return a time in words, as 2 min 05 s."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
