"""Upper bounds on kappa, each with its proof.

Throughout, S are h = n - f honest messages, xbar their mean, and
`V = (1/h) sum_{i in S} |x_i - xbar|^2`, one in these functions; a rule with
output y is (f, kappa)-robust if `|y - xbar|^2 <= kappa V` for all messages and
all S. A coordinate rule that has kappa for numbers has it for vectors: both
sides are sums over coordinates.

*Parts.* The mean of a part A of S, of a messages, is within `sqrt((h-a)/a)` of
xbar: with u = mean_A - xbar the rest has its mean at `-a u / (h - a)`, so that
`h V >= a |u|^2 + (h - a) |a u / (h - a)|^2 = |u|^2 a h / (h - a)`.
"""

import math


def part(whole: int, size: int) -> float:
  """How far, squared, the mean of a part may be from the mean of the whole."""
  return (whole - size) / size


def trimmed_mean(n: int, f: int, trimmed: int | None = None) -> float:
  """`f / (n - 2f)`; as good as any rule can be.

  With h_1 <= ... <= h_h the honest values, the k-th value of all lies between
  h_{k-f} and h_k. The mean of those with f < k <= n - f is thus between the
  means of the n - 2f lowest and the n - 2f highest honest ones: two parts. Of t
  >= f values trimmed at either end it is so of the h - t lowest and highest.
  """
  t = f if trimmed is None else trimmed
  return part(n - f, n - f - t)


def coordinate_median(n: int, f: int) -> float:
  """`(n-1) / (n+1-2f)` for odd n, `(n-2) / (n+2-2f)` for even n; sharp.

  Odd n = 2m + 1: the median is at most h_{m+1}, which is at most the mean of
  the h - m highest. Even n = 2m: at most `(h_m + h_{m+1}) / 2`. Over sorted
  values of mean zero a linear function is at most `sqrt(h V)` times the norm of
  the isotonic regression of its coefficients, less their mean; here that of
  (0, ..., 1/2, 1/2, ..., 0) is 0 up to m - 1, and `1 / (h - m + 1)` from m on.
  """
  below = (n - 1) // 2
  return below / (n - f - below)


def lower_median(n: int, f: int) -> float:
  """`n / (n - 2f)` for even n, as for the median for odd n; sharp.

  n = 2m: the m-th value is at least h_{m-f}, which is at least the mean of the
  m - f lowest; it is at most h_m, which gives less.
  """
  return part(n - f, (n + 1) // 2 - f)


def geometric_median(n: int, f: int) -> float:
  """`floor(n/2) / (ceil(n/2) - f)`; sharp.

  At the median y the unit vectors to all messages cancel, where a message at y
  itself may count as any vector of the unit ball. So with c_i the cosine
  between x_i - y and xbar - y, `sum_S c_i <= f`, and `P = sum_S max(c_i, 0)^2`,
  which is convex, is largest where all c_i but one are 1 or -1: P is at most
  floor(n/2). Put y = 0 and xbar = e of length one. For any t >= 0, `|x_i - e|^2
  >= |x_i - (1 + t) e|^2 - t^2 + 2 t (x_i - e) . e`, where the last term sums to
  zero, and the distance of (1 + t) e from the ray of x_i gives `h V >= (1 +
  t)^2 (h - P) - h t^2`; t = (h - P) / P gives `h V >= h (h - P) / P`.
  """
  return (n // 2) / ((n + 1) // 2 - f)


def smallest_max_eigenvalue_averaging(n: int, f: int) -> float:
  """`4 f / (n - 2f)`.

  The chosen messages and S share n - 2f at least. The mean of those is within
  `sqrt(f / (n - 2f) lambda)` of either mean, lambda the larger of the two top
  eigenvalues: that of S, which is at most V.
  """
  return 4 * part(n - f, n - 2 * f)


def minimum_diameter_averaging(n: int, f: int) -> float:
  """`min(2 f sqrt(2/h), f sqrt(2/h) + sqrt(f/(n-2f)))^2`.

  The diameter of the chosen set is at most that of S, whose square is at most
  `2 h V`. Between the mean of S (or of the chosen set) and that of what they
  share there is at most f/h of that diameter, or what holds for parts of S.
  """
  step = f * math.sqrt(2 / (n - f))
  return (step + min(step, math.sqrt(part(n - f, n - 2 * f)))) ** 2


def nearest_to_center(n: int, f: int, count: int, center: float) -> float:
  """The mean of the k messages nearest to a centre that has kappa `center`.

  k <= h. For t <= f chosen messages that are not in S there are t in S that are
  not chosen, and farther from the centre. The chosen ones of S with these are a
  part of S of k messages; replacing z by b in it moves its mean by at most
  `(|b - c| + |z - c|) / k <= 2 |z - c| / k`, where the sum of |z - xbar| over t
  messages is at most `sqrt(t h V)`.
  """
  h, t = n - f, min(f, count)
  moved = math.sqrt(t * h) + t * math.sqrt(center)
  return (math.sqrt(part(h, count)) + 2 * moved / count) ** 2


def krum(n: int, f: int, neighbors: int) -> float:
  """`(sqrt(2 h k / ((h - 1) a)) + sqrt((h - a) / a))^2`, a = k + 1 - f.

  f <= k < h. The k nearest of an honest message are no farther than k of S:
  its score is at most `k / (h - 1)` of its squared distances to S, and the
  mean of the honest scores at most `2 h k / (h - 1) V`, which bounds the lowest
  of all. The chosen message has a honest ones, itself maybe, among it and its
  neighbours, and their mean is no farther from it than root of score over a.
  """
  h, a = n - f, neighbors + 1 - f
  score = 2 * h * neighbors / (h - 1)
  return (math.sqrt(score / a) + math.sqrt(part(h, a))) ** 2


def multi_krum(n: int, f: int, neighbors: int, selected: int) -> float:
  """No more than for `krum`; and O(f / n) where m = n - f are selected.

  First, the m <= h lowest scores have a mean of at most that of the honest
  ones, and the root is concave: the bound for Krum holds for the average.
  Second, for t <= f selected messages b that are not in S there are t of S, z,
  that are not selected, with scores no lower: `score(b) <= k h / (h - 1) (|z -
  xbar|^2 + V)`. What the mean moves when these change places is summed as in
  `nearest_to_center`.
  """
  h, a, t = n - f, neighbors + 1 - f, min(f, selected)
  score = h * neighbors / (h - 1)
  moved = (
    math.sqrt(score / a * t * (h + t))
    + t * math.sqrt(part(h, a))
    + math.sqrt(t * h)
  )
  paired = (math.sqrt(part(h, selected)) + moved / selected) ** 2
  return min(krum(n, f, neighbors), paired)


def covariance_filter(n: int, f: int) -> float:
  """`r (1 + (1 + sqrt(2)) sqrt(K))^2`, r = f / (n - 2f), K = 2 h / (n - 2f).

  Let the filter keep weight w of S, b of the others. While the others lose no
  less than S in each round, `w >= n - 2f + b`. In the first round where they
  do lose less, their part of the variance along v is the smaller one: with u
  the mean of S, so weighted, along v from the overall mean, `w^2 u^2 / b < w
  (s + u^2)`, s its variance, at most h / w times the top eigenvalue L of S.
  Then `lambda <= 2 w (s + u^2) / (w + b) <= 2 h w L / (w^2 - b^2) <= K L`. The
  overall mean is within `sqrt(b lambda / w)` of that of S so weighted, which is
  within `sqrt((h - w) L / w)` of xbar: `sqrt(K r L) + sqrt(r L)` together, in
  this and in all earlier rounds. What a later round remembers is a part of
  this, of a weight above n - 2f out of at most n, and has its mean within
  `sqrt(2 r K L)`. L is at most V.
  """
  r, largest = part(n - f, n - 2 * f), 2 * (n - f) / (n - 2 * f)
  return r * (1 + (1 + math.sqrt(2)) * math.sqrt(largest)) ** 2


def bulyan(n: int, f: int, selected: int, kappa: float) -> float:
  """Of any m > 2f messages that are selected, m - f or more are of S.

  Those are a part of S, on which the second stage, a rule for m messages of
  which f are Byzantine, has `kappa`. It may be any rule: that for all m
  messages and all sets of m - f of them.
  """
  h, honest = n - f, selected - f
  return after_bias(kappa, h / honest, part(h, honest))


def nearest_neighbor_mixing(n: int, f: int, kappa: float) -> float:
  """`8 f / (n - f) (kappa + 1)`, with kappa that of the rule behind it.

  At most f of the neighbours of x_i are not of S, and each replaces a farther
  z of S: `|y_i - xbar| <= (2/h) sum |z - x_i|`, whose square is at most `4 f /
  h^2 sum_S |z - x_i|^2`, and on average over S at most `8 f / h V`.
  """
  spread = 8 * f / (n - f)
  return after_bias(kappa, spread, spread)


def adaptive_clipping(n: int, f: int, kappa: float) -> float:
  """`kappa + k / (n - f - k)`, k = floor(2 f (n - f) / n) clipped messages.

  Let d_i = x_i - y_i be what honest messages lose, and b its mean. Clipping
  projects on a ball: `V = V_y + V_d + 2 cov(y, d)` with cov >= 0, and as at
  most k lose anything, `V_d >= |b|^2 (h - k) / k`. Then `(sqrt(kappa V_y) +
  |b|)^2 <= (kappa + k / (h - k)) V`.
  """
  clipped = 2 * f * (n - f) // n
  return kappa + clipped / (n - f - clipped)


def after_bias(kappa: float, total: float, bias: float) -> float:
  """The most that `(sqrt(kappa v) + sqrt(b))^2` is, v + b <= total, b <= bias.

  For rules that see other points than x_i, at a mean square distance of `total`
  from xbar.
  """
  bias = min(bias, total / (kappa + 1))
  return (math.sqrt(kappa * (total - bias)) + math.sqrt(bias)) ** 2
