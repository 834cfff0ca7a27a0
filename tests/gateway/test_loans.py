"""Blocks on loan: when they can be lent again, and what becomes of them when the gateway ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

from steploom_gateway.loans import Loan, Loans


def lent(loans: Loans) -> Loan:
    loan = loans.lend(48)
    assert loan is not None
    return loan


def test_a_block_is_lent_again_when_the_batcher_says_that_it_is_free(tmp_path: Path) -> None:
    async def run() -> None:
        asked, is_free = [], asyncio.Event()

        async def wait_free(job_id: str) -> None:
            asked.append(job_id)
            await is_free.wait()

        loans = Loans(tmp_path, 1, wait_free, settle_s=60.0)
        loans.end(lent(loans), "job", is_free=False)
        await asyncio.sleep(0)
        assert (asked, loans.lend(48)) == (["job"], None)
        is_free.set()
        await asyncio.gather(*loans._settling)
        loans.end(lent(loans), "other", is_free=True)
        assert loans.num_used == 0
        await loans.close()

    asyncio.run(run())


def test_a_job_that_ends_after_the_gateway_asks_nobody(tmp_path: Path) -> None:
    async def run() -> None:
        async def wait_free(job_id: str) -> None:
            raise AssertionError(f"asked for {job_id}")

        loans = Loans(tmp_path, 2, wait_free, settle_s=60.0)
        loan = lent(loans)
        await loans.close()
        loans.end(loan, "late", is_free=False)
        assert (loans.num_settling, loans.lend(48)) == (0, None)

    asyncio.run(run())
    assert not list(tmp_path.iterdir())
