"""Which blessed model a candidate is judged against."""

from ml_metadata import MetadataStore
from tfx import types
from tfx.components.evaluator import constants as evaluator_constants
from tfx.dsl.components.common.resolver import ResolverStrategy


class PreviousBlessedModelStrategy(ResolverStrategy):
    """Resolves the latest blessed Model that is older than the candidate.

    TFX's LatestBlessedModelStrategy also sees the candidate itself once it is blessed: the
    baseline of an unchanged second run would differ from that of the first, so the Evaluator
    would run again and the Pusher would push the same model a second time.

    Channels: `model` (Model), `model_blessing` (ModelBlessing), `candidate` (Model, the
    Trainer's output). Without an older blessed model `model` and `model_blessing` are empty.
    """

    def resolve_artifacts(
        self, store: MetadataStore, input_dict: dict[str, list[types.Artifact]]
    ) -> dict[str, list[types.Artifact]] | None:
        del store
        candidates = input_dict["candidate"]
        newest = max((model.id for model in candidates), default=0)
        blessings = {
            blessing.get_int_custom_property(
                evaluator_constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY
            ): blessing
            for blessing in input_dict["model_blessing"]
            if blessing.get_int_custom_property(evaluator_constants.ARTIFACT_PROPERTY_BLESSED_KEY)
        }
        older = [m for m in input_dict["model"] if m.id < newest and m.id in blessings]
        baseline = max(older, key=lambda model: model.id, default=None)
        return {
            "model": [baseline] if baseline else [],
            "model_blessing": [blessings[baseline.id]] if baseline else [],
            "candidate": candidates,
        }
