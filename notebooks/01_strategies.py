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
# # The same work, eight ways
#
# A goal may put its questions to agents in several ways: one after the other, all at once, to the first who answers, to
# the majority. Each way buys something (time, certainty, a second chance) and pays with something else. This notebook
# has the same work done in each way, and compares how long it takes, what it costs, and how good the answers are.
#
# It needs the example fleet, as the [tour](00_tour.ipynb) does. Start it in a terminal at the top of the repository:
#
# ```console
# $ pip install -e '.[notebooks]'
# $ cd examples && nexus up strategies:app --detach
# ```
#
# ## The work
#
# A lot of eight old things is to be appraised. An expert takes about 20 ms, but one in eight takes ten times as long.
# Three calls in a hundred fail, and eight in a hundred give a wrong value. What happens follows from the number of a
# *round*, so all strategies of one round meet the same luck: the difference is in how they ask.
#
# An expert's call costs 1, a reviewer's 2, an adder's half of 1, in a made-up unit. It costs that when it is begun: who
# is cancelled half-way is paid as well.

# %%
import time
from collections import Counter
from statistics import mean, median

import matplotlib.pyplot as plt
from IPython.display import Markdown

import nexus_ray as nexus

STRATEGIES = ("ask", "fan_out", "quorum", "race", "hedge", "vote", "pipeline", "map_reduce")
ROUNDS = range(1, 11)
FEES = {"expert": 1.0, "reviewer": 2.0, "adder": 0.5}

fleet = nexus.connect()


def table(columns, rows):
    """Return rows as a table that a notebook shows."""
    lines = [columns, ["---"] * len(columns), *rows]
    return Markdown("\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines))


summaries = {one["type"]: one["summary"] for one in fleet.goal_types()}
table(["strategy", "what it does"], [[strategy, summaries[strategy]] for strategy in STRATEGIES])

# %% [markdown]
# In the fleet's code each of them is a line or two, such as
#
# ```python
# await team.fan_out(Expert, questions(lot), key=first, quorum=0.75)
# await team.hedge(Expert, one, keys=experts(one, 3), after_s=0.06)
# await team.vote(Expert, one, voters=3, agree=2, key=one.thing)
# ```
#
# `examples/strategies.py` has all of it.

# %% [markdown]
# ## Run
#
# Ten rounds, each with every strategy, one goal at a time so that none waits for another. And not too fast: under load
# a fleet keeps only a share of the traces, and this notebook wants them all.

# %%
PACE_S = 0.22  # No more than five goals in any second: so many traces are always kept.

goals = {}
for round_ in ROUNDS:
    for strategy in STRATEGIES:
        began = time.monotonic()
        goals[strategy, round_] = goal = fleet.submit(strategy, {"round": round_}, wait_s=10)
        goal.wait(timeout_s=30)
        time.sleep(max(0.0, PACE_S - (time.monotonic() - began)))

f"{len(goals)} goals: " + ", ".join(f"{n} {status}" for status, n in Counter(g.status for g in goals.values()).items())

# %% [markdown]
# What a goal cost is in its trace: a span for each call that was begun, the failed and cancelled ones too.

# %%
time.sleep(1.0)  # Spans are written some times a second; a trace that is read at once may miss the last ones.
calls = {
    name: [span for span in goal.trace() if span["name"] == "agent.interaction"] for name, goal in goals.items()
}
costs = {name: sum(FEES[span["attributes"]["agent.type"]] for span in spans) for name, spans in calls.items()}


def of(strategy, values):
    """Return what belongs to one strategy, in the order of the rounds."""
    return [values[strategy, round_] for round_ in ROUNDS if (strategy, round_) in values]


records = {name: goal.record for name, goal in goals.items()}
results = {name: record["result"] for name, record in records.items() if record["status"] == "succeeded"}
times_ms = {name: records[name]["duration_s"] * 1000 for name in results}

# %% [markdown]
# ## Compare
#
# *Answered* and *right* are shares of the eight things, over all rounds; a goal that failed answered nothing. Times are
# those of the goals that succeeded.

# %%
THINGS = 8 * len(ROUNDS)
rows = []
for strategy in STRATEGIES:
    answered = sum(len(result["values"]) for result in of(strategy, results))
    right = sum(result["right"] for result in of(strategy, results))
    times = of(strategy, times_ms)
    rows.append([
        strategy, len(ROUNDS) - len(times), f"{median(times):.0f}", f"{max(times):.0f}",
        f"{mean(of(strategy, costs)):.1f}", f"{answered / THINGS:.0%}", f"{right / THINGS:.0%}",
    ])  # fmt: skip
table(["strategy", "failed", "median ms", "slowest ms", "cost", "answered", "right"], rows)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, width_ratios=(3, 2), layout="constrained")
rows = range(len(STRATEGIES))
colours = [plt.cm.tab10(row) for row in rows]

boxes = left.boxplot(
    [of(strategy, times_ms) for strategy in STRATEGIES], positions=rows, orientation="horizontal", widths=0.6,
    whis=(0, 100), medianprops={"color": "black"}, patch_artist=True,
)  # fmt: skip
for row, box in zip(rows, boxes["boxes"], strict=True):
    box.set_facecolor((*colours[row][:3], 0.3))
    times = of(STRATEGIES[row], times_ms)
    left.plot(times, [row] * len(times), "o", color=colours[row], markersize=4)
left.set_yticks(rows, STRATEGIES)
left.invert_yaxis()
left.set_xlim(left=0)
left.set_xlabel("ms from acceptance to outcome, a dot for each goal")
left.set_title("Latency", fontsize=10)

mean_costs = [mean(of(strategy, costs)) for strategy in STRATEGIES]
right.bar_label(right.barh(rows, mean_costs, color=colours, height=0.6), fmt="%.1f", padding=3)
right.set_xlim(0, max(mean_costs) * 1.15)
right.set_xlabel("mean cost of a goal, in fees")
right.set_title("Cost", fontsize=10)
plt.show()

# %% [markdown]
# `ask` takes the sum of all calls, `fan_out` the slowest of them: a straggler is what everybody waits for. `quorum` and
# `hedge` cut the stragglers off at little cost, the one by leaving things out, the other by asking a second expert.
# `race` cuts them off too, and pays three experts for each thing. `vote` and `pipeline` pay for being right. That `ask`
# is the cheapest is a poor comfort: it stops at the first failure, and has paid for what came before.

# %% [markdown]
# ## A straggler, seen closely
#
# In round 3 the expert for the amphora takes a third of a second. `fan_out` waits. `hedge` asks a second one after
# 60 ms, takes that answer and cancels the first.

# %%
COLOURS = {"success": "tab:blue", "cancelled": "lightgrey", "error": "tab:red"}


def waterfall(axes, spans):
    """Draw the calls of a goal as bars over time."""
    spans = sorted(spans, key=lambda span: span["attributes"]["agent.id"])
    began = min(span["started_at"] for span in spans)
    for row, span in enumerate(spans):
        left_ms = (span["started_at"] - began) * 1000
        long_ms = (span["ended_at"] - span["started_at"]) * 1000
        axes.barh(row, max(long_ms, 1), left=left_ms, color=COLOURS.get(span["attributes"]["result"], "tab:red"))
    axes.set_yticks(range(len(spans)), [span["attributes"]["agent.id"].partition("/")[2] for span in spans])
    axes.invert_yaxis()
    axes.set_xlabel("ms")


figure, both = plt.subplots(1, 2, figsize=(9, 3), sharex=True, layout="constrained")
for axes, strategy in zip(both, ("fan_out", "hedge"), strict=True):
    waterfall(axes, calls[strategy, 3])
    axes.set_title(f"{strategy}: blue answered, grey was cancelled", fontsize=10)
plt.show()

# %% [markdown]
# ## A failure
#
# In round 5 the first expert for the barometer has no opinion. What each strategy makes of it:

# %%
ROUND = 5


def told(record):
    """Return in a few words how a goal ended."""
    if record["status"] != "succeeded":
        return record["failure"]["message"].partition(": ")[2]
    missing = record["result"]["missing"]
    return f"without {', '.join(missing)}" if missing else "all answered"


table(
    ["strategy", "outcome", "with", "calls that failed"],
    [
        [
            strategy, records[strategy, ROUND]["status"], told(records[strategy, ROUND]),
            ", ".join(
                span["attributes"]["agent.id"] for span in calls[strategy, ROUND]
                if span["attributes"]["result"] == "error"
            ),
        ]
        for strategy in STRATEGIES
    ],
)  # fmt: skip

# %% [markdown]
# - `ask`, `fan_out`, `pipeline` and `map_reduce` need every answer: one failure for good is the goal's failure, and
#   what still runs is cancelled. Where trying again helps, say so once, at the agent: `@app.agent(retries=2)`.
# - `quorum` counts only what came; the failed one is among those left out, if it failed before enough had come.
# - `race` and `hedge` have others to ask for the same thing, so one failure costs time or nothing.
# - `vote` needs two that agree, and has one to spare.
#
# How often `hedge` asked a second expert, over all rounds, and for what:

# %%
seconds = Counter()
for round_ in ROUNDS:
    by_key = {span["attributes"]["agent.id"]: span["attributes"]["result"] for span in calls["hedge", round_]}
    for agent in by_key:
        thing, _, number = agent.partition("#")
        if number == "2":
            seconds["the first failed" if by_key.get(f"{thing}#1") == "error" else "the first was slow"] += 1
table(["why", "times"], seconds.most_common())

# %% [markdown]
# ## A disagreement
#
# A vote without a majority has no answer. The example leaves such a thing out and tells so with `team.note(…)`, which
# everybody who follows the goal sees; a fleet for real work might ask a person.

# %%
notes = [
    [round_, event["body"]]
    for round_ in ROUNDS
    for event in goals["vote", round_].events()
    if event["kind"] == "note"
]
table(["round", "note"], notes)

# %% [markdown]
# ## Which one
#
# | take | when | and know that |
# | --- | --- | --- |
# | `ask` | one question, or each depends on the answer before | times add up |
# | `fan_out` | all answers are needed, and agents are reliable | the slowest decides; one failure fails all |
# | `quorum` | most answers are enough: a survey, a search | what is left out is not random: it is the slow ones |
# | `race` | time is worth more than money | every call is paid; the first is not the best |
# | `hedge` | stragglers hurt, and most calls are quick | `after_s` is best near the slowest usual answer |
# | `vote` | a wrong answer is worse than none | voters must err independently |
# | `pipeline` | a check by somebody else is worth its time | stages add up, for each thing alone |
# | `map_reduce` | the answers become one, and there are many | a reducer sees at most `arity` at a time |
#
# They combine: a goal is plain Python, so a `fan_out` of votes, or a `hedge` in a `pipeline`, is a line of yours.

# %%
fleet.close()
