"""The qualitative facts known about each rule, with sources."""

from typing import NamedTuple


class Known(NamedTuple):
  """Properties of a rule that hold for all messages, and their sources.

  Attributes:
    facts: properties for all arguments of the rule.
    sources: authors, year, and identifier.
    by_default: properties for the default arguments; shown first.
  """

  facts: tuple[str, ...]
  sources: tuple[str, ...]
  by_default: tuple[str, ...] = ()

  def of(self, is_default: bool) -> tuple[str, ...]:
    """What holds for the arguments in question."""
    return self.by_default + self.facts if is_default else self.facts


_ALLOUAH = (
  'Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan 2023 arXiv:2302.01772'
)
_BLANCHARD = 'Blanchard, El Mhamdi, Guerraoui, Stainer 2017 arXiv:1703.02757'
_BUCKETING = 'Karimireddy, He, Jaggi 2022 arXiv:2006.09365'
_CLIPPING = 'Karimireddy, He, Jaggi 2021 arXiv:2012.10333'
_RESAM = 'Farhadkhani, Guerraoui, Gupta, Pinot, Stephan 2022 arXiv:2205.12173'
_YIN = 'Yin, Chen, Ramchandran, Bartlett 2018 arXiv:1803.01498'
_BETWEEN = 'every coordinate lies between two honest ones'

RULES = {
  'aksel': Known(
    (),
    (
      'Boussetta, El Mhamdi, Guerraoui, Maurer, Rouault 2020'
      ' doi:10.4230/LIPIcs.OPODIS.2020.8',
    ),
  ),
  'bulyan': Known(
    (),
    ('El Mhamdi, Guerraoui, Rouault 2018 arXiv:1802.07927',),
    ('of the n - 2f messages that it selects, at least n - 3f are honest',),
  ),
  'centered_clipping': Known(
    (
      'moves by at most its radius in a step, for any messages',
      'one message moves it by at most 2 radius / n in a step, f messages by'
      ' 2 f radius / n: theory.clipping_displacement',
      'published, with very loose constants: if the radius follows the honest'
      ' spread, the start is within that spread, and f <= n / 10, then the'
      ' squared error is O(f / n) of the honest variance',
      'equal honest messages beyond the radius are not returned: no kappa',
      'with a quantile and f < quantile n <= n - f it comes near the honest'
      ' mean from any start: theory.quantile_clipping_error',
    ),
    (_CLIPPING,),
  ),
  'clipped_clustering': Known(
    (
      'not longer than the longest honest message so far, if honest messages'
      ' have been the majority',
      'equal honest messages are not distinguished from shorter ones in their'
      ' direction: no kappa',
    ),
    ('Li, Ngai, Voigt 2023 doi:10.36227/techrxiv.19560325',),
  ),
  'clustering': Known(
    (
      'one long message in the direction of the honest ones moves it'
      ' arbitrarily far',
    ),
    (
      'Sattler, Mueller, Wiegand, Samek 2020'
      ' doi:10.1109/ICASSP40776.2020.9054676',
    ),
  ),
  'comparative_gradient_elimination': Known(
    ('f messages of zero among equal honest ones shrink it: no kappa',),
    ('Gupta, Liu, Vaidya 2020 arXiv:2008.04699',),
    ('not longer than the longest honest message',),
  ),
  'coordinate_median': Known(
    (_BETWEEN, 'its kappa cannot be improved'), (_YIN, _ALLOUAH)
  ),
  'covariance_filter': Known(
    ('its kappa holds for the top eigenvalue of the honest covariance, too',),
    ('Allouah, Guerraoui, Stephan 2025 arXiv:2505.01874',),
  ),
  'divide_and_conquer': Known(
    (),
    ('Shejwalkar, Houmansadr 2021 doi:10.14722/ndss.2021.24498',),
    (
      'two messages can move it arbitrarily far for any num_byzantine: one far'
      ' away determines the direction along which all are compared, and one far'
      ' away orthogonal to it is kept',
    ),
  ),
  'faba': Known(
    (
      'with f <= n / 3 it is within (3 + q) / (1 - q) honest radii of the'
      ' honest mean, with q = f / (n - 2f + 1) and the radius the largest'
      ' distance of an honest message to that mean',
      'nothing is proved for larger f: many colluding messages can make honest'
      ' ones the farthest from the mean',
    ),
    ('Xia, Tao, Hao, Li 2019 doi:10.24963/ijcai.2019/670',),
  ),
  'fl_trust': Known(
    (
      'not longer than the trusted gradient, and its inner product with it is'
      ' not negative, for any messages',
      'nothing is proved if the root data differ from those of the workers',
      'equal honest messages get the length of the trusted gradient: no kappa',
    ),
    ('Cao, Fang, Liu, Gong 2021 arXiv:2012.13995',),
  ),
  'flame': Known(
    (
      'without its noise not longer than the longest honest message, if honest'
      ' messages are the majority; nothing else is proved',
      'equal honest messages are not distinguished from shorter ones in their'
      ' direction: no kappa',
    ),
    ('Nguyen, Rieger, et al. 2022 arXiv:2101.02281',),
  ),
  'fools_gold': Known(
    (
      'nothing is proved: a single message can move it arbitrarily far',
      'equal honest messages count as sybils, and lose their weight to any'
      ' other message: no kappa',
    ),
    ('Fung, Yoon, Beschastnikh 2018 arXiv:1808.04866',),
  ),
  'geometric_median': Known(
    (
      'Weiszfeld steps converge to it: its kappa holds in the limit',
      'messages no farther apart than the smoothing are averaged: no kappa',
    ),
    (
      'Pillutla, Kakade, Harchaoui 2019 arXiv:1912.13445',
      'Minsker 2015 arXiv:1308.1334',
      _ALLOUAH,
    ),
    ('the kappa of the exact geometric median cannot be improved',),
  ),
  'krum': Known(
    ('returns one of the messages',),
    (_BLANCHARD, _ALLOUAH, _RESAM),
    ('made for f, tolerates f + 1 messages far away, but not f + 3',),
  ),
  'lasa': Known(
    (
      'about a third of the messages is excluded in every leaf, even without'
      ' an attack; the paper has its own bound',
      'clipping limits every message to the median length: not longer than the'
      ' longest honest message, if honest messages are the majority',
      'sparsification loses entries even if all messages are equal: no kappa',
    ),
    ('Xu, Zhang, Hu 2025 arXiv:2409.01435',),
  ),
  'majority_vote': Known(
    (
      'f messages change no coordinate in which the honest margin exceeds f'
      ' votes',
      'ignores the length of messages: no kappa',
    ),
    ('Bernstein, Zhao, Azizzadenesheli, Anandkumar 2019 arXiv:1810.05291',),
    ('every coordinate has magnitude one for any messages',),
  ),
  'mean': Known(('one message moves it arbitrarily far',), (_BLANCHARD,)),
  'mean_around_median': Known(
    (),
    ('Xie, Koyejo, Gupta 2018 arXiv:1802.10116', _RESAM),
  ),
  'minimum_diameter_averaging': Known(
    (),
    (
      'El Mhamdi, Guerraoui, Guirguis, Hoang, Rouault 2020 arXiv:1905.03853',
      _RESAM,
    ),
  ),
  'monna': Known(
    ('nothing holds if the reference worker is Byzantine',),
    (
      'Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan 2023'
      ' arXiv:2209.10931',
    ),
  ),
  'multi_krum': Known(
    (),
    (_BLANCHARD, 'Bareilles, Bouaziz, Fageot, El Mhamdi 2026 arXiv:2602.03899'),
  ),
  'phocas': Known((), ('Xie, Koyejo, Gupta 2018 arXiv:1805.09682',)),
  'sequential_centered_clipping': Known(
    (
      'moves by at most its radius for each of the ceil(n / bucket_size)'
      ' buckets, for any messages; nothing else is proved',
      'equal honest messages beyond that are not returned: no kappa',
    ),
    ('Ozfatura, Ozfatura, Kupcu, Gunduz 2022 arXiv:2208.09894',),
  ),
  'sign_guard': Known(
    (
      'not longer than the longest honest message, if honest messages are the'
      ' majority; nothing else is proved',
      'equal honest messages are not distinguished from shorter ones with their'
      ' signs: no kappa',
    ),
    ('Xu, Huang, Song, Lan 2022 arXiv:2109.05872',),
  ),
  'smallest_max_eigenvalue_averaging': Known(
    ('its kappa holds for the top eigenvalue of the honest covariance, too',),
    ('Allouah, Guerraoui, Gupta, Pinot, Stephan 2023 arXiv:2302.04787',),
  ),
  'trimmed_mean': Known(
    (_BETWEEN, 'no rule has a smaller kappa'), (_YIN, _ALLOUAH, _RESAM)
  ),
}
STAGES = {
  'adaptive_clipping': Known(
    ('clipping adds at most 2 f / (n - 2f) to kappa',),
    (
      'Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan 2025'
      ' arXiv:2405.14432',
    ),
  ),
  'bucketing': Known(
    (
      'f messages corrupt at most f of the ceil(n / bucket_size) buckets, and'
      ' the rule must tolerate f corrupted ones',
    ),
    (_BUCKETING,),
  ),
  'clip_messages': Known(
    (
      'no message is longer than max_norm, whatever is sent',
      'equal honest messages beyond max_norm are not returned: no kappa',
    ),
    (_CLIPPING,),
  ),
  'group_vote': Known(
    (
      'f messages win or corrupt at most floor(f / ((group_size + 1) / 2)) of'
      ' the n / group_size votes, and the rule must tolerate those:'
      ' theory.max_corrupted_groups',
      'in a group without a Byzantine majority the vote is honest, bit for bit',
    ),
    ('Rajput, Wang, Charles, Papailiopoulos 2019 arXiv:1907.12205',),
  ),
  'nearest_neighbor_mixing': Known(
    ('its kappa is 8 f / (n - f) (kappa + 1), kappa that of the next rule',),
    (_ALLOUAH,),
  ),
  'resampling': Known(
    (
      'f messages corrupt at most f num_samples of the n means, and the rule'
      ' must tolerate those',
    ),
    ('He, Karimireddy, Jaggi 2020 arXiv:2006.09365v1',),
  ),
}
