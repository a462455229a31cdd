"""The bench's functions as Celery tasks: what `celery worker` imports. Needs BENCH_REDIS, the address of the broker."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from celery import Celery

from bench import work

FUNCTIONS: tuple[Callable[..., Any], ...] = (
    work.noop,
    work.noop_many,
    work.shift,
    work.burn,
    work.nap,
    work.poison,
    work.touch,
)

app = Celery("bench", broker=os.environ["BENCH_REDIS"], backend=os.environ["BENCH_REDIS"])
# JSON, the default, carries no arrays.
app.conf.update(task_serializer="pickle", result_serializer="pickle", accept_content=["pickle"])
if os.environ.get("BENCH_CELERY_CAREFUL"):
    app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1)
TASKS = {function: app.task(function, name=f"bench.{function.__name__}") for function in FUNCTIONS}
