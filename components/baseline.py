"""Which earlier model a candidate is judged against, and which one training starts from."""

from ml_metadata import MetadataStore
from tfx import types
from tfx.dsl.components.common.resolver import ResolverStrategy

from components.pushed_models import MODEL_ID, custom_int, sound_models


class PushedModelStrategy(ResolverStrategy):
    """Resolves the latest model that was pushed and has not been rolled back.

    TFX's LatestBlessedModelStrategy also sees the candidate itself once it is blessed: the
    baseline of an unchanged second run would differ from that of the first, so the Evaluator
    would run again and the Pusher would push the same model a second time.

    Channels: `model` (Model), `pushed_model` (PushedModel) and, for a baseline, `candidate`
    (Model, the Trainer's output): only what is older than the candidate counts then. Where there
    is no such model `model` and `pushed_model` are empty.
    """

    def resolve_artifacts(
        self, store: MetadataStore, input_dict: dict[str, list[types.Artifact]]
    ) -> dict[str, list[types.Artifact]] | None:
        del store
        by_id = {model.id: model for model in input_dict["model"]}
        sound = sound_models(
            [model.mlmd_artifact for model in by_id.values()],
            [pushed.mlmd_artifact for pushed in input_dict["pushed_model"]],
        )
        chosen = [model.id for model in sound]
        if "candidate" in input_dict:
            newest = max((model.id for model in input_dict["candidate"]), default=0)
            chosen = [number for number in chosen if number < newest]
        # Whatever is returned becomes an event in ML Metadata: nothing but what is needed.
        return {
            **input_dict,
            "model": [by_id[number] for number in chosen[-1:]],
            "pushed_model": [
                pushed
                for pushed in input_dict["pushed_model"]
                if custom_int(pushed.mlmd_artifact, MODEL_ID) in chosen[-1:]
            ],
        }
