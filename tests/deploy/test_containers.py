"""What the container files name exists in the code: modules, settings, ports, paths, variables, files."""

import fnmatch
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from tests.support.containers import (
    COMPOSE,
    ENV_EXAMPLE,
    GPU_OVERLAY,
    ROOT,
    Dockerfile,
    env_example,
    interpolate,
    read_compose,
    read_dockerfile,
    variables,
)
from tests.support.settings_table import SETTINGS, settings_of

SERVICES: dict[str, dict[str, Any]] = read_compose()["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
DOCKERFILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("services/*/Dockerfile"))
ONE_SHOT = [name for name, service in SERVICES.items() if service["restart"] == "no"]
APPS = {"armature_api": "armature_api.app", "armature_decoder": "armature_decoder.http.app"}
"""The module of a program's app."""
DOT_ENV = {name: value or f"filled-in-{name}" for name, value in env_example().items()}


def _dockerfile(service: str) -> Dockerfile:
    return read_dockerfile(SERVICES[service]["build"]["dockerfile"])


def _module(service: str) -> str:
    """The program of a service, as ``python -m`` knows it."""
    python, flag, module = SERVICES[service].get("command") or _dockerfile(service).command
    assert (python, flag) == ("python", "-m")
    return str(module)


def _environment(service: str) -> dict[str, str]:
    """What the service's process sees, with the example filled in."""
    given = {key: interpolate(str(value), DOT_ENV) for key, value in SERVICES[service]["environment"].items()}
    return {**_dockerfile(service).env, **given}


def _make_app(service: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FastAPI:
    module = _module(service)
    create_app: Callable[..., FastAPI] = importlib.import_module(APPS[module]).create_app
    monkeypatch.chdir(tmp_path)
    return create_app(SETTINGS[module]())


def _health_urls(service: str) -> list[str]:
    tests = [_dockerfile(service).health_command, SERVICES[service].get("healthcheck", {}).get("test", [])]
    return re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", " ".join(part for test in tests for part in test))


def test_the_platform_is_complete() -> None:
    assert set(SERVICES) >= {"postgres", "redis", "minio", "api", "relay", "worker", "decoder"}
    assert {SERVICES[name]["build"]["dockerfile"] for name in OURS} == set(DOCKERFILES)
    assert {_module(name) for name in OURS} == set(SETTINGS)


@pytest.mark.process
def test_compose_files_follow_the_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    checked = subprocess.run([*command, COMPOSE, GPU_OVERLAY], cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.process
@pytest.mark.parametrize("path", DOCKERFILES)
def test_dockerfiles_pass_the_linter(path: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    checked = subprocess.run([hadolint, path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("service", OURS)
def test_the_program_exists(service: str) -> None:
    module = _module(service)
    spec = importlib.util.find_spec(module)
    assert spec is not None
    if spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{module}.__main__")
    assert spec is not None
    assert spec.origin is not None
    assert '__name__ == "__main__"' in Path(spec.origin).read_text(encoding="utf-8")


@pytest.mark.parametrize("service", OURS)
def test_the_environment_is_what_the_settings_read(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = SETTINGS[_module(service)]
    environment = _environment(service)
    ours = {name for name in environment if name.startswith("ARMATURE_")}
    assert ours <= set(settings_of(kind))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    read = kind().model_dump()
    for name in ours:  # it also has an effect: none is shadowed or misspelt
        block, field = name.removeprefix("ARMATURE_").lower().split("__")
        value = read[block][field]
        shown = value.get_secret_value() if isinstance(value, SecretStr) else value
        assert str(shown).lower() == environment[name].lower()


@pytest.mark.parametrize("service", OURS)
def test_only_the_control_plane_is_told_of_database_and_broker(service: str) -> None:
    reads = set(settings_of(SETTINGS[_module(service)]))
    for block, server in (("DATABASE", "postgres"), ("REDIS", "redis")):
        name = f"ARMATURE_{block}__URL"
        assert (name in _environment(service)) == (name in reads)
        if name in reads:
            assert f"@{server}:" in _environment(service)[name]
    assert ("control" in SERVICES[service]["networks"]) == ("ARMATURE_DATABASE__URL" in reads)


@pytest.mark.parametrize("service", [name for name in OURS if "ports" in SERVICES[name]])
def test_ports_and_health_paths_exist(service: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kind = SETTINGS[_module(service)]
    port = kind.model_fields["http"].default.port
    dockerfile = _dockerfile(service)
    assert dockerfile.ports == [port]
    assert dockerfile.env["ARMATURE_HTTP__PORT"] == str(port)
    assert dockerfile.env["ARMATURE_HTTP__HOST"] == "0.0.0.0"
    assert [published.rpartition(":")[2] for published in SERVICES[service]["ports"]] == [str(port)]

    urls = _health_urls(service)
    assert urls
    paths = set(_make_app(service, monkeypatch, tmp_path).openapi()["paths"])
    for checked_port, path in urls:
        assert int(checked_port) == port
        assert path in paths


@pytest.mark.parametrize("service", [name for name in SERVICES if name not in ONE_SHOT])
def test_long_running_services_are_health_checked(service: str) -> None:
    assert SERVICES[service].get("healthcheck", {}).get("test") or _dockerfile(service).health_command


@pytest.mark.process
@pytest.mark.parametrize("service", ["relay", "worker"])
def test_the_liveness_check_tells_fresh_from_stale(service: str, tmp_path: Path) -> None:
    test = SERVICES[service].get("healthcheck", {}).get("test") or _dockerfile(service).health_command
    assert _environment(service)["ARMATURE_LIVENESS__FILE"].startswith(("/tmp/", "/var/lib/armature/"))
    shell = test[-1].replace("$$", "$")
    alive = tmp_path / "alive"

    def check() -> int:
        environment = {"ARMATURE_LIVENESS__FILE": str(alive), "PATH": "/usr/bin:/bin"}
        return subprocess.run(["sh", "-c", shell], env=environment, capture_output=True, check=False).returncode

    assert check() != 0
    alive.touch()
    assert check() == 0
    subprocess.run(["touch", "--date=3 minutes ago", str(alive)], check=True)
    assert check() != 0


@pytest.mark.parametrize("service", SERVICES)
def test_services_run_with_little_power(service: str) -> None:
    configured = SERVICES[service]
    assert configured["read_only"] is True
    assert configured["cap_drop"] == ["ALL"]
    assert configured["security_opt"] == ["no-new-privileges:true"]
    user = configured.get("user") or _dockerfile(service).user
    if service == "minio-volume":  # gives a volume to another user, and may do nothing else
        assert (user, configured["cap_add"], configured["network_mode"]) == ("root", ["CHOWN"], "none")
    else:
        assert user.partition(":")[0] not in ("root", "0")
        assert "cap_add" not in configured


def test_nothing_but_the_two_front_doors_is_published_and_only_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"api", "decoder"}
    for (port,) in published.values():
        assert interpolate(port, {}).startswith("127.0.0.1:")
    networks = read_compose()["networks"]
    assert {name for name, network in networks.items() if not network.get("internal")} == {"public"}


def test_images_are_pinned() -> None:
    images = [service["image"] for name, service in SERVICES.items() if name not in OURS]
    images += [base for path in DOCKERFILES for base in read_dockerfile(path).bases]
    for image in images:
        assert re.fullmatch(r"[\w./-]+:(\d+\.\d+[\w.-]*|RELEASE\.[\dTZ-]+)", image), image
    assert len({base for path in DOCKERFILES for base in read_dockerfile(path).bases}) == 1
    assert SERVICES["minio"]["image"].startswith("quay.io/")  # Docker Hub has none any more


def test_passwords_have_no_default() -> None:
    asked = [variable for name in (COMPOSE, GPU_OVERLAY) for variable in variables(name)]
    assert {variable.name for variable in asked} == set(env_example()), f"{ENV_EXAMPLE} and the compose files differ"
    for variable in asked:
        if "PASSWORD" in variable.name:
            assert variable.operator == ":?"
            assert env_example()[variable.name] == ""
        else:
            assert (variable.operator, variable.argument) == (":-", env_example()[variable.name])
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|AUTH|DATABASE__URL|REDIS__URL", name) and "INITDB" not in name:
                assert re.search(r"\$\{\w*PASSWORD:\?", value), name


def test_what_the_images_copy_exists_and_is_in_the_build_context() -> None:
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    sources = {source for path in DOCKERFILES for source in read_dockerfile(path).sources}
    assert "*" in rules
    assert sources == let_in
    for source in sources:
        assert (ROOT / source).exists()
        assert not any(fnmatch.fnmatch(source, rule) for rule in rules if rule not in ("*", "") and rule[0] not in "!#")


@pytest.mark.parametrize("path", DOCKERFILES)
def test_the_image_installs_the_extra_of_its_service_at_the_tested_versions(path: str) -> None:
    service = Path(path).parent.name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (install,) = [run for run in read_dockerfile(path).runs if "pip install" in run]
    assert re.findall(r"'\.\[(\w+)\]'", install) == [service]
    assert service in project["optional-dependencies"]
    assert "--constraint constraints.txt" in install


@pytest.mark.process
def test_the_api_image_refuses_torch() -> None:
    (check,) = [run for run in read_dockerfile("services/api/Dockerfile").runs if "import torch" in run]
    assert "'import armature_api.app'" in check
    shell = check.replace("/opt/armature/bin/python", sys.executable)
    assert subprocess.run(["sh", "-c", shell], check=False).returncode != 0  # torch is installed here


@pytest.mark.parametrize("service", read_compose(GPU_OVERLAY)["services"])
def test_the_gpu_overlay_fits(service: str) -> None:
    overlay = read_compose(GPU_OVERLAY)["services"][service]
    assert set(overlay["build"]["args"]) <= _dockerfile(service).build_arguments
    assert set(overlay.get("environment", {})) <= set(settings_of(SETTINGS[_module(service)]))
    (device,) = overlay["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
