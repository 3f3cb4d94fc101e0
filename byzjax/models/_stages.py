"""Models as lists of layers, for estimators that treat each layer apart."""

from flax import nnx

from byzjax.gradients import RecurrentStage, Stage
from byzjax.models._cnn import CNN
from byzjax.models._conv import max_pool
from byzjax.models._mlp import MLP
from byzjax.models._rnn import RNN, RecurrentLayer


def stages(graphdef: nnx.GraphDef) -> tuple[Stage | RecurrentStage, ...]:
  r"""The layers of a model, from input to output, each as a function.

  A layer is its matrix product or convolution with the activation that follows;
  pooling is between layers.

  Args:
    graphdef: structure of an `MLP`, `CNN` or `RNN`, from `split`.

  Returns:
    The stages for `byzjax.target_projection`: `apply(params, h)` takes all
    parameters of the model, and `owns(params)` are those of the layer. Targets
    are as in the papers: for every pixel before pooling, and for every step of
    a recurrent layer. `stage._replace(targets_after=True, readout=64)` and
    `stage._replace(last_step=True, through_time=True)` learn better.

  Raises:
    ValueError: if the model is of a class other than these.

  Example:
    >>> import byzjax, jax
    >>> from byzjax import data, models
    >>> model = models.make('mlp', (8, 8, 1), 10, seed=0)
    >>> graphdef, params = models.split(model)
    >>> stages = models.stages(graphdef)
    >>> len(stages)
    2
    >>> estimator = byzjax.target_projection(
    ...   stages, num_classes=10, projection_key=jax.random.key(0))
    >>> digits = data.load('digits')
    >>> batch = (digits.train_images[:5] / 16, digits.train_labels[:5])
    >>> loss, gradient = estimator(params, batch, jax.random.key(1))
    >>> jax.tree.structure(gradient) == jax.tree.structure(params)
    True
    >>> stages[0]._replace(readout=16).readout  # 16 numbers have the target
    16
  """
  kinds = [getattr(node, 'type', None) for node in graphdef.nodes]

  def model(params):
    return nnx.merge(graphdef, params)

  if kinds[0] is MLP:
    return _of_mlp(model, kinds.count(nnx.Linear))
  if kinds[0] is CNN:
    return _of_cnn(model)
  if kinds[0] is RNN:
    return _of_rnn(model, kinds.count(RecurrentLayer))
  raise ValueError(
    'stages: the model must be an MLP, a CNN or an RNN, got'
    f' {getattr(kinds[0], "__name__", kinds[0])}.'
  )


def _of_mlp(model, num_layers):
  def hidden(index):
    def apply(params, h):
      mlp = model(params)
      return mlp.activation(mlp.layers[index](h.reshape(h.shape[0], -1)))

    return Stage(lambda params: params['layers'][index], apply)

  last = num_layers - 1
  output = Stage(
    lambda params: params['layers'][last],
    lambda params, h: model(params).classify(h.reshape(h.shape[0], -1)),
  )
  return (*(hidden(index) for index in range(last)), output)


def _of_cnn(model):
  def hidden(name, after=None):
    def apply(params, h):
      cnn = model(params)
      return cnn.activation(getattr(cnn, name)(h))

    return Stage(lambda params: params[name], apply, after)

  def pool_and_flatten(y):
    h = max_pool(y)
    return h.reshape(h.shape[0], -1)

  return (
    hidden('conv1', max_pool),
    hidden('conv2', pool_and_flatten),
    hidden('dense1'),
    Stage(
      lambda params: params['dense2'],
      lambda params, h: model(params).classify(h),
    ),
  )


def _of_rnn(model, num_layers):
  def recurrent(index):
    return RecurrentStage(
      lambda params: params['layers'][index],
      lambda params, x, h: model(params).layers[index](x, h),
      lambda params, batch_size: model(params).layers[index].start(batch_size),
    )

  return (
    *(recurrent(index) for index in range(num_layers)),
    Stage(
      lambda params: params['dense'],
      lambda params, h: model(params).classify(h),
    ),
  )
