# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A tour of Nexus in a notebook
#
# Nexus runs *goals* over *agents*. A goal is what you want; an agent does a share of it. This notebook submits goals to
# a fleet that is up, watches one at work, and looks at what it leaves behind.
#
# Start the example fleet first, in a terminal at the top of the repository:
#
# ```console
# $ pip install -e '.[notebooks]'
# $ cd examples && nexus up strategies:app --detach
# ```
#
# Both notebooks use this fleet. `nexus down` stops it.

# %% [markdown]
# ## Connect
#
# `nexus.connect()` finds the fleet that is up on this machine and the token that `nexus up` made for you. For a fleet
# elsewhere, set `NEXUS_URL` and `NEXUS_TOKEN`. Ray is not needed here: the connection speaks HTTP.

# %%
import time

import matplotlib.pyplot as plt
from IPython.display import Markdown, Pretty, display

import nexus_ray as nexus

fleet = nexus.connect()
fleet.ready()

# %% [markdown]
# ## What can be submitted
#
# The fleet tells its goal types, each with the JSON schema of what it takes and of what it returns.


# %%
def table(columns, rows):
    """Return rows as a table that a notebook shows."""
    lines = [columns, ["---"] * len(columns), *rows]
    return Markdown("\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines))


goal_types = fleet.goal_types()
table(
    ["goal type", "what it does", "takes"],
    [[one["type"], one["summary"], ", ".join(one["payload_schema"]["properties"])] for one in goal_types],
)

# %% [markdown]
# ## Submit a goal
#
# The fleet of this tour has a lot of old things appraised. When `submit` returns, the goal is on disk: it reaches an
# end, whatever is killed meanwhile.

# %%
goal = fleet.submit("fan_out", {"round": 1})
goal.result(timeout_s=30)

# %% [markdown]
# `result` waits. The whole record says more: where the goal ran, and how long it took.

# %%
{name: goal.record[name] for name in ("type", "status", "principal", "duration_s")}

# %% [markdown]
# ## Watch it live
#
# `events()` yields what happens to a goal, as it happens: `planned` says how many tasks a strategy is about to ask for,
# `step` is the end of one task, `finished` the end of all. That is enough for a progress bar. If the connection breaks,
# the stream goes on where it broke.


# %%
def watch(goal, width=40):
    """Show a goal's progress until it has ended; return its status."""
    planned, done, status = 0, 0, "accepted"
    shown = display(Pretty("accepted"), display_id=True)
    for event in goal.events():
        match event["kind"]:
            case "planned":
                planned += event["body"]["tasks"]
            case "step":
                done += 1
                status = event["body"]["agent"]
            case "finished":
                status = event["body"]["status"]
        full = width * done // max(planned, done, 1)
        shown.update(Pretty(f"{'█' * full}{'░' * (width - full)} {done} of {max(planned, done)}  {status}"))
    return status


coins = [f"coin {number}" for number in range(1, 25)]
one_by_one = fleet.submit("ask", {"things": coins, "round": 3})
assert watch(one_by_one) == "succeeded"

# %% [markdown]
# The events stay. The first ones of that goal, with the seconds since it was accepted:

# %%
events = list(one_by_one.events())
table(
    ["s", "kind", "agent", "answer"],
    [
        [f"{one['at'] - events[0]['at']:.3f}", one["kind"], one["body"].get("agent", ""), one["body"].get("value", "")]
        for one in events[:6]
    ],
)

# %% [markdown]
# ## When the input is wrong
#
# What does not fit the goal's schema is refused at the door, before anything is accepted. The error names each field.

# %%
try:
    fleet.submit("fan_out", {"things": [], "round": "first"})
except nexus.InvalidArgumentError as error:
    print(error)
    display(table(["field", "problem"], [[one["field"], one["problem"]] for one in error.details["problems"]]))

# %% [markdown]
# ## When a task fails
#
# The experts of this fleet fail now and then. A goal that needs every answer fails with the one that failed, and says
# what it was, where, and how often it was tried. The second notebook shows strategies that cope with this.

# %%
unlucky = fleet.submit("fan_out", {"round": 5})
try:
    unlucky.result(timeout_s=30)
except nexus.TaskFailedError as error:
    print(error)
    print({name: error.details[name] for name in ("agent", "error_type", "attempts")})

# %% [markdown]
# ## See where the time went
#
# Every goal leaves a trace: one span for each thing that was done, over all processes. Drawn as a waterfall it shows
# what ran at the same time, and what the goal waited for. In a terminal, `nexus goal show ID --trace` prints it.

# %%
COLOURS = {"success": "tab:blue", "cancelled": "lightgrey", "error": "tab:red"}


def waterfall(axes, spans):
    """Draw spans as bars over time, the goal's own first, then agent by agent."""
    spans = sorted(spans, key=lambda span: span["attributes"].get("agent.id", ""))
    began = min(span["started_at"] for span in spans)
    for row, span in enumerate(spans):
        attributes = span["attributes"]
        left_ms = (span["started_at"] - began) * 1000
        long_ms = (span["ended_at"] - span["started_at"]) * 1000
        axes.barh(row, max(long_ms, 0.5), left=left_ms, color=COLOURS.get(attributes["result"], "tab:red"))
    axes.set_yticks(range(len(spans)), [span["attributes"].get("agent.id", span["name"]) for span in spans])
    axes.invert_yaxis()
    axes.set_xlabel("ms")


raced = fleet.submit("race", {"things": ["amphora", "globe", "harp"], "round": 3})
raced.result(timeout_s=30)
time.sleep(1.0)  # Spans are written some times a second; a trace that is read at once may miss the last ones.
spans = raced.trace()

figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
waterfall(axes, spans)
axes.set_title("Three experts race for each thing; the grey ones were too slow, and were cancelled", fontsize=10)
plt.show()

# %% [markdown]
# ## Who is awake
#
# Agents are virtual: each exists from the start, wakes at its first task and goes to sleep when idle. An agent that is
# awake costs some KiB, so there may be thousands.

# %%
awake = fleet.agents()
types = sorted({agent["type"] for agent in awake})
table(
    ["agent type", "awake", "busy"],
    [
        [name, sum(agent["type"] == name for agent in awake), sum(a["type"] == name and a["running"] for a in awake)]
        for name in types
    ],
)

# %% [markdown]
# ## Count
#
# `metrics()` is what Prometheus scrapes, as text. Some lines of it:

# %%
lines = fleet.metrics().splitlines()
print("\n".join(sorted(line for line in lines if line.startswith("nexus_coordinations_total"))))

# %% [markdown]
# ## Many at once, and `await`
#
# `submit` does not wait for a goal, so many can run at the same time: submit all, then collect. The connection is
# synchronous; where the notebook should stay free for other things, put the waiting in a thread and `await` it.

# %%
import asyncio

goals = [fleet.submit("hedge", {"round": round_}) for round_ in range(1, 9)]
results = await asyncio.gather(*(asyncio.to_thread(goal.result, 30) for goal in goals))
[result["total"] for result in results]

# %% [markdown]
# ## Go on
#
# - [01_strategies](01_strategies.ipynb) does the same work in eight ways, and compares latency, cost and answers.
# - `examples/strategies.py` is the fleet that you just used; `nexus demo` shows one with real work.
# - `docs/tour.md` follows a goal through the code.

# %%
fleet.close()
