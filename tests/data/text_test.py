"""Text: what is read, how it is cut, and batches of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from byzjax import data
from tests.data.sources_test import TFDS_DIR, needs


def words(text, tokens):
  return ''.join(text.vocabulary[i] for i in tokens)


class _Poems(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A text in TFDS's own format, with two records in a split."""

  name = 'poems'
  VERSION = tfds.core.Version('1.0.0')
  features = {'text': tfds.features.Text()}
  splits = {'train': ['abc', 'déf'], 'test': ['z!']}

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(self.features)
    )

  def _split_generators(self, dl_manager):
    return {k: self._generate_examples(v) for k, v in self.splits.items()}

  def _generate_examples(self, texts):
    for i, text in enumerate(texts):
      yield i, {next(iter(self.features)): text}


class _NoTest(_Poems, skip_registration=True):
  name = 'no_test'
  splits = {'train': ['abc']}


class _NoText(_Poems, skip_registration=True):
  name = 'no_text'
  features = {'prose': tfds.features.Text()}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('tfds')
  for builder in (_Poems, _NoTest, _NoText):
    builder(data_dir=path, file_format='array_record').download_and_prepare()
  return path


def test_sonnets():
  text = data.load_text('sonnets')
  assert text.name == 'sonnets'
  assert text.train.dtype == text.test.dtype == np.int32
  assert 6_000 < text.train.size < 10_000 and 1_000 < text.test.size < 1_500
  assert list(text.vocabulary) == sorted(set(text.vocabulary))
  used = np.unique(np.concatenate([text.train, text.test]))
  np.testing.assert_array_equal(used, np.arange(len(text.vocabulary)))
  train, test = words(text, text.train), words(text, text.test)
  assert "\n\nShall I compare thee to a summer's day?\n" in train
  assert test.startswith('Let me not to the marriage of true minds\n')
  assert test.endswith('As any she belied with false compare.\n')
  poems = [*train.split('\n\n'), *test.split('\n\n')]
  assert [len(p.strip().split('\n')) for p in poems] == [14] * 14


def test_genesis():
  text = data.load_text('genesis')
  train, test = words(text, text.train), words(text, text.test)
  assert train.startswith('In the beginning God created the heaven and the ')
  assert test.endswith('and he was put in a coffin in Egypt.\n')
  chapters = [*train.split('\n\n'), *test.split('\n\n')]
  verses = [len(chapter.strip().split('\n')) for chapter in chapters]
  # As in every edition.
  assert len(verses) == 50 and sum(verses) == 1533
  assert verses[:3] == [31, 25, 24] and verses[-1] == 26
  assert text.vocabulary.isascii() and not set('#[]') & set(text.vocabulary)


def test_reads_a_prepared_text(folder, monkeypatch):
  text = data.load_text('poems', folder)
  assert text.vocabulary == '!abcdefzé'.replace('e', '')
  # TFDS shuffles records.
  assert words(text, text.train) in ('abcdéf', 'défabc')
  assert words(text, text.test) == 'z!'
  monkeypatch.setenv('TFDS_DATA_DIR', str(folder))
  np.testing.assert_array_equal(data.load_text('poems').train, text.train)


@needs('tiny_shakespeare')
def test_tiny_shakespeare():
  text = data.load_text('tiny_shakespeare', TFDS_DIR)
  assert (text.train.size, text.test.size) == (1_003_854, 55_770)
  assert len(text.vocabulary) == 65
  assert words(text, text.train[:15]) == 'First Citizen:\n'


def test_a_missing_text_says_what_to_do(monkeypatch, tmp_path, folder):
  monkeypatch.delenv('TFDS_DATA_DIR', raising=False)
  monkeypatch.setenv('HOME', str(tmp_path))
  looked_in = tmp_path / 'tensorflow_datasets'
  with pytest.raises(ValueError) as error:
    data.load_text('tiny_shakespeare')
  assert str(error.value).startswith(
    f"load_text: name='tiny_shakespeare' is not in the folder '{looked_in}', "
    'which holds nothing. Known names are sonnets, genesis (need no folder), '
    'tiny_shakespeare and other sets of TFDS'
  )
  with pytest.raises(ValueError, match="load_text: name='poems:2.0.0' is not"):
    data.load_text('poems:2.0.0', folder)


def test_refuses_what_is_no_text_with_a_test_split(folder):
  with pytest.raises(ValueError, match="load_text: .*'no_test' must .* train"):
    data.load_text('no_test', folder)
  with pytest.raises(ValueError, match='load_text: .* got prose: Text'):
    data.load_text('no_text', folder)


@pytest.mark.parametrize('length', [1, 4, 9])
def test_every_token_after_the_first_is_a_target_once(length):
  tokens = np.arange(100, 137)
  found = data.documents(tokens, length)
  assert found.dtype == np.int32
  assert found.shape == (36 // length, length + 1)
  targets = found[:, 1:].ravel()
  np.testing.assert_array_equal(targets, tokens[1 : 1 + targets.size])
  np.testing.assert_array_equal(found[:, 0], tokens[:-1:length][: len(found)])


@pytest.mark.parametrize(
  'tokens, message',
  [
    (np.arange(4), 'at least length'),
    (np.ones(9), 'a vector of integers, got shape .9,. and dtype float64'),
    (np.ones((9, 2), int), 'a vector of integers, got shape .9, 2.'),
  ],
)
def test_refuses_tokens(tokens, message):
  with pytest.raises(ValueError, match=f'documents: tokens must .*{message}'):
    data.documents(tokens, 4)


def test_batches_are_a_workers_own_documents_and_the_draws_of_local_sampler():
  documents = data.documents(np.arange(61), 5)
  partition = data.random_shards(np.zeros(12, int), 3)
  sampler = data.sequence_sampler(documents, batch_size=4)
  images = data.local_sampler(documents, np.arange(12), batch_size=4)
  for worker in range(3):
    mine = jax.tree.map(lambda x, i=worker: jnp.asarray(x[i]), partition)
    key = jax.random.key(worker)
    batch, _ = sampler.draw((), mine, jnp.array(0), key)
    (same, labels), _ = images.draw((), mine, jnp.array(0), key)
    assert batch.dtype == jnp.int32
    np.testing.assert_array_equal(batch, same.astype(int))
    assert set(labels.tolist()) <= set(partition.indices[worker].tolist())


def test_shuffled_passes_give_out_every_document():
  documents = data.documents(np.arange(61), 5)
  sampler = data.sequence_sampler(documents, batch_size=2, shuffled=True)
  mine = data.Partition(jnp.array([3, 7, 1, 9, 3]), jnp.array(4))
  plan = sampler.start((), (), mine, jax.random.key(0))
  seen = []
  for step in range(2):
    batch, plan = sampler.draw(
      plan, mine, jnp.array(step), jax.random.key(step)
    )
    seen += (batch[:, 0] // 5).tolist()
  assert sorted(seen) == [1, 3, 7, 9]


def test_refuses_a_batch_size():
  with pytest.raises(ValueError, match='sequence_sampler needs batch_size'):
    data.sequence_sampler(np.zeros((3, 4), int), batch_size=0)
