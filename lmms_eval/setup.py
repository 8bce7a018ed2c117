"""Only what pyproject.toml cannot say: the models come from this repository, not from a package index."""

from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent
FOLDERS = {"mob": ".", "llava": "LLaVA", "llava-next": "LLaVA-Next", "Qwen2VL-MoB": "Qwen2-VL"}
if not all((HERE.parent / folder / "pyproject.toml").exists() for folder in FOLDERS.values()):
    raise SystemExit("mob-lmms-eval needs the folders beside it: clone the whole repository")

lines = (HERE / "requirements.txt").read_text().splitlines()
setup(
    install_requires=[
        *(f"{name} @ {(HERE.parent / folder).resolve().as_uri()}" for name, folder in FOLDERS.items()),
        *(line for line in lines if line and not line.startswith("#")),
    ]
)
