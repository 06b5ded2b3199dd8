"""Tests for authors of plugins: tiny models, images and stores, and checks of contributions.

::

    from timmscope.testing import conformance

    test_conforms = conformance("my-thing")

Fixtures come with ``pytest_plugins = ["timmscope.testing.fixtures"]`` in ``conftest.py``.
"""

from timmscope.testing.conformance import Check, checks, conformance
from timmscope.testing.models import tiny_images, tiny_model
from timmscope.testing.subjects import tiny_store

__all__ = ["Check", "checks", "conformance", "tiny_images", "tiny_model", "tiny_store"]
