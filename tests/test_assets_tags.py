"""Wheels that are built for one Python or machine hold data alike: pip is told which one is meant."""

from rbalign.assets.registries import _platform_tags


def test_plain_wheels_need_no_tags_and_platform_wheels_name_theirs() -> None:
    assert _platform_tags("hibari_tts-0.2.1-py3-none-any.whl") == []
    tags = _platform_tags("wordllama-0.4.0.post1-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl")
    assert tags[:4] == ["--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_17_x86_64"]
    assert tags[4:] == ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"]
