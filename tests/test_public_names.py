"""The public surface is a list, and the list is true."""

import chatkit


def test_every_public_name_is_there_and_nothing_else_is_listed():
    assert sorted(chatkit.__all__, key=str.casefold) == sorted(
        (n for n in dir(chatkit) if n in chatkit.__all__), key=str.casefold
    )
    assert all(getattr(chatkit, name).__module__.startswith("chatkit.") for name in chatkit.__all__ if name != "Event")


def test_the_version_is_the_installed_one():
    from importlib.metadata import version

    assert version("chatkit") == chatkit.__version__
