"""Docs, docstrings and comments refer to links, paths and names that exist, and no folder holds too many modules."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.support.pages import ROOT
from tests.support.python_names import Module, dotted_exists, prose, resolves_here
from tests.support.source_tree import MODULES, PAGES, SOURCES, TREE, relative

PATH = re.compile(r"(?<![\w/.:<>*{}\]-])((?:[\w.-]+/)*[\w-][\w.-]*\.(?:py|md))(?![\w*])")
ROLE = re.compile(r":(?:mod|class|func|meth|attr|data|exc|obj):`~?([^`<>]+)`")
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
ABSENT_PAGES = re.compile(
    r"\btraps? T\d|\(T\d+\)|\bmethods \d|\d-D\d|\bB\.\d|\bb6_|reliability\.md|methods\.md|safe-set\.md"
)
MOVED = """
armature/modeling/{guided_batch,guided_request,guided_model,rows,prefix_cache,kv_memory,shared_base,host_memory}
armature/modeling/{separate_rows,instructed_rows,twin_rows,kv_rows,apart_rows,lean,decoder_layers,edited_checkpoints}
armature/modeling/{model_configs,safetensors_files,unsafe_files,loading,sharded_loading,task_vector_files}
armature/modeling/{adapter_files,peft_pblora,parm_files,lora_files,offloading,prompts,chat_templates,instructions}
armature/modeling/vocabularies
armature/inference/{two_models,instructed,separate_rows,twin_rows}
armature/inference/transformers/{unbatched,twin_rows,kv_rows,apart_rows}
armature/inference/lean/{rows,base,replays}
armature/contracts/{row_forms,row_reader,dataset_scan,dataset_statistics,answer_pairs,strict_json}
armature_worker/{arm_conflicts,arm_data,arm_margins,arm_training,arm_validation,cards,datasets,device_probe,devices}
armature_worker/{examination,failures,guiding_arm,harm_tuning,harm_vectors,heartbeat,job_context,lineage,local_context}
armature_worker/{memory,notices,orphans,pair_batches,progress_meter,questions,rank,rank_channel,rank_group,rank_process}
armature_worker/{ranks,run_job,series,subject,sweep_measurement,sweep_plot,sweep_points,torch_ranks,training_state}
armature_worker/{workdir,admission}
armature/datasets/row_forms
armature/algorithms/spools
armature_api/{references,compatibility,queries,idempotency,rates,downloads,model_list,rows,serving}
armature_api/jobs/{feed,fine_tuning,fine_tuning_views}
armature_decoder/{app,server,routes,budgets,traffic,stages,answers,token_reports}
armature_decoder/engine/{turns,backends,kv_budget}
armature_decoder/bundles/{bases,states}
armature_cli/{embedded,supervisor,valkey,ports,tether,postgres}
"""
"""Modules that moved or were renamed when packages were split into rooms (docs/decisions, 0037)."""
FOLDER_LIMIT = 13
ROOT_PACKAGES = {"armature", "armature_api", "armature_worker", "armature_decoder", "armature_cli", "benchmarks"}


def moved() -> list[str]:
    found = []
    for line in MOVED.split():
        folder, _, names = line.partition("{")
        found += [folder + name for name in names.rstrip("}").split(",")] if names else [folder]
    return found


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found: dict[str, int] = {}
    slugs = []
    for heading in re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        slugs.append(f"{slug}-{found[slug]}" if slug in found else slug)
        found[slug] = found.get(slug, 0) + 1
    return frozenset(slugs)


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_resolve_with_their_anchors(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", page.read_text())
    broken = []
    for target in LINK.findall(text):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_the_index_lists_every_page() -> None:
    folder = ROOT / "docs"
    linked = {(folder / target).resolve() for target in LINK.findall((folder / "README.md").read_text())}
    pages = {page for page in PAGES if folder in page.parents and page.parent.name != "decisions"}
    assert pages - linked - {folder / "README.md"} == set()
    decisions = folder / "decisions"
    listed = {(decisions / target).resolve() for target in LINK.findall((decisions / "README.md").read_text())}
    assert set(decisions.glob("0*.md")) == listed


def missing_paths(text: str) -> list[str]:
    """Paths of Python files and pages that no file of the repository ends in."""
    return sorted({path for path in PATH.findall(text) if path.lstrip("./") not in TREE})


def test_paths_in_pages_exist() -> None:
    assert {relative(page): paths for page in PAGES if (paths := missing_paths(page.read_text()))} == {}


def test_paths_in_docstrings_and_comments_exist() -> None:
    found = {relative(path): missing_paths("\n".join(prose(path))) for path in SOURCES}
    assert {path: paths for path, paths in found.items() if paths} == {}


def exists(path: Path, name: str) -> bool:
    """Whether a role of the module at ``path`` names something."""
    if name.startswith("."):
        return (path.parent / f"{name[1:]}.py").is_file()
    return dotted_exists(name) if name.split(".")[0] in ROOT_PACKAGES else resolves_here(Module.read(path), name)


def test_names_in_docstrings_exist() -> None:
    roles = [(path, name.rstrip("()")) for path in MODULES for name in ROLE.findall("\n".join(prose(path)))]
    assert len(roles) > 100
    assert [f"{relative(path)}: {name}" for path, name in roles if not exists(path, name)] == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("armature.errors", True),
        ("armature.errors.InvalidRequest.status", True),
        ("armature.errors.InvalidRequest.colour", False),
        ("armature.errors.Nothing", False),
        ("armature.nothing", False),
        ("armature.inference.runner.ModelRunner.decode", True),
    ],
)
def test_dotted_names_are_looked_up_in_the_sources(name: str, expected: bool) -> None:
    assert dotted_exists(name) is expected


def found_in_texts(pattern: re.Pattern[str]) -> dict[str, set[str]]:
    """What the pattern finds in pages and sources, by file, this one apart."""
    files = [path for path in [*PAGES, *SOURCES] if path != Path(__file__)]
    found = {relative(path): set(pattern.findall(path.read_text())) for path in files}
    return {path: names for path, names in found.items() if names}


def test_no_reference_to_a_page_that_is_not_here() -> None:
    assert found_in_texts(ABSENT_PAGES) == {}


def test_no_module_has_its_name_of_before_the_rooms() -> None:
    old = moved()
    assert [name for name in old if f"{name}.py" in TREE or f"{name}/__init__.py" in TREE] == []
    forms = [re.escape(form) for name in old for form in (name, name.replace("/", "."))]
    assert found_in_texts(re.compile(rf"\b(?:{'|'.join(forms)})\b")) == {}


def test_no_folder_is_a_corridor() -> None:
    folders = {path.parent for path in MODULES}
    crowded = {
        folder: count
        for folder in folders
        if (count := sum(path.name != "__init__.py" for path in folder.glob("*.py"))) > FOLDER_LIMIT
    }
    unexplained = {
        relative(folder): count
        for folder, count in crowded.items()
        if "more than a dozen" not in (ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or "")
    }
    assert unexplained == {}
