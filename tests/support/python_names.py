"""Names that modules define, read from their sources: nothing is imported."""

from __future__ import annotations

import ast
import builtins
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.support.pages import ROOT

IMPORT_ROOTS = ("shared", "services/api", "services/worker", "services/decoder", "services/cli", ".")


@dataclass
class Class:
    """A class's members and the names of its bases."""

    members: set[str] = field(default_factory=set)
    bases: list[str] = field(default_factory=list)


@dataclass
class Module:
    """The names of a module: defined, imported (with where they come from), and its classes."""

    names: set[str] = field(default_factory=set)
    imports: dict[str, str] = field(default_factory=dict)
    classes: dict[str, Class] = field(default_factory=dict)

    @staticmethod
    @cache
    def read(path: Path) -> Module:
        """Read the names of the module at ``path``."""
        module = Module()
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                module.imports |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                module.imports |= {(alias.asname or alias.name).split(".")[0]: alias.name for alias in node.names}
            elif isinstance(node, ast.ClassDef):
                bases = [ast.unparse(base).partition("[")[0] for base in node.bases]
                module.classes[node.name] = Class(set(_members(node)), bases)
        module.names = set(_bound(tree.body)) | module.classes.keys()
        return module


def _bound(body: list[ast.stmt]) -> Iterator[str]:
    """Names that statements bind, also below ``if``, ``try`` and ``with``."""
    for node in body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Assign(targets=targets):
                yield from (leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.If() | ast.Try() | ast.With():
                yield from _bound([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)])


def _members(node: ast.ClassDef) -> Iterator[str]:
    yield from _bound(node.body)
    for leaf in ast.walk(node):
        if isinstance(leaf, ast.Attribute) and isinstance(leaf.ctx, ast.Store) and ast.unparse(leaf.value) == "self":
            yield leaf.attr


def _find_module(parts: list[str]) -> Path | None:
    for root in IMPORT_ROOTS:
        base = ROOT.joinpath(root, *parts)
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path
    return None


def dotted_exists(dotted: str) -> bool:
    """Whether a dotted path names a module of the repository, or something in one."""
    parts = dotted.split(".")
    for size in range(len(parts), 0, -1):
        if (path := _find_module(parts[:size])) is not None:
            return _has(Module.read(path), parts[size:])
    return False


def _has(module: Module, parts: list[str]) -> bool:
    if not parts:
        return True
    first, *rest = parts
    if first in module.classes:
        return not rest or (len(rest) == 1 and _class_has(module, first, rest[0]))
    if first in module.names:
        return not rest
    return first in module.imports and _is_ours_and_exists(module.imports[first], rest)


def _class_has(module: Module, name: str, member: str) -> bool:
    found = module.classes[name]
    return member in found.members or any(_inherits(module, base, member) for base in found.bases)


def _inherits(module: Module, base: str, member: str) -> bool:
    """Whether a base class has the member; a base of another project is taken to have it."""
    first, *rest = base.split(".")
    if first in module.classes:
        return _class_has(module, first, member)
    return first in module.imports and _is_ours_and_exists(module.imports[first], [*rest, member])


def _is_ours_and_exists(dotted: str, rest: list[str]) -> bool:
    known = _find_module(dotted.split(".")[:1]) is not None or dotted.startswith("armature.")
    return dotted_exists(".".join([dotted, *rest])) if known else True


def resolves_here(module: Module, name: str) -> bool:
    """Whether a name without its package means something in the module that mentions it."""
    first, *_ = parts = name.split(".")
    if _has(module, parts):
        return True
    if len(parts) == 1 and (hasattr(builtins, first) or any(_class_has(module, cls, first) for cls in module.classes)):
        return True
    return first in module.imports and not module.imports[first].startswith("armature")


@cache
def prose(path: Path) -> list[str]:
    """The docstrings, attribute docstrings and comments of a module."""
    text = path.read_text()
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    expressions = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Expr)]
    constants = [value.value for value in expressions if isinstance(value, ast.Constant)]
    return [
        *(token.string for token in tokens if token.type == tokenize.COMMENT),
        *(value for value in constants if isinstance(value, str)),
    ]
