"""All that uses Ray: the cluster, the workers on it, what they are sent and what becomes of what they send back.

- `start`: join a cluster or start a local one, and what it has room for; `nodes`: how its nodes differ.
- `pool`: workers that are started, replaced and given chunks; `backlog` is its queue, tested without Ray.
- `orders`: what a worker is told; `worker`: the actor that does it; `chunk`: what it does with one chunk.
- `commit`: a chunk's scores, written once; `gather`: the parts of examples/; `indexing`: the end of a gradient index.
- `sweep`: a fold over all chunks; `reduce`: the fixed tree that sums what they send; `sums`: its checkpoints.
- `calibrate`: a chunk timed, for `datainf plan`; `metrics`: gauges for Ray's dashboard.
- `driver`: a run's driver on the cluster, for sessions that leave.
"""
