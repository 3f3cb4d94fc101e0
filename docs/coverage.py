"""What other libraries have, and what of it byzjax has: a table.

  python docs/coverage.py    # writes docs/guides/coverage.md

A name of a peer has an expression here, or the reason why there is none.
"""

import inspect
import pathlib
import re

import byzjax

PAGE = pathlib.Path(__file__).parent / 'guides' / 'coverage.md'
NO_PAPER = 'no paper'
# By library: name there -> expression here, or '- reason'.
PEERS: dict[str, dict[str, str]] = {
  'FL-Byzantine-Library, rules': {
    'avg': 'mean()',
    'cm': 'coordinate_median()',
    'tm': 'trimmed_mean(num_byzantine)',
    'krum': 'krum(num_byzantine)',
    'bulyan': 'bulyan(num_byzantine)',
    'rfa': 'geometric_median()',
    'cc': 'centered_clipping(radius)',
    'ccs, scc': 'sequential_centered_clipping(radius, bucket_size)',
    'sign': 'majority_vote()',
    'gas': 'gas(rule, num_byzantine, num_pieces)',
    'fl_trust': 'fl_trust()',
    'foolsgold': 'fools_gold(num_workers)',
    'signguard': 'sign_guard()',
    'flame': 'flame(noise)',
    'dnc': 'divide_and_conquer(num_byzantine)',
    'tm_capped, tm_abs': f'- variants of the trimmed mean; {NO_PAPER}',
    'tm_history, tm_cheby': f'- variants of the trimmed mean; {NO_PAPER}',
    'tm_perfect': '- is told who is Byzantine',
    'ccs_ecc, cc_cluster, scc_krum, med_krum': f'- two rules; {NO_PAPER}',
    'hybrid, adaptive_hybrid, hybrid2': f'- rules that change; {NO_PAPER}',
    'foundation, foundation_tm, foundation_med': (
      '- FoundationFL adds synthetic updates to any rule; not built'
    ),
    'lasa': 'lasa(sparsity)',
    'fedseca': '- not built yet',
    'fldetector': (
      '- predicts messages from a history of 10 rounds, and needs a restart of'
      ' training when it alarms'
    ),
    'fl_defender, fedredefense, skymask': (
      '- need a model of the attack, or train a mask on data of the server'
    ),
  },
  'FL-Byzantine-Library, attacks': {
    'bit_flip': 'sign_flip()',
    'label_flip': 'label_flip(num_classes)',
    'alie': 'alie()',
    'reloc': 'relocated_orthogonal_perturbation()',
    'fang, trimmed_mean_attack': 'fang()',
    'ipm': 'inner_product_manipulation()',
    'minmax': 'min_max()',
    'minsum': 'min_sum()',
    'mimic, mimic_variant, adaptive_mimic': 'mimic()',
    'edge_case': '- just outside of the honest spread: `alie(z)`, z large',
    'krum_attack, adaptive_krum': 'adaptive(attack, aggregator)',
    'local_trimmed_mean, local_minmax': (
      '- attackers that know their own messages only; attacks here know all'
    ),
    'cw': '- climbs the loss; `adaptive_gradient` climbs through the rule',
    'sparse, sparse_opt, lasa': '- not built yet: attacks on chosen layers',
    'stealthy': f'- {NO_PAPER}',
  },
  'FLPoison, rules': {
    'mean': 'mean()',
    'median': 'coordinate_median()',
    'trimmedmean': 'trimmed_mean(num_byzantine)',
    'krum, multikrum': 'multi_krum(num_byzantine)',
    'bulyan': 'bulyan(num_byzantine)',
    'rfa': 'geometric_median()',
    'centeredclipping': 'centered_clipping(radius)',
    'bucketing': 'bucketing(bucket_size)',
    'normclipping': 'clip_messages(max_norm)',
    'dnc': 'divide_and_conquer(num_byzantine)',
    'signguard': 'sign_guard()',
    'simpleclustering': 'clustering()',
    'flame': 'flame(noise)',
    'fltrust': 'fl_trust()',
    'foolsgold': 'fools_gold(num_workers)',
    'lasa': 'lasa(sparsity)',
    'fldetector': '- see above',
    'auror': '- clusters single coordinates over many rounds; not built',
    'crfl': '- certified smoothing of the model, not a rule; not built',
    'deepsight': '- looks into the last layer by name; not built',
  },
  'FLPoison, attacks': {
    'alie': 'alie()',
    'fangattack': 'fang()',
    'gaussian': 'gaussian()',
    'ipm': 'inner_product_manipulation()',
    'labelflipping': 'label_flip(num_classes)',
    'mimic': 'mimic()',
    'min (max, sum)': 'min_max()',
    'signflipping': 'sign_flip(own=True)',
    'badnets': 'backdoor(trigger, target)',
    'dba': 'distributed_trigger()',
    'edgecase': 'edge_case(pool, target)',
    'modelreplacement': 'model_replacement(scale)',
    'neurotoxin': 'neurotoxin()',
    'altermin, threedfed': '- attack and concealment in turn; not built',
  },
  'ByzFL, rules': {
    'Average': 'mean()',
    'Median': 'coordinate_median()',
    'TrMean': 'trimmed_mean(num_byzantine)',
    'GeometricMedian': 'geometric_median()',
    'Krum': 'krum(num_byzantine)',
    'MultiKrum': 'multi_krum(num_byzantine)',
    'CenteredClipping': 'centered_clipping(radius)',
    'MDA': 'minimum_diameter_averaging(num_byzantine)',
    'MoNNA': 'monna(num_byzantine, reference_worker)',
    'Meamed': 'mean_around_median(num_byzantine)',
    'SMEA': 'smallest_max_eigenvalue_averaging(num_byzantine)',
    'CAF': 'covariance_filter(num_byzantine)',
    'NNM': 'nearest_neighbor_mixing(num_byzantine)',
    'Bucketing': 'bucketing(bucket_size)',
    'Clipping': 'clip_messages(max_norm)',
    'ARC': 'adaptive_clipping(num_byzantine)',
  },
  'ByzFL, attacks': {
    'SignFlipping': 'sign_flip()',
    'LabelFlipping': 'label_flip(num_classes)',
    'InnerProductManipulation': 'inner_product_manipulation()',
    'ALittleIsEnough': 'alie(z)',
    'Optimal_ALittleIsEnough': 'adaptive(attack, aggregator)',
    'Optimal_InnerProductManipulation': 'adaptive(attack, aggregator)',
    'Mimic': 'mimic(worker)',
    'Gaussian': 'gaussian()',
    'Inf': 'constant(value)',
  },
}


def exists(expression: str) -> bool:
  """Whether byzjax has the function, with arguments of these names."""
  call = re.fullmatch(r'(\w+)\((.*)\)', expression)
  if call is None or not hasattr(byzjax, call[1]):
    return False
  names = [name.partition('=')[0].strip() for name in call[2].split(',')]
  parameters = inspect.signature(getattr(byzjax, call[1])).parameters
  return set(filter(None, names)) <= set(parameters)


def page() -> str:
  """All of `coverage.md`.

  Raises:
    ValueError: if an expression calls what byzjax does not have.
  """
  lines = [
    '# What other libraries have',
    '',
    'Every rule and attack of FL-Byzantine-Library (32922ca), FLPoison'
    ' (368c940) and ByzFL (0.0.11): how byzjax has it, or why not. `python'
    ' docs/coverage.py` makes this page.',
  ]
  for peer, names in PEERS.items():
    lines += ['', f'## {peer}', '', '| there | here |', '|---|---|']
    for name, ours in names.items():
      if ours.startswith('- '):
        lines.append(f'| {name} | {ours} |')
        continue
      if not exists(ours):
        raise ValueError(f'docs/coverage.py: byzjax has no {ours}')
      lines.append(f'| {name} | `{ours}` |')
  return '\n'.join(lines) + '\n'


if __name__ == '__main__':
  PAGE.write_text(page())
