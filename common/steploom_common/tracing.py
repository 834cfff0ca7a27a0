"""OpenTelemetry: a tracer where one is asked for, and W3C trace context in gRPC metadata."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Protocol

from opentelemetry.context import Context
from opentelemetry.trace import NoOpTracer, Span, SpanContext, Tracer, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from steploom_common.settings import ConfigError
from steploom_common.tracing_settings import TracingConfig

NO_TRACER: Tracer = NoOpTracer()  # its spans only hand on the context that came in

_EXPORT_S = 5.0  # for one batch, tries included
_LAST_WORDS_S = 3.0  # for what is left at the end of the process

_W3C = TraceContextTextMapPropagator()


class Provider(Protocol):
    """What makes tracers, and sends what they have recorded."""

    def get_tracer(self, instrumenting_module_name: str) -> Tracer:
        """A tracer of ours."""

    def shutdown(self) -> None:
        """Sends what is left."""


def provider(config: TracingConfig, service: str) -> Provider | None:
    """Where spans are sent from; None where no endpoint is set.

    Args:
        config: the `[tracing]` table.
        service: name of the process in traces: gateway or batcher.

    Raises:
        ConfigError: an endpoint is set, and the libraries that would send are not installed.
    """
    if not config.endpoint:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
    except ImportError as error:
        hint = f"needs {error.name}, which is not installed: `pip install 'steploom[tracing]'`"
        raise ConfigError("tracing.endpoint", hint) from None
    resource = Resource.create({"service.name": f"steploom-{service}"})
    sampler = ParentBasedTraceIdRatio(config.share)
    made = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)  # `finish` does, within bounds
    is_plain = config.endpoint.startswith("http://")
    exporter = OTLPSpanExporter(config.endpoint, insecure=is_plain, timeout=_EXPORT_S)
    made.add_span_processor(BatchSpanProcessor(exporter))
    return made


def tracer_of(made: Provider | None) -> Tracer:
    """A provider's tracer; one that records nothing where there is none."""
    return made.get_tracer("steploom") if made else NO_TRACER


def finish(made: Provider | None, seconds: float = _LAST_WORDS_S) -> None:
    """Sends what is left, for so many seconds at most: a collector that is away holds up no service's end."""
    if made is not None:
        thread = threading.Thread(target=made.shutdown, name="last traces", daemon=True)
        thread.start()
        thread.join(seconds)


def context_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> Context:
    """What a call's metadata say of the trace that it belongs to. Damaged words are as none."""
    return _W3C.extract({key: value for key, value in metadata or () if isinstance(value, str)}, Context())


def parent_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> SpanContext:
    """The span that a call belongs to; one that is not valid where there is none."""
    return get_current_span(context_in(metadata)).get_span_context()


def traceparent_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The span that a call belongs to, in W3C's words; empty: none is named."""
    return next((value for key, value in metadata or () if key == "traceparent" and isinstance(value, str)), "")


def metadata_of(span: Span) -> list[tuple[str, str]]:
    """What a call that belongs to a span says of it; nothing where there is no trace."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, set_span_in_context(span, Context()))
    return list(carrier.items())
