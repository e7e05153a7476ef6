"""Count how much a pickle creates, from its opcodes, without creating any of it.

A list that holds another list twice, which in turn holds another twice, needs a few bytes per level and doubles the
time of whatever walks, hashes or prints it: thirty levels hang any reader. A memo entry at index four billion makes the
C reader reserve that many. checkpoints.py and pickles.py count first.
"""

import pickletools
from typing import IO, Any

MAX_VALUES = 5_000_000  # in a full walk, counting shared ones each time; or, if more, as in nnU-Net's long logs,
VALUES_EACH = 20  # per instruction of the pickle: a numpy scalar has 14 instructions, and 25 values
MAX_DEPTH = 100  # a checkpoint has 10
_LEAF = -1
_MARK = -2
_CONTAINERS = {"EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_OF_THE_STACK = {"MARK", "GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "DUP", *_CONTAINERS}
_LEAVES = {code.name for code in pickletools.opcodes if not code.stack_before} - _OF_THE_STACK


class Excessive(Exception):
    """A pickle creates more than any file of weights or properties needs to."""


def count(file: IO[bytes] | bytes) -> set[str]:
    """Read the next pickle of a file and count what it creates.

    Returns:
        What it imports by the opcode GLOBAL, as "module name".

    Raises:
        Excessive: A limit is exceeded; the message states which.
        ValueError: It is not a complete pickle.
    """
    made, names, number = _Made(), set(), 0
    # genops only reads: nothing is imported or made.
    for number, (code, argument, _) in enumerate(pickletools.genops(file)):
        try:
            made.follow(code, argument)
        except LookupError:
            raise ValueError(f"{code.name} without what it works on") from None
        if made.largest > number:
            raise Excessive("a memo with gaps")
        if code.name == "GLOBAL":
            names.add(str(argument))
    _walk(made.children, max(MAX_VALUES, VALUES_EACH * number))
    return names


class _Made:
    """The pickle's stack and memo, holding container numbers, or _LEAF for a single value."""

    def __init__(self) -> None:
        self.children: list[list[int]] = []  # of each container
        self.largest = -1  # index in the memo
        self._stack: list[int] = []
        self._memo: dict[int, int] = {}

    def follow(self, code: pickletools.OpcodeInfo, argument: Any) -> None:
        """Do to the numbers what the instruction does to the values.

        Raises:
            LookupError: Something is not on the stack or in the memo.
        """
        name, stack, before = code.name, self._stack, code.stack_before
        if name in _LEAVES:
            stack.append(_LEAF)
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self._memo[int(argument)])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            place = len(self._memo) if argument is None else int(argument)
            self._memo[place], self.largest = stack[-1], max(place, self.largest)
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _CONTAINERS:
            self._make([])
        elif name in _TUPLES and all(child == _LEAF for child in stack[-_TUPLES[name] :]):
            stack[-_TUPLES[name] :] = [_LEAF]  # three values at most: no need to walk it
        else:
            if marked := pickletools.markobject in before:
                found = []
                while (top := stack.pop()) != _MARK:
                    found.append(top)
            else:
                found = [stack.pop() for _ in before]
            if name in ("APPENDS", "SETITEMS", "ADDITEMS"):
                self._add(found)
            elif name in ("APPEND", "SETITEM", "BUILD"):
                stack.append(found.pop())
                if name != "BUILD" or stack[-1] != _LEAF:  # else it sets attributes of an imported function
                    self._add(found)
            elif name in ("BINPERSID", "READONLY_BUFFER"):
                stack.append(_LEAF)
            elif code.stack_after and (marked or _MARK not in found):
                self._make(found)
            elif _MARK in found:
                raise LookupError

    def _make(self, children: list[int]) -> None:
        self._stack.append(len(self.children))
        self.children.append(children)

    def _add(self, children: list[int]) -> None:
        target = self._stack[-1]
        if target == _MARK or _MARK in children or (target == _LEAF and max(children, default=_LEAF) >= 0):
            raise LookupError
        if target >= 0:
            self.children[target].extend(children)


def _walk(children: list[list[int]], most: int) -> None:
    """Compute sizes and depths of all containers as trees, innermost first, in whatever order they were built."""
    size, depth = [0] * len(children), [0] * len(children)
    # With a stack of our own: the pickle determines how deep it goes, and Python's recursion would end first.
    state = bytearray(len(children))  # 1: in progress, 2: known
    for first in range(len(children)):
        pending = [first]
        while pending:
            node = pending[-1]
            if state[node] == 2:
                pending.pop()
                continue
            unknown = [child for child in set(children[node]) if child >= 0 and state[child] != 2]
            if any(state[child] == 1 for child in unknown):
                raise Excessive("a value that holds itself")
            if unknown:
                state[node] = 1
                pending.extend(unknown)
                continue
            # Shared children count each time, as they do for whoever walks through them.
            inner = [child for child in children[node] if child >= 0]
            size[node] = 1 + len(children[node]) + sum(size[child] for child in inner)
            depth[node] = 1 + max((depth[child] for child in inner), default=0)
            state[node] = 2
            pending.pop()
            if depth[node] > MAX_DEPTH:
                raise Excessive(f"more than {MAX_DEPTH} values in each other")
            if size[node] > most:
                raise Excessive(f"more than {most} values")
