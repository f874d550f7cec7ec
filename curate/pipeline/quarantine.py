"""How much of the pool cannot be read, and when that is too much.

A damaged shard is quarantined whole: what was read of it before the damage cannot be trusted. A row
is quarantined alone where the rows around it are sound (a broken JSON line, text that is not
UTF-8). Damage is measured in bytes of shard files, which are known of every shard, readable or not.
A damaged shard counts for no less than the mean of the sound ones, because what a truncated file
held is not in its size; a row counts for as much as its shard's rows do on average.
"""

from __future__ import annotations

from collections.abc import Mapping

from curate.errors import TooMuchDamage
from curate.read.cache import TokenCache
from curate.read.corpus import Corpus

_REMEDY = "Repair or remove what is damaged, or set max_bad_fraction to {share:g} or more."


def damaged_shards(pool: Corpus, cache: TokenCache | None = None) -> dict[int, str]:
    """Why each quarantined shard is, by shard id, as far as is known."""
    damaged = {shard.shard_id: shard.damage for shard in pool.shards if shard.damage is not None}
    return {**damaged, **(cache.damaged if cache else {})}


def check_damage(
    pool: Corpus, most: float, cache: TokenCache | None = None, *, under_way: int | None = None
) -> None:
    """Stop where more than `most` of the pool's bytes cannot be read.

    Args:
        pool: the pool.
        most: share of its bytes.
        cache: what is tokenized of it so far.
        under_way: shard of which more may come. How many rows it has may not be known before its
            end, and then its bad rows do not count yet.

    Raises:
        TooMuchDamage: so much is already known to be damaged.
    """
    damaged = damaged_shards(pool, cache)
    bad_rows = _bad_row_shares(pool, cache, under_way) if cache else {}
    if not (damaged or bad_rows):
        return
    sound = [shard for shard in pool.shards if shard.shard_id not in damaged]
    mean = sum(shard.bytes for shard in sound) / max(1, len(sound))
    lost = sum(max(pool.shards[shard_id].bytes, mean) for shard_id in damaged)
    total = lost + sum(shard.bytes for shard in sound)
    bad = lost + sum(share * pool.shards[one].bytes for one, share in bad_rows.items())
    if bad <= most * total:
        return
    share = bad / total
    raise TooMuchDamage(
        f"{_percent(share)} of the pool cannot be read, more than max_bad_fraction "
        f"({most:g}) allows: {_examples(pool, damaged, bad_rows)}",
        _REMEDY.format(share=_rounded_up(share)),
    )


def _bad_row_shares(pool: Corpus, cache: TokenCache, under_way: int | None) -> dict[int, float]:
    """The share of each shard's rows that are known to be unusable, of those with any."""
    rows: dict[int, int] = {}
    bad: dict[int, int] = {}
    for fragment in cache.fragments:
        rows[fragment.shard_id] = rows.get(fragment.shard_id, 0) + fragment.rows
        bad[fragment.shard_id] = bad.get(fragment.shard_id, 0) + fragment.bad
    if under_way is not None:
        rows[under_way] = pool.shards[under_way].rows or 0
    return {one: count / rows[one] for one, count in bad.items() if count and rows[one]}


def _examples(pool: Corpus, damaged: Mapping[int, str], bad_rows: Mapping[int, float]) -> str:
    """What is wrong with the first place, and how many others there are."""
    places = sorted({*damaged, *bad_rows})
    first, others = places[0], len(places) - 1
    what = damaged.get(first)
    if what is None:
        uri = pool.shards[first].uri
        what = f"Shard {uri} has rows that cannot be used ({_percent(bad_rows[first])} of them)."
    return what + (f" {others} more shard{'s' * (others > 1)} too." if others else "")


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"


def _rounded_up(share: float) -> float:
    """The share as a setting that would let it pass."""
    return min(1.0, float(f"{share * 1.01:.2g}") + 0.01)
