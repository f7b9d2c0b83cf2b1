"""Makes the package's long description: the README without the links and images that only work in the repository."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

IMAGE = re.compile(r"!\[[^\]]*\]\((?!https?://)[^)]*\)\n*")
LINK = re.compile(r"\[([^\]]*)\]\((?!https?://)([^)]*)\)")


class CustomMetadataHook(MetadataHookInterface):
    """Called by hatchling, which builds the sdist and the wheel."""

    def update(self, metadata: dict) -> None:
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": standalone(readme)}


def standalone(readme: str) -> str:
    """Returns a README whose links to files of the repository are their paths, and which has no image of it."""
    title, _, text = LINK.sub(_as_path, IMAGE.sub("", readme)).partition("\n\n")
    return f"{title}\n\n*Files in brackets are in the repository, with the figures and the site.*\n\n{text}"


def _as_path(link: re.Match) -> str:
    label, path = link.groups()
    return label if label == path else f"{label} (`{path}`)"
