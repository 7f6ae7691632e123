"""The shape of the package in numbers, each beside its goal.

    make shape                                   the table
    .venv/bin/python benchmarks/shape.py any     where that measure is not met

Everything is read from the files; neither torch nor Ray is imported. The numbers are
information for a reviewer: a number that misses its goal ends with 0 all the same.
"""

import ast
import io
import re
import statistics
import sys
import textwrap
import tokenize
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = "topd_ray"
ACTOR_DRIVERS = ("actors", "driver")
"""Packages that hold, call or replace actors."""
MATHS_CONTRACT = "Mathematics takes arrays and numbers"
"""First words of the import-linter contract that lists the modules of the maths."""
MORE_MATHS = ("probe", "windows", "candidates")
"""Packages of the maths that read messages too, so no contract lists them."""
NOT_LAYERS = ("engines", "simulate", "studies")
"""Packages where a method of an actor's name does the work itself, or imitates it."""
MANNERED = re.compile(
    r"\b(whoever|whatever|nobody|somebody|anybody|befell|of its own|of their own"
    r"|for the eye|strangers?)\b",
    re.IGNORECASE,
)
COLUMNS = 88
TOUR_LINK = re.compile(r"\]\((?:\.\./|[^)\s]*/)?(topd_ray/[\w/]+\.py)[^)]*\)")
ALIAS = re.compile(r"[A-Z]\w*[a-z]\w* = [A-Za-z.]+(\[|$| \|)")
DIRECTIVE = re.compile(r"#\s*(noqa|type:|pragma|fmt:|ruff:)")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One Python file: its text and its syntax tree."""

    path: Path
    root: Path

    @cached_property
    def name(self) -> str:
        """Path below the root of the repository."""
        return self.path.relative_to(self.root).as_posix()

    @cached_property
    def text(self) -> str:
        """The whole file."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def lines(self) -> list[str]:
        """Its lines without their ends."""
        return self.text.splitlines()

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Every node of the syntax tree."""
        return list(ast.walk(ast.parse(self.text)))

    @cached_property
    def package(self) -> str:
        """Name of the package right below `topd_ray`, or of the module there."""
        return self.path.relative_to(self.root / PACKAGE).parts[0].removesuffix(".py")

    def all_of(self, *kinds: type) -> Iterator[Any]:
        """Yield the nodes of these kinds."""
        return (node for node in self.nodes if isinstance(node, kinds))

    def at(self, line: int, what: str) -> str:
        """Return `path:line what`, which an editor can jump to."""
        return f"{self.name}:{line} {what}"


class Measure(NamedTuple):
    """One row of the table."""

    name: str
    goal: str
    value: str
    where: Sequence[str] = ()
    """The places that the value counts, for `shape.py NAME`."""


@dataclass(frozen=True)
class Tree:
    """The files of a checkout."""

    root: Path = ROOT
    package: list[Source] = field(init=False)
    around: list[Source] = field(init=False)
    """Benchmarks and tests."""

    def __post_init__(self) -> None:
        """Find the files; none is read before a measure needs it."""
        object.__setattr__(self, "package", self._sources(PACKAGE))
        object.__setattr__(
            self, "around", [*self._sources("benchmarks"), *self._sources("tests")]
        )

    @property
    def num_lines(self) -> int:
        """Lines of the package."""
        return sum(len(source.lines) for source in self.package)

    def per_thousand(self, count: int) -> str:
        """Return `count` as a rate per 1,000 lines of the package."""
        return f"{1000 * count / max(1, self.num_lines):.1f}"

    def _sources(self, folder: str) -> list[Source]:
        paths = sorted((self.root / folder).rglob("*.py"))
        return [Source(path, self.root) for path in paths]


def largest_package(tree: Tree) -> Measure:
    """Share of lines of the package with the most of them."""
    lines: Counter[str] = Counter()
    for source in tree.package:
        lines[source.package] += len(source.lines)
    name, most = lines.most_common(1)[0]
    share = 100 * most / tree.num_lines
    where = [f"{name}/ {count} lines" for name, count in lines.most_common()]
    goal = "<= 15 %"
    return Measure(
        "package: largest, share of lines", goal, f"{name} {share:.0f} %", where
    )


def tour(tree: Tree) -> Measure:
    """Distinct files of the package that `docs/tour.md` links to."""
    name = "tour: files a prompt passes"
    page = tree.root / "docs" / "tour.md"
    if not page.is_file():
        return Measure(name, "<= 45", "no docs/tour.md")
    files = sorted(set(TOUR_LINK.findall(page.read_text(encoding="utf-8"))))
    return Measure(name, "<= 45", str(len(files)), files)


def layers(tree: Tree) -> Measure:
    """The most classes that define the same method of a handle, one above the other."""
    name = "layers: a call passes"
    handles = f"{PACKAGE}/actors/handles.py"
    calls = {
        method.name
        for source in tree.package
        if source.name == handles
        for _, method in _methods(source)
        if isinstance(method, ast.AsyncFunctionDef) and method.name[0] != "_"
    }
    passed = defaultdict(list)
    for source in tree.package:
        if source.package in NOT_LAYERS:
            continue
        for owner, method in _methods(source):
            if method.name in calls:
                what = f"{owner}.{method.name}"
                passed[method.name].append(source.at(method.lineno, what))
    if not passed:
        return Measure(name, "<= 3", "no actors/handles.py")
    longest = max(passed, key=lambda method: len(passed[method]))
    value = f"{longest} {len(passed[longest])}"
    return Measure(name, "<= 3", value, passed[longest])


def _methods(source: Source) -> Iterator[tuple[str, Function]]:
    """Yield the methods of the classes of a file; a protocol has none."""
    for owner in source.all_of(ast.ClassDef):
        if any("Protocol" in ast.unparse(base) for base in owner.bases):
            continue
        for method in owner.body:
            if isinstance(method, Function):
                yield owner.name, method


def any_types(tree: Tree) -> Measure:
    """`Any` where actors are held and called."""
    where = [
        source.at(node.lineno, source.lines[node.lineno - 1].strip())
        for source in tree.package
        if source.package in ACTOR_DRIVERS
        for node in source.all_of(ast.Name)
        if node.id == "Any"
    ]
    return Measure("any: `Any` in actors/ and driver/", "<= 20", str(len(where)), where)


def step_loops(tree: Tree) -> Measure:
    """Files that drive the steps of a pipeline: begin them, let them learn."""
    where = []
    for source in [*tree.package, *tree.around]:
        calls = {
            node.func.attr: node.lineno
            for node in source.all_of(ast.Call)
            if isinstance(node.func, ast.Attribute)
            and ast.unparse(node.func.value).endswith("pipeline")
        }
        if {"begin", "learn"} <= calls.keys():
            where.append(source.at(calls["begin"], "begins steps and lets them learn"))
    return Measure("loops: files with a step loop", "1", str(len(where)), where)


def tuple_assignments(tree: Tree) -> Measure:
    """Statements that assign several values to several names."""
    where = [
        source.at(node.lineno, ast.unparse(node).split("\n")[0])
        for source in tree.package
        for node in source.all_of(ast.Assign)
        if isinstance(node.value, ast.Tuple)
        and any(isinstance(target, ast.Tuple) for target in node.targets)
    ]
    value = tree.per_thousand(len(where))
    return Measure("tuples: assignments per 1,000 lines", "<= 0.5", value, where)


def mannered_words(tree: Tree) -> Measure:
    """Words that a reader has to decode."""
    where = [
        source.at(number, line.strip())
        for source in tree.package
        for number, line in enumerate(source.lines, start=1)
        if MANNERED.search(line)
    ]
    value = tree.per_thousand(len(where))
    return Measure("words: mannered, per 1,000 lines", "0", value, where)


def comments(tree: Tree) -> Measure:
    """Lines with a comment, per 100 lines of code; docstrings are not code."""
    num_code = 0
    where = []
    for source in tree.package:
        code: set[int] = set()
        commented = 0
        for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
            if token.type == tokenize.COMMENT:
                commented += not DIRECTIVE.match(token.string)
            elif token.string.strip() and token.type != tokenize.ENDMARKER:
                code.update(range(token.start[0], token.end[0] + 1))
        code -= set(_docstring_lines(source))
        num_code += len(code)
        where.append((commented, f"{source.name} {commented} of {len(code)}"))
    value = 100 * sum(count for count, _ in where) / max(1, num_code)
    rows = [row for _, row in sorted(where)]
    return Measure("comments: per 100 lines of code", "3 to 6", f"{value:.1f}", rows)


def _docstring_lines(source: Source) -> Iterator[int]:
    """Yield the line numbers of strings that stand alone."""
    for node in source.all_of(ast.Expr):
        value = node.value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield from range(node.lineno, node.end_lineno + 1)


def wide_lines(tree: Tree) -> Measure:
    """Lines wider than the formatter's limit."""
    where = [
        source.at(number, f"{len(line)} columns")
        for source in tree.package
        for number, line in enumerate(source.lines, start=1)
        if len(line) > COLUMNS
    ]
    share = 100 * len(where) / max(1, tree.num_lines)
    value = f"{len(where)} ({share:.1f} %)"
    return Measure(f"wide: lines over {COLUMNS} columns", "0", value, where)


def maths_docstrings(tree: Tree) -> Measure:
    """Public functions of the maths with sections for what they take, give, raise.

    Args is asked of a function with arguments, Returns (or Yields) of one with a value,
    Raises of one that has a `raise` in it.
    """
    modules = _maths_modules(tree.root)
    total = 0
    where = []
    for source in tree.package:
        dotted = source.name.removesuffix(".py").removesuffix("/__init__")
        if not any(_within(dotted.replace("/", "."), module) for module in modules):
            continue
        for function in ast.parse(source.text).body:
            if not isinstance(function, Function) or function.name[0] == "_":
                continue
            total += 1
            missing = _missing_sections(function)
            if missing:
                what = f"{function.name} lacks {', '.join(missing)}"
                where.append(source.at(function.lineno, what))
    value = f"{total - len(where)} of {total}"
    return Measure("maths: Args / Returns / Raises", "all", value, where)


def _maths_modules(root: Path) -> list[str]:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    listed = [
        contract["source_modules"]
        for contract in contracts
        if contract["name"].startswith(MATHS_CONTRACT)
    ]
    return [*listed[0], *(f"{PACKAGE}.{package}" for package in MORE_MATHS)]


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def _missing_sections(function: Function) -> list[str]:
    text = ast.get_docstring(function) or ""
    arguments = function.args
    given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    returned = ast.unparse(function.returns) if function.returns else "None"
    raises = any(isinstance(node, ast.Raise) for node in ast.walk(function))
    missing = []
    if given and "Args:" not in text:
        missing.append("Args")
    if returned != "None" and not re.search(r"^(Returns|Yields):", text, re.MULTILINE):
        missing.append("Returns")
    if raises and "Raises:" not in text:
        missing.append("Raises")
    return missing


def file_sizes(tree: Tree) -> Measure:
    """Lines of a file."""
    sizes = [(len(source.lines), source.name) for source in tree.package]
    return _sizes("files: median / p95 / max lines", "101 / 263 / 471", sizes)


def body_sizes(tree: Tree) -> Measure:
    """Lines of a function's body, without its docstring."""
    sizes = []
    for source in tree.package:
        for function in source.all_of(ast.FunctionDef, ast.AsyncFunctionDef):
            body = function.body
            if ast.get_docstring(function) is not None:
                body = body[1:]
            if body:
                size = body[-1].end_lineno - body[0].lineno + 1
                sizes.append((size, source.at(function.lineno, function.name)))
    return _sizes("bodies: median / p95 / max lines", "6 / 22 / 50", sizes)


def _sizes(name: str, goal: str, sizes: list[tuple[int, str]]) -> Measure:
    ordered = sorted(sizes, reverse=True)
    numbers = [size for size, _ in ordered]
    median = statistics.median_high(numbers)
    p95 = numbers[len(numbers) // 20]
    where = [f"{size} {place}" for size, place in ordered[:20]]
    return Measure(name, goal, f"{median} / {p95} / {numbers[0]}", where)


def twin_classes(tree: Tree) -> Measure:
    """Names that two classes or two aliases of types of the package share."""
    places = defaultdict(list)
    for source in tree.package:
        for owner in source.all_of(ast.ClassDef):
            places[owner.name].append(source.at(owner.lineno, owner.name))
        for node in ast.parse(source.text).body:
            if isinstance(node, ast.Assign) and ALIAS.match(ast.unparse(node)):
                name = ast.unparse(node.targets[0])
                places[name].append(source.at(node.lineno, ast.unparse(node)))
    twins = [places[name] for name in sorted(places) if len(places[name]) > 1]
    where = [place for pair in twins for place in pair]
    return Measure("twins: class names defined twice", "0", str(len(twins)), where)


def unset_fields(tree: Tree) -> Measure:
    """Fields of the config that no file in `configs/` sets."""
    from topd_ray.config.load import read_yaml

    fields = _config_fields()
    seen: set[str] = set()
    for path in sorted((tree.root / "configs").rglob("*.yaml")):
        seen.update(_paths(read_yaml(path)))
    where = [name for name in fields if not any(_same(name, path) for path in seen)]
    value = f"{len(where)} of {len(fields)}"
    return Measure("unset: fields that no file in configs/ sets", "0", value, where)


def untested_fields(tree: Tree) -> Measure:
    """Fields of the config whose name occurs in no test."""
    fields = _config_fields()
    words: set[str] = set()
    for source in tree.around:
        if source.name.startswith("tests/"):
            words.update(re.findall(r"\w+", source.text))
    where = [name for name in fields if name.rpartition(".")[2] not in words]
    value = f"{len(where)} of {len(fields)}"
    return Measure("untested: fields that no test names", "0", value, where)


def _config_fields() -> list[str]:
    """Return the dotted name of each field; those of an engine are counted once."""
    from topd_ray.config import Config, EngineConfig
    from topd_ray.config.base import Section

    fields: list[str] = []

    def collect(section: type[Section], prefix: str) -> None:
        for name, info in section.model_fields.items():
            kind = info.annotation
            if isinstance(kind, type) and issubclass(kind, Section):
                if kind is not EngineConfig:
                    collect(kind, f"{prefix}{name}.")
            else:
                fields.append(prefix + name)

    collect(Config, "")
    return fields + [f"engine.{name}" for name in EngineConfig.model_fields]


def _paths(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of each key, and those that a study's overrides set."""
    for key, value in values.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{key}.")
        if key == "overrides":
            yield from (override.partition("=")[0] for override in value)


def _same(field_name: str, path: str) -> bool:
    """Whether `path` of a file is that field; `engine.x` is any engine's x."""
    return path == field_name or (
        field_name.startswith("engine.") and path.endswith("." + field_name)
    )


MEASURES: list[Callable[[Tree], Measure]] = [
    largest_package,
    tour,
    layers,
    any_types,
    step_loops,
    tuple_assignments,
    mannered_words,
    comments,
    wide_lines,
    maths_docstrings,
    file_sizes,
    body_sizes,
    twin_classes,
    unset_fields,
    untested_fields,
]


def main(arguments: Sequence[str]) -> None:
    """Print the table, or the places of the measure that the argument names."""
    sys.path.insert(0, str(ROOT))  # the checkout that is measured, not an installed one
    tree = Tree()
    rows = [measure(tree) for measure in MEASURES]
    if arguments:
        for row in rows:
            if row.name.startswith(arguments[0] + ":"):
                print("\n".join(row.where))
        return
    print(f"shape of {PACKAGE}/: {len(tree.package)} files, {tree.num_lines:,} lines")
    width = max(len(row.name) for row in rows)
    print(f"{'':{width}}  {'measured':>20}  goal")
    for row in rows:
        print(f"{row.name:{width}}  {row.value:>20}  {row.goal}")
    hint = (
        "where: .venv/bin/python benchmarks/shape.py NAME (the word before the colon)"
    )
    print(textwrap.fill(hint, COLUMNS))


if __name__ == "__main__":
    main(sys.argv[1:])
