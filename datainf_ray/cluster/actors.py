"""Making Ray's actors and calling them, with the types of their own class.

Of every attribute of an actor's handle Ray says `Never`: a type checker takes what follows a call for code that is not
reached, and does not look at it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray
from ray.actor import ActorHandle

Actor = TypeVar("Actor")
Arguments = ParamSpec("Arguments")


def maker(cls: Callable[Arguments, Actor], **options: Any) -> Callable[Arguments, ActorHandle[Actor]]:
    """What makes an actor of a class, with Ray's options, when it is called with the arguments of the class."""
    made: Any = ray.remote(**options)(cls)  # to the type checker a function: it is known by its arguments
    make: Callable[Arguments, ActorHandle[Actor]] = made.remote
    return make


def method(
    actor: ActorHandle[Actor], function: Callable[Concatenate[Actor, Arguments], Any], **options: Any
) -> Callable[Arguments, Any]:
    """What calls a method of the actor, with Ray's options, and gives a reference to what that returns, or several."""
    bound = getattr(actor, function.__name__)
    return (bound.options(**options) if options else bound).remote
