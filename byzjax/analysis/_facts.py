"""What is known of every rule apart from numbers, and who says so."""

from typing import NamedTuple


class Known(NamedTuple):
  """What holds for a rule whatever the messages are, and its sources.

  Attributes:
    facts: whatever its arguments are.
    sources: authors, year, and where.
    by_default: facts for the default arguments, which come first.
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
    ('of the n - 2f messages that it picks, n - 3f or more are honest',),
  ),
  'centered_clipping': Known(
    (
      'moves by at most its radius in a step, whatever is sent',
      'one message moves it by at most 2 radius / n in a step, f by 2 f radius'
      ' / n: theory.clipping_displacement',
      'published, with very loose constants: if the radius follows the honest'
      ' spread, it starts within that, and f <= n / 10, then the squared error'
      ' is O(f / n) of the honest variance',
      'equal honest messages beyond the radius are not returned: no kappa',
      'with a quantile and f < quantile n <= n - f it comes near the honest'
      ' mean from anywhere: theory.quantile_clipping_error',
    ),
    (_CLIPPING,),
  ),
  'clipped_clustering': Known(
    (
      'not longer than the longest honest message so far, if honest ones have'
      ' been the majority',
      'equal honest messages are not told apart from shorter ones in their'
      ' direction: no kappa',
    ),
    ('Li, Ngai, Voigt 2023 doi:10.36227/techrxiv.19560325',),
  ),
  'clustering': Known(
    (
      'one long message in the direction of the honest ones moves it as far as'
      ' it likes',
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
      'two messages move it as far as they like, whatever num_byzantine is: one'
      ' far away fixes the direction in which all are compared, and one across'
      ' it is kept',
    ),
  ),
  'faba': Known(
    (
      'with f <= n / 3 it is within (3 + q) / (1 - q) honest radii of the'
      ' honest mean, q = f / (n - 2f + 1), a radius being the largest distance'
      ' of an honest message to it',
      'nothing is proved beyond: many messages that collude make honest ones'
      ' the farthest from the mean',
    ),
    ('Xia, Tao, Hao, Li 2019 doi:10.24963/ijcai.2019/670',),
  ),
  'fl_trust': Known(
    (
      'not longer than the trusted gradient, and never against it, whatever is'
      ' sent',
      'nothing is proved if the root data are not like those of the workers',
      'equal honest messages get the length of the trusted gradient: no kappa',
    ),
    ('Cao, Fang, Liu, Gong 2021 arXiv:2012.13995',),
  ),
  'flame': Known(
    (
      'but for its noise not longer than the longest honest message, if honest'
      ' ones are the majority; nothing else is proved',
      'equal honest messages are not told apart from shorter ones in their'
      ' direction: no kappa',
    ),
    ('Nguyen, Rieger, et al. 2022 arXiv:2101.02281',),
  ),
  'fools_gold': Known(
    (
      'nothing is proved: one message alone moves it as far as it likes',
      'equal honest messages count as sybils, and lose their weight to any'
      ' other: no kappa',
    ),
    ('Fung, Yoon, Beschastnikh 2018 arXiv:1808.04866',),
  ),
  'geometric_median': Known(
    (
      'Weiszfeld steps approach it: a kappa holds in the limit',
      'messages no farther apart than the smoothing are averaged: no kappa',
    ),
    (
      'Pillutla, Kakade, Harchaoui 2019 arXiv:1912.13445',
      'Minsker 2015 arXiv:1308.1334',
      _ALLOUAH,
    ),
    ('the kappa of the exact one cannot be improved',),
  ),
  'krum': Known(
    ('returns one of the messages',),
    (_BLANCHARD, _ALLOUAH, _RESAM),
    ('made for f, stands f + 1 messages that are far away, but not f + 3',),
  ),
  'lasa': Known(
    (
      'about a third of the messages is left out of every leaf, also if nobody'
      ' attacks; the paper has a bound of its own',
      'clipping keeps every message at the median length: not longer than the'
      ' longest honest message, if honest ones are the majority',
      'what is made sparse is lost, also if all messages are equal: no kappa',
    ),
    ('Xu, Zhang, Hu 2025 arXiv:2409.01435',),
  ),
  'majority_vote': Known(
    (
      'f messages change no coordinate where the honest margin exceeds f votes',
      'says nothing of lengths: no kappa',
    ),
    ('Bernstein, Zhao, Azizzadenesheli, Anandkumar 2019 arXiv:1810.05291',),
    ('every coordinate has size one whatever is sent',),
  ),
  'mean': Known(('one message moves it as far as it likes',), (_BLANCHARD,)),
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
      ' buckets, whatever is sent; nothing else is proved',
      'equal honest messages beyond that are not returned: no kappa',
    ),
    ('Ozfatura, Ozfatura, Kupcu, Gunduz 2022 arXiv:2208.09894',),
  ),
  'sign_guard': Known(
    (
      'not longer than the longest honest message, if honest ones are the'
      ' majority; nothing else is proved',
      'equal honest messages are not told apart from shorter ones with their'
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
      'f messages spoil at most f of the ceil(n / bucket_size) buckets, and the'
      ' rule must stand those',
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
      'f messages win or spoil at most floor(f / ((group_size + 1) / 2)) of the'
      ' n / group_size votes, and the rule must stand those:'
      ' theory.max_corrupted_groups',
      'where attackers have no majority in a group its vote is honest, bit for'
      ' bit',
    ),
    ('Rajput, Wang, Charles, Papailiopoulos 2019 arXiv:1907.12205',),
  ),
  'nearest_neighbor_mixing': Known(
    ('kappa is 8 f / (n - f) times one more than that of the rule behind',),
    (_ALLOUAH,),
  ),
  'resampling': Known(
    (
      'f messages spoil at most f num_samples of the n means, and the rule must'
      ' stand those',
    ),
    ('He, Karimireddy, Jaggi 2020 arXiv:2006.09365v1',),
  ),
}
