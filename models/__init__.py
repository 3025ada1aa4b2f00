"""The networks by name. Models know nothing of training: images in, logits out."""

from .cnn import CNN
from .foreign import Imported, check_logits, imported
from .precision import at_least_float32, autocast, on_device, parameter_count, widest
from .registry import (
    ELSEWHERE,
    MODELS,
    NETWORKS,
    build,
    code_of,
    default_width,
    file_name,
    is_own,
    named,
)
from .stages import Stages, find
