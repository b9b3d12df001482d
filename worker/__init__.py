"""The GPU side: Celery worker, agent, supervisor, launcher, trainer. Never fastapi, never api."""
