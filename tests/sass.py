"""Parses machine code printed by cuobjdump and bounds the number of instructions a kernel issues.

The machine code does not state how often each basic block runs. The emulator counts loads and
stores by width, shuffles, barriers and tensor core products, as issued by warps. `instructions`
finds the cheapest execution counts of the blocks that are consistent with these counts and with the
control flow, including both sides of divergent branches. This is a linear programme, and its
solution is a lower bound: a loop without counted instructions is assumed to run once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
REGISTER = re.compile(r"\bR(\d+)\b")
SLACK_COST = 1e4  # per request without an instruction in the code: the counts do not fit then


@dataclass(frozen=True)
class Instruction:
    address: int
    predicated: bool
    opcode: str  # including suffixes: LDG.E.128.CONSTANT
    operands: str

    @property
    def target(self) -> int:
        return int(self.operands.split(",")[-1].split()[-1], 16)

    @property
    def kind(self) -> tuple[str, float] | None:
        """The emulator's counter for this instruction, and the increment (shared memory: 4-byte
        words)."""
        name, *suffixes = self.opcode.split(".")
        if name in ("LDG", "STG", "LD", "ST"):
            return f"{'load' if name.startswith('LD') else 'store'} {width(suffixes)}", 1
        if name == "LDGSTS":  # cp.async
            return f"copy load {width(suffixes)}", 1
        if name == "UBLKCP":  # cp.async.bulk
            return "copy load 0", 1
        if name in ("LDS", "STS"):
            return "shared", max(1, width(suffixes) // 4)
        if name == "LDSM":  # ldmatrix: 1, 2 or 4 matrices, one word per lane each
            return "shared", int(suffixes[-1]) if suffixes[-1] in ("2", "4") else 1
        simple = {"SHFL": "shuffle", "BAR": "barrier", "HMMA": "product"}
        simple["HGMMA"] = "warpgroup product"
        return (simple[name], 1) if name in simple else None


def width(suffixes: Sequence[str]) -> int:
    """The number of bytes per lane."""
    for suffix in suffixes:
        if suffix in ("128", "64"):
            return int(suffix) // 8
        if suffix in ("U8", "S8", "U16", "S16"):
            return int(suffix[1:]) // 8
    return 4


def functions(text: str) -> dict[str, list[Instruction]]:
    """The instructions of every kernel in a disassembly, by symbol."""
    found: dict[str, list[Instruction]] = {}
    code: list[Instruction] = []
    for line in text.splitlines():
        if function := re.search(r"^\s*Function : (\S+)", line):
            code = found.setdefault(function[1], [])
        elif match := INSTRUCTION.match(line):
            address, predicate, opcode, operands = match.groups()
            code.append(Instruction(int(address, 16), bool(predicate), opcode, operands))
    return found


@dataclass
class Block:
    """A basic block. `called`: the instructions of the functions that it calls."""

    code: list[Instruction] = field(default_factory=list)
    next: list[int] = field(default_factory=list)  # addresses of the successors
    called: int = 0

    @property
    def size(self) -> int:
        return len(self.code) + self.called


def blocks(code: Sequence[Instruction]) -> dict[int, Block]:
    """The part of the control-flow graph that is reachable from the entry, by address."""
    joins: dict[int, int] = {}  # the target of each BSYNC, from its BSSY
    open_joins: dict[str, int] = {}
    for one in code:
        if one.opcode.startswith("BSSY"):
            open_joins[one.operands.split(",")[0]] = one.target
        elif one.opcode.startswith("BSYNC"):
            joins[one.address] = open_joins.get(one.operands.split(",")[0], one.address + 16)
    index = {one.address: i for i, one in enumerate(code)}
    leaders = {code[0].address} | set(joins.values())
    for i, one in enumerate(code):
        if one.opcode.split(".")[0] in ("BRA", "EXIT", "RET", "BSYNC", "BRX", "JMP"):
            if one.opcode.startswith(("BRA", "JMP")):
                leaders.add(one.target)
            if i + 1 < len(code):
                leaders.add(code[i + 1].address)
    graph: dict[int, Block] = {}
    todo = [code[0].address]
    while todo:
        start = todo.pop()
        if start in graph or start not in index:
            continue
        block = graph[start] = Block()
        for one in code[index[start] :]:
            if block.code and one.address in leaders:
                block.next = [one.address]
                break
            block.code.append(one)
            name = one.opcode.split(".")[0]
            if name == "CALL":
                block.called += callee(code, index.get(one.target))
            after = [one.address + 16] if one.predicated else []
            if name in ("BRA", "JMP"):
                block.next = sorted({one.target, *after})
                break
            if name == "BSYNC":
                block.next = sorted({joins[one.address], *after})
                break
            if name in ("EXIT", "RET"):
                block.next = after
                break
        todo += block.next
    return graph


def callee(code: Sequence[Instruction], start: int | None) -> int:
    """The number of instructions of a helper (such as a division) up to its first return."""
    if start is None:
        return 0
    for count, one in enumerate(code[start:], 1):
        if one.opcode.startswith("RET"):
            return count
    return 0


def back_edges(graph: Mapping[int, Block], entry: int) -> set[tuple[int, int]]:
    """Edges to a block that dominates their start: at least one per loop."""
    names = list(graph)
    everything = (1 << len(names)) - 1
    bit = {name: 1 << i for i, name in enumerate(names)}
    before: dict[int, list[int]] = {name: [] for name in names}
    for name, block in graph.items():
        for after in block.next:
            before[after].append(name)
    over = dict.fromkeys(names, everything)  # dominators, as bit masks
    over[entry] = bit[entry]
    changed = True
    while changed:
        changed = False
        for name in names:
            if name == entry:
                continue
            found = everything
            for earlier in before[name]:
                found &= over[earlier]
            found |= bit[name]
            changed |= found != over[name]
            over[name] = found
    return {(a, b) for a in names for b in graph[a].next if over[a] & bit[b]}


def instructions(
    code: Sequence[Instruction], warps: float, counted: Mapping[str, float]
) -> tuple[float, float]:
    """The number of instructions that `warps` warps issue in total to make the `counted` requests,
    and the average number of loads into registers that a warp has in flight."""
    graph = blocks(code)
    entry = code[0].address
    counts = run_counts(graph, entry, warps, counted)
    issued = sum(graph[name].size * count for name, count in counts.items())
    weighted = loads = 0.0
    for line, count in straight_lines(graph, counts):
        for run in load_runs(line):
            weighted += count * run * run
            loads += count * run
    return issued, weighted / loads if loads else 0.0


def straight_lines(
    graph: Mapping[int, Block], counts: Mapping[int, float]
) -> list[tuple[list[Instruction], float]]:
    """Sequences of blocks that execute equally often, with that count. A block joins the sequence
    if it is reachable from it: a load behind its own branch is then in flight together with the
    loads around it."""
    found: list[tuple[list[Instruction], float]] = []
    reached = set[int]()  # from the last sequence
    for name in sorted(name for name, count in counts.items() if count > 1e-6):
        count, block = counts[name], graph[name]
        if found and name in reached and abs(count - found[-1][1]) <= 1e-3 * count:
            found[-1][0].extend(block.code)
        else:
            found.append(([*block.code], count))
            reached = set()
        reached |= {after for after in block.next if after > name}
    return found


def load_runs(code: Iterable[Instruction]) -> list[int]:
    """The numbers of global loads in flight when an instruction needs the result of one of them."""
    runs, waiting, count = [], set[int](), 0
    for one in code:
        registers = [int(r) for r in REGISTER.findall(one.operands)]
        if one.opcode.startswith("LDG."):  # LDGSTS has no result to wait for
            first = registers[0] if registers else 0
            waiting |= set(range(first, first + max(1, width(one.opcode.split(".")) // 4)))
            count += 1
        elif waiting & set(registers):
            runs.append(count)
            waiting, count = set(), 0
    return runs + [count] * (count > 0)


def run_counts(
    graph: Mapping[int, Block], entry: int, warps: float, counted: Mapping[str, float]
) -> dict[int, float]:
    """The cheapest execution count of each block, in multiples of a warp."""
    scale = max(warps, 1.0)
    variables: list[float] = []  # costs

    def variable(cost: float) -> int:
        variables.append(cost + 1e-4 * (1 + len(variables) % 7))  # makes equal costs unlikely
        return len(variables) - 1

    of_block = {name: variable(block.size) for name, block in graph.items()}
    arriving: dict[int, list[tuple[int, int]]] = {name: [] for name in graph}
    rows: list[dict[int, float]] = []  # sum of coefficient * variable >= bound
    bounds: list[float] = []

    def require(row: dict[int, float], bound: float = 0.0) -> None:
        rows.append(row)
        bounds.append(bound)

    of_edge: dict[tuple[int, int], int] = {}
    for name, block in graph.items():
        leaving = []
        for after in block.next:
            edge = of_block[name] if len(block.next) == 1 else variable(0.0)
            of_edge[name, after] = edge
            leaving.append(edge)
            arriving[after].append((name, edge))
            if len(block.next) > 1:
                require({of_block[name]: 1, edge: -1})
            require({of_block[after]: 1, edge: -1})
        ends = any(one.opcode.startswith(("EXIT", "RET")) for one in block.code)
        if len(leaving) > 1 and not ends:
            require({**dict.fromkeys(leaving, 1.0), of_block[name]: -1})
    require({of_block[entry]: 1}, warps / scale)
    loops: dict[int, list[int]] = {}
    for edge in back_edges(graph, entry):
        loops.setdefault(edge[1], []).append(of_edge[edge])
    longest = max([1.0, *(count / scale for count in counted.values())])
    for name in graph:
        ways = [edge for _, edge in arriving[name]]
        if name != entry:
            require({**dict.fromkeys(ways, 1.0), of_block[name]: -1})
        if name in loops:  # a loop repeats only if entered, `longest` times per entry at most
            row = {edge: longest for edge in ways if edge not in loops[name]}
            if name == entry:
                continue
            require(row | dict.fromkeys(loops[name], -1.0))
    for kind, count in counted.items():
        row = {variable(SLACK_COST): 1.0}
        for name, block in graph.items():
            here = sum(k[1] for one in block.code if (k := one.kind) and k[0] == kind)
            if here:
                row[of_block[name]] = here
        if len(row) > 1:
            require(row, count / scale)
    solution = cheapest(np.array(variables), rows, np.array(bounds))
    return {name: solution[i] * scale for name, i in of_block.items()}


def cheapest(
    cost: np.ndarray, rows: Sequence[Mapping[int, float]], bound: np.ndarray
) -> np.ndarray:
    """Minimises cost . x with x >= 0 and rows . x >= bound, by the simplex method on the dual,
    where 0 is feasible because no cost is negative."""
    m, n = len(cost), len(rows)
    table = np.zeros((m + 1, n + m + 1))
    for j, row in enumerate(rows):
        for i, coefficient in row.items():
            table[i, j] = coefficient
    table[:m, n : n + m] = np.eye(m)
    table[:m, -1] = cost
    table[-1, :n] = -bound
    basis = np.arange(n, n + m)
    for step in range(20 * (m + n)):
        objective = table[-1, :-1]
        # The steepest column first; later the lowest index, which avoids cycles (Bland's rule).
        negative = np.flatnonzero(objective < -1e-9)
        if not len(negative):
            break
        column = negative[np.argmin(objective[negative])] if step < 4 * (m + n) else negative[0]
        positive = np.flatnonzero(table[:m, column] > 1e-9)
        if not len(positive):
            break
        ratios = table[positive, -1] / table[positive, column]
        row_index = positive[np.argmin(ratios)]
        table[row_index] /= table[row_index, column]
        others = np.flatnonzero(np.abs(table[:, column]) > 1e-12)
        others = others[others != row_index]
        table[others] -= np.outer(table[others, column], table[row_index])
        basis[row_index] = column
    return table[-1, n : n + m].copy()
