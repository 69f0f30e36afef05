"""Compose files and Dockerfiles as data."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = "docker-compose.yml"
GPU_OVERLAY = "deploy/compose.gpu.yaml"
ENV_EXAMPLE = "deploy/env/armature.env.example"

_VARIABLE = re.compile(r"(?<!\$)\$\{(?P<name>\w+)(?:(?P<operator>:[?-])(?P<argument>[^}]*))?\}")


@dataclass(frozen=True)
class Variable:
    """A ``${NAME}``, ``${NAME:?message}`` or ``${NAME:-default}`` of a compose file."""

    name: str
    operator: str | None
    argument: str | None


@dataclass
class Dockerfile:
    """The instructions that the tests look at; of ``ENV`` and later ones only the last stage's."""

    path: str
    bases: list[str] = field(default_factory=list)
    build_arguments: set[str] = field(default_factory=set)
    sources: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    ports: list[int] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health_command: list[str] = field(default_factory=list)


def read_compose(name: str = COMPOSE) -> dict[str, Any]:
    """A compose file with its anchors resolved and its variables as written."""
    content: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return content


def variables(name: str) -> list[Variable]:
    """The variables that a compose file takes from the environment."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return [Variable(**match.groupdict()) for match in _VARIABLE.finditer(text)]


def interpolate(text: str, values: dict[str, str]) -> str:
    """What compose makes of a text."""
    filled = _VARIABLE.sub(lambda match: values.get(match["name"]) or match["argument"] or "", text)
    return filled.replace("$$", "$")


def env_example() -> dict[str, str]:
    """The variables of the example, which is a file of ``NAME=value`` lines."""
    lines = (ROOT / ENV_EXAMPLE).read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def read_dockerfile(name: str) -> Dockerfile:
    """Parse the subset of the syntax that our Dockerfiles use."""
    text = (ROOT / name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    parsed = Dockerfile(name)
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction:
            _READERS[instruction](parsed, rest.strip())
    return parsed


def _read_from(parsed: Dockerfile, rest: str) -> None:
    parsed.bases.append(rest.split()[0])
    parsed.env = {}


def _read_copy(parsed: Dockerfile, rest: str) -> None:
    if not rest.startswith("--from"):
        parsed.sources += rest.split()[:-1]


def _read_health_check(parsed: Dockerfile, rest: str) -> None:
    parsed.health_command = json.loads(rest.partition("CMD ")[2])


def _ignore(parsed: Dockerfile, rest: str) -> None:
    pass


_READERS = {
    "FROM": _read_from,
    "COPY": _read_copy,
    "ARG": lambda parsed, rest: parsed.build_arguments.add(rest.partition("=")[0]),
    "RUN": lambda parsed, rest: parsed.runs.append(rest),
    "ENV": lambda parsed, rest: parsed.env.update(pair.split("=", 1) for pair in rest.split()),
    "USER": lambda parsed, rest: setattr(parsed, "user", rest),
    "EXPOSE": lambda parsed, rest: parsed.ports.append(int(rest)),
    "HEALTHCHECK": _read_health_check,
    "CMD": lambda parsed, rest: setattr(parsed, "command", json.loads(rest)),
    "WORKDIR": _ignore,
    "VOLUME": _ignore,
}
