"""What SECURITY.md says, held against the source: no code comes out of data."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dgpo_cli.main import main
from dgpo_kit.toy import run_data

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    file
    for pattern in ("dgpo_core", "dgpo_cli", "schemas", "plugins/*/src", "experiments", "benchmarks", "documentation")
    for folder in ROOT.glob(pattern)
    for file in folder.rglob("*.py")
)
FORBIDDEN = {
    "eval", "exec", "compile", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load",
    "yaml.full_load", "yaml.unsafe_load", "marshal.loads", "marshal.load", "shelve.open", "joblib.load", "numpy.load",
    "np.load", "torch.hub.load", "dist.all_gather_object", "dist.broadcast_object_list", "dist.gather_object",
    "dist.recv_object_list",
}  # fmt: skip


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call of a name or a dotted name in our source, with its place."""
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield f"{file.relative_to(ROOT)}:{node.lineno}", node


def keyword(call: ast.Call, name: str) -> object:
    found = [k.value for k in call.keywords if k.arg == name]
    return found[0].value if found and isinstance(found[0], ast.Constant) else None


def test_there_is_source_to_look_at() -> None:
    assert len(SOURCES) > 200
    assert sum(1 for _ in calls()) > 5000


def test_nothing_is_unpickled_or_evaluated() -> None:
    assert [
        f"{place}: {ast.unparse(call.func)}" for place, call in calls() if ast.unparse(call.func) in FORBIDDEN
    ] == []


def test_torch_reads_weights_only() -> None:
    found = {place: keyword(call, "weights_only") for place, call in calls() if ast.unparse(call.func) == "torch.load"}
    assert found, "the aesthetic predictor is published as a .pth file"
    assert all(value is True for value in found.values()), found


def test_no_remote_code_and_no_shell() -> None:
    for place, call in calls():
        assert keyword(call, "trust_remote_code") is not True, place
        assert keyword(call, "shell") is not True, place
        assert keyword(call, "allow_pickle") is not True, place


@pytest.mark.parametrize("name", ["os:system", "dgpo_kit.toy:plugin", "./plugin.py", "evil", "../evil", "toy"])
@pytest.mark.parametrize("section", ["backbone", "rewards", "weighting", "objective"])
def test_a_run_file_names_installed_components_and_nothing_else(
    section: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('this must never be imported')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    data = run_data("out")
    data["backbone"] = {"use": "sd3", "checkpoint": "package:dgpo_miniature/checkpoint"}
    data["rewards"] = [{"use": "geneval", "options": {"detector": "shapes"}}]
    if section == "rewards":
        data["rewards"] = [{"use": name}]
    else:
        data[section] = data.get(section, {}) | {"use": name}
    Path("run.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(SystemExit) as caught:
        main(["validate", "run.yaml"])
    assert caught.value.code == 2
    assert f"unknown {section.removesuffix('s')} {name!r}" in capsys.readouterr().err


def test_what_lies_in_the_working_directory_is_no_plugin(tmp_path: Path) -> None:
    """Neither for `dgpo` nor for the processes that it starts."""
    (tmp_path / "evil.py").write_text("print('imported')\n")
    info = tmp_path / "evil-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dgpo]\nevil = evil\n")
    for command in (
        [str(Path(sys.executable).with_name("dgpo")), "plugins", "list"],
        [sys.executable, "-P", "-m", "dgpo_cli.child", str(os.getpid()), "plugins", "list"],
    ):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert "evil" not in done.stdout
        assert "imported" not in done.stdout + done.stderr
    done = subprocess.run([sys.executable, "-m", "dgpo_cli", "plugins", "list"], cwd=tmp_path, capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert "imported" in done.stderr, "python -m looks into the working directory: the two others must not"
