"""Only what pyproject.toml cannot say: ``mob`` and ``llava`` come from this repository, not from a package index."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "mob" / "__init__.py").exists() or not (ROOT / "LLaVA" / "setup.py").exists():
    raise SystemExit("llava-next needs the mob and LLaVA folders beside it: clone the whole repository")

setup(
    install_requires=[
        f"mob @ {ROOT.as_uri()}",
        f"llava @ {(ROOT / 'LLaVA').as_uri()}",
        "torch>=2.5",
        "transformers>=5.17,<5.24",
        "av>=12",
        "numpy>=1.26",
        "pillow>=10.1",
        "safetensors",
    ]
)
