"""A tree's supervisor hears the launcher's last word, whatever it was itself about to say."""

import json
from pathlib import Path

from worker.ranks import Ranks
from worker.tree import Tree


def test_the_last_word_is_heard_although_a_renewal_came_too_late_to_be_read(tmp_path: Path) -> None:
    tree = Tree(tmp_path, 1, Ranks())
    launcher = tree._launcher_end
    launcher.send(json.dumps({"exit": 0, "rank": 0, "cut": None}).encode())
    tree.renew(1.0)
    launcher.close()  # with the renewal unread: the kernel tells of a reset first
    try:
        assert tree.hear_launcher() is False
        assert (tree.is_gone, tree.exit_code) == (True, 0)
    finally:
        tree.close()
