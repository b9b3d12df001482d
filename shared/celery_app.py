"""The Celery configuration and the task's name: Celery carries a hint (`job_id`) to a host's queue, SQL has the truth.

Every setting answers something that was seen to lose or double a job; `docs/decisions.md` has the list.
"""

from celery import Celery

TRAIN = "epochcast.train"


def queue_of(host: str) -> str:
    return f"host.{host}"


def make_app(broker_url: str, *, publisher: bool) -> Celery:
    """The Celery application of a worker, or of a publisher (dispatcher), which must not wait long for its broker."""
    app = Celery("epochcast", broker=broker_url, set_as_current=not publisher)
    app.conf.update(
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        result_backend=None,
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_prefetch_count_reduction=False,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,
        task_publish_retry_policy={"max_retries": 1, "interval_start": 0.1, "interval_max": 0.2},
        broker_transport_options={
            "socket_timeout": 3 if publisher else 10,
            "socket_connect_timeout": 2 if publisher else 3,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "global_keyprefix": "ec:",
        },
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_proc_alive_timeout=30,
        worker_send_task_events=False,
        enable_utc=True,
    )
    return app


class Poker:
    """Sends the hint that a job is placed on a host."""

    def __init__(self, broker_url: str) -> None:
        self._app = make_app(broker_url, publisher=True)

    def poke(self, job_id: int, host: str) -> None:
        """Publishes `train(job_id)` to the host's queue. Blocks (3 s at most); raises kombu's OperationalError."""
        self._app.send_task(TRAIN, args=(job_id,), queue=queue_of(host), ignore_result=True)

    def close(self) -> None:
        self._app.close()
