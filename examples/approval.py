"""An order that a person approves, whose payment is an effect, and that is undone if it cannot be shipped.

    nexus up approval:app
    nexus goal submit order '{"item": "pump", "count": 40, "customer": "ada"}'
    nexus goal questions
    nexus goal answer GOAL main --yes --comment "good customer"

Between question and answer days may go by, and every process may die. The desk is paid once whatever happens: the
payment's intent is on record before it is made, and its receipt after.
"""

from pathlib import Path
from tempfile import gettempdir

from pydantic import BaseModel, Field

import nexus_ray as nexus

PRICE = 250
APPROVED_WITHOUT_ASKING = 1000  # Smaller orders need nobody.
BANK = Path(gettempdir()) / "nexus-example-bank"  # The world outside: a line for each payment.

app = nexus.App("approval")


class Order(BaseModel):
    """What a customer wants."""

    item: str = "pump"
    count: int = Field(default=1, ge=1, le=1000)
    customer: str = "ada"

    @property
    def total(self) -> int:
        """What it costs."""
        return self.count * PRICE


class Reservation(BaseModel):
    """How many are to be set aside for a customer; none to take back what was."""

    customer: str
    count: int


class Stock(BaseModel):
    """How many of an item were set aside, by customer."""

    reserved: dict[str, int] = {}


@app.agent
class Shelf(nexus.Agent):
    """One for each item. Taking back what was not set aside changes nothing."""

    state: Stock

    async def handle(self, wanted: Reservation) -> str:
        self.state.reserved[wanted.customer] = wanted.count
        return f"{wanted.count} set aside"


@app.agent(retries=2)
class Cashier(nexus.Agent):
    """Takes the money, and gives it back: each an effect, done once however often the task is tried."""

    async def handle(self, order: Order, task: nexus.Task) -> str:
        def pay(key: str) -> str:
            with BANK.open("a") as book:
                book.write(f"{key} {order.customer} pays {order.total}\n")
            return f"receipt for {order.total}"

        receipt: str = await task.effect("pay", pay)
        return receipt


@app.agent(retries=2)
class Refund(nexus.Agent):
    """Gives the money back. The key makes it harmless to be asked twice."""

    async def handle(self, order: Order, task: nexus.Task) -> str:
        def refund(key: str) -> str:
            with BANK.open("a") as book:
                book.write(f"{key} {order.customer} gets {order.total}\n")
            return "refunded"

        done: str = await task.effect("refund", refund)
        return done


@app.agent
class Carrier(nexus.Agent):
    """Ships, if it fits on the truck."""

    async def handle(self, order: Order) -> str:
        if order.count > 100:
            raise ValueError("the truck holds 100")
        return f"{order.count} {order.item} on their way"


@app.goal(timeout_s=7 * 86_400)
async def order(request: Order, team: nexus.Team) -> list[str]:
    """Take an order: ask where it is large, then set aside, charge and ship, or none of it."""
    if request.total > APPROVED_WITHOUT_ASKING:
        question = f"{request.count} {request.item} for {request.customer}, {request.total} in all?"
        answer = await team.approval(question)
        if not answer.approved:
            return [f"refused by {answer.by}: {answer.comment}"]
    wanted = Reservation(customer=request.customer, count=request.count)
    nothing = Reservation(customer=request.customer, count=0)
    done = await team.saga(
        [
            nexus.SagaStep(nexus.Call(Shelf, wanted, request.item), nexus.Call(Shelf, nothing, request.item)),
            nexus.SagaStep(
                nexus.Call(Cashier, request, request.customer), nexus.Call(Refund, request, request.customer)
            ),
            nexus.SagaStep(nexus.Call(Carrier, request)),
        ]
    )
    return [str(part) for part in done]
