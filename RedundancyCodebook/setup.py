"""Only what pyproject.toml cannot say: ``mob`` and the LLaVA packages come from this repository, not from an index."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "mob" / "__init__.py").exists() or not (ROOT / "LLaVA-Next" / "setup.py").exists():
    raise SystemExit("redundancy-codebook needs the mob, LLaVA and LLaVA-Next folders beside it: clone the repository")

setup(
    install_requires=[
        f"mob @ {ROOT.as_uri()}",
        f"llava @ {(ROOT / 'LLaVA').as_uri()}",
        f"llava-next @ {(ROOT / 'LLaVA-Next').as_uri()}",
        "torch>=2.5",
        "transformers>=5.17,<5.24",
        "numpy>=1.26",
        "pillow>=10.1",
        "safetensors",
        "tqdm",
    ]
)
