"""``StopStrings``: finds stop strings in a stream of text, and returns the text before the first one as early as
possible.

Text is compared by characters, so a stop string may begin and end in the middle of a token and extend over any number.
The first complete stop string ends the text, however the text was cut into pieces; of several that end together, the
longest counts. The time is linear: for each character, each stop string's Knuth-Morris-Pratt automaton takes a step,
which tells how much of the text's end may still become that string.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from core.errors import UsageError


class StopStrings:
    """Searches a stream for stop strings.

    Attributes:
        found: the stop string that ended the text; None while there is none.

    Args:
        stops: the strings; a single one needs no list.

    Raises:
        UsageError: an empty stop string, or something that is not a string.
    """

    def __init__(self, stops: str | Sequence[str]) -> None:
        self._stops = tuple(dict.fromkeys(checked_stops(stops)))
        self._failures = [_failures(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)  # characters of each stop that the text so far ends with
        self._held = ""
        self.found: str | None = None

    def add(self, text: str) -> str:
        """Adds the next text; returns the text that is certainly not part of a stop string.

        After a stop string was found, it returns nothing.
        """
        if self.found is not None or not text:
            return ""
        if not self._stops:
            return text
        pending = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            complete = self._step(character)
            if complete:
                self.found = max(complete, key=len)
                self._held = ""
                return pending[: end - len(self.found)]
        certain = len(pending) - max(self._matched)
        self._held = pending[certain:]
        return pending[:certain]

    def finish(self) -> str:
        """The text held back, which can no longer become a stop string. A second call returns nothing."""
        rest, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return rest

    def _step(self, character: str) -> list[str]:
        """Moves every automaton by one character, and returns the stop strings that end here."""
        complete = []
        for i, stop in enumerate(self._stops):
            matched = self._matched[i]
            while matched and stop[matched] != character:
                matched = self._failures[i][matched - 1]
            if stop[matched] == character:
                matched += 1
            self._matched[i] = matched
            if matched == len(stop):
                complete.append(stop)
        return complete


def checked_stops(stops: str | Sequence[str]) -> list[str]:
    """The stop strings as a list.

    Raises:
        UsageError: an empty stop string, or something that is not a string.
    """
    if not isinstance(stops, Iterable):
        raise UsageError("stop must be a string or a list of strings", found=repr(stops)[:60])
    given = [stops] if isinstance(stops, str) else list(stops)
    for stop in given:
        if not isinstance(stop, str):
            raise UsageError("stop must be a string or a list of strings", found=repr(stop)[:60])
        if not stop:
            raise UsageError("a stop string is empty", hint="It would end every text before it begins.")
    return given


def _failures(stop: str) -> list[int]:
    """For each prefix, the length of its longest proper suffix that is a prefix too."""
    failures = [0] * len(stop)
    matched = 0
    for i in range(1, len(stop)):
        while matched and stop[i] != stop[matched]:
            matched = failures[matched - 1]
        if stop[i] == stop[matched]:
            matched += 1
        failures[i] = matched
    return failures
