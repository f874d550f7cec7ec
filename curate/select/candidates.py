"""The blocks that a round decides about: its share of a pass over the pool, in random order.

Rounds that follow one another go on with one drawing of the pass, so that each block is read once
however many rounds there are. Another round, or other blocks of one, as after a kill or when a
stage starts over, are drawn from the start of their pass again.
"""

from __future__ import annotations

from collections.abc import Iterator

from curate.read.cache import TokenCache, draw_blocks
from curate.read.documents import Documents
from curate.select.schedule import Schedule


class Candidates:
    """Draws the rounds of a schedule.

    Shares are counted in tokens, since blocks of whole documents are not all of one size. A block
    belongs to the round in whose share it begins, and the last round of a pass takes the rest.

    Attributes:
        documents: how many were drawn of the pass so far.
    """

    def __init__(self, schedule: Schedule, cache: TokenCache, seed: int) -> None:
        self._schedule, self._cache, self._seed = schedule, cache, seed
        self.documents = 0
        self._drawing: Iterator[Documents] | None = None
        self._pass = self._round = self._taken = self._tokens = 0

    def blocks(self, index: int, done: int = 0) -> Iterator[Documents]:
        """The blocks of round `index`, 0-based, without the first `done`.

        The round after the last is the pass that only scores.
        """
        schedule = self._schedule
        pass_index, part = divmod(index, schedule.rounds_per_pass)
        scoring = index >= schedule.rounds
        is_last = scoring or part == schedule.rounds_per_pass - 1
        begin = part * schedule.round_tokens
        end = begin + schedule.round_tokens
        if is_last:
            end = self._cache.tokens
            if not (scoring or schedule.pass_tokens is None):
                end = schedule.pass_tokens
        if not self._comes_next(pass_index, index, begin, done):
            self._draw_anew(pass_index, scoring=scoring, begin=begin)
            for _ in range(done):
                if self._tokens < end:
                    self._take()
        self._round, self._taken = index, done
        while self._tokens < end and (block := self._take()) is not None:
            self._taken += 1
            yield block
        if is_last:
            self._drawing = None  # it holds a part of the pool

    def _comes_next(self, pass_index: int, index: int, begin: int, done: int) -> bool:
        """Whether the block to be drawn next is the one that is asked for."""
        if self._drawing is None or pass_index != self._pass:
            return False
        if index == self._round:
            return done == self._taken
        return index == self._round + 1 and done == 0 and self._tokens >= begin

    def _draw_anew(self, pass_index: int, *, scoring: bool, begin: int) -> None:
        schedule = self._schedule
        size = schedule.scoring_block_tokens if scoring else schedule.block_tokens
        self._drawing = None  # before another is there
        self._drawing = draw_blocks(self._cache.stream(self._seed, "pass", pass_index), size)
        self._pass = pass_index
        self._tokens = self.documents = 0
        while self._tokens < begin and self._take() is not None:
            pass

    def _take(self) -> Documents | None:
        """The next block of the pass, counted; None where there is no more."""
        block = next(self._drawing, None) if self._drawing is not None else None
        if block is not None:
            self._tokens += block.num_tokens
            self.documents += len(block)
        return block
