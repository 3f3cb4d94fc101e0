"""Codecs: what workers and server send instead of float32 vectors."""

from byzjax.compression._byz_ef21 import (
  ByzEf21,
  Ef21CodecState,
  Ef21ServerState,
  byz_ef21,
)
from byzjax.compression._error_feedback import (
  ErrorFeedbackState,
  error_feedback,
)
from byzjax.compression._qsgd import qsgd_codec, terngrad_codec
from byzjax.compression._sign import (
  noisy_sign_codec,
  scaled_sign_codec,
  sign_codec,
)
from byzjax.compression._sparsign import sparsign_codec
from byzjax.compression._top_k import top_k_codec

__all__ = [
  'ByzEf21',
  'Ef21CodecState',
  'Ef21ServerState',
  'ErrorFeedbackState',
  'byz_ef21',
  'error_feedback',
  'noisy_sign_codec',
  'qsgd_codec',
  'scaled_sign_codec',
  'sign_codec',
  'sparsign_codec',
  'terngrad_codec',
  'top_k_codec',
]
