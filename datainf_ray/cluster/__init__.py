"""All that uses Ray: the cluster, the workers on it, what is sent to them and what is done with their results.

- `start`: join a cluster or start a local one, and what it has room for; `nodes`: how its nodes differ.
- `pool`: workers that are started, replaced and given chunks; `backlog` is its queue, tested without Ray.
- `orders`: what is sent to a worker; `worker`: the actor that does it; `chunk`: what it does with one chunk.
- `commit`: a chunk's scores, written once; `gather`: the parts of examples/; `indexing`: the end of a gradient index.
- `sweep`: a fold over all chunks; `reduce`: the fixed tree that sums what they send; `sums`: its checkpoints.
- `calibrate`: a chunk timed, for `datainf plan`; `metrics`: gauges for Ray's dashboard.
- `driver`: a run's driver on the cluster, for sessions that leave.
"""
