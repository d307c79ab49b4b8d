"""Pipelines: documents through named steps, in several processes or on a Ray cluster, with an account that closes."""

from trivium.lazy import lazy_attributes

__getattr__ = lazy_attributes(
    __name__,
    {
        "Pipeline": "trivium.data.pipeline.plan",
        "PipelineRun": "trivium.data.pipeline.run",
        "resolve_pipeline": "trivium.data.pipeline.plan",
        "run_pipeline": "trivium.data.pipeline.run",
    },
)
