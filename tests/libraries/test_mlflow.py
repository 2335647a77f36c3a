"""The report in a real MLflow registry: the alias moves on a pass, and only then."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shop_kit import Shop

from compatctl.cli.app import VERDICT_EXIT_CODES

pytest.importorskip("mlflow")

NAME = "shop"


@pytest.fixture
def registry(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of a registry in SQLite, whose model ``shop`` has three versions: the old model, the
    better and the worse one; the old one is the champion."""
    from mlflow import MlflowClient

    monkeypatch.chdir(shop.folder)
    uri = f"sqlite:///{shop.path('mlflow.db')}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.create_experiment("models", artifact_location=str(shop.path("artifacts")))
    client.create_experiment("compatctl", artifact_location=str(shop.path("reports")))
    client.create_registered_model(NAME)
    for name in ("old.onnx", "new.onnx", "worse.onnx"):
        run = client.create_run(experiment).info
        client.log_artifact(run.run_id, str(shop.path(name)), "model")
        client.create_model_version(NAME, f"{run.artifact_uri}/model", run.run_id)
    client.set_registered_model_alias(NAME, "champion", "1")
    return client


def champion(client: Any) -> str:
    return str(client.get_model_version_by_alias(NAME, "champion").version)


def publish(shop: Shop, version: int, *more: object) -> Any:
    return shop.run("mlflow", "--model", NAME, "--version", version, *more)


def test_the_alias_moves_to_the_version_that_passed(shop: Shop, registry: Any) -> None:
    """The run has the report's bytes, figures and digests; a second time changes nothing."""
    assert shop.run("verify", shop.path("new.onnx")).code == 0
    done = publish(shop, 2)
    assert done.code == 0, done.stderr
    assert (done.json["moved"], done.json["before"], champion(registry)) == (True, "1", "2")
    run = registry.get_run(done.json["run"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["compatctl.verdict"] == "pass"
    assert run.data.metrics["compatctl/hit_gain/low"] > 0
    kept = registry.download_artifacts(done.json["run"], "compatctl/report.json")
    assert Path(kept).read_bytes() == shop.path("report.json").read_bytes()
    names = {Path(file.path).name for file in registry.list_artifacts(run.info.run_id, "compatctl")}
    assert names == {"report.json", "summary.md", "verify.prom", "verify.xml"}
    assert registry.get_model_version(NAME, "2").tags["compatctl.verdict"] == "pass"
    again = publish(shop, 2)
    assert (again.code, again.json["moved"], champion(registry)) == (0, False, "2")


@pytest.mark.parametrize(
    ("name", "version", "verdict"), [("worse.onnx", 3, "fail"), ("old.onnx", 1, "inconclusive")]
)
def test_no_alias_moves_without_a_pass(
    shop: Shop, registry: Any, name: str, version: int, verdict: str
) -> None:
    """The report is logged, the version says the verdict, and the champion stays."""
    code = VERDICT_EXIT_CODES[verdict]
    assert shop.run("verify", shop.path(name)).code == code
    registry.set_registered_model_alias(NAME, "champion", "1")
    done = publish(shop, version)
    assert (done.code, done.json["moved"], champion(registry)) == (code, False, "1")
    assert registry.get_model_version(NAME, str(version)).tags["compatctl.verdict"] == verdict


def test_a_report_of_another_model_moves_nothing(shop: Shop, registry: Any) -> None:
    """A version without the candidate's bytes, a champion that was not compared with, an edited
    report and another policy are refused before anything is logged."""
    assert shop.run("verify", shop.path("new.onnx")).code == 0
    runs = len(registry.search_runs([registry.get_experiment_by_name("compatctl").experiment_id]))
    done = publish(shop, 3)
    assert done.code == 3
    assert "is the candidate of the report" in done.stderr
    registry.set_registered_model_alias(NAME, "champion", "3")
    done = publish(shop, 2)
    assert done.code == 6
    assert "champion is version 3" in done.stderr
    registry.set_registered_model_alias(NAME, "champion", "1")
    done = publish(shop, 2, "--policy", "strict")
    assert done.code == 3
    assert "another policy" in done.stderr
    report = shop.path("report.json")
    whole = report.read_text()
    report.write_text(re.sub(r'"replicates": ?\d+', '"replicates":7', whole))
    assert report.read_text() != whole
    assert publish(shop, 2).code == 5
    report.write_text(whole)
    assert champion(registry) == "1"
    experiment = registry.get_experiment_by_name("compatctl").experiment_id
    assert len(registry.search_runs([experiment])) == runs
    assert not registry.get_model_version(NAME, "2").tags


def test_a_report_goes_to_a_run_that_exists(shop: Shop, registry: Any) -> None:
    """Without a model the report is logged alone, to the run of the training; that run goes on."""
    assert shop.run("verify", shop.path("worse.onnx")).code == 3
    run = registry.create_run(registry.get_experiment_by_name("models").experiment_id).info.run_id
    done = shop.run("mlflow", "--run", run)
    assert (done.code, done.json["run"], done.json["moved"]) == (3, run, False)
    assert registry.get_run(run).info.status == "RUNNING"
    assert registry.get_run(run).data.tags["compatctl.verdict"] == "fail"
    assert champion(registry) == "1"


@pytest.mark.parametrize(
    "arguments",
    [("--model", NAME, "--version", "9"), ("--model", "nobody", "--version", "1"), ("--run", "x")],
)
def test_what_mlflow_does_not_have_is_named(
    shop: Shop, registry: Any, arguments: tuple[str, ...]
) -> None:
    """A version, model or run that there is not: exit code 5 and MLflow's own words."""
    assert shop.run("verify", shop.path("new.onnx")).code == 0
    done = shop.run("mlflow", *arguments)
    assert done.code == 5
    assert "MLflow (" in done.stderr
    assert champion(registry) == "1"
