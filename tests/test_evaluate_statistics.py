"""Streamed statistics are those of all vectors at once however they are split, and their files are pytorch-fid's."""

import pickle
import weakref
from concurrent.futures import ProcessPoolExecutor
from functools import reduce
from multiprocessing import get_context

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evaluate.distances import frechet_distance
from evaluate.statistics import Statistics, frechet_distance_of, merged, read_statistics, statistics_of, write_statistics

SETS = arrays(np.float64, st.tuples(st.integers(2, 30), st.integers(1, 5)), elements=st.floats(-100, 100, width=32))


def gaussian(seed, n, d):
    return np.random.default_rng(seed).standard_normal((n, d))


def assert_statistics(found, x, rel=1e-9):
    assert found.count == len(x)
    assert found.mean == pytest.approx(x.mean(0), rel=rel, abs=1e-9)
    expected = np.atleast_2d(np.cov(x, rowvar=False)) if len(x) > 1 else np.zeros((x.shape[1], x.shape[1]))
    assert found.covariance == pytest.approx(expected, rel=rel, abs=1e-9 * (1 + np.square(x).max()))


@settings(deadline=None, max_examples=200)
@given(SETS, st.data())
def test_any_splitting_gives_the_statistics_of_all(x, data):
    batch_cuts = sorted(data.draw(st.lists(st.integers(0, len(x)), max_size=8)))
    assert_statistics(statistics_of(np.split(x, batch_cuts)), x)
    part_cuts = sorted(data.draw(st.sets(st.integers(1, len(x) - 1), max_size=4)))
    parts = data.draw(st.permutations([statistics_of(np.array_split(part, 2)) for part in np.split(x, part_cuts)]))
    assert_statistics(reduce(merged, parts), x)


def test_no_batch_is_kept():
    alive = []

    def batches():
        for seed in range(20):
            batch = gaussian(seed, 10, 4)
            alive.append(weakref.ref(batch))
            yield batch
            del batch
            assert sum(one() is not None for one in alive) <= 1  # the caller's loop still names the last one

    assert statistics_of(batches()).count == 200


def test_a_mean_far_from_zero_costs_few_digits():
    # Integers of this size are exact in float64; the sum of their squares is off by hundreds.
    x = np.random.default_rng(0).integers(-3, 4, (999, 3)).astype(float)
    far = statistics_of(np.split(x + 1e9, [1, 10, 500]))
    assert far.covariance == pytest.approx(np.cov(x.T), rel=1e-6, abs=1e-6)
    both = merged(statistics_of([x[:300] + 1e9]), statistics_of([x[300:] + 1e9]))
    assert both.covariance == pytest.approx(np.cov(x.T), rel=1e-6, abs=1e-6)


def part_of(seed):
    return statistics_of([gaussian(seed, 50, 3)])


def test_processes_share_the_work():
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        found = reduce(merged, pool.map(part_of, range(3)))
    assert_statistics(found, np.concatenate([gaussian(seed, 50, 3) for seed in range(3)]))


@pytest.mark.parametrize(("n", "d"), [(60, 5), (12, 20)])
def test_distance_of_statistics_is_that_of_the_vectors(n, d):
    x, y = gaussian(0, n, d), 2 * gaussian(1, n + 3, d) + 1
    one, other = statistics_of(np.array_split(x, 4)), statistics_of([y])
    assert frechet_distance_of(one, other) == pytest.approx(frechet_distance(x, y), rel=1e-6)
    assert frechet_distance_of(one, one) == pytest.approx(0, abs=1e-5)


def test_distance_of_two_gaussians_that_commute():
    # Diagonal covariances: the squared difference of means plus that of standard deviations, feature by feature.
    one = Statistics(None, np.array([0.0, 1, 2]), np.diag([1.0, 4, 0]))
    other = Statistics(None, np.array([3.0, 1, 0]), np.diag([9.0, 1, 1]))
    assert frechet_distance_of(one, other) == pytest.approx((9 + 0 + 4) + (4 + 1 + 1))


def test_single_precision_vectors_are_summed_in_double():
    x = gaussian(0, 500, 4).astype(np.float32) + np.float32(1000)
    assert_statistics(statistics_of([x]), x.astype(np.float64))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "empty"),
        ([np.zeros((0, 3))], "empty"),
        ([np.zeros(3)], "batches"),
        ([np.zeros((4, 3)), np.zeros((4, 2))], "of one D"),
        ([np.zeros((4, 3)), np.full((1, 3), np.inf)], "NaN or infinity"),
    ],
)
def test_refuses_what_has_no_statistics(batches, message):
    with pytest.raises(ValueError, match=message):
        statistics_of(batches)


def test_refuses_what_does_not_go_together():
    three, two, single = statistics_of([gaussian(0, 9, 3)]), statistics_of([gaussian(0, 9, 2)]), statistics_of([gaussian(0, 1, 3)])
    for combine in (merged, frechet_distance_of):
        with pytest.raises(ValueError, match="3 features"):
            combine(three, two)
    with pytest.raises(ValueError, match="2 samples"):
        frechet_distance_of(three, single)
    with pytest.raises(ValueError, match="count"):
        merged(three, Statistics(None, three.mean, three.covariance))
    assert merged(three, single).count == 10


def test_files_are_pytorch_fids(tmp_path):
    file, found = tmp_path / "real.npz", statistics_of([gaussian(0, 30, 4)])
    write_statistics(file, found)
    with np.load(file) as theirs:  # as pytorch_fid.fid_score.compute_statistics_of_path reads it
        assert (theirs["mu"][:] == found.mean).all()
        assert (theirs["sigma"][:] == found.covariance).all()
    again = read_statistics(file)
    assert (again.count, again.mean.tolist(), again.covariance.tolist()) == (30, found.mean.tolist(), found.covariance.tolist())
    np.savez_compressed(file, mu=found.mean, sigma=found.covariance)  # as its save_fid_stats writes it
    assert read_statistics(file).count is None
    assert (read_statistics(file).covariance == found.covariance).all()
    write_statistics(file, read_statistics(file))
    assert read_statistics(file).count is None


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    file, found = tmp_path / "real.npz", statistics_of([gaussian(0, 30, 4)])
    write_statistics(file, found)
    before = file.read_bytes()

    def full_disk(descriptor):  # half of the file is there
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("evaluate.files.os.fsync", full_disk)
    with pytest.raises(OSError, match=r"No space left on device; no file was written or replaced: '.*real\.npz'"):
        write_statistics(file, found)
    assert [one.name for one in tmp_path.iterdir()] == ["real.npz"]
    assert file.read_bytes() == before
    with pytest.raises(FileNotFoundError, match=r"nowhere/real\.npz"):
        write_statistics(tmp_path / "nowhere" / "real.npz", found)


class Alarm:
    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


def arrays_file(**content):
    return lambda file: np.savez(file, **content)


MU, SIGMA = np.zeros(3), np.eye(3)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda file: file.write_bytes(b""), "not a statistics file"),
        (lambda file: file.write_bytes(b"PK\x03\x04 nearly a zip"), "not a statistics file"),
        (lambda file: file.write_bytes(pickle.dumps(Alarm())), "not a statistics file"),
        (lambda file: np.save(file.with_suffix(".npy"), MU) or file.with_suffix(".npy").rename(file), "not a statistics file"),
        (arrays_file(mu=MU), "sigma"),
        (arrays_file(mu=MU, sigma=np.array([Alarm()], object)), "not a statistics file"),
        (arrays_file(mu=np.array(["a"]), sigma=SIGMA), "not a statistics file"),
        (arrays_file(mu=MU, sigma=np.eye(2)), r"mu is \(3,\) and sigma \(2, 2\)"),
        (arrays_file(mu=np.zeros(0), sigma=np.zeros((0, 0))), "mu is"),
        (arrays_file(mu=MU, sigma=SIGMA * np.nan), "NaN"),
        (arrays_file(mu=MU, sigma=-SIGMA), "no covariance"),
        (arrays_file(mu=MU, sigma=np.triu(np.ones((3, 3)))), "no covariance"),
        (arrays_file(mu=MU, sigma=SIGMA, count=np.int64(0)), "counts 0"),
    ],
)
def test_what_is_no_statistics_file_is_told_in_one_line(tmp_path, write, message):
    file = tmp_path / "odd.npz"
    write(file)
    with pytest.raises(ValueError, match=message) as told:
        read_statistics(file)
    assert "odd.npz" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    file = tmp_path / "real.npz"
    write_statistics(file, statistics_of([gaussian(0, 30, 4)]))
    whole = file.read_bytes()
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"real\.npz"):
            read_statistics(file)
