"""What to do about a script's own mistakes, where the exception alone doesn't tell."""

import sys
from importlib.metadata import packages_distributions

# Where the package is called otherwise than its module (the ten most asked for on PyPI that differ).
_PACKAGES = {
    "PIL": "pillow",
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "dotenv": "python-dotenv",
    "git": "GitPython",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}


def hint_for(error: BaseException, is_recipe: bool) -> str | None:
    """A sentence for `detail`; None where the message says it all."""
    match error:
        case ModuleNotFoundError(name=str(name)) if name:
            return _missing_module(name, is_recipe)
        case ImportError() if "attempted relative import" in str(error):
            return (
                "the entrypoint runs as a script, like `python train.py`, and belongs to no package: "
                "write `from network import …` instead of `from .network import …`, with network.py beside it"
            )
        case FileNotFoundError(filename=str(name)) if name and not name.startswith("/"):
            return (
                f"{name} is looked for in the job's own folder, a copy of what was submitted; files that git ignores, "
                "over 50 MiB or outside that folder were not sent: give the path on the training host"
            )
        case _:
            return None


def _missing_module(name: str, is_recipe: bool) -> str | None:
    top = name.partition(".")[0]
    if is_recipe:
        return f"the training host lacks {top}: its worker's installation is not complete"
    if top in sys.modules or top in packages_distributions():
        return f"{top} is there, but has no {name.partition('.')[2] or 'such part'}: another version may have it"
    package = _PACKAGES.get(top, top)
    return (
        f"{top} is neither beside the script nor installed on the training host: submit the folder that holds it, or "
        f"name its package ({package}) in requirements.txt"
    )
