import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from topd_ray.driver.ledger import Ledger, Stage
from topd_ray.errors import TopdError


def test_a_rollout_that_went_all_the_way_balances() -> None:
    ledger = Ledger()
    ledger.dispatch(["a"])
    for stage in (Stage.ROLLED_OUT, Stage.SCORED, Stage.PROBED, Stage.CONSUMED):
        ledger.advance(["a"], stage)
    ledger.close_step(["a"])
    assert (ledger.num_dispatched, ledger.num_consumed) == (1, 1)


def test_an_open_rollout_is_named_when_the_step_closes() -> None:
    ledger = Ledger()
    ledger.dispatch(["a", "b"])
    ledger.advance(["a"], Stage.CONSUMED)
    ledger.advance(["b"], Stage.SCORED)
    with pytest.raises(TopdError, match=r"b \(SCORED\)"):
        ledger.close_step(["a", "b"])


@pytest.mark.parametrize("stage", [Stage.ROLLED_OUT, Stage.CONSUMED])
def test_nothing_is_consumed_or_rolled_out_twice(stage: Stage) -> None:
    ledger = Ledger()
    ledger.dispatch(["a"])
    ledger.advance(["a"], stage)
    with pytest.raises(TopdError, match="rollout a"):
        ledger.advance(["a"], stage)


def test_unknown_and_repeated_rollouts_are_refused() -> None:
    ledger = Ledger()
    with pytest.raises(TopdError, match="never dispatched"):
        ledger.advance(["a"], Stage.SCORED)
    ledger.dispatch(["a"])
    with pytest.raises(TopdError, match="dispatched twice"):
        ledger.dispatch(["a"])


def test_no_checkpoint_inside_a_step() -> None:
    ledger = Ledger()
    ledger.dispatch(["a"])
    with pytest.raises(TopdError, match="no rollout is open"):
        ledger.state()


class LedgerHistories(RuleBasedStateMachine):
    """Any order of results, drops and closings keeps dispatched == consumed + dropped +
    open.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ledger, self.open, self.names = Ledger(), dict[str, Stage](), 0
        self.steps: list[list[str]] = []

    @rule(count=st.integers(1, 4))
    def dispatch(self, count: int) -> None:
        fresh = [f"r{self.names + i}" for i in range(count)]
        self.names += count
        self.ledger.dispatch(fresh)
        self.open |= dict.fromkeys(fresh, Stage.DISPATCHED)
        self.steps.append(fresh)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def advance(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.open)))
        stage = Stage(data.draw(st.integers(self.open[name] + 1, Stage.CONSUMED)))
        self.ledger.advance([name], stage)
        if stage is Stage.CONSUMED:
            del self.open[name]
        else:
            self.open[name] = stage

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.open)))
        self.ledger.drop([name], reason="test")
        del self.open[name]

    @precondition(lambda self: self.steps)
    @rule()
    def close_the_oldest_step(self) -> None:
        if any(name in self.open for name in self.steps[0]):
            with pytest.raises(TopdError, match="unaccounted"):
                self.ledger.close_step(self.steps[0])
        else:
            self.ledger.close_step(self.steps.pop(0))

    @precondition(lambda self: not self.open)
    @rule()
    def restore(self) -> None:
        for names in self.steps:
            self.ledger.close_step(names)
        self.steps.clear()
        self.ledger = Ledger.restored(self.ledger.state())

    @invariant()
    def books_balance(self) -> None:
        ledger = self.ledger
        assert ledger.waiting() == self.open
        closed = ledger.num_consumed + ledger.dropped.total()
        assert ledger.num_dispatched == closed + len(self.open)


TestLedgerHistories = LedgerHistories.TestCase
TestLedgerHistories.settings = settings(max_examples=100, deadline=None)
