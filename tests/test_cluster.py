"""What a cluster has is known, and what it has not got is said."""

import pytest
import ray

from raypref.cluster import warn_if_short
from raypref.config import Resources


def test_what_the_cluster_has_not_got_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    need = Resources(workers=3, num_cpus=1, num_gpus=1)
    warn_if_short("stage1", need, workers=1)
    assert not caplog.messages
    warn_if_short("stage1", need, workers=3)
    (said,) = caplog.messages
    assert said.startswith("stage1: needs 3 cores (2 there) and 3 GPUs (1 there) to begin")
