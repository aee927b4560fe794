"""Which sample trains and which one measures: stratified, seeded, the same on every machine."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence


def stratified_split(ids: Sequence[str], strata: Sequence[str], *, val_fraction: float, seed: int) -> list[str]:
    """One of "train" or "val" per id, in the order given.

    Inside a stratum the ids are ordered by a hash of (seed, id), so neither the order of the input nor
    the platform matters. The validation total is round(val_fraction * n), shared out over the strata by
    largest remainder; a stratum with two or more members is represented on both sides.
    Raises ValueError if val_fraction is not between 0 and 1.
    """
    if not 0.0 < val_fraction < 1.0:
        raise ValueError(f"data.val_fraction is {val_fraction}; it must lie between 0 and 1, for example 0.25")
    members: dict[str, list[int]] = defaultdict(list)
    for index, stratum in enumerate(strata):
        members[stratum].append(index)
    wanted = {stratum: val_fraction * len(group) for stratum, group in members.items()}
    quota = {stratum: int(share) for stratum, share in wanted.items()}
    left_over = round(val_fraction * len(ids)) - sum(quota.values())
    by_remainder = sorted(wanted, key=lambda stratum: (quota[stratum] - wanted[stratum], stratum))
    for stratum in by_remainder[: max(left_over, 0)]:
        quota[stratum] += 1

    split = ["train"] * len(ids)
    for stratum, group in members.items():
        num_val = min(max(quota[stratum], 1), len(group) - 1)
        for index in sorted(group, key=lambda i: _rank(seed, ids[i]))[:num_val]:
            split[index] = "val"
    return split


def _rank(seed: int, sample_id: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{sample_id}".encode(), digest_size=16).digest()
