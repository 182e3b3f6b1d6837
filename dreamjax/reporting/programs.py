"""Count what a compiled program does, from the text that XLA gives of it: for accelerators that are not here, too."""

import re
from typing import NamedTuple

# These start nothing on the device: they name, bundle and pass on. Nor does what waits for another instruction to end.
_SILENT = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "add-dependency", "opt-barrier"),
    *("domain", "partition-id", "replica-id"),
}
_ENDS = ("-done", "-update")  # of what a "-start" has launched
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) .*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?[\w.-]+ = (.*?) ([a-z][a-z0-9-]*)(\(.*)")  # no shape holds " name("
_LIBRARY = re.compile(r'custom_call_target="[^"]*(gemm|matmul|conv)', re.IGNORECASE)  # products of cuBLAS and cuDNN


class Cost(NamedTuple):
    """What a program, or a part of it, costs."""

    launches: int = 0  # instructions that the device is given one by one: kernels, calls of libraries, copies
    products: int = 0  # matrix products and convolutions, launched or fused into what is
    cycles: int = 0  # as the TPU's compiler estimates them; 0 for other devices

    def plus(self, other: "Cost", times: int = 1) -> "Cost":
        """Add another cost so many times."""
        return Cost(*(a + times * b for a, b in zip(self, other, strict=True)))


class Loop(NamedTuple):
    """A loop of a program."""

    trips: int | None  # of its body each time that the loop runs; None if the compiler does not know
    step: Cost  # of one trip, with the loops inside; where trips are unknown, with the condition
    runs: int  # how often the loop itself runs


class Program(NamedTuple):
    """What a program costs. A loop with an unknown number of trips counts as if it made one."""

    total: Cost
    loops: tuple[Loop, ...]  # as they follow one another, an outer loop before those in it


class _Instruction(NamedTuple):
    shape: str
    opcode: str
    rest: str  # operands, attributes, and what the compiler notes
    is_root: bool

    def named(self, attribute: str) -> str:
        """Return the computation that an attribute names."""
        found = re.search(rf"\b{attribute}=%?([\w.-]+)", self.rest)
        assert found, f"{self.opcode} without {attribute}"
        return found[1]


_Computations = dict[str, list[_Instruction]]


def count(text: str) -> Program:
    """Count what `text` launches, as `jax.stages.Compiled.as_text` gives it: the scheduled HLO of one device.

    The trips of a loop are what the compiler notes. Where it notes none, as for TPUs, they are the bound below which
    the loop's condition keeps its counter; the counters of `jax.lax.scan` begin at 0. Of several branches the one with
    the most launches counts.

    Raises: ValueError if the text holds no program.
    """
    computations: _Computations = {}
    entry = current = ""
    for line in text.splitlines():
        if current and (instruction := _INSTRUCTION.match(line)):
            root, shape, opcode, rest = instruction.groups()
            computations[current].append(_Instruction(shape, opcode, rest, root is not None))
        elif computation := _COMPUTATION.match(line):
            current = computation[2]
            computations[current] = []
            entry = current if computation[1] else entry
    if not entry:
        raise ValueError(f"this is no text of a compiled program: {text[:80]!r}")
    total, loops = _count(computations, entry, 1)
    return Program(total, tuple(loops))


def _count(computations: _Computations, name: str, runs: int) -> tuple[Cost, list[Loop]]:
    """Count a computation, and find the loops in it."""
    total, loops = Cost(), list[Loop]()
    for instruction in computations[name]:
        opcode = instruction.opcode
        if opcode == "while":
            body, condition = instruction.named("body"), instruction.named("condition")
            trips = _trips(computations, instruction)
            counted = 1 if trips is None else trips
            step, inner = _count(computations, body, runs * counted)
            if trips is None:
                step = step.plus(_count(computations, condition, runs)[0])
            loops += [Loop(trips, step, runs), *inner]
            total = total.plus(step, counted)
        elif opcode == "conditional":
            named = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
            branches = (
                re.findall(r"[\w.-]+", named[1])
                if named
                else [instruction.named("true_computation"), instruction.named("false_computation")]
            )
            cost, inner = max((_count(computations, branch, runs) for branch in branches), key=lambda one: one[0])
            loops += inner
            total = total.plus(cost)
        elif opcode == "call":
            cost, inner = _count(computations, instruction.named("to_apply"), runs)
            loops += inner
            total = total.plus(cost)
        elif opcode not in _SILENT and not opcode.endswith(_ENDS) and '"AllocateBuffer"' not in instruction.rest:
            cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
            products = _products(computations, instruction)
            total = total.plus(Cost(1, products, int(cycles[1]) if cycles else 0))
    return total, loops


def _products(computations: _Computations, instruction: _Instruction) -> int:
    if instruction.opcode in ("fusion", "async-start"):
        return sum(_products(computations, inner) for inner in computations[instruction.named("calls")])
    if instruction.opcode == "custom-call":
        return _LIBRARY.search(instruction.rest) is not None
    return instruction.opcode in ("dot", "convolution")


def _trips(computations: _Computations, loop: _Instruction) -> int | None:
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(noted[1])
    name, constants = loop.named("condition"), list[int]()
    while True:  # through the fusions that its root may be in
        constants += [
            int(one.rest[1:].partition(")")[0])
            for one in computations[name]
            if one.opcode == "constant" and re.match(r"[su]\d+\[\]", one.shape)
        ]
        root = next(one for one in computations[name] if one.is_root)
        if root.opcode != "fusion":
            break
        name = root.named("calls")
    is_counted = root.opcode == "compare" and "direction=LT" in root.rest and len(constants) == 1
    return constants[0] if is_counted else None
