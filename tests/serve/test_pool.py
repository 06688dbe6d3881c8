"""Between the event loop and the workers' threads."""

from __future__ import annotations

import asyncio
from typing import Any

from torchpar.serve.engine.pool import Pool


def test_workers_that_finish_all_the_time_leave_others_their_turn() -> None:
    """Here one batch is finished while the answers to the one before are written, without end."""

    async def run() -> None:
        def finished(batch: Any) -> None:
            nonlocal count
            count += 1
            if count < 1000:
                pool._done.append(batch)
                pool._post()

        count = 0
        pool = Pool(
            1, asyncio.get_running_loop(), prepare=lambda slot: None, finished=finished, expired=lambda *_: None
        )
        batch: Any = object()
        pool._done.append(batch)
        pool._post()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert 1 <= count < 1000
        while count < 1000:
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(run(), 20))
