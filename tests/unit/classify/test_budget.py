import pytest

from classify.budget import scratch_epochs


@pytest.mark.parametrize(
    ("budget", "dense_epochs", "mac_reduction", "expected"),
    [
        ("scratch_e", 90, 1.3164, 90),
        ("scratch_b", 90, 1.0, 90),
        ("scratch_b", 90, 1.1816, 106),  # 106.344; the paper's ResNet-34-A
        ("scratch_b", 90, 1.3164, 118),  # 118.476; the paper's ResNet-34-B
        ("scratch_b", 90, 2.0, 180),
        ("scratch_b", 90, 3.7, 180),  # capped at twice
        ("scratch_b", 1, 1.9, 1),
    ],
)
def test_epochs_are_the_paper_s(budget, dense_epochs, mac_reduction, expected):
    assert scratch_epochs(budget, dense_epochs, mac_reduction) == expected


def test_unknown_budget_is_refused():
    with pytest.raises(ValueError, match="budget: unknown, got 'finetune'; expected 'scratch_e' or 'scratch_b'"):
        scratch_epochs("finetune", 90, 1.5)
