"""MLflow: a tracking server, or files below the run directory."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dgpo_core.tracking.tracker import MediaFile, Table, TrackedRun, Tracker

__all__ = ["MlflowTracker"]

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
LONGEST, AT_ONCE = 500, 100
"""Characters of a parameter's value, and parameters of a call, that every server takes."""


class MlflowTracker(Tracker):
    """Logs to `MLFLOW_TRACKING_URI`; without one, to files below the run directory (`mlflow ui --backend-store-uri`).

    MLflow has no histograms: their quantiles are metrics. Images, videos, tables and the configuration are artifacts.
    """

    package = "mlflow"

    def __init__(self) -> None:
        self._client: Any = None
        self._id = ""

    def start(self, run: TrackedRun) -> None:
        """Begin a run in the experiment of the project, or continue the one whose id was kept."""
        local = None if os.environ.get("MLFLOW_TRACKING_URI") else run.directory.absolute() / "mlruns"
        if local is not None:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # without a database, as it is on one machine
        from mlflow import MlflowClient

        self._client = MlflowClient() if local is None else MlflowClient(tracking_uri=local.as_uri())
        kept = run.directory / "mlflow-run.json"
        if kept.is_file():
            self._id = json.loads(kept.read_text(encoding="utf-8"))["run_id"]
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._create(run)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps({"run_id": self._id}), encoding="utf-8")
        self._client.log_dict(self._id, dict(run.config), "config.json")
        self._client.log_dict(self._id, dict(run.versions), "versions.json")

    def _create(self, run: TrackedRun) -> str:
        experiment = self._client.get_experiment_by_name(run.project)
        where = experiment.experiment_id if experiment else self._client.create_experiment(run.project)
        tags = {"dgpo.key": run.key} | {f"tag.{tag}": "true" for tag in run.tags}
        run_id: str = self._client.create_run(where, run_name=run.name, tags=tags).info.run_id
        from mlflow.entities import Param

        parameters = [Param(name, str(value)[:LONGEST]) for name, value in _flat("", run.config)]
        for i in range(0, len(parameters), AT_ONCE):
            self._client.log_batch(run_id, params=parameters[i : i + AT_ONCE])
        return run_id

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        """Log metrics."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, iteration) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def histogram(self, name: str, values: Sequence[float], iteration: int) -> None:
        """Log quantiles as metrics."""
        found = np.quantile(np.asarray(values), QUANTILES)
        names = [f"{name}.q{round(100 * q):02d}" for q in QUANTILES]
        self.scalars(dict(zip(names, map(float, found), strict=True)), iteration)

    def media(self, name: str, files: Sequence[MediaFile], iteration: int) -> None:
        """Log files and their captions as artifacts."""
        where = f"{name}/{iteration:06d}"
        for file in files:
            for path in (file.image, file.video):
                if path is not None:
                    self._client.log_artifact(self._id, str(path), where)
        captions = {file.image.name: file.caption for file in files}
        self._client.log_dict(self._id, captions, f"{where}/prompts.json")

    def table(self, name: str, table: Table, iteration: int) -> None:
        """Log the table as an artifact in Markdown."""
        self._client.log_text(self._id, table.markdown() + "\n", f"{name}/{iteration:06d}.md")

    def finish(self, outcome: str) -> None:
        """Set the outcome."""
        status = {"finished": "FINISHED", "interrupted": "KILLED"}.get(outcome, "FAILED")
        self._client.set_terminated(self._id, status)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the settings by dotted key."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    elif value is not None:
        yield prefix, value if isinstance(value, str) else json.dumps(value)
