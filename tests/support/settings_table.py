"""The settings of every service as rows: what docs/deployment.md shows and the container files may name.

``python -m tests.support.settings_table`` prints the table for the docs.
"""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, SecretStr

from armature.settings import ENV_PREFIX, ServiceSettings
from armature_api.settings import ApiServiceSettings
from armature_decoder.settings import DecoderServiceSettings
from armature_worker.settings import WorkerServiceSettings

SETTINGS: dict[str, type[ServiceSettings]] = {
    "armature_api": ApiServiceSettings,
    "armature_api.bootstrap": ApiServiceSettings,
    "armature_api.relay": ApiServiceSettings,
    "armature_worker": WorkerServiceSettings,
    "armature_decoder": DecoderServiceSettings,
}
"""What each program reads, by the name that ``python -m`` takes."""

_READERS = {"api": ApiServiceSettings, "worker": WorkerServiceSettings, "decoder": DecoderServiceSettings}


@dataclass(frozen=True)
class Setting:
    """One environment variable."""

    name: str
    default: str
    description: str


def settings_of(service: type[ServiceSettings]) -> dict[str, Setting]:
    """Every variable that a service reads, by name."""
    found = {}
    for block, outer in service.model_fields.items():
        kind = outer.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, BaseModel)
        for field, info in kind.model_fields.items():
            name = f"{ENV_PREFIX}{block}__{field}".upper()
            default = getattr(outer.default, field)
            assert info.description, f"{kind.__name__}.{field} says nothing about itself"
            found[name] = Setting(name, _shown(default), info.description)
    return found


def _shown(value: Any) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value is None or value == "":
        return ""
    return f"`{value}`".replace("'", '"')


def table() -> str:
    """All settings as a Markdown table, each once, with the services that read it."""
    rows: dict[str, Setting] = {}
    readers: dict[str, list[str]] = {}
    for reader, service in _READERS.items():
        for name, setting in settings_of(service).items():
            # the port is the one setting whose default differs between services
            if name in rows and rows[name].default != setting.default:
                setting = Setting(name, f"{rows[name].default}, {reader} {setting.default}", setting.description)
            rows[name] = setting
            readers.setdefault(name, []).append(reader)
    lines = ["| Variable | Default | Read by | Meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{name}` | {row.default} | {', '.join(readers[name])} | {row.description} |" for name, row in rows.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
