"""What ``worldrl config explain`` says of the settings."""

from __future__ import annotations

import pytest

from worldrl.config.explain import explain
from worldrl.config.fields import walk
from worldrl.config.schema import FinetuneConfig, TrainConfig
from worldrl.errors import ConfigError


def test_every_setting_is_explained_once_for_each_kind() -> None:
    found = explain()
    assert len({(one.key, one.kind) for one in found}) == len(found)
    labels = {"stage", "recipe"}
    known = {".".join(path) for root in (TrainConfig, FinetuneConfig) for path in walk(root)}
    assert {one.key for one in found} == known - labels


def test_what_is_said_of_one() -> None:
    (scale,) = explain("imagination.penalty.scale")
    assert (scale.kind, scale.default) == ("branched", "none")
    assert scale.values == "one of none, dataset_quantile"
    assert "0.95 quantile of the penalty on the data" in scale.meaning
    (source,) = explain("dataset.source")
    assert source.default == "(required)"
    (kind,) = explain("learner.kind")
    assert kind.default == "sac"
    assert {"sac", "bc"} <= set(kind.values.removeprefix("one of ").split(", "))
    (penalty,) = explain("imagination.penalty.kind")
    assert "max_pairwise_diff, of two means" in penalty.meaning
    assert {"sac", "bc"} <= {one.kind for one in explain("learner.hidden")}
    batch = explain("learner.batch_size")[0]
    assert batch.meaning == "Rows of an update."  # stands in the base class


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no setting 'learner\.critc'.*did you mean"):
        explain("learner.critc")
