# The image that the steps of Kubeflow Pipelines and Vertex AI run in, and Beam's workers (below).
#
#   docker build -t REGISTRY/oneshot:1 .
#   docker build -t REGISTRY/oneshot:1-gpu --build-arg GPU=1 .
#   docker build -t REGISTRY/oneshot-beam:1 --target beam-worker .
#
# Debian 13 has the glibc (2.41) that the wheels of ml-metadata and tensorflow-data-validation ask for.
ARG PYTHON=3.11
ARG BEAM=2.77.0

FROM python:${PYTHON}-slim-trixie AS build
ARG GPU=0
ARG UV=0.13.9
ARG UV_SHA256=d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    UV_NO_CACHE=1 \
    UV_PYTHON_DOWNLOADS=never
WORKDIR /opt/oneshot/src
COPY requirements.lock requirements-gpu.lock pyproject.toml setup.py ./
# What the package asks for: versions and hashes are those of the lock. Before the code, which changes more often.
RUN echo "uv==$UV --hash=sha256:$UV_SHA256" > uv.txt \
    && pip install --require-hashes -r uv.txt \
    && uv venv /opt/oneshot/venv \
    && if [ "$GPU" = 1 ]; then set -- --extra gpu; fi \
    && uv pip install --python /opt/oneshot/venv/bin/python --build-constraint requirements.lock \
        --constraint requirements.lock --constraint requirements-gpu.lock --requirements setup.py --extra heic --extra faces --extra kubeflow "$@"
COPY data_ingest data_ingest
COPY components components
COPY serving serving
COPY pipeline pipeline
# Importing TFX reads thousands of modules, and who runs the image may not write their bytecode.
RUN uv pip install --python /opt/oneshot/venv/bin/python --build-constraint requirements.lock --no-deps --editable . \
    && { /opt/oneshot/venv/bin/python -m compileall -q -q -j 0 -x '/tests?/|_test\.py$' /opt/oneshot || true; }

FROM python:${PYTHON}-slim-trixie AS runtime
COPY --from=build /opt/oneshot /opt/oneshot
ENV PATH=/opt/oneshot/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TF_CPP_MIN_LOG_LEVEL=2
# Kubeflow copies artifacts to and from these; /gcs is a mount point on Vertex AI.
RUN useradd --uid 10001 --gid 0 --create-home oneshot \
    && install --directory --owner oneshot --group 0 --mode 0775 /gcs /minio /s3
USER 10001
WORKDIR /home/oneshot
ENTRYPOINT ["oneshot"]
CMD ["--help"]

FROM apache/beam_python${PYTHON}_sdk:${BEAM} AS beam

# Workers of Dataflow: `beam.worker_image` in the configuration.
FROM runtime AS beam-worker
COPY --from=beam /opt/apache/beam /opt/apache/beam
ENTRYPOINT ["/opt/apache/beam/boot"]
CMD []

FROM runtime AS image
