"""Ray's errors: each is classified on purpose and becomes one line; and what is done about workers that cannot start.

No Ray is started here.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import ray.exceptions
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError, RayTaskError

from datainf_ray.cluster.failures import FAULTS, Failure, Fault, Starts, classify, final_error
from datainf_ray.common.errors import RequestError, RunFailedError

#: What Ray 2.60 says; it goes on for thirty lines more.
OUT_OF_MEMORY = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.3, \
ID: 266423f86af6d050e4342850bc7a502b18f678f2f009feb7de59bf87) was 22.62GB used / 23.54GB limit (0.960918)
OOM kill reason: Memory usage 24288549632B exceeded threshold of 24012676915B (95.0% of 25276502016B limit)
Object store memory usage: [- objects spillable: 0
- bytes in use: 0
(global lru) capacity: 100000000
(global lru) used: 0%]
Ray killed 1 worker(s) based on the killing policy
Considered workers: [
Selected to kill: (Actor(bce1a26887249c1335e9d25b01000000): job ID=01000000, task name=A.__init__, required \
resources={CPU: 1}, pid=6673, actual memory used=0.06GB, worker ID=c18c1638e84428461aa4f5faca6f310c)
]
To see more information about memory usage on this node, use `ray logs raylet.out -ip 10.0.0.3`
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
5945\t12.98\tray::Worker.run
6453\t0.41\tpython probe.py
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/."""
#: What Ray 2.44 says.
EARLIER = """Task was killed due to the node running low on memory.
Memory on the node (IP: 10.0.0.3, ID: 266423f86af6) where the task (actor ID: bce1, name=Worker.__init__, pid=6673, \
memory used=12.98GB) was running was 22.62GB / 23.54GB (0.960918), which exceeds the memory usage threshold of 0.95. \
Ray killed this worker (ID: c18c) because it was the most recently scheduled task.
Top 10 memory users:
PID\tMEM(GB)\tCOMMAND
5945\t12.98\tray::Worker.run
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/."""

HOUSE = {
    "RayActorError": Fault.GONE,
    "ActorDiedError": Fault.GONE,
    "ActorUnavailableError": Fault.GONE,
    "WorkerCrashedError": Fault.GONE,
    "NodeDiedError": Fault.GONE,
    "OutOfMemoryError": Fault.GONE,
    "ObjectLostError": Fault.LOST,
    "OwnerDiedError": Fault.LOST,
    "ObjectReconstructionFailedError": Fault.LOST,
    "TaskCancelledError": Fault.TRANSIENT,
    "RaySystemError": Fault.TRANSIENT,
    "ObjectStoreFullError": Fault.TRANSIENT,
    "RuntimeEnvSetupError": Fault.PERMANENT,
}


def errors() -> list[type[RayError]]:
    """Every class of error that the installed Ray has."""
    found, unseen = [], [RayError]
    while unseen:
        below = [kind for kind in unseen.pop().__subclasses__() if kind.__module__ == "ray.exceptions"]
        found += below
        unseen += below
    return found


def made(kind: type[RayError]) -> RayError:
    """An error of this class, as Ray makes it: from what it asks for, all of it empty."""
    if kind is RayTaskError:
        return raised(ValueError("no such row"))
    values: dict[str, Any] = {
        "task_error": None,
        "object_ref_hex": "ab",
        "owner_address": None,
        "call_site": "",
        "actor_id": None,
    }
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    wanted = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    error = kind.__new__(kind)
    if kind.__name__ == "CrossLanguageError":
        Exception.__init__(error, "An exception raised from JAVA")
    else:
        kind.__init__(error, *(values.get(p.name, "it went wrong") for p in wanted))
    return error


def raised(cause: Exception) -> RayTaskError:
    """What `ray.get` raises where a task or a method has raised `cause`."""
    text = f'Traceback (most recent call last):\n  File "x.py", line 1, in f\n{type(cause).__name__}: {cause}\n'
    return RayTaskError("f", text, cause, "ray::f", 1, "127.0.0.1").as_instanceof_cause()


def test_every_error_of_ray_is_classified_on_purpose() -> None:
    kinds = errors()
    assert len(kinds) > 30
    for kind in kinds:
        named = [base.__name__ for base in kind.__mro__ if base.__name__ in FAULTS]
        assert named, f"{kind.__name__}: say in FAULTS what it means"
        failure = classify(made(kind))
        assert failure.fault is HOUSE.get(kind.__name__, FAULTS[named[0]])
        assert failure.reason
        assert "\n" not in failure.reason
        assert len(failure.reason) <= 500
    assert HOUSE.keys() <= {kind.__name__ for kind in kinds}


def test_the_table_names_no_error_that_is_not_there() -> None:
    assert [name for name in FAULTS if not hasattr(ray.exceptions, name)] == []


def test_an_error_that_is_new_is_tried_again() -> None:
    class FromTheFuture(RayError):
        pass

    assert classify(FromTheFuture("x")) == Failure(Fault.TRANSIENT, "x")


@pytest.mark.parametrize("text", [OUT_OF_MEMORY, EARLIER])
def test_out_of_memory_is_one_line_with_the_figures(text: str) -> None:
    failure = classify(OutOfMemoryError(text))
    assert failure.fault is Fault.GONE
    assert failure.memory
    assert failure.address == "10.0.0.3"
    assert failure.reason == "its machine ran out of memory (22.6 of 23.5 GB; the largest process has 13.0 GB)"


def test_out_of_memory_in_other_words_is_still_one_line() -> None:
    failure = classify(OutOfMemoryError("it was too much\n" * 100))
    assert failure == Failure(Fault.GONE, "its machine ran out of memory", memory=True)


def test_what_our_code_raised_is_permanent_and_said_as_it_was() -> None:
    for cause in (RequestError("train.path", None, "no such file"), RunFailedError("no room for a row")):
        assert final_error(classify(raised(cause)), "chunk 1: ") is cause
    failure = classify(raised(ValueError("seven\n  of nine")))
    assert failure.fault is Fault.PERMANENT
    assert str(final_error(failure, "chunk 1: ")) == "chunk 1: ValueError: seven of nine"


def test_what_a_worker_asked_ray_for_and_did_not_get_is_no_fault_of_the_worker() -> None:
    lost = classify(raised(made(ray.exceptions.OwnerDiedError)))
    assert (lost.fault, lost.inside) == (Fault.LOST, True)
    made_by_one_that_died = classify(raised(OutOfMemoryError(OUT_OF_MEMORY)))
    assert (made_by_one_that_died.fault, made_by_one_that_died.memory) == (Fault.LOST, False)
    assert classify(raised(made(ray.exceptions.GetTimeoutError))).fault is Fault.TRANSIENT
    assert classify(raised(RayError("Exception x.Y isn't serializable"))).fault is Fault.PERMANENT


def test_our_error_in_a_constructor_is_found_in_the_traceback() -> None:
    text = 'Traceback:\n  File "x.py", line 1\ndatainf_ray.common.errors.RequestError: model.base: no such model\n'
    failure = classify(ActorDiedError(RayTaskError("f", text, RequestError("x", None, "y"), "ray::f", 1, "127.0.0.1")))
    assert failure.fault is Fault.PERMANENT
    assert isinstance(failure.cause, RequestError)
    assert str(failure.cause) == "model.base: no such model"


def test_workers_that_cannot_start_are_asked_for_again_with_growing_pauses_until_there_is_no_hope() -> None:
    starts = Starts(patience=3)
    assert starts.may_ask(0)
    assert starts.failed(Failure(Fault.GONE, "died, pid 17"), 0, 100.0) == "a worker could not start: died, pid 17"
    assert not starts.may_ask(100.4)
    assert starts.may_ask(100.5)
    assert starts.failed(Failure(Fault.GONE, "died, pid 18"), 0, 101.0) is None  # known but for a figure
    assert not starts.may_ask(101.9)
    with pytest.raises(RunFailedError, match=r"^no worker can start: died, pid 19$"):
        starts.failed(Failure(Fault.GONE, "died, pid 19"), 0, 103.0)


def test_a_worker_that_is_up_gives_hope() -> None:
    starts = Starts(patience=2)
    for now in range(20):
        starts.failed(Failure(Fault.GONE, "died"), 1, 100.0 * now)
    assert not starts.may_ask(1929)
    assert starts.may_ask(1930)  # 30 s are the longest pause
    starts.succeeded()
    assert starts.reason is None
    starts.failed(Failure(Fault.GONE, "died"), 0, 3000.0)
    assert starts.reason == "died"


def test_a_request_that_is_wrong_is_wrong_for_every_worker() -> None:
    wrong = RequestError("model.base", None, "no such model")
    with pytest.raises(RequestError, match="no such model"):
        Starts(100).failed(classify(raised(wrong)), 5, 0)


def test_an_environment_that_cannot_be_set_up_ends_the_run_unless_it_could_elsewhere() -> None:
    failure = classify(ray.exceptions.RuntimeEnvSetupError("pip: no such package"))
    with pytest.raises(RunFailedError, match=r"^no worker can start: Failed to set up runtime env.* no such package$"):
        Starts(100).failed(failure, 0, 0)
    assert Starts(100).failed(failure, 1, 0) is not None
    own = classify(raised(RuntimeError("no kernel image")))  # of one machine, perhaps
    assert Starts(100).failed(own, 0, 0) == "a worker could not start: no kernel image"


def test_a_node_that_is_taken_away_is_no_failed_start() -> None:
    starts = Starts(patience=1)
    assert starts.failed(Failure(Fault.GONE, "spot", preempted=True), 0, 0) is None
    assert starts.may_ask(0)


def test_memory_that_is_too_small_for_a_worker_is_said_with_what_to_change() -> None:
    starts = Starts(patience=2)
    failure = classify(OutOfMemoryError(OUT_OF_MEMORY))
    said = "the machine at 10.0.0.3 ran out of memory (22.6 of 23.5 GB; the largest process has 13.0 GB)"
    assert starts.failed(failure, 0, 0) == f"a worker could not start: {said}"
    with pytest.raises(RunFailedError) as ended:
        starts.failed(failure, 0, 9)
    assert str(ended.value).startswith(f"no worker can start: {said}; use fewer workers on a machine")
