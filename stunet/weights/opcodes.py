"""How much does a pickle make? Counted from its opcodes, without making any of it.

A list that holds another one twice, which holds another one twice, needs a few bytes per level and twice the time of
whoever walks through it, hashes it or prints it: thirty levels hang every reader. An entry of the memo at four billion
makes the reader in C reserve that many. checkpoints.py and pickles.py count first.
"""

import pickletools
from typing import IO, Any

MAX_VALUES = 5_000_000  # that a walk through everything meets, shared ones each time; or, in a long log of nnU-Net's,
VALUES_EACH = 20  # for each of the pickle's instructions: a numpy scalar has 14, and 25 values
MAX_DEPTH = 100  # of a checkpoint, 10
_LEAF = -1
_MARK = -2
_CONTAINERS = {"EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_OF_THE_STACK = {"MARK", "GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "DUP", *_CONTAINERS}
_LEAVES = {code.name for code in pickletools.opcodes if not code.stack_before} - _OF_THE_STACK


class Excessive(Exception):
    """A pickle makes more than any file of weights or case has reason to."""


def count(file: IO[bytes] | bytes) -> set[str]:
    """Reads the next pickle of a file and counts what it makes.

    Returns:
        What it imports by the opcode GLOBAL, as "module name".

    Raises:
        Excessive: More than the limits; the message says of what.
        ValueError: It is not a whole pickle.
    """
    made, names, number = _Made(), set(), 0
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
    """What stands on the pickle's stack and in its memo: numbers of containers, or _LEAF for a single value."""

    def __init__(self) -> None:
        self.children: list[list[int]] = []  # of every container
        self.largest = -1  # place in the memo
        self._stack: list[int] = []
        self._memo: dict[int, int] = {}

    def follow(self, code: pickletools.OpcodeInfo, argument: Any) -> None:
        """Does to the numbers what the instruction does to the values.

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
            stack[-_TUPLES[name] :] = [_LEAF]  # three values at most: no need to walk through it
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
                if name != "BUILD" or stack[-1] != _LEAF:  # attributes of a function that was named
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
    """Sizes and depths of all containers as trees, from the inside out, however they were put together."""
    size, depth = [0] * len(children), [0] * len(children)
    state = bytearray(len(children))  # 1: being looked at, 2: known
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
            inner = [child for child in children[node] if child >= 0]
            size[node] = 1 + len(children[node]) + sum(size[child] for child in inner)
            depth[node] = 1 + max((depth[child] for child in inner), default=0)
            state[node] = 2
            pending.pop()
            if depth[node] > MAX_DEPTH:
                raise Excessive(f"more than {MAX_DEPTH} values in each other")
            if size[node] > most:
                raise Excessive(f"more than {most} values")
