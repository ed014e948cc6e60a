"""Runs as objects: they do what the commands do, to the byte, and load the model once."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dgpo_core import Callback, Prompt, Run, UserError, load_run, score
from dgpo_core.plugins.registry import Registry
from dgpo_core.training import engine as engine_module
from dgpo_kit.toy import BrightnessReward, sizes_plugin
from tests.api.conftest import WriteRun
from tests.toy_runs import result, tree

Dgpo = Callable[..., Any]
RESULT = ("metrics.jsonl", "evaluations.jsonl")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each model that was loaded."""
    made: list[str] = []
    whole = engine_module._backbone

    def counted(*arguments: Any, **keywords: Any) -> Any:
        made.append("backbone")
        return whole(*arguments, **keywords)

    monkeypatch.setattr(engine_module, "_backbone", counted)
    return made


# -- training --------------------------------------------------------------------------------------------------------


def test_training_is_that_of_the_command(write_run: WriteRun, dgpo: Dgpo) -> None:
    file = write_run()
    seen: list[int] = []
    run = load_run(file, {"run.name": "api", "rollout.steps": 2})
    assert run.train(on_progress=lambda metrics: seen.append(metrics.iteration)) is run
    assert dgpo("train", file, "--quiet", "--set", "run.name=command", "--set", "rollout.steps=2").code == 0
    assert result(Path("runs/api")) == result(Path("runs/command"))
    assert seen == [1, 2]
    assert run.outcome is not None
    assert (run.outcome.outcome, run.outcome.iteration) == ("finished", 2)
    assert run.directory == Path("runs/api")
    assert [record.iteration for record in run.metrics()] == [1, 2]
    assert {record.iteration for record in run.evaluations()} == {0, 2}


@pytest.mark.parametrize(
    "go_on",
    [
        lambda run: run.resume(),
        lambda run: load_run("run.yaml", ["run.name=half"]).resume(),
        lambda run: Run.open("runs/half").resume(),
        lambda run: load_run("run.yaml", {"run.name": "half"}).train(resume="auto"),
    ],
    ids=["object", "file", "directory", "auto"],
)
def test_a_run_is_resumed_bit_for_bit(trained: Run, go_on: Callable[[Run], Run]) -> None:
    run = load_run("run.yaml", {"run.name": "half"}).train(max_iterations=1)
    assert len(run.metrics()) == 1
    assert len(go_on(run).metrics()) == 2
    assert result(Path("runs/half")) == result(trained.directory)


def test_callbacks_messages_and_warnings(write_run: WriteRun, caplog: pytest.LogCaptureFixture) -> None:
    class Watching(Callback):
        phases: list[str] = []

        def on_phase_start(self, phase: str) -> None:
            self.phases.append(phase)

    caplog.set_level(logging.INFO, "dgpo_core")
    watching = Watching()
    run = load_run(write_run(prompts={"heldout": None}, evaluation={"every": 0})).train(
        max_iterations=1, callbacks=[watching]
    )
    assert len(set(watching.phases)) > 3
    assert "1 iterations are left; continue with resume=True" in caplog.messages
    assert run.outcome is not None
    assert run.outcome.ended_by is None


def test_a_run_is_trained_outside_of_the_main_thread(write_run: WriteRun) -> None:
    run = load_run(write_run())
    thread = threading.Thread(target=lambda: run.train(max_iterations=1))
    thread.start()
    thread.join()
    assert len(run.metrics()) == 1


def test_what_was_trained_is_used_after_the_run_has_stopped_itself(
    write_run: WriteRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dgpo_core import RunStopped

    run = load_run(write_run())
    score, calls = BrightnessReward.score, []

    def broken(self: Any, media: Any, prompts: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("the lamp is out")
        return score(self, media, prompts)

    monkeypatch.setattr(BrightnessReward, "score", broken)
    with pytest.raises(RunStopped, match="the lamp is out"):
        run.train()
    assert run.sample("x", model="policy").tensors.shape == (1, 3, 8, 8)


# -- samples ---------------------------------------------------------------------------------------------------------


def test_samples_are_those_of_the_command(trained: Run, dgpo: Dgpo) -> None:
    samples = trained.sample(["one", "two"], count=3, seed=5, steps=2)
    written = samples.save("python")
    words = ("-p", "one", "-p", "two", "-n", 3, "--seed", 5, "--steps", 2)
    assert dgpo("sample", "runs/toy", *words, "--output", "command").code == 0
    assert tree(written) == tree(Path("command"))
    assert samples.tensors.shape == (6, 3, 8, 8)
    assert samples.tensors.dtype == torch.float32
    assert [prompt.text for prompt in samples.prompts] == ["one"] * 3 + ["two"] * 3
    assert (samples.seed, len(samples)) == (5, 6)
    for i, image in enumerate(samples.images):
        assert isinstance(image, Image.Image)
        shades = samples.tensors[i].permute(1, 2, 0).numpy() * 255
        assert np.abs(np.asarray(image) - shades).max() <= 0.5001
    with Image.open("command/grid.png") as grid:
        assert samples.grid().tobytes() == grid.tobytes()


def test_the_model_is_loaded_once(trained: Run, built: list[str]) -> None:
    first = trained.sample("one", seed=1)
    base = trained.sample("one", seed=1, model="base")
    early = trained.sample("one", seed=1, checkpoint=1)
    again = trained.sample("one", seed=1)
    trained.evaluate(limit=1)
    trained.export("adapter")
    assert built == ["backbone"]
    assert torch.equal(first.tensors, again.tensors)  # type: ignore[arg-type]
    assert not torch.equal(first.tensors, base.tensors)  # type: ignore[arg-type]
    assert not torch.equal(first.tensors, early.tensors)  # type: ignore[arg-type]
    trained.close()
    with Run.open("runs/toy") as run:
        assert torch.equal(run.sample("one", seed=1, checkpoint=1).tensors, early.tensors)  # type: ignore[arg-type]
    assert built == ["backbone"] * 2
    assert run._target is None


def test_new_checkpoints_are_found(trained: Run, built: list[str]) -> None:
    before = Run.open("runs/toy")
    old = before.sample("one")
    load_run("run.yaml", {"run.iterations": 3}).resume()
    new = before.sample("one")
    assert "iteration 2" in old.label
    assert "iteration 3" in new.label
    assert len(built) == 2  # the one that was trained, and the one that drew twice


@pytest.mark.parametrize(
    ("prompts", "texts"),
    [
        ("a lamp", ["a lamp"]),
        (["a", Prompt("b"), {"prompt": "c", "tag": "even"}], ["a", "b", "c"]),
        ({"prompt": "small", "size": [8, 8], "negative_prompt": "dark"}, ["small"]),
        (Path("p.jsonl"), ["of a file"]),
        (None, ["heldout picture 0", "heldout picture 3", "heldout picture 4"]),
    ],
    ids=["text", "list", "dict", "file", "none"],
)
def test_prompts(trained: Run, prompts: Any, texts: list[str]) -> None:
    Path("p.jsonl").write_text('{"prompt": "of a file"}\n')
    assert [prompt.text for prompt in trained.sample(prompts).prompts] == texts


def test_samples_of_several_sizes(write_run: WriteRun, known: Registry) -> None:
    known.register(sizes_plugin, distribution="sizes")
    sized = {"use": "toy-sizes", "options": {"sizes": [[8, 8], [16, 8]]}}
    with load_run(write_run(prompts={"train": sized, "heldout": sized})) as run:
        samples = run.sample(["small", {"prompt": "tall", "size": [16, 8]}], model="base", size=8)
    assert isinstance(samples.tensors, list)
    assert [tuple(one.shape) for one in samples.tensors] == [(3, 8, 8), (3, 16, 8)]
    assert [image.size for image in samples.images] == [(8, 8), (8, 16)]  # type: ignore[union-attr]


def test_samples_that_are_videos(write_run: WriteRun, known: Registry, film: object) -> None:
    known.register(film, distribution="film")
    file = write_run(backbone={"use": "film", "checkpoint": "film"}, rewards=[{"use": "glow"}])
    with load_run(file) as run:
        samples = run.sample("x", model="base", count=2)
    assert samples.tensors.shape == (2, 5, 3, 8, 8)  # type: ignore[union-attr]
    assert [len(frames) for frames in samples.images] == [5, 5]  # type: ignore[arg-type]
    samples.save("out", fps=5)
    assert Path("out/01.png").is_file()
    assert score("glow", samples).values.tolist() == score("glow", samples.tensors, "x").values.tolist()


def test_a_run_file_has_its_base_model(write_run: WriteRun, dgpo: Dgpo) -> None:
    file = write_run()
    with load_run(file) as run:
        run.sample("x", model="base", count=2).save("python")
        assert run.evaluate(model="base")["brightness"].iteration == 0
        with pytest.raises(UserError, match=r"model='ema': .*run.yaml has not been trained here"):
            run.sample("x")
    assert dgpo("sample", file, "-p", "x", "-n", 2, "--output", "command").code == 0
    assert tree(Path("python")) == tree(Path("command"))
    assert not Path("runs").exists()


# -- evaluation and export -------------------------------------------------------------------------------------------


def test_evaluations_are_those_of_the_command(trained: Run, dgpo: Dgpo) -> None:
    found = trained.evaluate(model="policy", limit=2, samples=2)
    command = dgpo("evaluate", "runs/toy", "--model", "policy", "--limit", 2, "-n", 2, "--json")
    assert [record.model_dump(mode="json") for record in found] == json.loads(command.out)
    assert found["brightness"].n == 2
    assert len(found.samples) == 4
    assert "brightness" in repr(found)


def test_exports_are_those_of_the_command(trained: Run, dgpo: Dgpo) -> None:
    assert trained.export("python", model="ema_fast", checkpoint="best") == Path("python")
    assert dgpo("export", "runs/toy", "--model", "ema_fast", "--checkpoint", "best", "--output", "command").code == 0
    assert tree(Path("python")) == tree(Path("command"))


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda run: run.sample("x", model="slow"), "model='slow': choose one of base, policy, ema_fast, ema"),
        (lambda run: run.sample("x", count=0), "count=0: must be an integer of at least 1"),
        (lambda run: run.sample("x", guidance=0.5), "guidance=0.5: must be a number of at least 1"),
        (lambda run: run.sample("x", size=7), "size: 7x7 is not possible"),
        (lambda run: run.sample("x", size=(8, 8, 8)), "must be a side in pixels, such as 768, or (height, width)"),
        (lambda run: run.sample("x", size=99999), "size: 99999: a side must be from 1 to"),
        (lambda run: run.sample("x", checkpoint=9), "no checkpoint '9'; there are newest, best and iterations 0, 1, 2"),
        (lambda run: run.sample([1]), "prompts[0]: must be a text, a Prompt, or a dict with the key `prompt`, not int"),
        (lambda run: run.sample([]), "prompts: must be a text, a Prompt, a dict or a list of these, not an empty list"),
        (lambda run: run.sample({"text": "x"}), "prompts: `prompt` must be a non-empty string"),
        (lambda run: run.export("x", model="base"), "model='base': the base model is the checkpoint"),
        (lambda run: run.export("x", format="peft"), "format='peft': choose one of toy"),
        (lambda run: run.export("x", format=3), "format=3: must be a string"),
        (lambda run: run.sample("x").grid(-1), "columns=-1: must be an integer of at least 1"),
        (lambda run: run.sample("x", count=True), "count=True: must be an integer of at least 1"),
        (lambda run: run.resume(callbacks=[print]), "callbacks[0]: must be a Callback instance, got builtin_function"),
        (lambda run: run.resume(callbacks=[Callback]), "callbacks[0]: must be a Callback instance, got the class"),
        (lambda run: run.resume(callbacks=Callback()), "callbacks: must be a list of Callback instances, got Callback"),
        (lambda run: run.export("runs"), "directory='runs': would replace runs/toy"),
        (lambda run: run.train(), "continue it with resume=True, or choose another run.name"),
        (lambda run: run.train(accept=["base"]), "accept: requires resume"),
        (lambda run: run.resume(accept="logs"), "accept='logs': must be a list with 'base' or 'logs'"),
        (lambda run: Run.open(run.directory, accept=["bse"]), "accept=['bse']: must be a list with 'base'"),
        (lambda run: Run.open(run.directory, [("run.seed", 1)]), "overrides: must be a dict of settings, or a list of"),
        (lambda run: Run.open(None), "None: must be a path, not NoneType"),
        (lambda run: run.sample("x", seed="3"), "seed='3': must be an integer"),
        (lambda run: run.sample("x", seed=None), "seed=None: must be an integer"),
        (lambda run: run.evaluate(seed=1.0), "seed=1.0: must be an integer"),
        (lambda run: run.sample("x", guidance=float("inf")), "guidance=inf: must be a number of at least 1"),
        (lambda run: Run.open("run.yaml"), "run.yaml: is a file; load_run reads a run file"),
        (lambda run: Run.open("elsewhere"), "elsewhere: no such run directory"),
        (lambda run: Run.open("runs/toy", {"run.seed": 1}), "overrides belongs to a run file"),
        (lambda run: load_run("runs/toy"), "runs/toy: is a directory; Run.open opens a run directory"),
        (lambda run: load_run("run.yaml", {"rollout.step": 2}), "override rollout.step=2: unknown key; did you"),
        (lambda run: load_run("run.yaml", ["rollout.steps=0"]), "override rollout.steps=0: must be"),
        (lambda run: load_run("run.yaml", {"run.seed": {1}}), "override run.seed: a run file cannot hold {1}"),
        (lambda run: load_run("run.yaml", "run.seed=1"), "overrides: must be a dict of settings, or a list of KEY=VAL"),
        (lambda run: load_run("run.yaml", preset="24gb"), "preset: '24gb' is not a preset of backbone toy"),
        (lambda run: load_run("run.yaml", {"run.name": "new"}).resume(), "start the run without resume=True"),
    ],
)  # fmt: skip
def test_mistakes_are_reported_in_the_words_of_python(trained: Run, call: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        call(trained)
    assert said in str(caught.value)
    assert "--" not in str(caught.value)


def test_a_moved_base_model_is_reported_of(trained: Run) -> None:
    record = Path("runs/toy/run.json")
    data = json.loads(record.read_text())
    from dgpo_schemas.sealing import sealed

    data.pop("sha256", None)
    data["base"] = {"directory": "toy", "files": {}, "commit": None}
    record.write_text(json.dumps(sealed(data)))
    with pytest.raises(UserError, match=r"set its path: overrides=\{'backbone.checkpoint': PATH\}"):
        Run.open("runs/toy").sample("x")


def test_damaged_lines_of_a_log_are_left_out(trained: Run, caplog: pytest.LogCaptureFixture) -> None:
    log = Path("runs/toy/metrics.jsonl")
    log.write_text(log.read_text() + "{broken\n" + '{"iteration": 3}\n')
    assert [record.iteration for record in trained.metrics()] == [1, 2]
    assert "2 lines cannot be read and are left out" in caplog.text


def test_callbacks_are_checked_before_anything_is_built(
    write_run: WriteRun, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(write_run())
    with pytest.raises(UserError, match=r"callbacks\[1\]: must be a Callback instance, got object"):
        run.train(callbacks=[Callback(), object()])  # type: ignore[list-item]
    assert built == []
    assert not Path("runs").exists()


def test_integers_of_numpy_are_integers(write_run: WriteRun) -> None:
    def integer(value: int) -> Any:
        return np.int64(value)

    run = load_run(write_run(), {"run.seed": integer(4)}).train(max_iterations=integer(1))
    assert run.config.run.seed == 4
    assert len(run.metrics()) == 1
    given: dict[str, int] = {"count": 2, "seed": 3, "steps": 2, "guidance": 1, "size": 8, "micro_batch": 1}
    plain = run.sample("x", **given, checkpoint=1)  # type: ignore[arg-type]
    found = run.sample("x", **{name: integer(value) for name, value in given.items()}, checkpoint=integer(1))
    assert torch.equal(found.tensors, plain.tensors)  # type: ignore[arg-type]
    assert (type(found.seed), type(found.count)) == (int, int)
    assert found.grid(integer(1)).tobytes() == plain.grid(1).tobytes()
    counts = {"limit": 1, "samples": 2, "seed": 3, "micro_batch": 1}
    scores = run.evaluate(**{name: integer(value) for name, value in counts.items()})
    assert scores.samples == run.evaluate(**counts).samples  # type: ignore[arg-type]
    assert score("brightness", found, batch=integer(1)).values.shape == (2,)


def test_overrides_as_settings(write_run: WriteRun) -> None:
    run = load_run(
        write_run(),
        {
            "optimizer.learning_rate": 1e-5,
            "objective.clip": None,
            "run.output": Path("else where"),
            "rollout.groups": 2,
        },
    )
    assert run.config.optimizer.learning_rate == 1e-5
    assert run.config.objective.clip is None
    assert run.directory == Path("else where/toy")
    assert "else where/toy" in repr(run)


def test_samples_are_saved_in_the_home_directory(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert trained.sample("x").save("~/drawn") == tmp_path / "home/drawn"
    assert (tmp_path / "home/drawn/00.png").is_file()
