"""docs/extensions.md and docs/parameters.md say what the code says."""

import ast
import inspect
import re
from dataclasses import fields

import pytest

from backend import reference
from backend.extension import API_VERSION, Contribution, Extension
from backend.manifest import CAPABILITIES, Manifest
from backend.params import Param
from backend.scaffold import TEMPLATE
from backend.settings import ROOT

TEXT = (ROOT / "docs" / "extensions.md").read_text("utf-8")
STAGES = [name for name, value in vars(Extension).items() if inspect.isfunction(value)]
ATTRIBUTES = [name for name in Extension.__annotations__ if not name.startswith("_")]
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"docs/extensions.md has no section {title}"
    return found[1]


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_and_door_has_a_section_with_its_signature(stage: str) -> None:
    signature = str(inspect.signature(getattr(Extension, stage))).replace("'", "")
    assert f"\ndef {stage}{signature}\n" in section(stage)


def test_the_sections_come_in_the_order_of_the_stages() -> None:
    places = [TEXT.index(f"\n### {stage}\n") for stage in STAGES]
    assert places == sorted(places)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_each_class_attribute_is_in_the_table_with_its_default(attribute: str) -> None:
    row = re.search(rf"^\| `{attribute}` \| (.*?) \|", section("The class"), re.MULTILINE)
    assert row, f"{attribute} is missing"
    if attribute in ("prompt_tag", "order", "task"):
        assert row[1].strip("`").replace("Task.", "") in str(getattr(Extension, attribute)) + repr(
            getattr(Extension, attribute)
        )


def test_no_class_attribute_is_invented() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", section("The class"), re.MULTILINE)) == set(ATTRIBUTES)


def test_the_manifest_table_has_each_key_and_no_other() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*)\|$", section("extension.toml"), re.MULTILINE)
    assert [key for key, _, _ in rows] == list(Manifest.model_fields)
    for key, kind, meaning in rows:
        field = Manifest.model_fields[key]
        assert ("Required." in meaning) == field.is_required(), key
        assert kind == ("number" if field.annotation is int else "list" if field.default == () else "text"), key
    assert f"this is {API_VERSION}." in section("extension.toml")
    assert all(f"`{name}`" in section("extension.toml") for name in CAPABILITIES)


def test_what_a_stage_sees_is_listed() -> None:
    tree = ast.parse((ROOT / "backend" / "diffusion" / "run.py").read_text("utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    run = [_name(node) for node in classes["Run"].body if isinstance(node, ast.AnnAssign | ast.FunctionDef)]
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.*?) \|", section("The stages"), re.MULTILINE)))) == {
        *run
    }
    step = [_name(node) for node in classes["Step"].body if isinstance(node, ast.AnnAssign)]
    assert all(f"`step.{name}`" in section("step") for name in step)
    assert all(f"{field.name}=" in section("contribute") for field in fields(Contribution))


def test_each_argument_of_param_is_named() -> None:
    names = [name for name in inspect.signature(Param).parameters if name not in ("default", "label")]
    assert [name for name in names if f"`{name}`" not in section("Parameters")] == []


def test_what_a_script_of_the_page_gets_is_listed() -> None:
    scripts = ROOT / "ui" / "static" / "js"
    for script, begin, indent, table in (
        ("extend.js", "const apiOf", "  ", "api"),
        ("panel-own.js", "Object.freeze({", "    ", "field"),
    ):
        code = (scripts / script).read_text("utf-8").split(begin)[1].split("\n\n")[0]
        given = set(re.findall(rf"^{indent}(?:[gs]et )?(\w+)[(:,]", code, re.MULTILINE))
        rows = re.search(rf"^\| `{table}\.` \|.*?\n((?:\|.*\n)+)", section("The page"), re.MULTILINE)
        assert rows, table
        cells = "".join(re.findall(r"^\| (.*?) \|", rows[1], re.MULTILINE))
        assert set(re.findall(r"`(\w+)", cells)) == given, table


def test_the_first_example_is_the_template() -> None:
    assert BLOCKS[0] == (TEMPLATE / "__init__.py").read_text("utf-8")


@pytest.mark.parametrize("block", BLOCKS)
def test_each_example_is_python(block: str) -> None:
    ast.parse(re.sub(r"^(def .*[^:\n])$", r"\1: ...", block, flags=re.MULTILINE))


def test_the_parameters_are_up_to_date() -> None:
    written = reference.FILE.read_text("utf-8")
    assert written == reference.parameters(), "`python -m backend.reference` brings docs/parameters.md up to date"


def _name(node: ast.AnnAssign | ast.FunctionDef) -> str:
    return node.name if isinstance(node, ast.FunctionDef) else ast.unparse(node.target)
