"""Requests that it takes to register a model on S3, and to find it there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from s3_server import BUCKET, s3_server
from served_models import bundle_of, png

from convmlp_platform.config.sections.execution import RegisterSection, TrackingSection
from convmlp_platform.models.bundle import WEIGHTS_NAME
from convmlp_platform.registry.registry import register_bundle, resolve
from convmlp_platform.tracking.mlflow.client import open_client


@pytest.mark.slow
def test_a_model_is_registered_and_found_in_few_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = TrackingSection(
        uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="s3", register_as=RegisterSection(name="far")
    )
    with s3_server() as proxy:
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", proxy.url)
        location = f"s3://{BUCKET}/mlflow"
        open_client(section.uri or "").create_experiment("s3", artifact_location=location)
        asked: Counter[str] = Counter()
        proxy.faults.decide = lambda method, path: asked.update([method])  # type: ignore[func-returns-value]
        bundle = bundle_of("classification")
        register_bundle(section, run_id=None, bundle=bundle, example_image=png(), metrics={}, tags={})
        assert dict(asked) == {"PUT": 10}
        asked.clear()
        found = resolve("models:/far@champion", section=section, into=tmp_path / "into")
        assert (found.bundle / WEIGHTS_NAME).read_bytes() == (bundle / WEIGHTS_NAME).read_bytes()
        assert set(asked) <= {"GET", "HEAD"} and asked.total() <= 9
