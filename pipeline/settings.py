"""Settings of the pipeline itself: runners, releases, retrainings, drift and notices."""

from typing import Annotated, Final, Literal, get_args

from pydantic import Field, SecretStr, field_validator, model_validator

from data_ingest.settings import Settings

LOCAL_BEAM_RUNNER: Final = "FnApiRunner"
"""What Beam calls the runner whose workers are on the machine that starts them."""
Stage = Literal["data", "train", "evaluate", "push"]
"""How far a run goes: validated examples, a model, both verdicts on it, or all the way."""
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
JUDGED_STAGES: Final[tuple[Stage, ...]] = ("evaluate", "push")
"""Those that end with a verdict."""
Event = Literal["blessed", "not_blessed", "failed", "drift"]
"""What people can be told of a retraining."""
EVENTS: Final[tuple[Event, ...]] = get_args(Event)


MODELS_CONFIG: Final = "models.config"
"""TF Serving's list of models, beside their folders."""
HostPort = Annotated[str, Field(pattern=r"^([^\s/:@]+|\[[0-9a-fA-F:]+\]):[0-9]{1,5}$")]
BeamArgument = Annotated[str, Field(pattern=r"^--[A-Za-z]")]
Address = Annotated[str, Field(pattern=r"^[^\s\x00-\x1f][^\x00-\x1f]*$")]
Cpu = Annotated[str, Field(pattern=r"^([0-9]*\.)?[0-9]+m?$")]
Memory = Annotated[str, Field(pattern=r"^[0-9]+([EPTGMK]i?)?$")]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
SecretKey = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9._-]+$")]


class BeamSettings(Settings):
    """Which workers of Beam ingest the images, take statistics and evaluate."""

    runner: Literal["local", "portable", "dataflow"] = Field(
        "local",
        description="local: this machine; portable: worker pools, by a job server as Flink, Spark "
        "and Beam's Prism have one; dataflow: Google Cloud, for compiled pipelines",
    )
    workers: int = Field(
        1,
        ge=0,
        le=1024,
        description="worker processes of runner local; 1 is the node's own, 0 one per core",
    )
    job_endpoint: HostPort | None = Field(
        None, description="HOST:PORT of the job server of runner portable"
    )
    worker_pool: HostPort | None = Field(
        None,
        description="HOST:PORT of `oneshot worker-pool`, as the job server's machines reach it",
    )
    project: str | None = Field(None, description="project of Google Cloud, of runner dataflow")
    region: str | None = Field(None, description="its region, as europe-west4")
    temp_location: str | None = Field(None, description="its gs:// folder for what is passing")
    worker_image: str | None = Field(
        None,
        description="image of its workers, `beam-worker` of the Dockerfile",
    )
    extra_args: tuple[BeamArgument, ...] = Field(
        (), description="further Beam arguments, each --name=value"
    )

    @model_validator(mode="after")
    def _runner_has_its_options(self) -> "BeamSettings":
        needed = _NEEDED.get(self.runner, ())
        if missing := [name for name in needed if getattr(self, name) is None]:
            raise ValueError(f"runner {self.runner} needs {', '.join(missing)}")
        own = {arg.partition("=")[0] for arg in self._own_args()}
        for arg in self.extra_args:
            if (name := arg.partition("=")[0]) in own:
                raise ValueError(f"extra_args: {name} follows from the other options")
        return self

    def pipeline_args(self) -> list[str]:
        """Beam arguments, complete: nothing is left for Beam to find on the network."""
        return [*self._own_args(), *self.extra_args]

    def _own_args(self) -> list[str]:
        args = {
            "local": [
                f"--runner={LOCAL_BEAM_RUNNER}",
                f"--direct_running_mode={'in_memory' if self.workers == 1 else 'multi_processing'}",
                f"--direct_num_workers={self.workers}",
            ],
            "portable": [
                "--runner=PortableRunner",
                f"--job_endpoint={self.job_endpoint}",
                "--environment_type=EXTERNAL",
                f"--environment_config={self.worker_pool}",
            ],
            "dataflow": [
                "--runner=DataflowRunner",
                f"--project={self.project}",
                f"--region={self.region}",
                f"--temp_location={self.temp_location}",
            ],
        }[self.runner]
        # Without one TFX builds a source distribution of itself in each component.
        image = self.worker_image if self.runner == "dataflow" else "none"
        return [*args, f"--sdk_container_image={image}"]


_NEEDED: Final = {
    "portable": ("job_endpoint", "worker_pool"),
    "dataflow": ("project", "region", "temp_location", "worker_image"),
}


class PushSettings(Settings):
    """Where a blessed model goes."""

    model_name: str = Field(
        "siamese",
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$",
        max_length=63,
        description="TF Serving model name; versions appear in <output>/serving_model/<model_name>",
    )
    server_base_path: str | None = Field(
        None,
        min_length=1,
        description="that folder as the servers see it, for models.config: /models/siamese, "
        "s3://...; null: under the same path as here",
    )
    server_poll_seconds: float = Field(
        10.0,
        ge=0,
        le=3600,
        description="servers read models.config again within this time; a label moves to a version "
        "only after they could load it",
    )

    @field_validator("model_name")
    @classmethod
    def _is_its_own(cls, name: str) -> str:
        if name.isdigit():
            raise ValueError("a number is the name of a version")
        if name == MODELS_CONFIG:
            raise ValueError("this is the name of the file beside it")
        return name


class MetadataSettings(Settings):
    """Where ML Metadata is kept."""

    url: SecretStr | None = Field(
        None,
        description="sqlite:, postgresql: or mysql: URL; one with a password is better given by "
        "ONESHOT_METADATA_URL; null: metadata.db in the output folder",
    )


class RetrainSettings(Settings):
    """What is trained on when spans arrive, and how a failure is met."""

    window: int = Field(
        default=12, ge=0, le=100_000, description="newest spans to train on; 0: all of them"
    )
    trigger: Literal["every_span", "drift"] = Field(
        default="every_span",
        description="every_span, or drift: only spans in which drift was found",
    )
    label: Literal["stable", "canary"] | None = Field(
        default="stable",
        description="what a blessed model is promoted to: stable, canary, or null: nothing",
    )
    attempts: int = Field(
        default=3,
        ge=1,
        le=100,
        description="how often a retraining that fails is tried; what had finished is not repeated",
    )
    backoff_seconds: float = Field(
        default=30.0,
        ge=0,
        le=86_400,
        description="pause before the second attempt, twice as long before each further one",
    )
    lease_seconds: float = Field(
        default=60.0,
        ge=1,
        le=3600,
        description="how long after its last sign of life another host may take over from one "
        "that died",
    )


class DriftSettings(Settings):
    """Limits that were chosen on Omniglot's background alphabets; see docs/drift.md."""

    action: Literal["warn", "block"] = Field(
        "warn",
        description="warn: say so and go on; block: no training uses a span that drifted until "
        "`oneshot spans readmit`",
    )
    reference_spans: int = Field(
        7, ge=1, le=10_000, description="spans before it that a span is compared with"
    )
    max_images: int = Field(
        5_000, ge=100, le=10_000_000, description="images that are measured on either side"
    )
    divergence: float = Field(
        0.15,
        gt=0,
        le=1,
        description="Jensen-Shannon divergence of a figure (width, ink, ...) that is tolerated",
    )
    divergence_factor: float = Field(
        2.0,
        ge=0,
        le=100,
        description="or so many times what groups of the reference differ among themselves",
    )
    unexpected_share: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="share of images stored or inked unlike any before that is tolerated",
    )
    label_shift: float = Field(
        0.2,
        gt=0,
        le=1,
        description="change of a known group's share of the images that is tolerated",
    )
    accuracy_drop: float = Field(
        0.1,
        gt=0,
        le=1,
        description="drop in one-shot accuracy of the served model that is tolerated",
    )
    trials: int = Field(
        400, ge=20, le=1_000_000, description="one-shot trials on either side; 20-way, or fewer"
    )


class NotifySettings(Settings):
    """Who is told what became of a retraining. Secrets are better given by the environment."""

    events: tuple[Event, ...] = Field(EVENTS, description="what is told of")
    webhook_url: SecretStr | None = Field(
        None,
        description="http(s) address that gets each notice; ONESHOT_WEBHOOK_URL is the same and "
        "keeps it out of this file",
    )
    webhook_format: Literal["json", "slack"] = Field(
        "json", description="json: all details; slack: a text, as Slack and Mattermost take it"
    )
    smtp_host: str | None = Field(
        None, pattern=r"^[^\s/@]+$", description="mail server; null: no mail"
    )
    smtp_port: int = Field(587, ge=1, le=65_535, description="its port")
    smtp_security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="how the connection is encrypted"
    )
    smtp_user: str | None = Field(
        None, description="name to log in with; the password is ONESHOT_SMTP_PASSWORD"
    )
    mail_from: Address | None = Field(None, description="sender's address")
    mail_to: tuple[Address, ...] = Field((), description="receivers' addresses")

    @model_validator(mode="after")
    def _mail_is_complete(self) -> "NotifySettings":
        if self.smtp_host is not None and not (self.mail_from and self.mail_to):
            raise ValueError("smtp_host needs mail_from and mail_to")
        return self


class Toleration(Settings):
    """A taint of nodes on which a step may run all the same, as in Kubernetes."""

    key: str | None = Field(None, description="of the taint; null: any")
    operator: Literal["Equal", "Exists"] = Field("Equal", description="how values compare")
    value: str | None = Field(None, description="of the taint")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="of the taint; null: any"
    )
    toleration_seconds: int | None = Field(
        None,
        ge=0,
        le=31_536_000,
        serialization_alias="tolerationSeconds",
        description="how long, with NoExecute; null: for ever",
    )

    @model_validator(mode="after")
    def _matches_a_taint(self) -> "Toleration":
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("with operator Exists there is no value")
        if self.operator == "Equal" and self.key is None:
            raise ValueError("give a key, or operator: Exists")
        return self


class StepResources(Settings):
    """What a step asks of the cluster; what is left out is as in the entry `default`."""

    cpu: Cpu | None = Field(None, description="CPUs requested: 2, 500m")
    cpu_limit: Cpu | None = Field(None, description="most CPUs; on Vertex AI those of the machine")
    memory: Memory | None = Field(None, description="memory requested: 8Gi")
    memory_limit: Memory | None = Field(
        None, description="most memory; on Vertex AI that of the machine"
    )
    node_selector: dict[str, str] = Field({}, description="labels that its nodes have")
    tolerations: tuple[Toleration, ...] = Field((), description="taints that its nodes may have")


class KubeflowSettings(Settings):
    """What the steps that `oneshot compile` writes get of the cluster."""

    resources: dict[str, StepResources] = Field(
        {},
        description="by step (Trainer, Evaluator, ...), or default for all: cpu, cpu_limit, "
        "memory, memory_limit, node_selector, tolerations",
    )
    environment: dict[VariableName, str] = Field(
        {}, description="environment variables of all steps"
    )
    secrets: dict[VariableName, SecretKey] = Field(
        {}, description="those that come from a Secret of Kubernetes, each VARIABLE: secret/key"
    )

    def of_step(self, name: str) -> StepResources:
        """What a step asks for, with what all ask for."""
        default, own = (self.resources.get(one, StepResources()) for one in ("default", name))
        return default.model_copy(update={one: getattr(own, one) for one in own.model_fields_set})
