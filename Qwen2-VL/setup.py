"""Only what pyproject.toml cannot say: ``mob`` comes from the folder above, not from a package index."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "mob" / "__init__.py").exists():
    raise SystemExit("Qwen2VL_MoB needs the mob package in the folder above: clone the whole repository")

setup(
    install_requires=[
        f"mob @ {ROOT.as_uri()}",
        "torch>=2.5",
        "transformers>=5.17,<5.24",
        "accelerate>=1.0",
        "jinja2>=3.1",
        "numpy>=1.26",
        "pillow>=10.1",
        "safetensors",
    ]
)
