"""The simulator: a whole fleet in one process, with time, chance, network, disk and deaths drawn from one number.

What is real: `HostProcess` with its coordinator, team, agent runner, post office and write stream; `Directory`; the
ledger's decision machine. They run unchanged; nothing in the product knows of the simulator.

What is modelled: time (it jumps from timer to timer; wall clocks of hosts may be apart), the network (late, slow,
lost, doubled, overtaken, cut between two processes for a while), deaths of hosts, of the ledger and of the directory
before and after every call and around every commit, hosts that stop for a while, are declared dead and wake up,
hosts that cannot be reached to be killed, two directories at once, commits that fail, a cluster that has no room,
drains, a person who answers questions, and clients that submit under idempotency keys, repeat, wait, cancel, and come
in by the front or by the host's own door. A commit is whole or absent; what was not committed dies with the ledger.
What `runtime` does with Ray stands in `fleet`.

What is not: Ray, HTTP, the wire's bytes, SQL (see the contract suite), threads, agents with a process of their own,
memory and speed. A process takes no time to think. Agents of the workload await nothing but time.

What must hold is in `referee`: no accepted goal lost or with two outcomes, every goal ends, and ends as it should; no
key of a goal recorded twice; agents count exactly what is on record; nothing committed by a fenced host; epochs grow
and mean one membership; one idempotency key is one goal; an effect that may be done once was not done twice; a saga
has done all or nothing; a client hears what is on record, and not before it is.

Law: a run is the same every time, to the last callback: `make simulate SEED=n` tells the story of seed n.
"""
