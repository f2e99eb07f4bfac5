"""Plans: every sample once an epoch, nothing computed twice, the same for the same seed, within the budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from punie_mlx.train.plan import Group, Planner, plan_once, rounded


@dataclass(frozen=True)
class Piece:
    tokens: np.ndarray
    spans: tuple[tuple[int, int, float], ...]
    cluster: str = ""


def piece(tokens, supervised=2, weight=1.0, cluster=""):
    """Tokens of which the last `supervised` have a loss."""
    tokens = np.array(tokens, np.int32)
    return Piece(tokens, ((len(tokens) - supervised, len(tokens), weight),), cluster)


def corpus(seed=0, blocks=3, rows=7):
    """Conversations of two turns behind a few tools blocks."""
    r = np.random.default_rng(seed)
    out = []
    for block in range(blocks):
        tools = r.integers(10, 99, 60).tolist()
        for _ in range(rows):
            first = tools + r.integers(100, 999, int(r.integers(5, 30))).tolist()
            second = first + r.integers(100, 999, int(r.integers(5, 30))).tolist()
            out += [piece(first, 3, cluster=str(block)), piece(second, 4, cluster=str(block))]
    return out


def planner(samples, batch_size=4, **more):
    settings = {"max_batch_tokens": 4096, "share": True, "seed": 0, **more}
    return Planner(samples, batch_size=batch_size, **settings)


def epoch(plan, number=0):
    return [plan.step(number * plan.steps_per_epoch + i) for i in range(plan.steps_per_epoch)]


def targets(group: Group) -> list[tuple[tuple[int, ...], int, float]]:
    """Each target of a group with all tokens before it: what it means, whatever the group's shape is."""
    out = []
    for row, col, target, weight in zip(group.rows, group.cols, group.targets, group.weights, strict=True):
        if weight:
            before = (*group.prefix.tolist(), *group.suffix[row, : col + 1].tolist())
            out.append((before, int(target), float(weight)))
    return out


def wanted(samples):
    """The same, straight from the samples."""
    out = []
    for s in samples:
        for start, stop, weight in s.spans:
            out += [(tuple(s.tokens[:i].tolist()), int(s.tokens[i]), weight) for i in range(start, stop)]
    return out


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16, 100])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("few_shapes", [True, False])
def test_every_target_comes_once_an_epoch_behind_its_own_prompt(batch_size, share, few_shapes):
    samples = corpus()
    steps = epoch(planner(samples, batch_size, share=share, few_shapes=few_shapes))
    assert sorted(i for s in steps for i in s.samples) == list(range(len(samples)))  # what is left over, too
    assert all(len(s.samples) == batch_size for s in steps[:-1]) or len(samples) % batch_size
    found = [t for s in steps for part in s.parts for group in part for t in targets(group)]
    assert sorted(found) == sorted(wanted(samples))
    assert sum(s.supervised for s in steps) == len(found)
    assert sum(s.weight for s in steps) == sum(w for _, _, w in found)


def test_nested_samples_and_shared_prefixes_are_computed_once():
    samples = corpus(blocks=1, rows=4)  # four conversations of two turns behind 60 tokens
    (step,) = epoch(planner(samples, 8))
    ((group,),) = step.parts
    assert len(group.prefix) == 60 and len(group.suffix) == 4
    longest = max(len(s.tokens) for s in samples)
    assert step.computed == 60 + 4 * (longest - 60)
    assert step.given == sum(len(s.tokens) for s in samples) > 2 * step.computed


def test_without_sharing_nested_samples_are_still_one():
    (step,) = epoch(planner(corpus(blocks=1, rows=4), 8, share=False))
    groups = [g for part in step.parts for g in part]
    assert sum(len(g.suffix) for g in groups) == 4 and not any(g.prefix.size for g in groups)


def test_the_state_before_the_first_target_is_never_in_the_prefix():
    same = [piece([1] * 40 + [2, 3], 2), piece([1] * 40 + [2, 4], 2), piece([1] * 40 + [5, 6], 2)]
    for step in epoch(planner(same, 3)):
        for group in step.parts[0]:
            assert (group.cols >= 0).all()


def test_the_same_sample_twice_counts_twice():
    (step,) = epoch(planner([piece([1, 2, 3, 4])] * 2, 2))
    ((group,),) = step.parts
    assert len(group.suffix) == 1 and group.weights.tolist() == [2.0, 2.0]
    assert step.weight == 4.0


def test_two_continuations_of_one_sample_both_stay():
    samples = [piece([1, 2, 3]), piece([1, 2, 3, 4, 5]), piece([1, 2, 3, 6, 7])]
    found = [t for s in epoch(planner(samples, 3)) for g in s.parts[0] for t in targets(g)]
    assert sorted(found) == sorted(wanted(samples))


def test_weights_of_nothing_are_no_targets():
    samples = [Piece(np.arange(1, 9, dtype=np.int32), ((2, 4, 0.0), (5, 7, 0.5)))]
    (step,) = epoch(planner(samples, 1))
    assert step.supervised == 2 and step.weight == 1.0
    assert [w for _, _, w in targets(step.parts[0][0])] == [0.5, 0.5]


def test_the_budget_parts_a_batch_and_keeps_its_sums():
    samples = corpus(blocks=1, rows=12)
    whole, parted = (epoch(planner(samples, 24, max_batch_tokens=n))[0] for n in (100_000, 200))
    assert len(parted.parts[0]) > len(whole.parts[0])
    assert all(g.computed <= 200 for g in parted.parts[0])
    assert (parted.weight, parted.supervised, parted.given) == (whole.weight, whole.supervised, whole.given)
    found = [t for g in parted.parts[0] for t in targets(g)]
    assert sorted(found) == sorted(wanted(samples))


def test_one_sample_above_the_budget_is_computed_all_the_same():
    (step,) = epoch(planner([piece(range(1, 100))], 1, max_batch_tokens=10))
    assert step.computed == 99


def test_the_seed_decides_the_order_and_epochs_differ():
    samples = corpus()

    def order(seed, number=0):
        return [s.samples for s in epoch(planner(samples, 4, seed=seed), number)]

    assert order(0) == order(0) != order(1)
    assert order(0) != order(0, 1)


def test_a_step_does_not_depend_on_those_asked_for_before():
    samples = corpus()
    plan = planner(samples, 3)
    late = plan.step(25).samples
    plan.step(3)
    assert plan.step(25).samples == planner(samples, 3).step(25).samples == late


def test_batches_hold_neighbours_in_length():
    samples = [piece([i + 10] * n, 1) for i, n in enumerate([90, 3, 40, 5, 80, 4, 41, 7])]
    for step in epoch(planner(samples, 2, share=False)):
        lengths = [len(samples[i].tokens) for i in step.samples]
        assert max(lengths) - min(lengths) <= 16


def test_two_ranks_take_the_batches_of_one_with_twice_the_size():
    samples = corpus()
    one, two = planner(samples, 8), planner(samples, 4, world=2)
    assert one.steps_per_epoch == two.steps_per_epoch
    for a, b in zip(epoch(one), epoch(two), strict=True):
        assert a.samples == b.samples and a.weight == b.weight and a.supervised == b.supervised
        assert len(b.parts) == 2
        found = [t for part in b.parts for g in part for t in targets(g)]
        assert sorted(found) == sorted(t for g in a.parts[0] for t in targets(g))


def test_ranks_without_a_sample_have_no_groups():
    steps = epoch(planner([piece([1, 2, 3]), piece([4, 5, 6])], 2, world=2))
    assert [len(part) for part in steps[0].parts] == [2, 0] or [len(p) for p in steps[0].parts] == [1, 0]


def test_accumulated_batches_are_one_step():
    samples = corpus()
    plan = planner(samples, 4, accumulate=3)
    steps = epoch(plan)
    assert plan.steps_per_epoch == -(-len(samples) // 12)
    assert sorted(i for s in steps for i in s.samples) == list(range(len(samples)))


def test_validation_takes_each_sample_once_in_a_fixed_order():
    samples = corpus()
    first, again = (plan_once(samples, batch_size=8, max_batch_tokens=4096, share=True) for _ in range(2))
    assert [s.samples for s in first] == [s.samples for s in again]
    assert sorted(i for s in first for i in s.samples) == list(range(len(samples)))


def test_few_shapes_are_few():
    samples = corpus(blocks=6, rows=20)
    steps = epoch(planner(samples, 8, few_shapes=True))
    shapes = {(g.prefix.size, g.suffix.shape[1]) for s in steps for g in s.parts[0]}
    free = {(g.prefix.size, g.suffix.shape[1]) for s in epoch(planner(samples, 8)) for g in s.parts[0]}
    assert len(shapes) < len(free) / 2
    assert all(p % 16 == 0 and s % 16 == 0 for p, s in shapes)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 100, 129, 1000, 1025, 9999])
def test_rounding_adds_little(length):
    assert 0 <= rounded(length) - length < max(16, length / 8 + 1)


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="sizes of at least 1"):
        planner([piece([1, 2, 3])], 0)
    with pytest.raises(ValueError, match="needs samples"):
        planner([], 1)
