"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dashinfer_lite.server.protocol.common import ModelCard, ModelList

if TYPE_CHECKING:
    from dashinfer_lite.server.service import Service


def models(service: Service) -> ModelList:
    """The one model that is served."""
    return ModelList(data=[card(service)])


def model(service: Service, name: str) -> ModelCard:
    """A model by name; ApiError 404 for any other."""
    service.check_model(name)
    return card(service)


def card(service: Service) -> ModelCard:
    """What is told of the model."""
    return ModelCard(id=service.name, created=service.created, max_model_len=service.llm.engine.max_context)
