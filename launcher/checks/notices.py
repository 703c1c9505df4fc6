"""Check whether the user will be told of what happens to a run."""

import os
from collections.abc import Iterator
from shutil import which

from launcher import environment
from launcher.checks import finding
from launcher.checks.finding import Finding
from launcher.cluster import Notify, Profile


def check(profile: Profile) -> Iterator[Finding]:
    """Check that the profile's `notify` names somebody who can be told."""
    notify, variable = profile.notify, profile.notify.webhook_variable
    if notify != Notify() and not (notify.command or variable or notify.mail):
        rule = "tells nobody"
        yield finding.error("notify.events", list(notify.events), rule, "add command, webhook_variable or mail")
    if variable and (refusal := environment.refusal(variable)):
        yield finding.error("notify.webhook_variable", variable, refusal, "choose another name")
    elif variable and not os.environ.get(variable):
        rule = "is not set in this shell, and the job gets it from here"
        yield finding.warning("notify.webhook_variable", variable, rule, f"export {variable}=URL")
    if notify.command and not which(notify.command[0]):
        rule = "is no program here"
        yield finding.warning("notify.command", notify.command[0], rule, "give its path, as the nodes have it")
