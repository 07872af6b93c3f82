import pytest
import torch
from torch import nn

from prune import Recipe, cost_of, prune_model
from prune.sensitivity import DENSE, Trial, Trials, sensitivity, skip_list

IMAGE = torch.arange(16.0).view(1, 4, 2, 2) + 1
RATIOS = (0.25, 0.5, 0.75)


def copying_net():
    """Three layers that copy four channels; of the eight that the middle one writes, the last four are zero."""
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        for layer in net:
            layer.bias.zero_()
            layer.weight[:] = torch.eye(*layer.weight.shape[:2])[..., None, None]
    return net.eval()


def copied(model):
    """Share of the image's channels that leave the model unchanged."""
    with torch.no_grad():
        return (model(IMAGE) == IMAGE).all(-1).all(-1).double().mean().item()


class Counting:
    def __init__(self, stop_after=None):
        self.num, self.stop_after = 0, stop_after

    def __call__(self, model):
        if self.num == self.stop_after:
            raise KeyboardInterrupt
        self.num += 1
        return copied(model)


def trials_of(model, image, ratios, **fields):
    return Trials(model, (image,), [Recipe(ratio, **fields) for ratio in ratios])


def study(ratios=RATIOS, **options):
    return sensitivity(trials_of(copying_net(), IMAGE, ratios, **options), copied)


def test_loss_of_each_group_cut_alone_is_measured():
    result = study()
    drops = {curve.group: [point.drop for point in curve.points] for curve in result.curves}
    assert result.score == 1
    assert drops["0"] == [0.25, 0.5, 0.75]  # every channel that goes is one less in the output
    assert drops["1"] == [0.0, 0.0, 0.5]  # half of the channels are empty


def test_macs_saved_by_each_group_cut_alone_are_counted():
    result = study()
    first, second = (curve.at(0.5) for curve in result.curves)
    assert result.macs == 4 * (4 * 4 + 4 * 8 + 8 * 4)
    assert (first.num_kept, first.macs, first.macs_won) == (2, 4 * (2 * 4 + 2 * 8 + 8 * 4), 4 * (8 + 16))
    assert (second.num_kept, second.macs, second.macs_won) == (4, 4 * (4 * 4 + 4 * 4 + 4 * 4), 4 * (16 + 16))
    assert first.lost_per_won == pytest.approx(0.5 / (96 / 320))
    assert second.lost_per_won == 0


def test_groups_that_cannot_be_cut_are_named_with_their_reason():
    result = study(skip=["1"])
    assert [(d.group, d.reason) for d in result.untouched] == [
        ("1", "skipped by the recipe (1)"),
        ("2", "its channels are an output of the model"),
    ]
    assert [curve.group for curve in result.curves] == ["0"]


def test_the_most_sensitive_groups_are_skipped_first():
    result = study()
    assert skip_list(result, 0.5, 0.1) == ("0",)
    assert skip_list(result, 0.75, 0.1) == ("0", "1")
    assert skip_list(result, 0.75, 0.5) == ("0",)
    assert skip_list(result, 0.75, 0.75) == ()


def test_a_loss_of_just_the_limit_is_not_too_much():
    trials = trials_of(copying_net(), IMAGE, (0.5,))
    result = trials.outcome({DENSE: 0.9, Trial("0", 2): 0.85, Trial("1", 4): 0.849})
    assert skip_list(result, 0.5, 0.05) == ("1",)


def test_a_skip_list_needs_a_measured_ratio():
    with pytest.raises(ValueError, match=r"prune_ratio: not measured, got 0.6; expected one of \[0.25, 0.5, 0.75\]"):
        skip_list(study(), 0.6, 0.1)


def test_equal_widths_are_evaluated_once_and_full_width_never():
    trials, evaluate = trials_of(copying_net(), IMAGE, (0.0, *RATIOS), round_to=4), Counting()
    result = sensitivity(trials, evaluate)
    points = result.curves[0].points
    assert [curve.group for curve in result.curves] == ["1"]
    assert [point.num_kept for point in points] == [8, 8, 4, 4]
    assert [point.score for point in points] == [1, 1, 1, 1]
    assert points[0].lost_per_won is None
    assert evaluate.num == 2  # dense, and four of eight channels
    assert result.untouched[0].reason == "keeps all 4 channels at every ratio, rounded to a multiple of 4"


def test_a_trial_is_what_pruning_that_group_alone_gives(declared, x, same_state):
    net, _ = declared
    trials = trials_of(net, x[:1], (0.5,))
    assert same_state(trials.model_of(DENSE), net)
    costs = {c.group: c.points[0] for c in trials.outcome(dict.fromkeys(trials, 0.0)).curves}
    for trial in trials:
        if trial != DENSE:
            pruned = prune_model(net, (x,), 0.0, ratios={trial.group: 0.5}).model
            assert same_state(trials.model_of(trial), pruned)
            cost = cost_of(pruned, (x[:1],))
            assert (costs[trial.group].macs, costs[trial.group].params) == (cost.macs, cost.params)


@pytest.mark.parametrize("num", range(7))
def test_a_resumed_study_equals_an_uninterrupted_one(num):
    trials, known = trials_of(copying_net(), IMAGE, RATIOS), {}
    with pytest.raises(KeyboardInterrupt):
        sensitivity(trials, Counting(stop_after=num), known, known.__setitem__)
    assert len(known) == num
    rest = Counting()
    assert sensitivity(trials, rest, known) == study()
    assert num + rest.num == 7


def test_the_model_is_left_as_it_was(same_state):
    net = copying_net()

    def breaking(model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        return 0.0

    sensitivity(trials_of(net, IMAGE, RATIOS), breaking)
    assert same_state(net, copying_net())


class CutsAtAFixedPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 4, 1)
        self.second = nn.Conv2d(4, 2, 1)

    def forward(self, images):
        features = self.first(images)
        return self.second(features if features.numpy().shape[1] == 4 else features.flatten())


def broken_net():
    net = copying_net()
    net[2].bias.data[1] = torch.nan
    return net


@pytest.mark.parametrize(
    ("build", "ratios", "options", "message"),
    [
        (copying_net, (), {}, "prune_ratios: nothing to try, got none"),
        (copying_net, (0.5, 1.0), {}, "prune_ratio: would remove all channels or more, got 1.0"),
        (copying_net, (-0.1,), {}, "prune_ratio: out of range, got -0.1"),
        (copying_net, (0.5,), {"skip": ["nope"]}, "nope: no layer of the model matches"),
        (copying_net, (0.5,), {"round_to": 0}, "round_to: out of range, got 0"),
        (copying_net, (0.5,), {"criterion": "taylor"}, "criterion: taylor measures on data"),
        (copying_net, (0.5,), {"reduction": "nope"}, "reduction: unknown, got 'nope'"),
        (broken_net, (0.5,), {}, "2.bias: a weight is not finite, got nan; expected a trained model"),
        (CutsAtAFixedPlace, (0.5,), {}, "first: cut alone, the model does not run, .*; skip this layer"),
    ],
)
def test_wrong_settings_are_refused_before_any_evaluation(build, ratios, options, message):
    with pytest.raises(ValueError, match=message):
        trials_of(build(), IMAGE, ratios, **options)


def test_a_score_that_is_not_finite_stops_the_study():
    trials = trials_of(copying_net(), IMAGE, (0.5,))
    scores = iter([1.0, float("nan")])
    with pytest.raises(RuntimeError, match="0: its score is not finite, got nan"):
        sensitivity(trials, lambda model: next(scores))
