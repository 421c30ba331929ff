"""Which span is chosen: what was asked for, else the newest of which nothing is known."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.retraining.retrain import choose
from pipeline.runs.history import RunRecord
from pipeline.runs.status import Status

ENDINGS = [status for status in Status if status is not Status.RUNNING]


class Landed:
    """As much of a span as the choice looks at."""

    def __init__(self, number: int, excluded: str | None = None) -> None:
        self.number = number
        self.excluded = excluded


spans = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from([None, "smudged"])),
    unique_by=lambda pair: pair[0],
).map(lambda pairs: [Landed(*pair) for pair in sorted(pairs, key=lambda pair: pair[0])])
runs = st.lists(
    st.builds(
        RunRecord,
        run_id=st.text(max_size=3),
        state=st.sampled_from(ENDINGS),
        started=st.just(0.0),
        span=st.one_of(st.none(), st.integers(1, 40)),
        stage=st.sampled_from(("data", "train", "evaluate", "push")),
    )
)
lengths = st.integers(0, 5)


@given(spans, runs, lengths)
def test_the_newest_usable_span_is_chosen_or_none(
    spans: list[Landed], runs: list[RunRecord], length: int
) -> None:
    choice = choose(spans, runs, asked=None, length=length)
    usable = [span.number for span in spans if span.excluded is None]
    of_newest = [run for run in runs if usable and run.span == max(usable)]
    settled = any(run.is_whole or run.state is Status.SKIPPED for run in of_newest)
    if usable and not settled:
        assert choice.span == max(usable)
        assert choice.earlier is None
    else:
        assert choice.span is None


@given(spans, runs, lengths)
def test_nothing_new_once_the_chosen_span_is_done(
    spans: list[Landed], runs: list[RunRecord], length: int
) -> None:
    choice = choose(spans, runs, asked=None, length=length)
    if choice.span is not None:
        done = RunRecord("new", Status.DONE, 1.0, span=choice.span)
        assert choose(spans, [done, *runs], asked=None, length=length).span is None
        again = choose(spans, [done, *runs], asked=choice.span, length=length)
        assert again.earlier == done


@given(spans, runs, st.integers(1, 40), lengths)
def test_a_window_ends_with_its_span_and_holds_the_usable_ones_before(
    spans: list[Landed], runs: list[RunRecord], asked: int, length: int
) -> None:
    choice = choose(spans, runs, asked=asked, length=length)
    usable = [span.number for span in spans if span.excluded is None and span.number <= asked]
    assert choice.span == asked
    assert list(choice.window) == (usable[-length:] if length else usable)


@given(spans, lengths)
def test_a_later_span_changes_no_earlier_window(spans: list[Landed], length: int) -> None:
    for count in range(1, len(spans) + 1):
        last = spans[count - 1].number
        early = choose(spans[:count], [], asked=last, length=length)
        assert choose(spans, [], asked=last, length=length) == early


def test_stages_are_noticed_but_do_not_settle_a_span() -> None:
    part = RunRecord("a", Status.DONE, 0.0, span=1, stage="train")
    choice = choose([Landed(1)], [part], asked=None, length=0)
    assert (choice.span, choice.begun, choice.earlier) == (1, True, None)
    failed = RunRecord("a", Status.FAILED, 0.0, span=1)
    assert not choose([Landed(1)], [failed], asked=None, length=0).begun
