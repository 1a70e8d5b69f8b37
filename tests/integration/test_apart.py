"""Work in processes of their own: what comes back, and that nothing takes more time or memory than it is given."""

import pytest

from support import chores
from tutti.adapters.apart import MEMORY, Processes
from tutti.core.errors import TuttiError, UserError
from tutti.ports.apart import GivenUp


@pytest.fixture
async def apart():
    apart = Processes()
    yield apart
    await apart.close()


async def test_results_and_errors_come_back_and_what_is_hostile_costs_its_budget_only(apart):
    assert await apart.run(chores.add, 2, 3, seconds=30) == 5
    with pytest.raises(UserError, match="no, by name"):
        await apart.run(chores.refuse, seconds=30)
    with pytest.raises(TuttiError, match="RuntimeError"):
        await apart.run(chores.fail, seconds=30)
    with pytest.raises(GivenUp, match=r"never end took more than 0\.2 s"):
        await apart.run(chores.never_end, seconds=0.2)
    with pytest.raises(GivenUp, match="2048 MiB of memory"):
        await apart.run(chores.take, MEMORY, seconds=30)
    with pytest.raises(GivenUp, match="the process died that did die"):
        await apart.run(chores.die, seconds=30)
    assert await apart.run(chores.add, 2, 3, seconds=30) == 5
