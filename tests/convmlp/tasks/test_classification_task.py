"""The classification task: which loss when, float32 whatever the model computes in, metrics."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from convmlp.tasks.classification import ClassificationTask, create_mixing, metrics

IMAGES, LABELS = torch.randn(8, 3, 4, 4), torch.arange(8) % 5


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5))


def test_training_smooths_labels_and_evaluation_does_not() -> None:
    task = ClassificationTask(linear(), num_classes=5, label_smoothing=0.1)
    loss, logits = task(IMAGES, LABELS)
    torch.testing.assert_close(loss, F.cross_entropy(logits, LABELS, label_smoothing=0.1))
    loss, logits = task.eval()(IMAGES, LABELS)
    torch.testing.assert_close(loss, F.cross_entropy(logits, LABELS))


def test_mixing_holds_in_training_only() -> None:
    mixing = create_mixing(5, mixup=0.8, label_smoothing=0.1)
    assert mixing is not None
    task = ClassificationTask(linear(), num_classes=5, label_smoothing=0.3, mixing=mixing)
    np.random.seed(3)
    loss, logits = task(IMAGES.clone(), LABELS)
    np.random.seed(3)
    mixed, targets = mixing(IMAGES.clone(), LABELS)
    torch.testing.assert_close(logits, task.model(mixed))
    torch.testing.assert_close(loss, -(targets * logits.log_softmax(1)).sum(1).mean())
    loss, logits = task.eval()(IMAGES, LABELS)
    torch.testing.assert_close(logits, task.model(IMAGES))


def test_parameters_are_named_after_the_model() -> None:
    task = ClassificationTask(linear(), num_classes=5)
    assert all(name.startswith("model.") for name, _ in task.named_parameters())


@pytest.mark.parametrize("training", [True, False])
def test_loss_and_logits_are_float32_under_autocast(training: bool) -> None:
    seen: list[torch.dtype] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x)
            seen.append(out.dtype)
            return out

    task = ClassificationTask(Spy(), num_classes=5).train(training)
    with torch.autocast("cpu", torch.bfloat16):
        loss, logits = task(IMAGES, LABELS)
    assert seen == [torch.bfloat16]
    assert loss.dtype == logits.dtype == torch.float32
    assert torch.equal(loss, F.cross_entropy(logits, LABELS))


def test_loss_is_float32_where_the_whole_model_is_bfloat16() -> None:
    task = ClassificationTask(linear().bfloat16(), num_classes=5)
    loss, logits = task(IMAGES.bfloat16(), LABELS)
    assert loss.dtype == logits.dtype == torch.float32


def test_metrics_count_the_right_fractions() -> None:
    logits = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3], [1, 2, 3, 4, 5, 6, 7]])
    collection = metrics(7)
    collection.update(logits, torch.tensor([0, 2]))
    collection.update(logits, torch.tensor([6, 2]))
    values = {name: value.item() for name, value in collection.compute().items()}
    assert values == {"top1": pytest.approx(0.25), "top5": pytest.approx(0.75)}
    collection.reset()
    assert all(value == 0 for value in collection.compute().values())
    assert list(ClassificationTask(linear(), num_classes=5).metrics().compute()) == ["top1"]


@given(st.integers(1, 40), st.integers(6, 12), st.integers(0, 2**31), st.booleans())
def test_metrics_count_as_torchmetrics_do(samples: int, classes: int, seed: int, coarse: bool) -> None:
    from torchmetrics.functional.classification import multiclass_accuracy

    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, classes, generator=generator)
    logits = logits.round() if coarse else logits  # equal ones
    labels = torch.randint(classes, (samples,), generator=generator)
    counted = metrics(classes)
    for part in range(0, samples, 7):
        counted.update(logits[part : part + 7], labels[part : part + 7])
    for name, k in {"top1": 1, "top5": 5}.items():
        wanted = multiclass_accuracy(logits, labels, classes, average="micro", top_k=k)
        assert counted.compute()[name] == wanted


def test_label_smoothing_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        ClassificationTask(linear(), num_classes=5, label_smoothing=1.0)
