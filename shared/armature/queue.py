"""The Celery factory: one task name, two queues, and limits chosen so that correctness never depends on Celery.

The message holds a job id. State, leases, attempts and results live in the database (armature.db.jobs).
"""

from __future__ import annotations

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from armature.settings import RedisSettings

TASK_NAME = "armature.run_job"
BROKER_OUTAGES = (OperationalError, RedisConnectionError, RedisTimeoutError)
"""What kombu raises when the broker does not answer; Redis' own errors pass through it where it only reads."""


def make_celery(redis: RedisSettings) -> Celery:
    """An app that talks JSON to the broker, acknowledges late and keeps no results."""
    app = Celery("armature", broker=redis.url.get_secret_value(), set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_acks_late=True,
        task_reject_on_worker_lost=False,  # the lease brings a lost job back, and counts the attempt
        task_default_queue="cpu",
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_pool_start_method="spawn",  # CUDA can not be used after fork
        worker_proc_alive_timeout=180.0,  # a spawned process imports everything anew, on a busy machine for long
        worker_hijack_root_logger=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # an outage may last; a worker waits for its end
        broker_transport_options={
            "visibility_timeout": 86_400,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "health_check_interval": 15,
            "max_retries": 0,  # a sender that meets no broker gives up at once: the job's row is the outbox
        },
    )
    return app


def send_job(app: Celery, job_id: str, queue: str) -> None:
    """Tell a worker of the queue that a job waits. Sending twice is harmless: only one claim wins."""
    app.send_task(TASK_NAME, args=[job_id], queue=queue, ignore_result=True, retry=False)


def count_messages(app: Celery, queue: str) -> int:
    """Messages that wait in a queue of the broker, duplicates included."""
    with app.connection_for_write() as connection:
        count: int = connection.default_channel.queue_declare(queue=queue).message_count
        return count
