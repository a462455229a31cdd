from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fallow.core.admission import RESUME_BELOW_S, SHED_AFTER_S, Overload, jobs_refusal, limits_of, within_limits
from fallow.core.demand import JobDemand
from fallow.model.ids import ClientId, Digest, JobId
from fallow.model.job import AccountLimits, Blob, JobKind, JobSpec, Resources


def demand(name: str, want: int, account: str = "a", cpu: int = 1, served: float = 0.0) -> JobDemand:
    spec = JobSpec(
        JobId(name), name, JobKind.MAP, ClientId("c"), Blob(Digest(""), 0, b""), account=account,
        resources=Resources(cpu=cpu),
    )  # fmt: skip
    return JobDemand(spec, want, served)


def test_new_work_is_shed_until_it_has_caught_up() -> None:
    load = Overload()
    between = (SHED_AFTER_S + RESUME_BELOW_S) / 2
    load.note(between)
    assert load.refusal() == ""
    load.note(SHED_AFTER_S + 0.5)
    assert "2.5 s behind" in load.refusal()
    load.note(between)
    assert load.sheds, "it has not caught up"
    load.note(RESUME_BELOW_S / 2)
    assert load.refusal() == ""
    load.note(between)
    assert load.refusal() == ""


def test_whose_limits_hold() -> None:
    limits = {"a": AccountLimits(jobs=2), "*": AccountLimits(jobs=1, slots=4)}
    assert limits_of(limits, "a") == AccountLimits(jobs=2)
    assert limits_of(limits, "b") == AccountLimits(jobs=1, slots=4)
    assert limits_of({}, "b") == AccountLimits()
    assert jobs_refusal(limits, "a", 1) == ""
    assert "'a' has 2 jobs in the pool, and may have 2" in jobs_refusal(limits, "a", 2)
    assert "'b' has 1 jobs" in jobs_refusal(limits, "b", 1)
    assert jobs_refusal({}, "b", 10**6) == ""


def test_an_accounts_jobs_share_its_slots() -> None:
    limits = {"a": AccountLimits(slots=10)}
    jobs = [demand("1", 100), demand("2", 2), demand("3", 100), demand("other", 100, "b")]
    assert within_limits(jobs, limits) == {"1": 4, "2": 2, "3": 4}
    assert within_limits([demand("1", 4), demand("2", 6)], limits) == {}, "they want no more than they may have"
    assert within_limits([demand("1", 100, cpu=4)], limits) == {"1": 2}


def test_where_there_are_too_few_slots_for_all_those_served_least_go_first() -> None:
    limits = {"*": AccountLimits(slots=2)}
    jobs = [demand("1", 5, served=50.0), demand("2", 5), demand("3", 5, served=20.0)]
    assert within_limits(jobs, limits) == {"1": 0, "2": 1, "3": 1}


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 5), st.floats(0, 1000)), max_size=12),
    st.integers(1, 60),
)
def test_shares_keep_the_limit_and_leave_nothing_that_somebody_could_use(
    wants: list[tuple[int, int, float]], slots: int
) -> None:
    jobs = [demand(str(at), want, cpu=cpu, served=served) for at, (want, cpu, served) in enumerate(wants)]
    found = within_limits(jobs, {"a": AccountLimits(slots=slots)})
    if sum(want * cpu for want, cpu, _ in wants) <= slots:
        assert found == {}
        return
    used = sum(found[str(at)] * cpu for at, (_, cpu, _) in enumerate(wants))
    assert used <= slots
    for at, (want, cpu, _) in enumerate(wants):
        assert 0 <= found[str(at)] <= want
        assert found[str(at)] == want or cpu > slots - used
