"""Each rule finds what it is for in made rows, proposes what the config accepts, and is silent about a healthy run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from moco_dist import config as configs
from moco_dist import health
from moco_dist.health.course import Facts
from moco_dist.health.finding import Proposal
from moco_dist.health.queue import closer_encoders, smaller_queue, steadier_keys
from moco_dist.health.representation import stronger_augmentation, suspect, weaker_augmentation
from moco_dist.health.speed import data_bound_proposal
from tests.health.made import BATCH, CHANCE, IMAGES, config_of, events_of, monitor_of, rows

STEPS = 640
BAD = range(200, 400)
"""Steps at which the made runs are broken."""


@dataclass
class Case:
    """A broken run: what is wrong with its rows at the steps BAD, or all the time with its config."""

    name: str
    override: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


CASES = [
    Case("at_chance", "optim.lr=0.005", {"loss": 0.995 * CHANCE}),
    Case("at_chance", "moco.momentum=0.99", {"loss": 0.995 * CHANCE}, config={"moco__momentum": 0.5}),
    Case("collapsed", "optim.lr=0.0075", {"q_std": 0.03}, config={"optim__lr": 0.06}),
    Case("dimensions_collapsed", "moco.temperature=0.2", {"q_rank": 1.5}, config={"moco__temperature": 0.6}),
    Case("queue_stale", "moco.momentum=0.99", {"encoder_distance": 0.4}, config={"moco__momentum": 0.9}),
    Case("encoders_apart", "moco.momentum=0.99", {"encoder_distance": 0.9}, config={"moco__momentum": 0.9995}),
    Case(
        "temperature_too_high", "moco.temperature=0.2", {"entropy": 0.995 * CHANCE}, config={"moco__temperature": 1.0}
    ),
    Case("temperature_too_low", "moco.temperature=0.07", {"entropy": 0.2}, config={"moco__temperature": 0.01}),
    Case("lr_too_high", "optim.lr=0.0075", {"loss": 1.3 * CHANCE}, config={"optim__lr": 1.5}),
    Case(
        "lr_too_low",
        "optim.lr=0.0075",
        {"lr": 0.0001, "encoder_distance": 0.0001, "loss": 0.98 * CHANCE},
        config={"optim__lr": 0.0001},
    ),
    Case("augmentation_too_weak", "data.crop_scale=0.08,1.0", {"positive_similarity": 0.999, "top1": 0.99}),
    Case(
        "augmentation_too_weak",
        "data.crop_scale=0.2,1.0",
        {"positive_similarity": 0.9},
        config={"data__augmentation": "crop_blur", "data__crop_scale": "1.0,1.0"},
    ),
    Case("augmentation_too_strong", "data.crop_scale=0.6,1.0", {"positive_similarity": 0.05}),
    Case(
        "probe_overfits",
        "eval.online_images=2000",
        evaluations={"linear_train_top1": 1.0, "linear_top1": 0.5},
        config={"eval__online_images": 1000},
    ),
    Case("data_bound", "data.workers=7", {"data_wait": 0.5}),
    Case("ranks_apart", "device.engine=exact", {"ranks_apart": 1.0}),
    Case("slow_rank", "data.workers=7", {"slowest_rank": 3, "slowest_lag": 1.0}),
]


def at_bad_steps(figures: Mapping[str, Any]) -> Any:
    return lambda step: figures if step in BAD else {}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.override}")
def test_a_broken_run_has_its_finding(case: Case) -> None:
    config = config_of(**case.config)
    made = rows(STEPS, at_bad_steps(case.figures), at_bad_steps(case.evaluations))
    monitor = monitor_of(config)
    events = events_of(monitor, made)
    mine = [row for row in events if row["finding"] == case.name]
    assert [row["state"] for row in mine] == ["begins", "ends"], events
    begins, ends = mine
    assert begins["step"] in BAD and ends["step"] > BAD.stop - 1
    [finding] = [finding for finding in monitor.diagnosis().findings if finding.name == case.name]
    assert finding.ended and (finding.first_step, finding.last_step) == (begins["step"], ends["step"])
    assert case.override in (finding.override, f"{begins['key']}={begins['value']}")
    assert finding.evidence == begins["evidence"] and any(digit in finding.evidence for digit in "0123456789")


@pytest.mark.parametrize("directions", [1, 2])
def test_a_healthy_run_has_none(directions: int) -> None:
    changes: dict[str, Any] = {"moco__symmetric": True} if directions == 2 else {}
    monitor = monitor_of(config_of(**changes))
    made = rows(STEPS, lambda step: {"loss_at_chance": directions * CHANCE, "loss": directions * 0.8 * CHANCE})
    assert events_of(monitor, made) == []
    diagnosis = monitor.diagnosis()
    assert diagnosis.healthy
    assert diagnosis.unchecked == {} and diagnosis.fine == [rule.name for rule in health.RULES]


def leak(*, rises: bool = False, **changes: Any) -> health.Diagnosis:
    """Diagnose a run without shuffle that solves the pretext task, while kNN gets better or worse."""
    monitor = monitor_of(config_of(moco__shuffle="none", **changes))
    knn = 1 / 10_000 if rises else -1 / 10_000
    made = rows(STEPS, lambda step: {"top1": 0.99}, lambda step: {"knn_top1": 0.8 + step * knn})
    events_of(monitor, made)
    return monitor.diagnosis()


def test_a_leak_through_batchnorm_is_found() -> None:
    [finding] = leak().findings
    assert finding.name == "batchnorm_leak" and finding.override == "moco.shuffle=all_gather"
    assert "moco.shuffle=none and 4 BatchNorm groups" in finding.evidence and not finding.ended
    assert leak(moco__bn_groups=1).healthy  # one group for all: its statistics tell nothing


def test_where_the_groups_are_not_known_knn_decides_on_a_leak() -> None:
    assert [finding.ended for finding in leak(moco__bn_groups=None).findings] == [False]
    assert leak(moco__bn_groups=None, rises=True).findings[-1].ended  # until the second evaluation, nothing has risen


def test_a_queue_larger_than_the_data_is_found_at_the_first_row() -> None:
    monitor = monitor_of(images=300)
    [event] = events_of(monitor, rows(1))
    assert (event["finding"], event["state"], event["step"]) == ("queue_larger_than_data", "begins", 1)
    assert (event["key"], event["value"]) == ("moco.queue_size", 128)
    assert "moco.queue_size = 512: more than the 300 training images" in str(event["evidence"])
    assert events_of(monitor_of(images=512), rows(1)) == []


def test_a_run_is_judged_once_its_queue_is_filled() -> None:
    large = config_of(moco__queue_size=2048)  # filled after 32 steps, which is an epoch
    [begins] = events_of(monitor_of(large), rows(STEPS, lambda step: {"q_std": 0.01}))
    assert begins["finding"] == "collapsed" and begins["step"] == 120  # windows of steps 81 to 100, and up to 120
    [begins] = events_of(monitor_of(), rows(STEPS, lambda step: {"q_std": 0.01}))
    assert begins["step"] == 80


def test_overflow_is_judged_beyond_the_first_steps() -> None:
    """fp16 looks for its scale in the first steps, and leaves some of them out."""
    config = config_of(device__precision="fp16")
    finds = monitor_of(config)
    assert events_of(finds, rows(STEPS, lambda step: {"skipped_steps": min(step, 40)})) == []
    assert "overflow" in finds.diagnosis().checked
    monitor = monitor_of(config)
    begins, ends = events_of(monitor, rows(STEPS, lambda step: {"skipped_steps": max(0, min(step, 400) - 200)}))
    assert begins["finding"] == ends["finding"] == "overflow" and begins["value"] == "bf16"
    assert 200 < int(begins["step"]) <= 260 and int(ends["step"]) > 400


def test_a_slow_rank_is_one_and_the_same() -> None:
    changes = at_bad_steps({"slowest_lag": 1.0})
    assert events_of(monitor_of(), rows(STEPS, changes)) == []  # now the one, now the other


def test_a_rank_that_waits_for_batches_is_not_slow() -> None:
    changes = at_bad_steps({"slowest_rank": 3, "slowest_lag": 1.0, "data_wait": 0.5})
    assert {row["finding"] for row in events_of(monitor_of(), rows(STEPS, changes))} == {"data_bound"}


def test_waits_are_judged_over_a_minute() -> None:
    """Data workers take seconds to start, and one step may wait for long."""
    assert events_of(monitor_of(), rows(STEPS, lambda step: {"data_wait": 1.0 if step % 90 < 5 else 0.0})) == []


def test_a_key_encoder_that_never_moves_is_found() -> None:
    monitor = monitor_of(config_of(moco__momentum=1.0))
    events = events_of(monitor, rows(STEPS))
    assert ("encoders_apart", "begins", "moco.momentum", 0.99) in [
        (row["finding"], row["state"], row["key"], row["value"]) for row in events
    ]
    assert not [row for row in events if row["state"] == "ends"]


def test_a_probe_that_is_fitted_to_all_images_may_know_them_by_heart() -> None:
    monitor = monitor_of(config_of(eval__online_images=IMAGES))
    assert (
        events_of(monitor, rows(STEPS, evaluations=lambda step: {"linear_train_top1": 1.0, "linear_top1": 0.5})) == []
    )
    assert "the rule does not apply" in monitor.diagnosis().unchecked["probe_overfits"]


def test_a_method_without_a_queue_is_told_nothing_of_one() -> None:
    monitor = monitor_of(config_of(moco__queue_size=4096))
    assert events_of(monitor, rows(STEPS, lambda step: {"queue_filled": None, "queue_age_steps": None})) == []
    diagnosis = monitor.diagnosis()
    assert diagnosis.unchecked["queue_larger_than_data"] == "no queue_filled in the rows"
    assert [note.name for note in diagnosis.notes] == ["first_epoch"]


def test_a_run_that_began_from_weights_is_not_told_that_its_features_are_alike() -> None:
    monitor = monitor_of(config_of(run__init_from="runs/before"))
    events_of(monitor, rows(STEPS))
    assert [note.name for note in monitor.diagnosis().notes] == ["queue_filling"]


def test_a_diverged_run_has_a_finding() -> None:
    from moco_dist.run.status import Status

    tree = config_of(optim__lr=1.5).model_dump(mode="json")
    diagnosis = health.diagnose(rows(30), tree, status=Status("diverged", 31, "the loss is nan at step 31"))
    [finding] = diagnosis.findings
    assert (finding.name, finding.override, finding.first_step) == ("lr_too_high", "optim.lr=0.0075", 31)
    assert finding.evidence == "the loss is nan at step 31"


FIGURES = sorted({name for rule in health.RULES for name in rule.figures})


@pytest.mark.parametrize("figure", FIGURES)
def test_a_rule_without_its_figures_is_not_checked(figure: str) -> None:
    monitor = monitor_of()
    events_of(monitor, rows(200, lambda step: {figure: None}, lambda step: {figure: None}))
    diagnosis = monitor.diagnosis()
    needs = [rule.name for rule in health.RULES if figure in rule.figures]
    assert set(needs) <= set(diagnosis.unchecked) and diagnosis.healthy
    reasons = (f"no {figure} in the rows", "no evaluation yet", "the run has not come so far")
    assert all(diagnosis.unchecked[name].startswith(reasons) for name in needs)


CONFIGS = [
    *(
        configs.load(path, ["data.root=/x"] if "digits" not in path.name else [])
        for path in configs.SHIPPED_CONFIGS.glob("*.yaml")
    ),
    config_of(),
    config_of(moco__queue_size=1, optim__lr=1e-6, moco__momentum=1.0, moco__temperature=0.001),
    config_of(moco__momentum=0.0, optim__lr=100.0, moco__temperature=50.0),
    config_of(data__crop_scale="0.01,0.05", data__augmentation="crop_blur", data__rotation_degrees=3),
    config_of(data__source="imagefolder", data__root="/x", data__decode="pillow", data__workers="auto"),
    config_of(data__elastic_pixels=3, data__shear_degrees=0.5, data__crop_scale="0.7,1.0"),
]


@pytest.mark.parametrize("number", range(len(CONFIGS)))
@pytest.mark.parametrize("workers", [None, 0, 7])
def test_every_proposal_is_accepted_and_changes_something(number: int, workers: int | None) -> None:
    """Each is an override that the config accepts, and another value than the one that is wrong."""
    config = CONFIGS[number]
    facts = Facts(config, IMAGES, workers, 8 if workers is not None else None)
    proposals = [Proposal("moco.queue_size", smaller_queue(facts)), Proposal("optim.lr", facts.lower_lr)]
    proposals += [
        make(facts) for make in (steadier_keys, closer_encoders, stronger_augmentation, weaker_augmentation, suspect)
    ]
    proposals.append(data_bound_proposal(facts))
    for proposal in proposals:
        before = config.model_dump(mode="json")
        after = with_override(config, proposal).model_dump(mode="json")
        section, key = proposal.key.split(".")
        same = before[section][key] == after[section][key]
        assert not same or proposal.key in ("data.cache", "data.workers", "moco.queue_size"), proposal


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.override}")
def test_every_override_is_accepted(case: Case) -> None:
    config = config_of(**case.config)
    monitor = monitor_of(config)
    events_of(monitor, rows(STEPS, at_bad_steps(case.figures), at_bad_steps(case.evaluations)))
    for finding in monitor.diagnosis().findings:
        with_override(config, Proposal(str(finding.key), finding.value or 0))


def with_override(config: configs.Config, proposal: Proposal) -> configs.Config:
    """Return the config as a user gets it who pastes the override."""
    tree = config.model_dump(mode="json")
    section, key = proposal.key.split(".")
    tree[section][key] = str(proposal.value)
    return configs.parse(tree)


def test_batches_come_sooner_by_what_is_left_to_change() -> None:
    digits, folder = config_of(), config_of(data__source="imagefolder", data__root="x")
    slow = config_of(data__source="imagefolder", data__root="x", data__decode="pillow")
    for config in (digits, folder):
        assert data_bound_proposal(Facts(config, IMAGES, 2, 8)) == ("data.workers", 7)
        assert data_bound_proposal(Facts(config, IMAGES, 7, 8)) == ("data.cache", "memory")
        assert data_bound_proposal(Facts(config)) == ("data.workers", "auto")
    assert data_bound_proposal(Facts(slow, IMAGES, 2, 8)) == ("data.decode", "cpu")
    assert BATCH < IMAGES
