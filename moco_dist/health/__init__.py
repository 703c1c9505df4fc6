"""Health says whether a run learns, and if not, why: pure functions from rows and config to findings, without torch."""

from moco_dist.health.course import Course, Facts
from moco_dist.health.finding import Finding, Judgement, Proposal
from moco_dist.health.monitor import Diagnosis, Monitor, diagnose
from moco_dist.health.rules import RULES, TITLES, told

__all__ = [
    "RULES",
    "TITLES",
    "Course",
    "Diagnosis",
    "Facts",
    "Finding",
    "Judgement",
    "Monitor",
    "Proposal",
    "diagnose",
    "told",
]
