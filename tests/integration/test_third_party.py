"""Somebody else's reward, backbones and prompts, from templates to a training run, as author and users would do it.

The environment is a real one: they and dgpo itself are built as wheels and installed into it by pip. Only what is
large and not ours (torch and the like) comes from the environment of the tests.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
PACKED = Path(__file__).parent / "third_party" / "packed"
"""A packed transformer of one's own, with embedded guidance, shifted times and a LoRA: what its author put in place of
the template's files."""
PLUGINS = {"reward": "brightness", "backbone": "tiny", "prompts": "things"}
RUN = {
    "run": {"name": "third-party", "iterations": 2, "device": "cpu", "threads": 1},
    "backbone": {"use": "tiny", "checkpoint": "none", "lora": {"rank": 2, "alpha": 4}},
    "prompts": {"train": {"use": "things"}, "heldout": {"use": "things"}},
    "rollout": {"steps": 2, "group_size": 4, "groups": 2, "resolution": 16},
    "rewards": [{"use": "brightness", "options": {"target": 0.5}}],
}


@dataclass(frozen=True)
class Environment:
    """A virtual environment with dgpo and the plugins, and the sources that the reward was built from."""

    python: Path
    source: Path

    def run(self, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [self.python, *map(str, arguments)], cwd=self.source.parent, env=clean | {"OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, check=check,
        )  # fmt: skip

    def dgpo(self, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "dgpo_cli", *arguments, check=check)


def build_wheel(source: Path, directory: Path) -> Path:
    """What `python -m build` makes, without an index."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(command, cwd=source, capture_output=True, check=True)
    (wheel,) = directory.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel_of_dgpo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(ROOT, tmp_path_factory.mktemp("dgpo"))


@pytest.fixture(scope="module")
def wheel_of_the_kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(ROOT / "plugins/dgpo-kit", tmp_path_factory.mktemp("dgpo-kit"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, wheel_of_dgpo: Path, wheel_of_the_kit: Path) -> Environment:
    directory = tmp_path_factory.mktemp("third-party")
    wheels = [wheel_of_the_kit, build_wheel(ROOT / "plugins/dgpo-lab", directory / "wheels" / "lab")]
    for kind, name in PLUGINS.items():
        new = [sys.executable, "-m", "dgpo_cli", "plugins", "new", kind, name, "--output", str(directory)]
        subprocess.run(new, check=True, capture_output=True)
        wheels.append(build_wheel(directory / f"dgpo-{name}", directory / "wheels" / name))
    venv.create(directory / "venv", with_pip=False)
    python = directory / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, wheel_of_dgpo, *wheels], check=True, capture_output=True)
    shared = sysconfig.get_path("purelib")
    (own,) = (directory / "venv" / "lib").glob("python*/site-packages")
    (own / "shared.pth").write_text(f"import site; site.addsitedir({shared!r})\n")
    return Environment(python, directory / "dgpo-brightness")


def code_lines(path: Path) -> int:
    """Lines with code: without blank lines, comments and docstrings."""
    text = path.read_text()
    found = {number for number, line in enumerate(text.splitlines(), 1) if line.strip() and line.strip()[0] != "#"}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found -= set(range(node.lineno, (node.end_lineno or 0) + 1))
    return len(found)


def test_the_wheels_hold_every_template_and_what_is_installable(wheel_of_dgpo: Path, wheel_of_the_kit: Path) -> None:
    assert "dgpo_core/plugins/installable.json" in zipfile.ZipFile(wheel_of_dgpo).namelist()
    source = ROOT / "plugins/dgpo-kit/src"
    templates = {str(path.relative_to(source)) for path in (source / "dgpo_kit/templates").rglob("*") if path.is_file()}
    assert templates
    assert templates <= set(zipfile.ZipFile(wheel_of_the_kit).namelist())


def test_a_whole_reward_is_fewer_than_30_lines_of_code(environment: Environment) -> None:
    """Declaration, options and implementation together, imports included."""
    lines = {path.name: code_lines(path) for path in environment.source.glob("src/*/*.py")}
    assert set(lines) == {"__init__.py", "plugin.py", "options.py", "reward.py"}
    assert sum(lines.values()) < 30, lines


def test_it_runs_what_was_installed(environment: Environment) -> None:
    """The wheels, neither the sources nor this repository."""
    code = "import dgpo_core, dgpo_cli, dgpo_schemas, dgpo_brightness as b; print(dgpo_core.__file__, b.__file__)"
    for place in environment.run("-c", code).stdout.split():
        assert Path(place).is_relative_to(environment.python.parent.parent)


def test_it_is_listed_and_shown(environment: Environment) -> None:
    listed = json.loads(environment.dgpo("plugins", "list", "--kind", "reward", "--json").stdout)
    found = {part["name"]: part for part in listed["components"]}
    assert (found["brightness"]["distribution"], found["brightness"]["version"]) == ("dgpo-brightness", "0.1.0")
    shown = environment.dgpo("plugins", "show", "brightness").stdout
    assert "target: number at least 0 and at most 1, default 1.0" in shown


@pytest.mark.slow
def test_it_keeps_its_contract(environment: Environment) -> None:
    done = environment.dgpo("plugins", "check", "brightness")
    assert done.stdout.splitlines()[-1] == "23 passed"
    broken = environment.dgpo("plugins", "check", "brightness", "--option", "target=2", check=False)
    assert broken.returncode == 2
    assert "needs options: target must be at most 1" in broken.stdout


@pytest.mark.slow
def test_its_own_tests_pass(environment: Environment) -> None:
    tests = shutil.copytree(environment.source, environment.source.parent / "tested")
    shutil.rmtree(tests / "src")
    done = environment.run("-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", tests, check=False)
    assert done.returncode == 0, done.stdout
    assert "26 passed" in done.stdout


def test_a_run_trains_on_it_by_name(environment: Environment) -> None:
    directory = environment.source.parent
    (directory / "run.yaml").write_text(yaml.safe_dump(RUN))
    done = environment.dgpo("train", "run.yaml", check=False)
    assert done.returncode == 0, done.stderr
    run = directory / "runs" / "third-party"
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 2
    assert all(0 < record["rewards"]["brightness"]["mean"] < 1 for record in metrics)
    assert json.loads((run / "run.json").read_text())["plugins"]["dgpo-brightness"] == "0.1.0"


def test_its_adapter_is_exported(environment: Environment) -> None:
    """After the run above; one line of the backbone's author makes it."""
    run = Path("runs") / "third-party"
    refused = environment.dgpo("export", run, "--format", "kohya", check=False)
    assert (refused.returncode, refused.stderr.splitlines()[-1]) == (2, "--format kohya: choose one of peft")
    environment.dgpo("export", run, "--output", "adapter")
    written = environment.source.parent / "adapter"
    assert {p.name for p in written.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "dgpo.json"}
    config = json.loads((written / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 2, ["0", "2"])


# -- models with packed latents, embedded guidance and shifted times ---------------------------------------------------

COMMANDS = """
import json, os, signal, sys
import dgpo_core.lora, dgpo_core.storage.run_directory, dgpo_core.training.trainer, peft
from dgpo_cli.main import main

def kill_before(line):
    append, lines = dgpo_core.storage.run_directory.append_json, []
    def watched(*arguments):
        lines.append(arguments)
        if len(lines) == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return append(*arguments)
    dgpo_core.storage.run_directory.append_json = watched

for arguments, line in json.loads(sys.argv[3]):
    sys.stdout.flush()
    if os.fork() == 0:
        kill_before(line)
        try:
            main(arguments)
        except SystemExit as end:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code or 0)
    ended = os.waitstatus_to_exitcode(os.wait()[1])
    assert ended == (-signal.SIGKILL if line else 0), (arguments, ended)
"""
"""Each in a process of its own in which all is imported, as tests/integration/driver.py does; with a number, killed
before it writes so many lines of logs."""
WRITE_PACKED = """
import json, sys, torch
from pathlib import Path
from dgpo_packed.network import Model
from safetensors.torch import save_file
torch.manual_seed(0)
directory = Path(sys.argv[1])
directory.mkdir()
save_file(Model(width=32, layers=2).state_dict(), directory / "model.safetensors")
(directory / "config.json").write_text(json.dumps({"width": 32, "layers": 2}))
"""
LOAD_PACKED = """
import sys, torch
from dgpo_packed.network import Model
from peft import PeftModel
from safetensors.torch import load_file
checkpoint, adapter = sys.argv[1:3]
base, added = (Model.load(checkpoint, torch.device("cpu")).network for _ in range(2))
pairs = load_file(adapter + "/adapter_model.safetensors")
for name, down in pairs.items():
    if name.endswith(".lora_A.weight"):
        layer = added.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
        layer.weight += pairs[name.replace("lora_A", "lora_B")] @ down
given = torch.randn(2, 4, 16), torch.randn(4, 2), torch.randn(2, 8, 32), torch.rand(2), torch.ones(2)
with torch.no_grad():
    before, wanted = base(*given), added(*given)
    found = PeftModel.from_pretrained(base, adapter)(*given)
torch.testing.assert_close(found, wanted)
assert (wanted - before).abs().max() > 1e-3, "nothing was trained"
"""
"""peft adds what the file holds, and that is something."""
LOAD_FLUX = """
import sys, torch
from diffusers import FluxPipeline
checkpoint, adapter = sys.argv[1:3]
pipeline = FluxPipeline.from_pretrained(checkpoint)
def draw():
    noise = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    return pipeline("red", height=32, width=32, num_inference_steps=2, latents=noise, max_sequence_length=16,
                    output_type="latent")[0]
before = draw()
pipeline.load_lora_weights(adapter)
assert pipeline.get_list_adapters()["transformer"]
assert (draw() - before).abs().max() > 1e-3, "nothing was trained"
"""
MODELS = {"packed": ((), LOAD_PACKED, {}), "fluxlike": (("--over", "diffusers"), LOAD_FLUX, {"text_length": 16})}
"""Name to what is said to `dgpo plugins new`, how an exported adapter is loaded, and options."""


@pytest.fixture(scope="module")
def models(environment: Environment) -> Environment:
    """With dgpo-diffusers, both models and their checkpoints."""
    directory = environment.source.parent
    wheels = [build_wheel(ROOT / "plugins/dgpo-diffusers", directory / "wheels/diffusers")]
    for name, (said, _, _) in MODELS.items():
        environment.dgpo("plugins", "new", "backbone", name, *said)
        if not said:
            shutil.copytree(PACKED, directory / f"dgpo-{name}/src/dgpo_{name}", dirs_exist_ok=True)
        wheels.append(build_wheel(directory / f"dgpo-{name}", directory / "wheels" / name))
    install = [sys.executable, "-m", "pip", "--python", environment.python, "install", "--quiet", "--no-deps"]
    subprocess.run([*install, "--no-index", *wheels], check=True, capture_output=True)
    environment.run("-c", WRITE_PACKED, "checkpoint-packed")
    environment.dgpo("plugins", "tiny", "fluxlike", "checkpoint-fluxlike")
    return environment


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_ones_own_is_planned_trained_resumed_and_exported(models: Environment, name: str) -> None:
    directory = models.source.parent
    _, loading, options = MODELS[name]
    checkpoint, lora = f"checkpoint-{name}", {"rank": 2, "alpha": 4}
    for run in ("whole", "killed"):
        sections = RUN | {
            "run": {"name": f"{name}-{run}", "iterations": 2, "device": "cpu", "threads": 1},
            "backbone": {"use": name, "checkpoint": checkpoint, "lora": lora, "options": options},
            "rollout": {"steps": 2, "group_size": 3, "groups": 2, "resolution": 32, "guidance": 1.5, "shift": "auto"},
            "checkpoints": {"every": 1},
            "optimizer": {"learning_rate": 0.01},
            "evaluation": {"every": 2, "prompts": 2, "samples_per_prompt": 1},
        }
        (directory / f"{name}-{run}.yaml").write_text(yaml.safe_dump(sections))
    whole, killed = f"{name}-whole.yaml", f"{name}-killed.yaml"
    commands = [
        (["plan", whole], None),
        (["train", whole], None),
        (["train", killed], 4),
        (["train", killed, "--resume"], None),
        (["export", f"runs/{name}-whole", "--output", f"adapter-{name}"], None),
    ]
    given = [checkpoint, f"adapter-{name}", json.dumps(commands)]
    done = models.run("-c", COMMANDS + loading, *given, check=False)
    assert (done.returncode, "the model's own" in done.stdout) == (0, True), done.stderr
    assert f"resuming after iteration 1 of runs/{name}-killed" in done.stdout + done.stderr
    found, wanted = (what_is_left(directory / "runs" / f"{name}-{run}") for run in ("killed", "whole"))
    assert found == wanted
    assert len(wanted["metrics.jsonl"].splitlines()) == 2


def what_is_left(run: Path) -> dict[str, bytes]:
    """Of a run, byte for byte, but for its times."""
    newest = sorted((run / "checkpoints").iterdir())[-1]
    files = [run / "metrics.jsonl", run / "evaluations.jsonl", *newest.iterdir()]
    return {str(file.relative_to(run)): file.read_bytes() for file in files if file.name != "clock.json"}


@pytest.mark.slow
def test_a_model_of_ones_own_keeps_its_contract(models: Environment) -> None:
    done = models.dgpo("plugins", "check", "packed", "--checkpoint", "checkpoint-packed", check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "8 skipped, 50 passed"
