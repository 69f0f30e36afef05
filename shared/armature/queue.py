"""The Celery factory: one task, two queues, and settings that keep correctness out of Celery.

A message holds a job id. State, leases, attempts and results are in the database (armature.db.jobs).
"""

from __future__ import annotations

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from armature.settings import RedisSettings

TASK_NAME = "armature.run_job"
BROKER_OUTAGES = (OperationalError, RedisConnectionError, RedisTimeoutError)
"""Exceptions of a broker that can not be reached; kombu lets Redis' own errors through when it only reads."""


def make_celery(redis: RedisSettings) -> Celery:
    """Make an app that sends JSON, acknowledges late and keeps no results."""
    app = Celery("armature", broker=redis.url.get_secret_value(), set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_acks_late=True,
        task_reject_on_worker_lost=False,  # an expired lease requeues the job, and counts the attempt
        task_default_queue="cpu",
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_pool_start_method="spawn",  # CUDA can not be used after fork
        worker_proc_alive_timeout=180.0,  # a spawned process imports torch again, slow on a busy machine
        worker_hijack_root_logger=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # a worker waits for the end of an outage
        broker_transport_options={
            "visibility_timeout": 86_400,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "health_check_interval": 15,
            "max_retries": 0,  # a sender fails at once in an outage: the job's row is the outbox
        },
    )
    return app


def send_job(app: Celery, job_id: str, queue: str) -> None:
    """Send a message that a job of the queue waits. Idempotent: only one claim succeeds."""
    app.send_task(TASK_NAME, args=[job_id], queue=queue, ignore_result=True, retry=False)


def count_messages(app: Celery, queue: str) -> int:
    """Count the messages in a queue of the broker, duplicates included."""
    with app.connection_for_write() as connection:
        count: int = connection.default_channel.queue_declare(queue=queue).message_count
        return count
