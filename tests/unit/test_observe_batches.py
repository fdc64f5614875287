"""A batch of queries is logged and traced as its own first query, not as an earlier one."""

import asyncio

import numpy as np

from dq_cluster.observe.log import current_request_id, request_context
from dq_cluster.serve.batcher import Batcher


def test_each_batch_runs_in_the_context_of_its_first_query() -> None:
    async def run() -> list[str]:
        seen: list[str] = []
        first_is_waiting = asyncio.Event()
        others_are_waiting = asyncio.Event()

        async def work(key: str, vectors: np.ndarray) -> None:
            seen.append(current_request_id())
            first_is_waiting.set()
            await others_are_waiting.wait()

        batcher: Batcher[str, None] = Batcher(work, lambda key: 8)

        async def query(request_id: str) -> None:
            with request_context(request_id):
                await batcher.run("k", np.zeros((1, 2), np.float32))

        one = asyncio.create_task(query("one"))
        await first_is_waiting.wait()
        rest = [asyncio.create_task(query(name)) for name in ("two", "three")]
        await asyncio.sleep(0)
        others_are_waiting.set()
        await asyncio.gather(one, *rest)
        return seen

    assert asyncio.run(run()) == ["one", "two"]
