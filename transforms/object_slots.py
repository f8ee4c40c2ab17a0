"""Slots of a store in an object store, where no lock says whose they are.

A part's slot is part of its id, and its shards are named by the slot. A run that is killed, or that lost a race, leaves shards that no
run may replace or remove. So a run writes down which part it puts into which slot before it writes the part, and a plan passes
over the slots that others have claimed. Claims only steer: whatever they say, no shard is ever written over another.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from scenemill.schemas.errors import Conflict
from scenemill.schemas.places import Remote
from scenemill.transforms.parts import PartPlan

_CLAIMS: Final = "runs/slots"
_THREADS: Final = 16


def claim_slots(store: Remote, parts: Iterable[PartPlan]) -> None:
    """Write down which part goes into which slot.

    Raises:
        Conflict: another run has claimed one of them.
    """

    def claim(part: PartPlan) -> None:
        try:
            (store / _CLAIMS / str(part.slot)).create(part.id.encode())
        except Conflict as error:
            raise Conflict(f"store {store}: another run has begun to write to slot {part.slot}; run again") from error

    with ThreadPoolExecutor(_THREADS) as threads:
        for _ in threads.map(claim, parts):
            pass


def plan_free(store: Remote, first_slot: int, plan: Callable[[int], Sequence[PartPlan]]) -> Sequence[PartPlan]:
    """The parts of a plan, from the first slot on in which none of them meets another run's.

    Args:
        store: where they go.
        first_slot: the first that no published version uses.
        plan: first slot -> parts.
    """
    claims = {int(path.name): path for path in (store / _CLAIMS).glob("*") if path.name.isdigit() and int(path.name) >= first_slot}
    with ThreadPoolExecutor(_THREADS) as threads:
        claimed = dict(zip(claims, threads.map(lambda path: path.read_bytes().decode(), claims.values()), strict=True))
    while True:
        parts = plan(first_slot)
        foreign = [part.slot for part in parts if claimed.get(part.slot, part.id) != part.id]
        if not foreign:
            return parts
        first_slot = max(foreign) + 1
