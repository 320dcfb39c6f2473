import torch

from optbench.seeds import derive, generator, global_stream


def test_streams_are_reproducible_and_differ_by_name_and_seed() -> None:
    assert derive(0, "init") == derive(0, "init")
    assert (
        len({derive(seed, name) for seed in range(5) for name in ("init", "order", "augmentation")})
        == 15
    )


def test_derived_seeds_never_change() -> None:
    """A result of last year must be reproducible: SHA-256 of `0/init`, first 8 bytes little-endian, halved."""
    assert derive(0, "init") == 3330654677893223573


def test_a_stream_is_independent_of_draws_from_another() -> None:
    first = torch.rand(3, generator=generator(7, "order"))
    torch.rand(100, generator=generator(7, "augmentation"))
    assert torch.equal(first, torch.rand(3, generator=generator(7, "order")))


def test_global_stream_puts_the_global_generator_back() -> None:
    before = torch.get_rng_state()
    with global_stream(0, "init"):
        inside = torch.rand(3)
    assert torch.equal(before, torch.get_rng_state())
    with global_stream(0, "init"):
        assert torch.equal(inside, torch.rand(3))
