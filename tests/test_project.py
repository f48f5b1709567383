"""What holds the project together: contracts that cover every module, the lock, the Makefile, CI, and this suite."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parent.parent


@cache
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def read(name: str) -> str:
    return (ROOT / name).read_text()


def modules(*packages: str) -> set[str]:
    paths = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    named = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}
    return {name for name in named if not name.endswith("__init__")}


def test_make_clean_leaves_the_passwords_of_compose(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in (
        "monitor",
        "streams",
        "alerting",
        "tests",
        ".driftline/logs",
        ".driftline/secrets",
    ):
        (tmp_path / name).mkdir(parents=True)
    kept = tmp_path / ".driftline" / "secrets" / "api_key"
    kept.touch()
    (tmp_path / ".driftline" / "lock").touch()
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert list((tmp_path / ".driftline").rglob("*")) == [kept.parent, kept]


def test_every_module_is_in_the_core_contract_or_a_named_edge() -> None:
    contracts = pyproject()["tool"]["importlinter"]["contracts"]
    (contract,) = [each for each in contracts if each["name"] == "The core does no I/O"]
    core = set(contract["source_modules"])
    edges = {
        name for name in contract["forbidden_modules"] if name.startswith(("monitor.", "alerting."))
    }
    assert not core & edges
    found = modules("monitor", "alerting")
    assert sorted(found - core - edges) == [], "put these into the contract in pyproject.toml"
    assert sorted((core | edges) - found) == [], "the contract names modules that are gone"


@pytest.mark.parametrize("package", ["monitor", "alerting", "streams"])
def test_the_packages_init_files_import_nothing(package: str) -> None:
    for init in (ROOT / package).rglob("__init__.py"):
        assert "import " not in init.read_text(), (
            f"{init} would pull in modules behind the contracts"
        )


def test_the_lock_names_every_dependency_with_hashes_and_no_address() -> None:
    lock = read("requirements.lock")
    assert "://" not in lock
    pinned = re.findall(r"^([a-z0-9-]+)==.* \\\n {4}--hash=sha256:[0-9a-f]{64}\b", lock, re.M)
    assert len(pinned) == len(re.findall(r"^\S", lock, re.M))
    project = pyproject()["project"]
    wanted = [
        *project["dependencies"],
        *chain.from_iterable(project["optional-dependencies"].values()),
    ]
    names = {re.split(r"[^a-z0-9-]", requirement)[0] for requirement in wanted}
    assert names - {"driftline"} <= set(pinned), "run: make lock"


@pytest.mark.parametrize(
    ("compiler", "tag"), [("cc", r"py3-none-linux_\w+"), ("false", "py3-none-any")]
)
def test_a_wheel_has_the_compiled_kernel_where_it_compiles(
    tmp_path: Path, compiler: str, tag: str
) -> None:
    if compiler == "cc" and shutil.which("cc") is None:
        pytest.skip("no C compiler (cc) on PATH")
    for name in ("monitor", "streams", "alerting"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE", "hatch_build.py"):
        shutil.copy(ROOT / name, tmp_path)
    command = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "-t",
        "wheel",
        "-d",
        str(tmp_path / "dist"),
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"CC": compiler},
        check=True,
        capture_output=True,
        text=True,
    )
    (wheel,) = (tmp_path / "dist").iterdir()
    assert re.fullmatch(rf"driftline-[0-9.]+-{tag}\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        assert ("monitor/_kernel.so" in archive.namelist()) == (compiler == "cc")
    assert ("more slowly" in done.stdout + done.stderr) == (compiler != "cc")


def test_make_help_names_every_command() -> None:
    makefile = read("Makefile")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.M)
    assert phony
    assert set(phony[1].split()) == set(re.findall(r"^([a-z]+):.*## \S", makefile, re.M))


def test_ci_runs_what_a_developer_runs_and_nothing_else() -> None:
    assert re.findall(r"^make .*", read(".ci/run"), re.M) == [
        "make check",
        'make test | tee "$log"',
    ]
    assert re.findall(r"run: (.*)", read(".github/workflows/ci.yml")) == [".ci/run"]


OF_EACH_KIND: Final = """
import pytest

def test_passes():
    assert True

@pytest.fixture
def embedded_broker():
    pytest.skip("no binary for this machine")

@pytest.fixture(scope="session")
def kafka_factory():
    pytest.skip("no java on PATH")

def test_the_embedded_stack(embedded_broker):
    assert embedded_broker

def test_kafka(kafka):
    assert kafka

def test_both(broker_address):
    assert broker_address

@pytest.mark.xfail(reason="known")
def test_known():
    assert False
"""


def run_suite(pytester: pytest.Pytester) -> pytest.RunResult:
    pytester.makeconftest(read("tests/conftest.py"))
    pytester.makepyprojecttoml(read("pyproject.toml"))
    (pytester.path / "tests").mkdir()
    pytester.makepyfile(OF_EACH_KIND)
    return pytester.runpytest_subprocess("-p", "no:randomly", "--rootdir", str(pytester.path), ".")


def test_the_summary_counts_each_kind_and_says_why_one_did_not_run(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    result = run_suite(pytester)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "*= real Kafka: 2 did NOT run =*",
            "2 x no java on PATH",
            "*= embedded end-to-end: 2 did NOT run =*",
            "2 x no binary for this machine",
            "*= what ran =*",
            "unit: 1 passed, 1 xfailed",
            "embedded end-to-end: 2 skipped",
            "real Kafka: 2 skipped",
        ]
    )
    assert re.search(r"1 passed, 4 skipped, 1 xfailed", result.outlines[-1])


def test_a_skipped_test_fails_in_ci(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    result = run_suite(pytester)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*skipped, which CI does not accept: no java on PATH*"])
    assert not re.search(r"\d skipped", result.outlines[-1])
