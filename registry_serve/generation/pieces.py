"""From new tokens to text, as they come."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

#: How many tokens before a new one may change how it is written.
_NEIGHBOURS = 8
_MOST_NEIGHBOURS = 32
#: Stands for bytes that are no character, or not yet one.
_UNFINISHED = "\ufffd"


class TokensAsText:
    """Writes tokens as text. They are always decoded with some of those before them: some tokenizers drop a space at
    the beginning. What is decoded begins where a character does, since some write bytes that begin inside of one, and
    all that follow them, as no characters at all.

    Args:
        tokenizer: of the model.
        before: the tokens of the prompt, which are not written.
    """

    def __init__(self, tokenizer: Any, before: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(before[-_NEIGHBOURS:])
        self._written = self._decode()
        while self._written.startswith(_UNFINISHED) and len(self._tokens) < min(len(before), _MOST_NEIGHBOURS):
            self._tokens = list(before[-len(self._tokens) - 1 :])
            self._written = self._decode()
        self._finished = len(self._tokens)

    def add(self, tokens: Sequence[int]) -> str:
        """Return what further tokens add, as far as it is finished."""
        self._tokens += tokens
        text = self._decode()
        if text.endswith(_UNFINISHED):
            return ""
        added = text[len(self._written) :]
        if added:
            # The last tokens that were written together are enough to know how the next begin.
            self._tokens = self._tokens[self._finished :]
            self._written = self._decode()
            self._finished = len(self._tokens)
        return added

    def rest(self) -> str:
        """Return what has been kept back as unfinished."""
        return self._decode()[len(self._written) :]

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(self._tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


class Abandoned(Exception):
    """Nobody reads the text any more."""


class Pieces(BaseStreamer):
    """What one thread generates, for another to read while it does.

    Args:
        text: writes the tokens.
    """

    def __init__(self, text: TokensAsText) -> None:
        self._text = text
        self._queue: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        self._begun = False
        self._abandoned = False

    def __iter__(self) -> Iterator[str]:
        """Wait for each piece.

        Raises:
            BaseException: what was raised where the text is generated.
        """
        while (piece := self._queue.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            if piece:
                yield piece

    def put(self, value: torch.Tensor) -> None:
        """Take tokens from ``generate``: first those it begins with, then one at a time."""
        if self._abandoned:
            raise Abandoned
        if self._begun:
            self._queue.put(self._text.add(value.flatten().tolist()))
        self._begun = True

    def end(self) -> None:
        """Take the end from ``generate``."""
        self._queue.put(self._text.rest())

    def abandon(self) -> None:
        """Let the generation end with its next token."""
        self._abandoned = True

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Tell the reader how the generation ended, when this context ends."""
        try:
            yield
        except BaseException as error:  # noqa: BLE001 - told to the reader
            self._queue.put(error)
        else:
            self._queue.put(None)


class UntilStop:
    """Passes a text on until the first of some strings comes up in it; the string itself is left out.

    Attributes:
        found: whether one has come up.

    Args:
        stops: those strings, none empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.found = False
        self._stops = stops
        self._kept_back = max(map(len, stops), default=1) - 1
        self._waiting = ""

    def add(self, piece: str) -> str:
        """Return what is sure to stand before the end, of what has come."""
        self._waiting += piece
        places = [place for place in map(self._waiting.find, self._stops) if place >= 0]
        sure = min(places) if places else max(0, len(self._waiting) - self._kept_back)
        self.found = bool(places)
        passed, self._waiting = self._waiting[:sure], self._waiting[sure:]
        return passed

    def rest(self) -> str:
        """Return what was kept back, where the text has ended."""
        return "" if self.found else self._waiting


def before_stop(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Pass a text on until the first of these strings comes up in it; the string itself is left out."""
    until = UntilStop(stops)
    for piece in pieces:
        if passed := until.add(piece):
            yield passed
        if until.found:
            return
    if until.rest():
        yield until.rest()
