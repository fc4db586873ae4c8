"""What an agent sees in the store.

Reads and watches bring the job's keys, whoever drives the agent; this says what they mean:

1. A change is taken in once and in the order of its key's revisions. A read is the whole truth, as
   of its revision, of the keys that it asks for: what it no longer shows is told as deleted, and
   what is older and comes after it says nothing, be it a watch's or another read's.
2. Nothing tells of a key that never was: the first read tells that there is no root.
3. A root's key that was there before this life's first read is an earlier life's.
4. What stands in the agent's own key is told to its `OwnReport`, its absence too.
5. A document that cannot be read, of another version of Castor or of no meaning, is set aside, and
   told as a trouble: it counts as no document.
6. A store that lost its data, or went back to a backup, is another one (`castor_policy.store`, rule
   5): all that was known of it is told as gone, what it holds is taken in as by a first read, and
   `epoch` goes up, for which the agent takes a fresh lease. What never changes and has gone is in
   `missing`, to be created again, and so is what the user asks for. The newest plan is remembered
   whatever the store says.
7. Only a root follows what others report (`followed_keys`). Who is elected reads all of the job
   and watches it from that revision on, and is told `RootChanged` again: it takes office on that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from castor_policy.agents.admission import credentials_key, software_prefix
from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.events import (
    PlanChanged,
    PlanLost,
    ReportChanged,
    RootChanged,
    StoreTrouble,
    WishChanged,
)
from castor_policy.agents.followed_keys import agents_keys, roots_keys
from castor_policy.agents.job_change import (
    JobChange,
    meaning,
    name_under,
    read_plan,
    read_report,
)
from castor_policy.agents.own_report import OwnReport
from castor_policy.agents.plan import Plan
from castor_policy.agents.plan_repair import later, newest_generation
from castor_policy.agents.store_keys import (
    agents_prefix,
    layout_prefix,
    plan_key,
    root_key,
    spec_key,
    wishes_prefix,
)
from castor_policy.agents.wish import Wish
from castor_policy.store import Keys, KeyValue, StoreEvent


class StoreView:
    """The keys of a job as one life of one agent has seen them.

    The driver reads before it passes on any change.

    Args:
        job: whose keys.
        agent: name of the agent.
        believes: says of a report whether its sender knows the job's secret; who does not is not
            there.

    Attributes:
        own_report: this agent's report.
        epoch: how many times the store has lost data.
        missing: keys and values that stood before the store lost its data, never change, and are
            gone; the session creates them again.
        awaited: incarnation of each agent that the newest plan named when the store lost its data,
            and whose report has not come since.
    """

    def __init__(
        self, job: str, agent: str, believes: Callable[[AgentReport], bool] = lambda _: True
    ) -> None:
        self.own_report = OwnReport()
        self.epoch = 0
        self.missing: dict[str, str] = {}
        self.awaited: dict[str, str] = {}
        self._job = job
        self._agent = agent
        self._believes = believes
        self._own_key = agents_prefix(job) + agent
        self._keys: dict[str, KeyValue] = {}
        self._reports: dict[str, AgentReport] = {}
        self._wishes: dict[str, Wish] = {}
        self._known: Plan | None = None
        self._set_aside: set[str] = set()
        self._agents_keys, self._roots_keys = agents_keys(job, agent), roots_keys(job)
        self._watched = self._agents_keys
        self._others_know = 0
        self._changed_revision: dict[str, int] = {}
        self._read_revision = self._all_read_revision = 0
        self._shown_revision: dict[str, int] = {}  # by part of what is watched
        self._newest_revision = 0
        self._cluster = 0
        self._born_revision: int | None = None

    @property
    def revision(self) -> int:
        """The newest revision seen: what is read from now on shows this one or a later one."""
        return self._newest_revision

    @property
    def backup_revision(self) -> int:
        """What was changed up to this revision stems from a backup; 0: the store lost nothing."""
        return self._born_revision or 0 if self.epoch else 0

    # ---- what is followed ----------------------------------------------------------------------

    @property
    def agents_keys(self) -> Keys:
        """What every agent follows."""
        return self._agents_keys

    @property
    def to_watch(self) -> Keys:
        """What this agent is to watch now: all of the job if it has been elected."""
        return self._agents_keys if self.term() is None else self._roots_keys

    def begins_to_watch(self, keys: Keys) -> list[JobChange]:
        """Take in that these keys, just read, are watched from that read's revision on.

        Returns: what is to be told: who is elected takes office now that it has read all.
        """
        had_all, self._watched = self._sees_all(), keys
        self._shown_revision.clear()
        if had_all and not self._sees_all():
            self._forget_others()
        term = self.term()
        newly_informed = self._sees_all() and not had_all and term is not None
        return [RootChanged(self._agent)] if newly_informed else []

    def _sees_all(self) -> bool:
        return self._watched == self._roots_keys

    def _forget_others(self) -> None:
        """Forget what is not followed any more, but whether others knew more of the job."""
        self._others_know = newest_generation(self._reports)
        for key in [key for key in self._changed_revision if not self._is_followed(key)]:
            del self._changed_revision[key]
            self._keys.pop(key, None)
            self._set_aside.discard(key)
            self._reports.pop(name_under(key, agents_prefix(self._job)), None)
        self._all_read_revision = 0

    def _is_followed(self, key: str) -> bool:
        """Whether every agent follows the key."""
        return self._agents_keys.part_of(key) is not None

    @property
    def others_prefix(self) -> str:
        """What `heard_of_others` wants read: all reports."""
        return agents_prefix(self._job)

    def heard_of_others(self, found: Sequence[KeyValue]) -> None:
        """Take in all reports as they stand, of which this agent follows none but its own."""
        reports: dict[str, AgentReport] = {}
        for item in found:
            with suppress(ValueError):
                told = self._proven(meaning(self._job, item))
                if isinstance(told, ReportChanged) and told.report is not None:
                    reports[told.agent] = told.report
        self._others_know = newest_generation(reports)

    # ---- what comes in -------------------------------------------------------------------------

    def read(
        self,
        found: Sequence[KeyValue],
        revision: int,
        keys: Keys | None = None,
        *,
        cluster: int = 0,
        since: int | None = None,
    ) -> list[JobChange]:
        """Take in keys of the job as of `revision`; return what is new, to be told in order.

        Args:
            found: the keys as they stand.
            revision: of the store, as of the read.
            keys: that were asked for; None: all of the job.
            cluster: id of the store that answered; 0 if that is not known.
            since: `revision` of this view when the request was sent, in the same `epoch`: what was
                seen meanwhile may be newer than the answer, what was seen before cannot be, in a
                store that is what it was. None: nothing was seen meanwhile.
        """
        keys = self._roots_keys if keys is None else keys
        since = self.revision if since is None else since
        lost: list[JobChange] = []
        other = bool(self._cluster and cluster and cluster != self._cluster)
        if other or revision < since or self._is_contradicted(found, revision):
            lost = self._begin_anew(found, revision, since, other=other)
        self._cluster = cluster or self._cluster
        told: list[JobChange] = []
        present = {item.key for item in found}
        asked = {key for key in self._keys if keys.part_of(key) is not None}
        for key in sorted(asked - present):
            told += self._take(StoreEvent(key, None, 0, revision))
        for item in found:
            told += self._take(
                StoreEvent(item.key, item.value, item.create_revision, item.mod_revision)
            )
        self._read_revision = max(self._read_revision, revision)
        if keys == self._roots_keys:
            self._all_read_revision = max(self._all_read_revision, revision)
        self._newest_revision = max(self._newest_revision, revision)
        if self._own_key not in present:
            self.own_report.known(None, revision)  # what this life wrote may be gone unseen
        if self._born_revision is None:
            self._born_revision = revision
            if self.root() is None and not lost:
                told.append(RootChanged(""))
        return lost + told

    def _is_contradicted(self, found: Sequence[KeyValue], revision: int) -> bool:
        """Whether the store tells of the past what was not so: it has been through another one.

        That is how a store is told which has lost its data and has come further since than it was.
        """
        if self._born_revision is None or revision < self._newest_revision:
            return False
        for item in found:
            seen = max(self._read_of(item.key), self._shown_of(item.key))
            if item.mod_revision > seen:
                continue
            known = self._keys.get(item.key)
            same = known is not None and (
                (known.value, known.create_revision, known.mod_revision)
                == (item.value, item.create_revision, item.mod_revision)
            )
            if not same:
                return True
        return False

    def _read_of(self, key: str) -> int:
        """Return the revision of the last read that showed this key, or that there was none."""
        return self._read_revision if self._is_followed(key) else self._all_read_revision

    def _shown_of(self, key: str) -> int:
        """Return up to which revision the watch has shown what becomes of this key."""
        return self._shown_revision.get(self._watched.part_of(key) or "", 0)

    def _begin_anew(
        self, found: Sequence[KeyValue], revision: int, since: int, *, other: bool
    ) -> list[JobChange]:
        """Forget what the store was: it is another one. Return what is to be told of that."""
        why = "is another one"
        if revision < since and not other:
            why = f"went back from revision {since} to {revision}"
        told: list[JobChange] = [
            StoreTrouble(
                "data", f"the store {why}: it lost data, and everything is written to it again"
            ),
            # First of all: whoever was root by the lost key decides nothing on what follows.
            RootChanged(""),
        ]
        present = {item.key for item in found}
        lasting = (
            spec_key(self._job),
            layout_prefix(self._job),
            software_prefix(self._job),
            credentials_key(self._job),
            wishes_prefix(self._job),
        )
        self.missing |= {
            key: known.value for key, known in self._keys.items() if key.startswith(lasting)
        }
        self.missing = {k: v for k, v in self.missing.items() if k not in present}
        if self._known is not None:
            lives = zip(self._known.agents, self._known.incarnations, strict=True)
            self.awaited |= {name: incarnation for name, incarnation in lives if name}
        told += [ReportChanged(name, None) for name in sorted(self._reports)]
        self.epoch += 1
        self.own_report.restart()
        self._keys.clear()
        self._reports.clear()
        self._changed_revision.clear()
        self._shown_revision.clear()
        self._watched, self._others_know = self._agents_keys, 0
        self._read_revision = self._all_read_revision = self._newest_revision = 0
        self._born_revision = None
        return told

    def change(self, event: StoreEvent) -> list[JobChange]:
        """Take in a change that a watch shows; return what is new of it, to be told in order."""
        part = self._watched.part_of(event.key) or ""
        shown = self._shown_revision.get(part, 0)
        self._shown_revision[part] = max(shown, event.mod_revision)
        return self._take(event)

    def _take(self, event: StoreEvent) -> list[JobChange]:
        key, revision = event.key, event.mod_revision
        if revision <= max(self._read_of(key), self._changed_revision.get(key, 0)):
            return []
        self._changed_revision[key] = revision
        self._newest_revision = max(self._newest_revision, revision)
        if event.value is None:
            self._keys.pop(key, None)
        else:
            self._keys[key] = KeyValue(key, event.value, event.create_revision, revision, None)
        if key == self._own_key:
            self._own_key_changed(event)
        told: list[JobChange] = []
        try:
            new = self._proven(meaning(self._job, event))
        except ValueError as error:
            self._set_aside.add(key)
            told.append(StoreTrouble(key, f"set aside: {error}"))
            agent = name_under(key, agents_prefix(self._job))
            new = ReportChanged(agent, None) if agent in self._reports else None
            if key == plan_key(self._job):
                new = PlanLost(revision)
        else:
            if key in self._set_aside:
                self._set_aside.discard(key)
                told.append(StoreTrouble(key, ""))
        self._remember(new)
        return told if new is None else [*told, new]

    def _remember(self, new: JobChange | None) -> None:
        if isinstance(new, PlanChanged):
            self._known = later(new.plan, self._known)
        elif isinstance(new, ReportChanged):
            self._take_report(new)
        elif isinstance(new, WishChanged):
            self._take_wish(new)

    def _proven(self, told: JobChange | None) -> JobChange | None:
        if isinstance(told, ReportChanged) and told.report and not self._believes(told.report):
            raise ValueError(f"agent {told.agent} has not proven that it knows the job's secret")
        return told

    def _own_key_changed(self, event: StoreEvent) -> None:
        there = None
        spoilt = False
        if event.value is not None:
            try:
                there = read_report(event.value)
            except ValueError:
                spoilt = True  # whatever it is, it is no life's of this name
        self.own_report.known(there, event.mod_revision, spoilt=spoilt)

    def _take_report(self, new: ReportChanged) -> None:
        if new.report is None:
            self._reports.pop(new.agent, None)
            return
        self._reports[new.agent] = new.report
        if self.awaited.get(new.agent) == new.report.incarnation:
            del self.awaited[new.agent]

    def _take_wish(self, new: WishChanged) -> None:
        if new.wish is None:
            self._wishes.pop(new.key, None)
        else:
            self._wishes[new.key] = new.wish

    # ---- what is known -------------------------------------------------------------------------

    def root(self) -> KeyValue | None:
        """Return the root's key as last seen."""
        return self._keys.get(root_key(self._job))

    def is_ours(self, root: KeyValue) -> bool:
        """Whether the root's key was created by this life of the agent, not by an earlier one."""
        born = self._born_revision
        return born is not None and root.value == self._agent and root.create_revision > born

    def term(self) -> int | None:
        """Return the term if this life of the agent is elected: its key's create revision."""
        root = self.root()
        return root.create_revision if root is not None and self.is_ours(root) else None

    def term_in_office(self) -> int | None:
        """Return the term if it is elected, and has read all that a root must know."""
        return self.term() if self._sees_all() else None

    def earlier_term(self) -> int | None:
        """Return the term that an earlier life of this agent has left; None if there is none.

        Nobody rules by it any more: this life has the name, so that one is dead or has lost it.
        """
        root = self.root()
        if root is None or root.value != self._agent or self.is_ours(root):
            return None
        return root.create_revision

    def plan(self) -> tuple[Plan | None, int]:
        """Return the plan as last seen and the revision of its key's last change, 0 without one.

        A plan that cannot be read is none, but its key has a revision.
        """
        key = plan_key(self._job)
        found = self._keys.get(key)
        if found is None or key in self._set_aside:
            return None, 0 if found is None else found.mod_revision
        return read_plan(found.value), found.mod_revision

    def known_plan(self) -> Plan | None:
        """Return the newest plan that this life has ever seen, whatever the store has now."""
        return self._known

    def may_campaign(self) -> bool:
        """Whether this agent knows as much as others have said: else they should be root.

        Who has not been root has not heard them, and may find it out once it is elected.
        """
        known = 0 if self._known is None else self._known.generation
        heard = 0 if self._sees_all() else self._others_know
        return max(heard, newest_generation(self._reports)) <= known

    def reports(self) -> list[AgentReport]:
        """Return the reports as last seen, by name: of all agents if this one is root."""
        return [report for _, report in sorted(self._reports.items())]

    def wishes(self) -> dict[str, Wish]:
        """Return what the job's user asks for, by keys; what the store has just lost, too."""
        return dict(self._wishes)

    def layouts(self) -> dict[str, str]:
        """Return the documents under the layout's prefix by rank."""
        return dict(sorted(self._under(layout_prefix(self._job))))

    def _under(self, prefix: str) -> list[tuple[str, str]]:
        named = ((name_under(key, prefix), found.value) for key, found in self._keys.items())
        return [(name, text) for name, text in named if name]
