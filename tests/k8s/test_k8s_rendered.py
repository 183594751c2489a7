"""The rendered files of k8s/ are what `convmlp k8s render` prints today."""

from __future__ import annotations

import pytest
from k8s_manifests import K8S
from rendered_files import RENDERED, rendered


@pytest.mark.parametrize("file", RENDERED)
def test_it_is_what_its_command_prints(file: str) -> None:
    assert (K8S / file).read_text() == rendered(file), f"k8s/{file} is of another time: make k8s"


def test_each_rayjob_and_raycluster_is_rendered() -> None:
    found = {str(path.relative_to(K8S)) for path in K8S.rglob("ray*.yaml")}
    assert found == set(RENDERED)
