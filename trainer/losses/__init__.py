"""Label losses: pure functions on the k + 1 numbers a position that `trainer.ops` produces.

Buckets: the k labeled ids one by one, and everything else as one. A divergence between bucketed
distributions never exceeds the dense one and equals it when the ids cover the vocabulary or all but
one id. Which one when, and where each comes from: docs/losses.md.

Temperature: none of the bucketed ones takes one. The tail was stored at T = 1, and what it would be
at another T depends on how it is spread over ids that were not stored: it is not determined.
`renormalized_kl` leaves the tail out and can have any.
"""

from trainer.data.teacher_buckets import renormalize_teacher
from trainer.losses.cross_entropy import cross_entropy
from trainer.losses.forward_kl import forward_kl
from trainer.losses.jsd import jsd
from trainer.losses.renormalized_kl import renormalized_kl
from trainer.losses.reverse_kl import reverse_kl
from trainer.losses.sampled import sampled_cross_entropy
from trainer.losses.skew_kl import skew_kl
from trainer.losses.skew_reverse_kl import skew_reverse_kl
from trainer.losses.tvd import tvd

__all__ = [
    "cross_entropy",
    "forward_kl",
    "jsd",
    "renormalize_teacher",
    "renormalized_kl",
    "reverse_kl",
    "sampled_cross_entropy",
    "skew_kl",
    "skew_reverse_kl",
    "tvd",
]
