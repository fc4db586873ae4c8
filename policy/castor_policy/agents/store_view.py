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

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.events import ReportChanged, RootChanged, StoreTrouble
from castor_policy.agents.followed_keys import agents_keys, roots_keys
from castor_policy.agents.job_change import JobChange, read_report
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.neighbours import may_be_deposed
from castor_policy.agents.own_report import OwnReport
from castor_policy.agents.plan import Plan
from castor_policy.agents.plan_repair import newest_generation
from castor_policy.agents.seen_documents import SeenDocuments
from castor_policy.agents.seen_revisions import SeenRevisions
from castor_policy.agents.store_keys import agents_prefix
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
        was_away: the store did not answer when this life first asked it: it may have lost its data
            meanwhile, and others may know what it held.
    """

    def __init__(
        self, job: str, agent: str, believes: Callable[[AgentReport], bool] = lambda _: True
    ) -> None:
        self.own_report = OwnReport()
        self.epoch = 0
        self.missing: dict[str, str] = {}
        self.awaited: dict[str, str] = {}
        self.was_away = False
        self._agent = agent
        self._others_prefix = agents_prefix(job)
        self._own_key = agents_prefix(job) + agent
        self._agents_keys, self._roots_keys = agents_keys(job, agent), roots_keys(job)
        self._seen = SeenRevisions(self._agents_keys, self._roots_keys)
        self._documents = SeenDocuments(job, believes)
        self._others_know = 0
        self._cluster = 0

    @property
    def revision(self) -> int:
        """The newest revision seen: what is read from now on shows this one or a later one."""
        return self._seen.newest

    @property
    def backup_revision(self) -> int:
        """What was changed up to this revision stems from a backup; 0: the store lost nothing."""
        return self._seen.born or 0 if self.epoch else 0

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
        had_all = self._seen.sees_all
        self._seen.watch(keys)
        sees_all = self._seen.sees_all
        if had_all and not sees_all:
            self._forget_others()
        newly_informed = sees_all and not had_all and self.term() is not None
        return [RootChanged(self._agent)] if newly_informed else []

    def _forget_others(self) -> None:
        """Forget what is not followed any more, but whether others knew more of the job."""
        self._others_know = newest_generation(self._documents.reports)
        for key in self._seen.forget_others():
            self._documents.forget(key)

    @property
    def others_prefix(self) -> str:
        """What `heard_of_others` and `term_to_end` want read: all reports."""
        return self._others_prefix

    def heard_of_others(self, found: Sequence[KeyValue]) -> None:
        """Take in all reports as they stand, of which this agent follows none but its own."""
        self._others_know = newest_generation(self._reports_in(found))

    def term_to_end(self, spec: JobSpec, root: str, found: Sequence[KeyValue]) -> int | None:
        """Return the term of a root that is to be deposed; None: it is not, or has no office.

        Args:
            spec: the job.
            root: the agent.
            found: all reports as they stand.
        """
        key = self.root()
        if key is None or key.value != root:
            return None
        may_be = may_be_deposed(spec, self.known_plan(), self._reports_in(found), root)
        return key.create_revision if may_be else None

    def _reports_in(self, found: Sequence[KeyValue]) -> dict[str, AgentReport]:
        reports: dict[str, AgentReport] = {}
        for item in found:
            with suppress(ValueError):
                told = self._documents.meaning(item)
                if isinstance(told, ReportChanged) and told.report is not None:
                    reports[told.agent] = told.report
        return reports

    # ---- what comes in -------------------------------------------------------------------------

    def unanswered(self) -> None:
        """Take in that the store did not answer."""
        self.was_away |= self._seen.born is None

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
        asked = {key for key in self._documents.keys if keys.part_of(key) is not None}
        for key in sorted(asked - present):
            told += self._take(StoreEvent(key, None, 0, revision))
        for item in found:
            told += self._take(
                StoreEvent(item.key, item.value, item.create_revision, item.mod_revision)
            )
        self._seen.read(keys, revision)
        if self._own_key not in present:
            self.own_report.known(None, revision)  # what this life wrote may be gone unseen
        if self._seen.born is None:
            self._seen.born = revision
            if self.root() is None and not lost:
                told.append(RootChanged(""))
        return lost + told

    def _is_contradicted(self, found: Sequence[KeyValue], revision: int) -> bool:
        """Whether the store tells of the past what was not so: it has been through another one.

        That is how a store is told which has lost its data and has come further since than it was.
        """
        if self._seen.born is None or revision < self._seen.newest:
            return False
        for item in found:
            if item.mod_revision > self._seen.of(item.key):
                continue
            known = self._documents.keys.get(item.key)
            same = known is not None and (
                (known.value, known.create_revision, known.mod_revision)
                == (item.value, item.create_revision, item.mod_revision)
            )
            if not same:
                return True
        return False

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
        told += [ReportChanged(name, None) for name in sorted(self._documents.reports)]
        present = {item.key for item in found}
        self.missing |= self._documents.lose()
        self.missing = {k: v for k, v in self.missing.items() if k not in present}
        if (newest := self.known_plan()) is not None:
            lives = zip(newest.agents, newest.incarnations, strict=True)
            self.awaited |= {name: incarnation for name, incarnation in lives if name}
        self.epoch += 1
        self.own_report.restart()
        self._seen.restart()
        self._others_know = 0
        return told

    def change(self, event: StoreEvent) -> list[JobChange]:
        """Take in a change that a watch shows; return what is new of it, to be told in order."""
        self._seen.shown(event)
        return self._take(event)

    def _take(self, event: StoreEvent) -> list[JobChange]:
        if not self._seen.is_news(event.key, event.mod_revision):
            return []
        if event.key == self._own_key:
            self._own_key_changed(event)
        told = self._documents.take(event)
        for new in told:
            if isinstance(new, ReportChanged) and new.report is not None:
                self._came(new.report)
        return told

    def _came(self, report: AgentReport) -> None:
        if self.awaited.get(report.agent) == report.incarnation:
            del self.awaited[report.agent]

    def _own_key_changed(self, event: StoreEvent) -> None:
        there = None
        spoilt = False
        if event.value is not None:
            try:
                there = read_report(event.value)
            except ValueError:
                spoilt = True  # whatever it is, it is no life's of this name
        self.own_report.known(there, event.mod_revision, spoilt=spoilt)

    # ---- what is known -------------------------------------------------------------------------

    def root(self) -> KeyValue | None:
        """Return the root's key as last seen."""
        return self._documents.root()

    def is_ours(self, root: KeyValue) -> bool:
        """Whether the root's key was created by this life of the agent, not by an earlier one."""
        born = self._seen.born
        return born is not None and root.value == self._agent and root.create_revision > born

    def term(self) -> int | None:
        """Return the term if this life of the agent is elected: its key's create revision."""
        root = self.root()
        return root.create_revision if root is not None and self.is_ours(root) else None

    def term_in_office(self) -> int | None:
        """Return the term if it is elected, and has read all that a root must know."""
        return self.term() if self._seen.sees_all else None

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
        return self._documents.plan()

    def known_plan(self) -> Plan | None:
        """Return the newest plan that this life has ever seen, whatever the store has now."""
        return self._documents.newest_plan

    def may_campaign(self) -> bool:
        """Whether this agent knows as much as others have said: else they should be root.

        Who has not been root has not heard them, and may find it out once it is elected.
        """
        newest = self.known_plan()
        known = 0 if newest is None else newest.generation
        heard = 0 if self._seen.sees_all else self._others_know
        return max(heard, newest_generation(self._documents.reports)) <= known

    def reports(self) -> list[AgentReport]:
        """Return the reports as last seen, by name: of all agents if this one is root."""
        return [report for _, report in sorted(self._documents.reports.items())]

    def wishes(self) -> dict[str, Wish]:
        """Return what the job's user asks for, by keys; what the store has just lost, too."""
        return dict(self._documents.wishes)

    def layouts(self) -> dict[str, str]:
        """Return the documents under the layout's prefix by rank."""
        return self._documents.layouts()
