"""Bundles in the record: which there are, what files they hold, and who may use them."""

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from shared.bundle_content import PREFIX, BundleContent
from shared.database import Database
from shared.tables import bundle_owners, bundles


class Bundles:
    """Methods raise DatabaseUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(self, content: BundleContent, owner: str) -> bool:
        """Puts it on record as the owner's; whether it is new to them. What others have uploaded is nobody's business.

        The file is in the artifact store already.
        """
        while True:
            try:
                return self._add(content, owner)
            except IntegrityError:
                continue  # the same upload at the same moment: now it is there

    def _add(self, content: BundleContent, owner: str) -> bool:
        with self.database.write() as connection:
            now = self.database.time(connection)
            mine = connection.execute(
                sa.select(bundle_owners.c.owner).where(
                    bundle_owners.c.owner == owner, bundle_owners.c.sha256 == content.sha256
                )
            ).first()
            if mine is not None:
                return False
            known = connection.execute(sa.select(bundles.c.sha256).where(bundles.c.sha256 == content.sha256)).first()
            if known is None:
                connection.execute(
                    bundles.insert().values(
                        sha256=content.sha256,
                        files=len(content.files),
                        bytes=content.bytes,
                        paths=content.paths,
                        created_at=now,
                    )
                )
            connection.execute(bundle_owners.insert().values(owner=owner, sha256=content.sha256, created_at=now))
            return True

    def paths(self, bundle: str, owner: str) -> list[str] | None:
        """The files of `sha256:…`; None when this owner never uploaded it."""
        with self.database.read() as connection:
            row = connection.execute(
                sa.select(bundles.c.paths)
                .join(bundle_owners, bundle_owners.c.sha256 == bundles.c.sha256)
                .where(bundles.c.sha256 == bundle.removeprefix(PREFIX), bundle_owners.c.owner == owner)
            ).one_or_none()
        return None if row is None else list(row.paths)
