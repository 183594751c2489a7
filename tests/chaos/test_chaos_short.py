"""The short form of `make chaos`: one fault of each of the commonest kinds, in one run on a real two-node cluster."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from chaos_faults import SHORT
from chaos_play import undisturbed_without_ray
from chaos_site import chaos_site
from prepared import digits
from run_chaos import job_settings, play, table


@pytest.mark.slow
def test_a_run_under_faults_ends_where_it_would_have_ended(tmp_path: Path) -> None:
    job, data = job_settings(60, launch__hang__grace_s=5.0), digits("webdataset")
    with ThreadPoolExecutor(1) as pool:
        undisturbed = pool.submit(undisturbed_without_ray, tmp_path / "undisturbed", data, **job)
        with chaos_site(tmp_path / "site") as site:
            outcome = play(site, SHORT, 3, job, undisturbed.result(), elastic=False)
    assert not outcome.problems, "\n".join([table(outcome), *outcome.problems])
    assert [blow.fault for blow in outcome.blows] == list(SHORT)
