from experiment.report_lines import lines_of
from experiment.verdicts import judged_lines, judged_speeds, speed_counts, verdict_counts

DENSE = {
    "ordering": "dense", "budget": None, "method": None, "prune_ratio": 0.0,
    "map": None, "top1": None, "speedup": 1.0, "speedup_low": None, "speedup_high": None,
}  # fmt: skip
SLIM = DENSE | {"ordering": "prune_transfer", "budget": "finetune", "method": "l1", "prune_ratio": 0.5}
SCRATCH = SLIM | {"ordering": "scratch_transfer", "budget": "scratch_b"}


def rows(kind, *scores, score="map", **changes):
    """Return a row for each seed."""
    named = enumerate(scores)
    return [kind | {"name": f"{kind['ordering']}-{seed}", "seed": seed, score: one, **changes} for seed, one in named]


def sentences(rows, draws=None):
    return [one.sentence() for one in judged_lines(lines_of(rows), draws or {}, num_images=100_001)]


def speeds(rows):
    return [speed.sentence() for speed in judged_speeds(lines_of(rows))]


def test_a_verdict_is_a_sentence_with_difference_interval_and_seeds():
    # differences -0.020, -0.021, -0.022: deviation 0.001, of which Student's 4.303 / sqrt(3) reaches 0.0025
    found = sentences(rows(DENSE, 0.6, 0.6, 0.6) + rows(SLIM, 0.580, 0.579, 0.578))
    assert found == ["prune_transfer (finetune) is below dense by 0.021 mAP (0.019 to 0.023), 3 seeds."]


def test_one_seed_is_said_to_be_one():
    both = rows(DENSE, 0.6) + rows(SLIM, 0.5)
    name = "prune_transfer (finetune)"
    unknown = f"{name} and dense are not separable: -0.100 mAP, one seed, which tells nothing of the spread."
    assert sentences(both) == [unknown]
    draws = {"dense-0": [0.6, 0.6, 0.6], "prune_transfer-0": [0.49, 0.5, 0.51]}
    known = f"{name} is below dense by 0.100 mAP (0.080 to 0.120), one seed, the interval is over images alone."
    assert sentences(both, draws) == [known]


def test_what_is_not_separable_says_how_many_seeds_would_do():
    # differences 0, 0.02, 0.04: mean 0.02, deviation 0.02, an effect of 1, for which tables of power have 10
    found = sentences(rows(DENSE, 0.5, 0.5, 0.5) + rows(SLIM, 0.5, 0.52, 0.54))
    assert found == [
        "prune_transfer (finetune) and dense are not separable: +0.020 mAP (-0.030 to +0.070), 3 seeds; about 10 seeds "
        "would separate a difference of this size (power 80 %)."
    ]


def test_seeds_with_the_same_difference_are_said_to_tell_nothing():
    found = sentences(rows(DENSE, 0.25, 0.5) + rows(SLIM, 0.5, 0.75))
    assert found == [
        "prune_transfer (finetune) and dense are not separable: +0.250 mAP, 2 seeds with the same difference, which "
        "tells nothing of the spread."
    ]


def test_ways_are_compared_at_equal_method_and_ratio_and_all_with_dense():
    many = [*rows(DENSE, 0.5), *rows(SLIM, 0.4), *rows(SCRATCH, 0.3), *rows(SLIM, 0.2, method="lasso")]
    found = [(one.first.label, one.second.label) for one in judged_lines(lines_of(many), {})]
    l1, lasso = "prune_transfer (finetune, l1)", "prune_transfer (finetune, lasso)"
    scratch = "scratch_transfer (scratch_b, l1)"
    assert found == [(l1, "dense"), (scratch, "dense"), (lasso, "dense"), (scratch, l1)]


def test_verdicts_of_many_methods_are_counted():
    same = {"score": "top1"}
    many = rows(DENSE, 0.80, 0.82, **same) + [
        row for method in ("l1", "lasso") for row in rows(SLIM, 0.70, 0.72, method=method, **same)
    ]
    many += rows(SCRATCH, 0.6, 0.6201, **same) + rows(SCRATCH, 0.6, 0.8, method="lasso", **same)
    found = verdict_counts(judged_lines(lines_of(many), {}))
    assert (
        "scratch_b against finetune, paired by seed, 2 comparisons: above in 0, below in 1, not separable in 1."
        in found
    )


def test_of_many_rows_the_faster_ones_are_counted():
    many = judged_speeds(lines_of([REFERENCE, timed(SLIM, 1.2, 1.4), timed(SCRATCH, 0.9, 1.1)]))
    slow = "Whether scratch_transfer (scratch_b) is faster than dense is not decided: 1.00x (0.90 to 1.10)."
    assert speed_counts(many) == ["1 of 2 rows are faster than dense.", slow]


def timed(kind, low, high, seed=0):
    return kind | {"name": f"{kind['ordering']}-{seed}", "seed": seed, "map": 0.5, "speedup_low": low,
                   "speedup_high": high, "speedup": (low + high) / 2}  # fmt: skip


REFERENCE = DENSE | {"name": "dense-0", "seed": 0, "map": 0.5}


def test_a_speed_is_decided_where_its_interval_does_not_hold_1():
    name = "prune_transfer (finetune)"
    assert speeds([REFERENCE, timed(SLIM, 1.2, 1.4)]) == [f"{name} is faster than dense: 1.30x (1.20 to 1.40)."]
    assert speeds([REFERENCE, timed(SLIM, 0.8, 0.9)]) == [f"{name} is slower than dense: 0.85x (0.80 to 0.90)."]
    undecided = f"Whether {name} is faster than dense is not decided: 1.00x (0.90 to 1.10)."
    assert speeds([REFERENCE, timed(SLIM, 0.9, 1.1)]) == [undecided]


def test_a_speed_within_that_of_another_dense_seed_is_not_decided():
    dense = timed(DENSE, 1.01, 1.08, seed=1)
    assert "not decided" in speeds([REFERENCE, dense, timed(SLIM, 1.05, 1.2)])[0]
    assert "is faster" in speeds([REFERENCE, dense, timed(SLIM, 1.09, 1.2)])[0]


def test_a_speed_is_decided_only_where_all_seeds_agree():
    two = [timed(SLIM, 1.2, 1.4), timed(SLIM, 0.98, 1.1, seed=1)]
    found = speeds([REFERENCE, *two])
    assert found == ["Whether prune_transfer (finetune) is faster than dense is not decided: 1.17x (0.98 to 1.40)."]
