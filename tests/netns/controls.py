"""Histories that no disk could have answered, and some that one could: the check must tell them apart, or it proves nothing."""

from harness import Failure
from history import Operation, faults, reigns


def write(value, begun, ended, node="a"):
    return Operation(node, True, 0, value, begun, ended)


def read(value, begun, ended, node="a"):
    return Operation(node, False, 0, value, begun, ended)


SOUND = {
    "nothing": [],
    "what was written is read": [write(1, 1, 2), read(1, 3, 4)],
    "a write under way may be seen": [write(1, 1, 9), read(1, 3, 4)],
    "a write under way may not be seen": [write(1, 1, 2), write(2, 3, 9), read(1, 4, 5)],
    "a write that was never answered may come late": [write(1, 1, None), write(2, 2, 3), read(1, 4, 5)],
    "a write that was never answered may be lost": [write(1, 1, 2), write(2, 3, None), read(1, 4, 5), read(1, 6, 7)],
    "of two writes at once either may win": [write(1, 1, 4), write(2, 2, 3), read(1, 5, 6)],
}
FAULTY = {
    "a lost write": [write(1, 1, 2), read(0, 3, 4)],
    "an old value": [write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)],
    "an old value at another node": [write(1, 1, 2), write(2, 3, 4, "b"), read(1, 5, 6)],
    "a value that nobody wrote": [write(1, 1, 2), read(7, 3, 4)],
    "a value before it was written": [read(1, 1, 2), write(1, 3, 4)],
    "a value that was seen and is gone": [write(1, 1, 2), write(2, 3, None), read(2, 4, 5), read(1, 6, 7)],
}
REIGNS = {
    "one primary": (1, [write(1, 1, 2), write(2, 3, 4)]),
    "a takeover": (2, [write(1, 1, 2), write(2, 3, 4, "b")]),
    "answers at once, of which nobody knows the order": (1, [write(1, 1, 4), write(2, 2, 5, "b"), write(3, 2, 6)]),
    "two who answer in turn": (4, [write(1, 1, 2), write(2, 3, 4, "b"), write(3, 5, 6), write(4, 7, 8, "b")]),
}


def prove():
    """Fails if the check does."""
    for name, history in SOUND.items():
        if faults(history):
            raise Failure(f"{name}: {faults(history)}")
    for name, history in FAULTY.items():
        if not faults(history):
            raise Failure(f"not noticed: {name}")
    for name, (count, history) in REIGNS.items():
        if reigns(history) != count:
            raise Failure(f"{name}: {reigns(history)} reigns, not {count}")
    return f"{len(SOUND)} sound histories, {len(FAULTY)} others, {len(REIGNS)} of reigns"
