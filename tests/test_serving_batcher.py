"""The batcher computes together what waits together, keeps its bounds, and answers every request that it took."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from deploykit.serving.batcher import Batcher, ClosedError, DeadlineError, PredictionError, QueueFullError

POISON = 666.0


class Predictor:
    """Doubles its input, notes the size of each batch, fails on poison, and waits where it is told to."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.open = threading.Event()
        self.open.set()
        self.failures_left = 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return twice the images."""
        self.sizes.append(len(images))
        assert self.open.wait(10)
        if self.failures_left:
            self.failures_left -= 1
            raise RuntimeError("a hiccup")
        if (images == POISON).any():
            raise ValueError("poison")
        return images * 2

    def hold(self) -> None:
        """Let the next batch wait until ``open.set()``."""
        self.open.clear()


@pytest.fixture
def predictor() -> Predictor:
    """Return a predictor that works."""
    return Predictor()


def images(count: int, value: float = 1.0) -> np.ndarray:
    """Return a request of so many images of four pixels, distinct ones."""
    return np.float32(value) + np.arange(count, dtype=np.float32)[:, None].repeat(4, axis=1)


def run(predictor: Predictor, scenario: Callable[[Batcher], Awaitable[Any]], **limits: int) -> Any:
    """Run a scenario with a batcher that is closed in the end."""

    async def main() -> Any:
        batcher = Batcher(predictor, **{"max_queue_delay_us": 0, **limits})
        try:
            return await scenario(batcher)
        finally:
            predictor.open.set()
            await asyncio.wait_for(batcher.close(), 10)

    return asyncio.run(main())


async def busy(batcher: Batcher, predictor: Predictor) -> asyncio.Future[np.ndarray]:
    """Occupy the worker with one image until ``predictor.open.set()``; returns the future."""
    predictor.hold()
    future = batcher.submit(images(1))
    while not predictor.sizes:  # noqa: ASYNC110 - a thread gives the sign
        await asyncio.sleep(0.001)
    return future


class TestBatches:
    def test_what_waits_together_is_computed_together(self, predictor):
        """Three requests that came while the worker was busy are one batch, and each gets its own rows."""

        async def scenario(batcher):
            first = await busy(batcher, predictor)
            rest = [batcher.submit(images(count, 10 * count)) for count in (1, 2, 3)]
            predictor.open.set()
            return await asyncio.gather(first, *rest)

        _, *results = run(predictor, scenario)

        assert predictor.sizes == [1, 6]
        for count, result in zip((1, 2, 3), results, strict=True):
            assert_array_equal(result, images(count, 10 * count) * 2)

    def test_no_batch_is_larger_than_allowed(self, predictor):
        """Ten images in batches of at most four, in the order of their arrival."""

        async def scenario(batcher):
            first = await busy(batcher, predictor)
            rest = [batcher.submit(images(2)) for _ in range(5)]
            predictor.open.set()
            await asyncio.gather(first, *rest)

        run(predictor, scenario, max_batch_size=4)

        assert predictor.sizes == [1, 4, 4, 2]

    def test_a_lone_request_waits_for_company_and_no_longer(self, predictor):
        """Two requests within the delay are one batch; it goes when the delay is over, not full."""

        async def scenario(batcher):
            started = time.monotonic()
            first = batcher.submit(images(1))
            await asyncio.sleep(0.01)
            await asyncio.gather(first, batcher.submit(images(1)))
            return time.monotonic() - started

        waited = run(predictor, scenario, max_queue_delay_us=300_000)

        assert predictor.sizes == [2]
        assert waited >= 0.3

    def test_a_full_batch_does_not_wait(self, predictor):
        """With an hour to wait for company, four images of four go at once."""

        async def scenario(batcher):
            first = batcher.submit(images(2))
            await asyncio.sleep(0.05)  # by then the worker waits for company
            await asyncio.wait_for(asyncio.gather(first, batcher.submit(images(2))), 10)

        run(predictor, scenario, max_batch_size=4, max_queue_delay_us=3_600_000_000)

        assert predictor.sizes == [4]

    def test_each_batch_is_told(self, predictor):
        """The observer gets images and seconds."""
        told = []

        async def main():
            batcher = Batcher(predictor, max_queue_delay_us=0, observe=lambda *figures: told.append(figures))
            await batcher.submit(images(3))
            await batcher.close()

        asyncio.run(main())

        assert [count for count, _ in told] == [3]
        assert told[0][1] >= 0


class TestBounds:
    def test_the_queue_counts_images_and_refuses_what_does_not_fit(self, predictor):
        """Eight images may wait; 6 + 2 fit, one more does not, and the refused one leaves no trace."""

        async def scenario(batcher):
            first = await busy(batcher, predictor)
            taken = [batcher.submit(images(count)) for count in (4, 2, 2)]
            with pytest.raises(QueueFullError, match="the queue is full; try again in"):
                batcher.submit(images(1))
            queued = batcher.queued
            predictor.open.set()
            await asyncio.gather(first, *taken)
            return queued, batcher.queued

        assert run(predictor, scenario, max_batch_size=4, max_queue_size=8) == (8, 0)

    def test_the_hint_grows_with_the_queue(self, predictor):
        """When to come back is how long what waits will take: so many batches, and the one in progress."""

        async def scenario(batcher):
            batcher._batch_s = 0.5
            before = batcher.full().retry_after_s
            first = await busy(batcher, predictor)
            taken = [batcher.submit(images(4)) for _ in range(2)]
            after = batcher.full().retry_after_s
            predictor.open.set()
            await asyncio.gather(first, *taken)
            return before, after

        assert run(predictor, scenario, max_batch_size=4, max_queue_size=8) == (0.5, 1.5)

    @pytest.mark.parametrize("count", [0, 5])
    def test_a_request_holds_one_image_to_a_batch(self, predictor, count):
        """None and more than a batch are refused with what would do."""

        async def scenario(batcher):
            batcher.submit(images(count))

        with pytest.raises(ValueError, match=f"a request has {count} images; send 1 to 4, and more in several"):
            run(predictor, scenario, max_batch_size=4)

    @pytest.mark.parametrize(
        ("limits", "words"),
        [
            ({"max_batch_size": 0}, "max_batch_size is 0"),
            ({"max_queue_delay_us": -1}, "max_queue_delay_us is -1"),
            ({"max_queue_size": 3, "max_batch_size": 4}, "max_queue_size is 3; give at least max_batch_size, 4"),
        ],
    )
    def test_limits_that_make_no_sense_are_refused(self, predictor, limits, words):
        """Before a thread is started."""

        async def scenario(_batcher):
            raise AssertionError("it was made")

        with pytest.raises(ValueError, match=words):
            run(predictor, scenario, **limits)

    def test_the_wait_is_bounded_as_promised(self):
        """Under four times what it can do, no accepted request waits longer than the formula says.

        Time is the predictor's own count of batches: at most ceil(8 / 4) + 1 start between a request and its answer.
        """
        batches = []

        def slow(given):
            batches.append(len(given))
            time.sleep(0.002)
            return given

        async def client(batcher, waits):
            for _ in range(10):
                before = len(batches)
                try:
                    await batcher.submit(images(2))
                    waits.append(len(batches) - before)
                except QueueFullError:
                    await asyncio.sleep(0.001)

        async def main():
            batcher, waits = Batcher(slow, max_batch_size=4, max_queue_size=8, max_queue_delay_us=0), []
            await asyncio.gather(*[client(batcher, waits) for _ in range(16)])
            await batcher.close()
            return waits

        waits = asyncio.run(main())

        assert len(waits) > 10
        assert max(waits) <= 4  # the batch after its own may have begun when its answer is delivered


class TestEnds:
    def test_a_cancelled_request_frees_its_place(self, predictor):
        """Where two of two waited, cancelling one makes room, and the predictor never sees it."""

        async def scenario(batcher):
            first = await busy(batcher, predictor)
            kept, gone = batcher.submit(images(1, 5)), batcher.submit(images(1, 7))
            gone.cancel()
            await asyncio.sleep(0)
            late = batcher.submit(images(1, 9))
            predictor.open.set()
            return await asyncio.gather(first, kept, late)

        _, kept, late = run(predictor, scenario, max_batch_size=2, max_queue_size=2)

        assert predictor.sizes == [1, 2]
        assert (kept[0, 0], late[0, 0]) == (10, 18)

    def test_a_cancelled_lone_request_leaves_a_worker_that_works(self, predictor):
        """The one that everybody waits with is cancelled; the next is answered."""

        async def scenario(batcher):
            batcher.submit(images(1)).cancel()
            await asyncio.sleep(0.05)
            return await asyncio.wait_for(batcher.submit(images(1, 3)), 10)

        assert run(predictor, scenario, max_queue_delay_us=20_000)[0, 0] == 6

    def test_a_request_that_is_too_late_frees_its_place(self, predictor):
        """Its deadline passes while it waits: DeadlineError, and the predictor never sees it."""

        async def scenario(batcher):
            first = await busy(batcher, predictor)
            with pytest.raises(DeadlineError):
                await batcher.submit(images(1), deadline_s=0.02)
            await asyncio.sleep(0)
            queued = batcher.queued
            predictor.open.set()
            await first
            return queued

        assert run(predictor, scenario) == 0
        assert predictor.sizes == [1]

    def test_closing_answers_what_waits(self, predictor):
        """Everything that was taken is answered, and nothing more is taken."""

        async def scenario(batcher):
            waiting = [await busy(batcher, predictor), *[batcher.submit(images(1, value)) for value in range(8)]]
            closing = asyncio.create_task(batcher.close())
            await asyncio.sleep(0.01)
            with pytest.raises(ClosedError):
                batcher.submit(images(1))
            predictor.open.set()
            await closing
            return [future.done() and future.result()[0, 0] for future in waiting]

        assert run(predictor, scenario) == [2, *[2 * value for value in range(8)]]

    def test_closing_does_not_wait_for_company(self, predictor):
        """A lone request that would wait an hour for a full batch is answered at once."""

        async def scenario(batcher):
            future = batcher.submit(images(1, 3))
            await asyncio.sleep(0.02)
            await asyncio.wait_for(batcher.close(), 10)
            return future.result()

        assert run(predictor, scenario, max_queue_delay_us=3_600_000_000)[0, 0] == 6

    def test_it_needs_an_event_loop(self, predictor):
        """Made outside of one, it says so at once."""
        with pytest.raises(RuntimeError, match="no running event loop"):
            Batcher(predictor)


class TestFailures:
    def test_a_poisonous_request_harms_no_neighbour(self, predictor):
        """Of three in a batch the middle one fails, with the predictor's error as cause; the others are answered."""

        async def scenario(batcher):
            first = await busy(batcher, predictor)
            rest = [batcher.submit(images(1, value)) for value in (3, POISON, 4)]
            predictor.open.set()
            return await asyncio.gather(first, *rest, return_exceptions=True)

        _, before, poisoned, after = run(predictor, scenario)

        assert (before[0, 0], after[0, 0]) == (6, 8)
        assert isinstance(poisoned, PredictionError)
        assert str(poisoned.__cause__) == "poison"
        assert predictor.sizes == [1, 3, 1, 1, 1]

    def test_a_failure_that_passes_is_not_noticed(self, predictor):
        """The predictor raises once: what it computed is computed again, one by one."""
        predictor.failures_left = 1

        async def scenario(batcher):
            return await batcher.submit(images(2, 3))

        assert_array_equal(run(predictor, scenario), images(2, 3) * 2)

    @pytest.mark.parametrize("wrong", [lambda given: given[:1], lambda _: None])
    def test_results_that_do_not_fit_fail_and_the_worker_goes_on(self, wrong):
        """Rows that are missing are nobody's result."""

        async def main():
            batcher = Batcher(wrong, max_queue_delay_us=0)
            for _ in range(2):
                with pytest.raises(PredictionError):
                    await asyncio.wait_for(batcher.submit(images(2)), 10)
            await batcher.close()

        asyncio.run(main())
